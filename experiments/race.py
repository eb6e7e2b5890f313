"""How long until a model is good? pretrain.py against transformers' BERT, trained on the same text.

    python -m experiments.race                                 # the pocket encyclopedia, one layer
    python -m experiments.race --dataset=wikipedia-20000 --n_layer=6
    timeout -s INT 9m python -m experiments.race               # a slice; the same command goes on
    python -m experiments.race --collect                       # tables and picture; runs nothing

Every contestant is 256 wide, reads each text equally often, and predicts the same masked tokens of
the validation texts, so that losses can be compared to the last digit. Minutes are those of
training, without evaluations. A run has the machine for itself, and contestants take turns, seed by
seed. The table has the mean over the seeds; "-" where one of them does not reach the loss.

- **ours**: pretrain.py by its defaults.
- **ours by AdamW**: the same with AdamW for all weights, which tells the optimizer from the rest.
- **transformers**: that library's BertForMaskedLM as an expert would run it. Our loop gives it what
  ours gets: fused AdamW, texts of similar length together, the fastest number format, memory that
  is kept, logits at the masked positions only. On a CPU it has the library's plain attention,
  which trains faster there than the fused one. Its learning rate is the best of five, its mask
  share and batch size are then the best of four pairs: eight runs with seed 0, judged by their
  final loss. The race has other seeds. (The first three races were without the lowest rate.)
- **best of tuning**: at each loss the fastest of these, which nobody knows beforehand.
"""
import datetime
import math
import multiprocessing
import re
import shutil
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import torch

import pretrain
from data.files import read_json_lines, write_atomically, write_json_lines
from data.flags import new_parser, number, run_script, user_path
from experiments.figures import COLORS, MARKERS
from experiments.look import new_figure, save
from experiments.report import format_sd, markdown, mean_and_sd
from experiments.reproduce import RESULTS, ROOT, machine
from model import BertForMaskedLM, gather_positions, sum_of_losses
from training import COUNT, find_problem

OUT, ROWS = ROOT / "out" / "race", RESULTS / "results" / "race.jsonl"
OURS = {"ours": "", "ours by AdamW": "--optimizer=adamw --lr=0.002 --weight_decay=0.1"}
PEER, BEST = "transformers", "best of tuning"
PEER_FLAGS = "--optimizer=adamw --weight_decay=0.1 --n_candidates=0 --pos=learned"
RATES = (0.00025, 0.0005, 0.001, 0.002, 0.004)  # to tune the peer, by the first pair
PAIRS = [f"--mask_prob={share} --batch_size={size}" for share in (0.4, 0.15) for size in (32, 64)]
LADDER = (6.5, 6.0, 5.5, 5.0, 4.5, 4.0, 3.5, 3.0)


class Peer(torch.nn.Module):
    """transformers' masked-language model of our BertConfig, called as ours is."""

    def __init__(self, config):
        super().__init__()
        try:
            from transformers import BertConfig, BertForMaskedLM  # --collect does without
        except ImportError:
            raise SystemExit("the peer is transformers' model: pip install transformers") from None
        self.bert = SimpleNamespace(config=config)  # for pretrain.py
        self.peer = BertForMaskedLM(BertConfig(
            vocab_size=config.vocab_size, max_position_embeddings=config.block_size,
            num_hidden_layers=config.n_layer, hidden_size=config.n_embd,
            num_attention_heads=config.n_head, intermediate_size=4 * config.n_embd,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=None,
            attn_implementation="eager" if find_problem("cuda") else "sdpa"))

    def forward(self, tokens, mask=None, positions=None, targets=None, *_):
        states = self.peer.bert(tokens, mask).last_hidden_state  # (B, T, C)
        logits = self.peer.cls(gather_positions(states, positions))  # (B, K, V)
        return logits if targets is None else sum_of_losses(logits.flatten(0, 1), targets.flatten())


# ---- running -------------------------------------------------------------------------------------

def train(run, folder):
    """Train a contestant by pretrain.py, or go on with it."""
    pretrain.BertForMaskedLM = Peer if run["contestant"] == PEER else BertForMaskedLM
    argv = run["flags"].split() + [f"--out_dir={folder}"]
    argv += [f"--{key}={run[key]}" for key in ("dataset", "n_layer", "epochs", "seed")]
    pretrain.main([*argv, *["--resume"] * (folder / "ckpt.pt").exists()])


def train_alone(run, folder):
    """train() in a process of its own, which saves when this one is interrupted."""
    process = multiprocessing.get_context("spawn").Process(target=train, args=(run, folder))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()  # SIGTERM, unless it has ended
        process.join()
    if process.exitcode:
        raise SystemExit("the run has failed; the same command goes on")


def title_of(row):
    return f"BERT-{row['n_layer']} on {row['dataset']}, {row['epochs']:g} epochs"


def select(rows, **wanted):
    """-> the rows (dicts) that have these values"""
    return [row for row in rows if wanted.items() <= row.items()]


def tuning(rows):
    """-> of a race's rows those of the tuning, the best first"""
    return sorted(select(rows, seed=0), key=lambda row: row["curve"][-1][2])


def next_run(task, rows, n_seeds):
    """-> the first run (dict) of a race that has no row, or None"""
    tuned = tuning(select(rows, **task))
    tried = [f"--lr={rate} {PAIRS[0]}" for rate in RATES]
    if len(tuned) >= len(RATES):
        best_rate = re.search(r"--lr=\S+", tuned[0]["flags"])[0]  # stays so: the others share it
        tried += [f"{best_rate} {pair}" for pair in PAIRS[1:]]
    runs = [(PEER, f"{PEER_FLAGS} {flags}", 0) for flags in tried]
    if len(tuned) == len(RATES) + len(PAIRS) - 1:
        contestants = OURS | {PEER: tuned[0]["flags"]}
        runs += [(*item, seed) for seed in range(1, n_seeds + 1) for item in contestants.items()]
    runs = [task | dict(zip(("contestant", "flags", "seed"), run)) for run in runs]
    return next((run for run in runs if not select(rows, **run)), None)


def run_missing(task, n_seeds):
    """Run what a race lacks, row by row. SystemExit if another machine has begun it."""
    rows = read_json_lines(ROWS, "contestant")
    if {row["machine"] for row in select(rows, **task)} - {machine()}:
        raise SystemExit(f"another machine has begun this race; to begin anew here, move {ROWS} "
                         "away")
    while run := next_run(task, rows, n_seeds):
        name = " ".join(map(str, run.values()))
        print(f"\nrun {len(select(rows, **task)) + 1}: {name}", flush=True)
        folder = OUT / re.sub(r"[^\w.]+", "-", name)
        train_alone(run, folder)
        log = read_json_lines(folder / "log.jsonl", "seconds")
        curve = [[row["tokens"], row["seconds"], row["val_loss"], row["val_accuracy"]]
                 for row in log]
        row = run | {"curve": curve, "dtype": log[-1]["dtype"], "machine": machine(),
                     "torch": torch.__version__, "date": f"{datetime.date.today()}"}
        rows = [*read_json_lines(ROWS, "contestant"), row]  # another race may have added some
        write_json_lines(ROWS, rows)
        shutil.rmtree(folder)


# ---- reporting -----------------------------------------------------------------------------------

def first_below(loss, curve):
    """-> minutes and millions of tokens after which a curve first has this loss, linear between
    evaluations; None if it never has"""
    for before, after in zip(curve, curve[1:]):
        if after[2] <= loss:
            share = np.interp(loss, [after[2], before[2]], [1.0, 0.0])
            tokens, seconds = (a + share * (b - a) for a, b in zip(before[:2], after[:2]))
            return seconds / 60, tokens / 1e6


def reach(loss, curves):
    """-> the means of first_below as "minutes (tokens)"; "-" if a curve never has this loss"""
    points = [first_below(loss, curve) for curve in curves]
    return "-" if None in points else "{:.2f} ({:.2f})".format(*map(fmean, zip(*points)))


def race_curves(rows):
    """-> {contestant: its curves} of a race, without the tuning"""
    return {name: [row["curve"] for row in rows if row["contestant"] == name and row["seed"]]
            for name in (*OURS, PEER)}


def report_race(rows):
    """-> the paragraphs and tables of a race"""
    curves, row = race_curves(rows), rows[-1]
    tuned = [(row["flags"], row["curve"]) for row in tuning(rows)]
    ends = [np.array([curve[-1] for curve in its]).T for its in curves.values()]
    end = float(max(ends[-1][2]))
    table = [["minutes (million tokens) to a loss of", *curves, BEST]]
    for loss in sorted({*LADDER, end}, reverse=True):
        fastest = min(tuned, key=lambda run: first_below(loss, run[1]) or (math.inf,))
        cells = [reach(loss, its) for its in (*curves.values(), fastest[1:])]
        if set(cells) != {"-"}:
            table.append([f"{loss:.2f}{', where transformers ends' * (loss == end)}", *cells])
    table += [
        ["the end", *(f"{s.mean() / 60:.2f} ({n.mean() / 1e6:.2f})" for n, s, *_ in ends), ""],
        ["final loss", *("{:.2f} +- {:.2f}".format(*mean_and_sd(end[2])) for end in ends), ""],
        ["masked accuracy, %", *(format_sd(100 * end[3]) for end in ends), ""],
        ["tokens/s", *(f"{(end[0] / end[1]).mean():,.0f}" for end in ends), ""]]
    runs = [["flags", "final loss", "minutes"], *([
        flags.removeprefix(f"{PEER_FLAGS} "), f"{curve[-1][2]:.3f}", f"{curve[-1][1] / 60:.1f}"]
        for flags, curve in tuned)]
    return [f"## {title_of(row)}",
            f"Seeds: {len(ends[-1][0])}. {row['date']}, {row['machine']}, PyTorch {row['torch']}, "
            f"{row['dtype']}.", markdown(table), "Tuning transformers took "
            f"{sum(curve[-1][1] for _, curve in tuned) / 60:.0f} minutes:", markdown(runs)]


def draw(races):
    """Write the picture. races: {title: rows}"""
    n_columns, n_rows = min(2, len(races)), math.ceil(len(races) / 2)
    figure = new_figure(1 + 4 * n_columns, 4 * n_rows)
    for place, (title, rows) in enumerate(races.items(), 1):
        axes = figure.add_subplot(n_rows, n_columns, place)
        axes.set_xscale("function", functions=(np.sqrt, np.square))  # the plateau is soon left
        for i, (name, curves) in enumerate(race_curves(rows).items()):
            for curve in curves:
                _, seconds, losses, _ = np.array(curve).T
                axes.plot(seconds / 60, losses, color=COLORS[i], marker=MARKERS[i], markersize=3,
                          linewidth=0.8, label=name if curve is curves[0] else "")
        axes.set(title=title, xlabel="minutes of training", ylabel="validation loss", xlim=0)
        axes.legend(frameon=False)
    save(figure, RESULTS / "figures" / "race.png")


def report():
    """Write the page and the picture of all races in which every contestant has run."""
    rows = read_json_lines(ROWS, "contestant")
    races = {name: [row for row in rows if title_of(row) == name] for name in map(title_of, rows)}
    races = {name: its for name, its in races.items() if all(race_curves(its).values())}
    if not races:
        return print("no race has been run to its end")
    blocks = [block for its in races.values() for block in report_race(its)]
    print(*blocks, sep="\n\n")
    explanation = __doc__.partition("runs nothing\n\n")[2].rstrip()
    page = ["# Race", "`python -m experiments.race`; [picture](../figures/race.png)", explanation]
    write_atomically(ROWS.with_suffix(".md"), "\n\n".join([*page, *blocks, ""]).encode())
    draw(races)


def main(argv=None):
    parser = new_parser("python -m experiments.race", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    flag("--dataset", type=user_path, default="pocket", help="prepared text; pocket makes itself")
    flag("--n_layer", type=COUNT, default=1, help="transformer layers of every contestant")
    flag("--epochs", type=number(float, above=0), default=4.0, help="how often each text is read")
    flag("--seeds", type=COUNT, default=3, help="runs of each contestant after the tuning")
    flag("--collect", action="store_true", help="run nothing, only write tables and picture")
    args = parser.parse_args(argv)
    task = {"dataset": args.dataset, "n_layer": args.n_layer, "epochs": args.epochs}
    if not args.collect:
        run_missing(task, args.seeds)
    report()


if __name__ == "__main__":
    run_script(main)
