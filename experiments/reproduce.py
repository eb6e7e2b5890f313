"""Reproduce the paper's four claims: one command a scale runs what is missing, then writes tables and figures.

    python -m experiments.reproduce --scale=pocket                # no network
    python -m experiments.reproduce --scale=laptop --minutes=9    # a slice of it; the same command again goes on
    python -m experiments.reproduce --scale=paper                 # for a large GPU
    python -m experiments.reproduce --scale=pocket --collect      # runs nothing: tables and figures from the rows

The claims are (1) the gap: a pre-trained model classifies better than the same model from random weights; (2) the gap
grows with the pre-training set, and (3) with its token overlap with the classification set; (4) a soft committee of
shallow models is as accurate as a deep model, and faster. Beside them stands what a loss costs by the paper's recipe
and by ours.

Every run is a command of pretrain.py, finetune.py or committee.py, with its files in out/reproduce-SCALE/NAME, its
output in NAME.log, and a line in experiments/results/SCALE.jsonl once it has ended well. Nothing is run twice: delete
that file, which comes with the repository, to run everything on your machine.
"""
import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import finetune
import pretrain
from data.overlap import overlap
from data.tokenfile import BIN_DIR, read_meta, write_atomically
from experiments import report

ROOT = Path(__file__).parent.parent
OUT, RESULTS = Path("out"), ROOT / "experiments"  # of the runs, in ROOT; of results/, figures/ and RESULTS.md

SEEDS = 3  # of every point: each a pre-training and a fine-tuning of its own

# The published code changes the learning rate once an epoch, the first of which warms up: --warmup is 1 / epochs.
PAPER_RECIPE = ("--optimizer=adamw --lr=5e-5 --weight_decay=0.01 --grad_clip=0 --batch_size=32 --mask_prob=0.15 "
                "--dropout=0.1 --pos=learned --pad_to=128 --lr_per_epoch")

# What each scale consists of:
#   models     name: (flags, pre-training set); a pre-training set is a folder of data/bin and further flags
#   main       the model of the claims 2 to 4
#   deep       the model that a committee is compared with
#   pretrain   flags of all pre-trainings
#   tasks      classification set: flags of finetune.py
#   sizes      pre-training sets, small to large, for claim 2
#   overlap    classification set, pre-training sets of rising overlap with it, for claim 3
#   committee  how many committees, of how many members each: one, or SEEDS
#   recipe     flags of the run by the paper's recipe, and of the main model's runs that it is compared with; or None
SCALES = {
    # Six layers learn the pocket encyclopedia in ten minutes, not in one: the deep model has two.
    "pocket": {
        "models": {"BERT-2": ("--n_layer=2 --n_embd=128 --n_head=4", "pocket"),
                   "BERT-1": ("--n_layer=1 --n_embd=128 --n_head=4", "pocket")},
        "main": "BERT-1", "deep": "BERT-2",
        "pretrain": "--epochs=3.75 --batch_size=64 --lr=0.004 --muon_lr=0.02 --eval_interval=1000000",
        "tasks": {"pocket-places": "--epochs=10"},
        "sizes": ["pocket --subset=0.125", "pocket --subset=0.25", "pocket --subset=0.5", "pocket"],
        "overlap": ("pocket-places", ["pocket-0", "pocket"]),
        "committee": (1, 3),
        "recipe": None,
    },
    # A quarter of the paper's widths: heads of 16 features; an eighth of its channels. Few examples a class, where
    # pre-training matters most and which cost seconds; the paper uses all of them.
    "laptop": {
        "models": {"BERT-1": ("--n_layer=1 --n_embd=192 --n_head=12", "wikipedia-20000"),
                   "BERT-6": ("--n_layer=6 --n_embd=192 --n_head=12", "wikipedia-20000"),
                   "BERT-1, 8 heads": ("--n_layer=1 --n_embd=128 --n_head=8", "wikipedia-20000"),
                   "BERT-1, 24 heads": ("--n_layer=1 --n_embd=384 --n_head=24", "wikipedia-20000"),
                   "conv 3,3": ("--n_layer=1 --n_embd=192 --n_head=12 --n_conv=2 --conv_channels=8",
                                "wikipedia-20000"),
                   "conv 3,3, 8 heads": ("--n_layer=1 --n_embd=128 --n_head=8 --n_conv=2 --conv_channels=8",
                                         "wikipedia-20000"),
                   "conv 16,3": ("--n_layer=1 --n_embd=192 --n_head=12 --n_conv=2 --conv_kernel 16 3 --conv_channels=8",
                                 "wikipedia-20000"),
                   "conv 3,3,3": ("--n_layer=1 --n_embd=192 --n_head=12 --n_conv=3 --conv_channels=4",
                                  "wikipedia-20000")},
        "main": "BERT-1", "deep": "BERT-6",
        "pretrain": "--epochs=1 --batch_size=16 --mask_prob=0.3 --eval_interval=500",
        "tasks": {"fewrel": "--n_per_class=10 --epochs=30", "agnews": "--n_per_class=30 --epochs=30",
                  "dbpedia": "--n_per_class=10 --epochs=30"},
        "sizes": ["wikipedia-2500", "wikipedia-5000", "wikipedia-10000", "wikipedia-20000"],
        "overlap": ("fewrel", [f"wikipedia-10000-{kind}-fewrel" for kind in ("low", "random", "high")]),
        "committee": (SEEDS, 4),
        "recipe": ("--epochs=20 --warmup=0.05", "--eval_interval=25"),
    },
    # The paper's widths, articles and label counts. By estimate an hour of a large GPU with --jobs=4; never run.
    "paper": {
        "models": {"BERT-1": ("--n_layer=1 --n_embd=768 --n_head=12", "wikipedia-40000"),
                   "BERT-6": ("--n_layer=6 --n_embd=768 --n_head=12", "wikipedia-40000"),
                   "BERT-1, 8 heads": ("--n_layer=1 --n_embd=512 --n_head=8", "wikipedia-40000"),
                   "BERT-1, 24 heads": ("--n_layer=1 --n_embd=1536 --n_head=24", "wikipedia-40000"),
                   "conv 3,3": ("--n_layer=1 --n_embd=768 --n_head=12 --n_conv=2", "wikipedia-40000"),
                   "conv 3,3, 8 heads": ("--n_layer=1 --n_embd=512 --n_head=8 --n_conv=2", "wikipedia-40000"),
                   "conv 16,3": ("--n_layer=1 --n_embd=768 --n_head=12 --n_conv=2 --conv_kernel 16 3",
                                 "wikipedia-40000"),
                   "conv 3,3,3": ("--n_layer=1 --n_embd=768 --n_head=12 --n_conv=3 --conv_channels=32",
                                  "wikipedia-40000")},
        "main": "BERT-1", "deep": "BERT-6",
        "pretrain": "--epochs=5 --batch_size=64 --mask_prob=0.3",
        "tasks": {"fewrel": "--lr=3e-4 --epochs=4", "agnews": "--lr=3e-4 --epochs=5",
                  "dbpedia": "--lr=3e-4 --epochs=8"},
        "sizes": ["wikipedia-10000", "wikipedia-20000", "wikipedia-40000", "wikipedia-90000"],
        "overlap": ("fewrel", [f"wikipedia-20000-{kind}-fewrel" for kind in ("low", "random", "high")]),
        "committee": (SEEDS, 5),
        "recipe": ("--epochs=50 --warmup=0.02", "--eval_interval=50"),
    },
}


def slug(text):
    return re.sub(r"[^\w.]+", "-", str(text).removeprefix(str(BIN_DIR))).strip("-").lower()


def plan(scale):
    """-> the runs of a scale (list of dict), each behind those whose files it needs: "name", "kind" (pretrain, finetune
    or committee), "command", "needs" (names), and the facts that the tables are made of."""
    s, out, runs = SCALES[scale], OUT / f"reproduce-{scale}", {}
    main, deep, (overlap_task, overlap_corpora) = s["main"], s["deep"], s["overlap"]

    def add(kind, name, flags, needs=(), **facts):
        command = " ".join(f"python {kind}.py {flags} --out_dir={out}/{name}".split())
        runs.setdefault(name, {"name": name, "kind": kind, "command": command, "needs": list(needs), **facts})

    def add_finetunings(tasks, init_from, name, seed, flags="", **facts):
        for task in tasks:
            # Members of a committee, and the deep model that it is compared with, share the few examples that a seed
            # draws: together they would see more of them than one model.
            examples = f"--example_seed={seed % SEEDS}" if "--n_per_class" in s["tasks"][task] and seed >= SEEDS else ""
            needs, start = ([], "scratch") if init_from is None else ([init_from], f"{out}/{init_from}")
            add("finetune", f"{slug(task)}.{name}", f"--dataset={task} {s['tasks'][task]} --seed={seed} {examples} "
                f"--init_from={start} {flags}", needs, task=task, seed=seed, **facts)

    main_flags, main_home = s["models"][main]
    n_committees, K = s["committee"]
    if s["recipe"]:  # first, since it may take longest
        name, facts = "recipe-of-the-paper", {"model": f"{main}, the paper's recipe", "corpus": main_home}
        add("pretrain", name, f"--dataset={main_home} {main_flags} {PAPER_RECIPE} {s['recipe'][0]} --seed=0", seed=0,
            recipe="paper", **facts)
        for seed in range(SEEDS):
            add_finetunings(s["tasks"], name, f"{name}.{seed}", seed, **facts)
    for model, (flags, home) in s["models"].items():
        elsewhere = [*overlap_corpora, *reversed(s["sizes"])] if model == main else []  # the longest runs first
        for corpus in dict.fromkeys([home, *elsewhere]):
            tasks = s["tasks"] if corpus in [home, *s["sizes"]] else [overlap_task]
            n_members = n_committees * K if (model, corpus) == (main, main_home) else 0
            for seed in range(max(SEEDS, n_members)):
                name, facts, more = f"{slug(model)}.{slug(corpus)}.{seed}", {"model": model, "corpus": corpus}, ""
                compared = {}
                if s["recipe"] and n_members and seed < SEEDS:
                    more, compared = s["recipe"][1], {"recipe": "ours"}
                add("pretrain", name, f"--dataset={corpus} {flags} {s['pretrain']} {more} --seed={seed}", seed=seed,
                    **facts, **compared)
                add_finetunings(tasks, name, name, seed, **facts)
                if seed < SEEDS:
                    add_finetunings(tasks, None, f"scratch.{slug(model)}.{seed}", seed, flags, model=model, corpus=None)
    for task in reversed(s["tasks"]):
        for i in reversed(range(n_committees)):
            needs = [f"{slug(task)}.{slug(main)}.{slug(main_home)}.{i + n_committees * j}" for j in range(K)]
            needs.append(f"{slug(task)}.{slug(deep)}.{slug(s['models'][deep][1])}.{i}")
            *members, deep_run = [f"{out}/{name}" for name in needs]
            timed = task == next(iter(s["tasks"])) and i == 0  # once, as the last run, with nothing beside it
            add("committee", f"{slug(task)}.committee.{i}", f"{' '.join(members)} --deep={deep_run} "
                f"{'' if timed else '--no-latency'}", needs, task=task, seed=i, alone=timed)
    return list(runs.values())


# ---- datasets and rows -----------------------------------------------------------------------------------------------

def pool_of(dataset):
    """The dataset, 4 times as large, that one such as wikipedia-500-high-fewrel is chosen from. None for others."""
    chosen = re.fullmatch(r"wikipedia-(\d+)-(high|random|low)-.+", dataset)
    return f"wikipedia-{4 * int(chosen[1])}" if chosen else None


def data_command(dataset):
    """The module and flags that make a dataset of this name (list of str)."""
    kind, *rest = dataset.split("-")
    if kind == "wikipedia" and rest[1:]:
        return ["data.overlap", f"--dataset={pool_of(dataset)}", f"--with={rest[2]}", f"--choose={rest[1]}",
                f"--n_articles={rest[0]}"]
    if kind == "wikipedia":
        return ["data.wikipedia", f"--n_articles={rest[0]}"]
    if kind == "pocket":
        return ["data.pocket", *(f"--coverage={share}" for share in rest if share != "places")]
    return [f"data.{dataset}"]


def prepare(scale):
    """Make the datasets of a scale that are not in data/bin. One line if that fails."""
    s = SCALES[scale]
    corpora = [home for _, home in s["models"].values()] + s["sizes"] + s["overlap"][1]
    corpora = [corpus.split()[0] for corpus in corpora]
    pools = [pool_of(corpus) for corpus in corpora if pool_of(corpus)]
    for dataset in dict.fromkeys([*s["tasks"], *pools, *corpora]):  # what articles are chosen by, and from, comes first
        if not (BIN_DIR / dataset / "meta.json").exists():
            command = data_command(dataset)
            print(f"python -m {' '.join(command)}")
            if subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode:
                raise SystemExit(f"dataset {dataset} could not be made; make it from files of yours with "
                                 f"python -m {' '.join(command)} --source=FILES")


def folder_of(scale, run):
    return ROOT / OUT / f"reproduce-{scale}" / run["name"]


def read_rows(scale):
    """-> experiments/results/SCALE.jsonl as {name: row}, in the plan's order and without runs that it no longer has;
    empty if there is no such file. One line if it is damaged."""
    path = RESULTS / "results" / f"{scale}.jsonl"
    try:
        rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        rows = {row["name"]: row for row in rows}
        return {run["name"]: rows[run["name"]] for run in plan(scale) if run["name"] in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is damaged ({error}); restore it, or delete it to run everything again") from None


def machine():
    """This machine in a few words: the GPU, or the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def measure_overlap(dataset, task):
    """-> how much of a classification set the pre-training set shares (dict of shares, 0 to 1)."""
    if dataset.startswith("pocket"):
        return {"countries told of": float(dataset.partition("-")[2] or 1)}
    found = overlap(dataset, task)
    return {"unigram overlap": found["unigram_overlap"], "tokens that occur 100 times": found["occurrences_100"]}


def make_row(scale, run):
    """The row (dict) of a run that has ended well, from the files that it left."""
    folder = folder_of(scale, run)
    row = {key: value for key, value in run.items() if key not in ("needs", "alone")}
    if run["kind"] == "committee":
        row |= json.loads((folder / "committee.json").read_text())
        row["members"] = list(row["members"].values())
    else:
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        keys = ("accuracy", "macro_f1", "val_loss", "val_accuracy", "tokens", "positions", "flops", "seconds", "dtype")
        row |= {key: log[-1][key] for key in keys if key in log[-1]}
        row["tokens_per_second"] = row["tokens"] / row["seconds"]
    if run["kind"] == "pretrain":
        dataset, *flags = run["corpus"].split()
        share = next((float(flag.split("=")[1]) for flag in flags if flag.startswith("--subset=")), 1.0)
        row["n_articles"] = max(1, round(share * read_meta(dataset)["splits"]["train"]["n_docs"]))
        if run["corpus"] in SCALES[scale]["overlap"][1]:
            row["overlap"] = measure_overlap(dataset, SCALES[scale]["overlap"][0])
        if "recipe" in run:
            row["curve"] = [[each[key] for key in report.CURVE] for each in log]
            tokenizer, _ = pretrain.open_tokenizer(dataset)
            block_size = pretrain.load_checkpoint(folder)["config"]["block_size"]
            val = pretrain.validation_batches(dataset, tokenizer, block_size, torch.device("cpu"))
            row["plateau"] = pretrain.unigram_baseline(dataset, tokenizer.vocab_size, val)[0]
    return row | {"date": datetime.date.today().isoformat(), "machine": machine(),
                  "torch": torch.__version__}


# ---- running ---------------------------------------------------------------------------------------------------------

def missing(scale, runs, rows):
    """-> the runs that have no row, and those whose files they need and which are gone. One line if a row belongs to
    another command than the plan's."""
    todo = []
    for run in reversed(runs):
        row = rows.get(run["name"])
        if row and row["command"] != run["command"]:
            raise SystemExit(f"{run['name']} was run with other flags ({row['command']}); delete its row in "
                             f"experiments/results/{scale}.jsonl and {folder_of(scale, run)} to run it again")
        needed = any(run["name"] in other["needs"] for other in todo)
        if not row or (needed and not (folder_of(scale, run) / "ckpt.pt").exists()):
            todo.insert(0, run)
    return todo


def has_ended(scale, run):
    """Whether a fine-tuning has ended with the plan's flags, though its row was not written any more."""
    if run["kind"] != "finetune" or not (folder_of(scale, run) / "ckpt.pt").exists():
        return False
    flags = vars(finetune.get_parser().parse_args(run["command"].split()[2:]))
    used = pretrain.load_checkpoint(folder_of(scale, run))["args"]  # in which what was left open is filled in
    return all(used.get(name) == value for name, value in flags.items() if value not in (None, "auto"))


def lock(scale):
    """-> a file that is locked for as long as this process, or a run that it has started, lives. One line if it is
    locked already: two at work would write the same files."""
    import fcntl  # not on Windows
    path = ROOT / OUT / f"reproduce-{scale}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{path}: somebody is at work on this scale, or a run of a killed reproduce has not ended "
                         "yet; wait for it, or end it") from None
    return file


def start(scale, run, threads, locked):
    """Start a run's process, a pre-training where an earlier one was interrupted. -> the process."""
    folder = folder_of(scale, run)
    resume = ["--resume"] if run["kind"] == "pretrain" and (folder / "ckpt.pt").exists() else []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log:  # a session of its own: Ctrl-C reaches it through us only
        return subprocess.Popen([sys.executable, *run["command"].split()[1:], *resume], cwd=ROOT, stdout=log,
                                stderr=log, start_new_session=True, pass_fds=[locked.fileno()],
                                env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def run_missing(scale, jobs, minutes):
    """Run what is missing, `jobs` processes at once, for at most so many minutes (0: to the end). -> the names of the
    runs that failed, and how many were not finished."""
    runs, rows, began, cores = plan(scale), read_rows(scale), time.time(), os.cpu_count() or 1
    todo, running, failed, stopping = missing(scale, runs, rows), {}, [], False
    waiting = {run["name"] for run in todo}
    print(f"{scale}: {len(runs) - len(waiting)} of {len(runs)} runs are done; {jobs} at once, "
          f"{max(1, cores // jobs)} thread(s) each")
    if todo:
        prepare(scale)
    else:
        print(f"to run them again, on this machine: rm -rf experiments/results/{scale}.jsonl {OUT}/reproduce-{scale}")

    def record(run):
        rows[run["name"]] = make_row(scale, run)
        write_atomically(RESULTS / "results" / f"{scale}.jsonl",
                         "".join(json.dumps(row) + "\n" for row in rows.values()).encode())
        waiting.remove(run["name"])
        minute = (time.time() - began) / 60
        print(f"[{len(runs) - len(waiting)}/{len(runs)}, {minute:.1f} min] {run['name']}", flush=True)

    locked = lock(scale)
    try:
        while todo or running:
            try:
                for run in list(todo):
                    if len(running) >= jobs or any(each.get("alone") for each, _ in running.values()):
                        break
                    if any(name in failed for name in run["needs"]):
                        print(f"{run['name']} is left out: a run that it needs has failed", flush=True)
                        failed.append(run["name"])
                    elif any(name in waiting for name in run["needs"]) or (run.get("alone") and running):
                        continue
                    elif has_ended(scale, run):
                        record(run)
                    else:
                        threads = cores if run.get("alone") else max(1, cores // jobs)
                        running[run["name"]] = run, start(scale, run, threads, locked)
                    todo.remove(run)
                time.sleep(0.1)
                if minutes and time.time() - began > 60 * minutes and not stopping:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:  # pretrain.py saves and ends
                stopping, todo = True, []
                for _, process in running.values():
                    process.send_signal(signal.SIGINT)
            for name, (run, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode == 0:
                    record(run)
                elif not stopping:
                    failed.append(name)
                    print(f"{name} failed, see {folder_of(scale, run)}.log", flush=True)
    finally:  # whatever happens here, no run is left behind
        for _, process in running.values():
            process.send_signal(signal.SIGINT)
        locked.close()
    return failed, len(waiting)


def main(argv=None):
    parser = pretrain.new_parser(__doc__.split("\n\n")[0])
    parser.add_argument("--scale", choices=list(SCALES), required=True, help="minutes, three hours, or a GPU's hour")
    parser.add_argument("--jobs", type=int, help="runs at once; by default the CPU's cores, with a GPU 1")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: when all is done")
    parser.add_argument("--collect", action="store_true", help="run nothing, only write tables and figures")
    args = parser.parse_args(argv)
    pretrain.check(args)
    failed, unfinished = [], 0
    # kill and timeout end it as Ctrl-C does. A script's background jobs start deaf to Ctrl-C, and so would their runs.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.default_int_handler)
    if not args.collect:
        jobs = args.jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
        failed, unfinished = run_missing(args.scale, jobs, args.minutes)
    report.write(args.scale, SCALES[args.scale], list(read_rows(args.scale).values()), RESULTS)
    if unfinished:
        print(f"{unfinished} runs are missing; the same command goes on")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
