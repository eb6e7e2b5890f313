"""Look into a run of pretrain.py: pictures of what it has learned, drawn into the run's folder.

    python -m experiments.look --run=out/pocket-bert1
    python -m experiments.look --run=out/pocket-bert1 --text="Paris is the capital of [MASK]."

look-map.png        the countries of the pocket encyclopedia in the plane, before and after
look-frequency.png  the share named of each hidden token, by its frequency (arXiv 2509.03407)
look-attention.png  with --text: where each token looks, head by head
look-mask.png       with a [MASK] in it: its likeliest words, from checkpoint to checkpoint, if
                    the run kept them (pretrain.py --keep)
"""
import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import pretrain
from data.flags import check_limits, new_parser, run_script
from data.pocket_facts import load_facts
from data.tokenfile import open_split, write_atomically
from model import IGNORE, BertForMaskedLM, rotate

# Okabe and Ito's colours, which the colour-blind tell apart; the shapes do without colour.
STYLES = {"Africa": ("#d55e00", "o"), "Asia": ("#e69f00", "^"), "Europe": ("#0072b2", "s"),
          "North America": ("#000000", "x"), "Oceania": ("#009e73", "D"),
          "South America": ("#cc79a7", "P")}
NAMED = {"Brazil", "Canada", "Egypt", "Fiji", "France", "Germany", "India", "Japan", "Kenya"}


@torch.no_grad()
def country_states(model, tokenizer, names):
    """-> (n, C): the final state of each name in the same sentence, the mean over its tokens."""
    states = []
    for name in names:
        ids = pretrain.as_sequence(f"I live in {name}.", tokenizer)
        pretrain.refuse_long(ids, model, f"the map's sentence of {name}")
        before = tokenizer.encode("I live in the" if name.startswith("the ") else "I live in")
        states.append(model.bert(torch.tensor([ids]))[0, 1 + len(before):-2].mean(0))
    return torch.stack(states)


def neighbour_accuracy(points, labels):
    """points (n, C), labels (n) -> the share whose nearest other, by cosine, has their label."""
    directions = torch.nn.functional.normalize(points, dim=-1)
    nearest = (directions @ directions.T).fill_diagonal_(-torch.inf).argmax(1)
    return sum(labels[i] == labels[j] for i, j in enumerate(nearest.tolist())) / len(labels)


def plane(points):
    """points (n, C) -> (n, 2): where they lie along the two directions of largest variance."""
    centred = points - points.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


@torch.no_grad()
def guess(model, batches):
    """-> the hidden tokens of the batches, and what the model names first (two numpy arrays)."""
    truth, named = [], []
    for batch in batches:
        real = batch.targets != IGNORE
        truth.append(batch.targets[real])
        named.append(model(batch.tokens, batch.mask, batch.at)[real].argmax(-1))
    return torch.cat(truth).numpy(), torch.cat(named).numpy()


def count_by_token(truth, named, vocab_size):
    """-> how often each token was hidden, and how often it was then named (two arrays)."""
    right = truth[truth == named]
    return np.bincount(truth, minlength=vocab_size), np.bincount(right, minlength=vocab_size)


@torch.no_grad()
def attention(model, tokens, layer):
    """tokens (1, T), layer from 1 -> (nh, T, T): what share a row's token takes from a column's."""
    attn, inputs = model.bert.blocks[layer - 1].attn, []
    hook = attn.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    model.bert(tokens)
    hook.remove()
    x, _, _, turns, _ = inputs
    heads = (x.size(1), attn.n_head, -1)
    q, k = (part(x[0]).view(heads).transpose(0, 1) for part in (attn.query, attn.key))
    q, k = (q, k) if turns is None else (rotate(q, turns), rotate(k, turns))
    return (q @ k.mT / q.size(-1) ** 0.5).softmax(-1)


def new_figure(width, height):
    try:
        from matplotlib.figure import Figure  # not on top: the rest works without it
    except ImportError:
        raise SystemExit("pictures need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path):
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomically(path, content.getvalue())
    print(f"wrote {path}")


def word(tokenizer, token):
    """A token in print; as in BERT's own vocabulary ## stands before what goes on with a word."""
    text = tokenizer.bpe.decode([int(token)])
    return "##" + text if text[0].isalnum() else text.strip()


def draw_map(model, tokenizer, seed, folder):
    figure = new_figure(11, 6)
    countries = [row for row in load_facts()["countries"] if row["continent"] in STYLES]
    names, continents = ([row[column] for row in countries] for column in ("name", "continent"))
    torch.manual_seed(seed)
    n, pairs = len(names), sum(k * (k - 1) for k in Counter(continents).values())
    print(f"{n} countries: two drawn at random are on one continent in {pairs / n / (n - 1):.1%}")
    panels = {"random weights": BertForMaskedLM(model.bert.config).eval(),  # as the run began
              "after pre-training": model}
    for axes, (when, encoder) in zip(figure.subplots(1, 2), panels.items()):
        points = country_states(encoder, tokenizer, names)
        places, share = plane(points).numpy(), neighbour_accuracy(points, continents)
        for continent, (color, marker) in STYLES.items():
            inside = [i for i, other in enumerate(continents) if other == continent]
            axes.scatter(*places[inside].T, s=22, color=color, marker=marker, label=continent)
        for name, place in zip(names, places.tolist()):
            if name in NAMED:
                axes.annotate(name, place, xytext=(4, 3), textcoords="offset points", fontsize=8)
        axes.set(title=f"{when}: {share:.0%} of the nearest\nneighbours are on the same continent",
                 xticks=[], yticks=[])
        print(f"{when}: the nearest neighbour is on the same continent in {share:.1%}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save(figure, folder / "look-map.png")


def draw_frequency(model, tokenizer, dataset, folder):
    pretrain.prepare_pocket(dataset, rank=0)
    truth, named = guess(model, pretrain.validation_batches(
        dataset, tokenizer, model.bert.config.block_size, torch.device("cpu")))
    mistakes = Counter(zip(truth[truth != named].tolist(), named[truth != named].tolist()))
    print("most confused:", ", ".join(f"'{word(tokenizer, a)}' read as '{word(tokenizer, b)}' {n}x"
                                      for (a, b), n in mistakes.most_common(10)))
    hidden, right = count_by_token(truth, named, tokenizer.vocab_size)
    frequency = np.bincount(open_split(dataset, "train")[0], minlength=len(hidden))
    figure = new_figure(8, 5.5)
    axes, labelled = figure.subplots(), []
    often = np.flatnonzero((hidden >= 10) & (frequency > 0))
    axes.scatter(frequency[often], right[often] / hidden[often], s=9, color="#999999",
                 label="a token, if hidden ten times or more")
    for i in often[np.argsort(-frequency[often])]:
        x, y = math.log10(frequency[i]), right[i] / hidden[i]
        if all(abs(x - a) > 0.25 or abs(y - b) > 0.04 for a, b in labelled):  # room for its name
            axes.annotate(word(tokenizer, i), (frequency[i], y), xytext=(2, 2), fontsize=8,
                          textcoords="offset points", parse_math=False)
            labelled.append((x, y))
    octave = np.log2(frequency.clip(1)).astype(int)
    n, n_right = np.bincount(octave, hidden), np.bincount(octave, right)
    shown = np.flatnonzero(n >= 20)  # octaves with enough of them
    axes.plot(2.0 ** (shown + 0.5), n_right[shown] / n[shown], "o-", color="#0072b2",
              label="all tokens of about this frequency")
    axes.set(xscale="log", xlabel="occurrences in the training split", ylabel="share named",
             title=f"{len(truth):,} hidden tokens, {right.sum() / len(truth):.1%} named")
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, folder / "look-frequency.png")


def draw_attention(model, tokenizer, text, layer, folder):
    ids = pretrain.as_sequence(text, tokenizer)
    pretrain.refuse_long(ids, model, "--text")
    weights, words = attention(model, torch.tensor([ids]), layer), [word(tokenizer, i) for i in ids]
    n_rows, size = round(len(weights) ** 0.5), max(2.5, 0.2 * len(ids))
    n_columns = math.ceil(len(weights) / n_rows)
    figure = new_figure(n_columns * size + 2, n_rows * size + 1)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for head, (axes, shares) in enumerate(zip(panels, weights), start=1):
        image = axes.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=weights.max())
        axes.set_xticks(range(len(ids)), words, rotation=90, parse_math=False)
        axes.set_yticks(range(len(ids)), words, parse_math=False)
        axes.set(title=f"layer {layer}, head {head}")
    for axes in panels[len(weights):]:
        axes.remove()
    figure.colorbar(image, ax=figure.axes, shrink=0.5, label="share that a row takes of a column")
    save(figure, folder / "look-attention.png")


@torch.no_grad()
def words_over_steps(run, text):
    """The probabilities of the vocabulary at the first [MASK] of a text by each model that the run
    kept. -> steps (list), probabilities (numpy, len(steps) x n_words)."""
    steps, rows = sorted(int(path.name[5:]) for path in run.glob("step-*")), []
    for step in steps:
        model, tokenizer = pretrain.load_model(run / f"step-{step}")
        ids = pretrain.as_sequence(text, tokenizer)
        logits = model(torch.tensor([ids]), None, torch.tensor([[ids.index(tokenizer.mask)]]))
        rows.append(logits[0, 0].softmax(-1)[:tokenizer.n_words].numpy())
    return steps, np.array(rows)


def draw_mask(tokenizer, text, run):
    steps, rows = words_over_steps(run, text)
    if not steps:
        return print("no look-mask.png: the run has kept no checkpoints (pretrain.py --keep)")
    for step, row in zip(steps, rows):
        likeliest = np.argsort(-row)[:5]
        print(f"step {step:6,}   " + "   ".join(f"{word(tokenizer, i)} {row[i]:.1%}"
                                                for i in likeliest))
    figure = new_figure(8, 4.5)
    axes, styles = figure.subplots(), list(STYLES.values())
    # those that lead at the end, then those that led meanwhile
    shown = dict.fromkeys([*np.argsort(-rows[-1])[:3], *np.argsort(-rows.max(0))[:6]])
    for i, (color, marker) in zip(shown, styles):
        axes.plot(steps, 100 * rows[:, i], color=color, marker=marker, label=word(tokenizer, i))
    axes.set(xlabel="steps of training", ylabel="probability (%)", ylim=(0, None))
    axes.set_title(text, parse_math=False)
    figure.legend(loc="outside right center")
    save(figure, run / "look-mask.png")


def main(argv=None):
    parser = new_parser("python -m experiments.look", __doc__)
    parser.add_argument("--run", default="out/pocket-bert1", help="a run of pretrain.py")
    parser.add_argument("--text", help="draw the attention of this text; [MASK] hides a word")
    parser.add_argument("--layer", type=int, help="of which layer; by default the last")
    args = parser.parse_args(argv)
    run, (model, tokenizer) = Path(args.run), pretrain.load_model(args.run)
    check_limits(args, {"layer": (1, model.bert.config.n_layer)})
    flags = pretrain.load_checkpoint(run)["args"]
    if args.text is not None:
        draw_attention(model, tokenizer, args.text, args.layer or model.bert.config.n_layer, run)
        if "[MASK]" in args.text:
            draw_mask(tokenizer, args.text, run)
    draw_frequency(model, tokenizer, flags["dataset"], run)
    draw_map(model, tokenizer, flags["seed"], run)


if __name__ == "__main__":
    run_script(main)
