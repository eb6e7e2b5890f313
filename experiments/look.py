"""Look into a run of pretrain.py: pictures of what it has learned, drawn into the run's folder.

    python -m experiments.look --run=out/pocket-bert1

look-map.png        the countries of the pocket encyclopedia in the plane, before and after
look-frequency.png  how often each masked token is predicted, by its frequency (arXiv 2509.03407)

A page shows what it predicts and where it looks: python -m experiments.play
"""
import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import pretrain
from data.files import write_atomically
from data.flags import new_parser, run_script, user_path
from data.pocket_facts import load_facts
from model import IGNORE, BertForMaskedLM, rotate
from training import check_vocabulary, load_checkpoint

# Okabe and Ito's colours, which the colour-blind can distinguish; so can all by the shapes.
STYLES = {"Africa": ("#d55e00", "o"), "Asia": ("#e69f00", "^"), "Europe": ("#0072b2", "s"),
          "North America": ("#000000", "x"), "Oceania": ("#009e73", "D"),
          "South America": ("#cc79a7", "P")}
NAMED = {"Brazil", "Canada", "Egypt", "Fiji", "France", "Germany", "India", "Japan", "Kenya"}


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


def spell(tokenizer, token):
    """A token in print; as in BERT's own vocabulary ## marks one that continues a word."""
    text = tokenizer.bpe.decode([int(token)])
    return "##" + text if text[0].isalnum() else text.strip()


# ---- the map -------------------------------------------------------------------------------------

@torch.no_grad()
def country_states(model, tokenizer, names):
    """-> (n, C): the final state of each name in the same sentence, the mean over its tokens."""
    states = []
    for name in names:
        ids = pretrain.encode_with_mask(f"I live in {name}.", tokenizer)
        pretrain.check_length(ids, model, f"the map's sentence of {name}")
        before = tokenizer.encode("I live in the" if name.startswith("the ") else "I live in")
        states.append(model.bert(torch.tensor([ids]))[0, 1 + len(before):-2].mean(0))
    return torch.stack(states)


def neighbour_accuracy(points, labels):
    """points (n, C), labels (n) -> the share whose nearest other, by cosine, has their label."""
    directions = torch.nn.functional.normalize(points, dim=-1)
    nearest = (directions @ directions.T).fill_diagonal_(-torch.inf).argmax(1)
    return sum(labels[i] == labels[j] for i, j in enumerate(nearest.tolist())) / len(labels)


def plane(points):
    """points (n, C) -> (n, 2): their coordinates along the two directions of largest variance."""
    centred = points - points.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


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
        states = country_states(encoder, tokenizer, names)
        points, share = plane(states).numpy(), neighbour_accuracy(states, continents)
        for continent, (color, marker) in STYLES.items():
            inside = [i for i, other in enumerate(continents) if other == continent]
            axes.scatter(*points[inside].T, s=22, color=color, marker=marker, label=continent)
        for name, point in zip(names, points.tolist()):
            if name in NAMED:
                axes.annotate(name, point, xytext=(4, 3), textcoords="offset points", fontsize=8)
        axes.set(title=f"{when}: {share:.0%} of the nearest\nneighbours are on the same continent",
                 xlabel="first principal component", ylabel="second", xticks=[], yticks=[])
        print(f"{when}: the nearest neighbour is on the same continent in {share:.1%}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save(figure, folder / "look-map.png")


# ---- accuracy by frequency -----------------------------------------------------------------------

@torch.no_grad()
def predict_masked(model, batches):
    """-> the masked tokens of the batches, and what the model predicts (two numpy arrays)."""
    truth, predicted = [], []
    for batch in batches:
        real = batch.targets != IGNORE
        truth.append(batch.targets[real])
        predicted.append(model(batch.tokens, batch.mask, batch.positions)[real].argmax(-1))
    return torch.cat(truth).numpy(), torch.cat(predicted).numpy()


def draw_frequency(model, tokenizer, dataset, folder):
    """dataset (str): the one that the run was pre-trained on."""
    dataset = pretrain.open_dataset(dataset, rank=0)
    check_vocabulary(folder, tokenizer.fingerprint, dataset)
    batches = pretrain.validation_batches(dataset, model.bert.config.block_size,
                                          torch.device("cpu"))
    truth, predicted = predict_masked(model, batches)
    wrong = truth != predicted
    mistakes = Counter(zip(truth[wrong].tolist(), predicted[wrong].tolist())).most_common(10)
    print("most confused:", ", ".join(f"'{spell(tokenizer, a)}' read as '{spell(tokenizer, b)}' "
                                      f"{n}x" for (a, b), n in mistakes))
    n_masked, n_right = (np.bincount(tokens, minlength=tokenizer.vocab_size)
                         for tokens in (truth, truth[~wrong]))
    frequency = np.bincount(dataset.split("train")[0], minlength=len(n_masked))
    figure = new_figure(8, 5.5)
    axes, labelled = figure.subplots(), []
    often = np.flatnonzero((n_masked >= 10) & (frequency > 0))
    axes.scatter(frequency[often], n_right[often] / n_masked[often], s=9, color="#999999",
                 label="a token, if masked ten times or more")
    for i in often[np.argsort(-frequency[often])]:
        x, y = math.log10(frequency[i]), n_right[i] / n_masked[i]
        if all(abs(x - a) > 0.25 or abs(y - b) > 0.04 for a, b in labelled):  # room for its name
            axes.annotate(spell(tokenizer, i), (frequency[i], y), xytext=(2, 2), fontsize=8,
                          textcoords="offset points", parse_math=False)
            labelled.append((x, y))
    octave = np.log2(frequency.clip(1)).astype(int)
    masked_in, right_in = np.bincount(octave, n_masked), np.bincount(octave, n_right)
    shown = np.flatnonzero(masked_in >= 20)  # octaves with enough of them
    axes.plot(2.0 ** (shown + 0.5), right_in[shown] / masked_in[shown], "o-", color="#0072b2",
              label="all tokens of about this frequency")
    axes.set(xscale="log", xlabel="occurrences in the training split", ylabel="share predicted",
             title=f"{len(truth):,} masked tokens, {n_right.sum() / len(truth):.1%} predicted")
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, folder / "look-frequency.png")


# ---- attention, which experiments/play.py shows --------------------------------------------------

@torch.no_grad()
def attention(model, tokens, layer):
    """tokens (1, T), layer from 1 -> (nh, T, T): what share a row's token takes from a column's."""
    attn, inputs = model.bert.blocks[layer - 1].attn, []
    hook = attn.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    model.bert(tokens)
    hook.remove()
    x, _, _, cos_sin, _ = inputs
    heads = (x.size(1), attn.n_head, -1)
    q, k = (part(x[0]).view(heads).transpose(0, 1) for part in (attn.query, attn.key))
    if cos_sin is not None:
        q, k = rotate(q, cos_sin), rotate(k, cos_sin)
    return (q @ k.mT / q.size(-1) ** 0.5).softmax(-1)


def main(argv=None):
    parser = new_parser("python -m experiments.look", __doc__)
    parser.add_argument("--run", type=user_path, default="out/pocket-bert1",
                        help="a run of pretrain.py")
    args = parser.parse_args(argv)
    run, (model, tokenizer) = Path(args.run), pretrain.load_model(args.run)
    flags = load_checkpoint(run)["args"]
    draw_frequency(model, tokenizer, flags["dataset"], run)
    draw_map(model, tokenizer, flags["seed"], run)


if __name__ == "__main__":
    run_script(main)
