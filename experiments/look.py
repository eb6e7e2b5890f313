"""Look into a run of pretrain.py: the countries of the pocket encyclopedia in the plane, before and
after pre-training, drawn into the run's folder as look-map.png.

    python -m experiments.look --run=out/pocket-bert1

A page shows what it predicts and where it looks: python -m experiments.play
"""
import io
from collections import Counter
from pathlib import Path

import torch

import pretrain
from data.files import write_atomically
from data.flags import new_parser, run_script, user_path
from data.pocket_facts import load_facts
from model import BertForMaskedLM, rotate
from training import load_checkpoint

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
    draw_map(model, tokenizer, load_checkpoint(run)["args"]["seed"], run)


if __name__ == "__main__":
    run_script(main)
