"""Reproduce the paper's four claims: one command a scale runs what is missing, then reports.

    python -m experiments.reproduce --scale=pocket               # minutes, without network
    python -m experiments.reproduce --scale=laptop               # three hours of two cores
    python -m experiments.reproduce --scale=night                # twelve hours of two cores
    python -m experiments.reproduce --scale=paper                # for a large GPU
    python -m experiments.reproduce --scale=pocket --list        # its commands; runs nothing
    python -m experiments.reproduce --scale=pocket --collect     # tables and figures; runs nothing

The claims are (1) the gap: a pre-trained model classifies better than the same model from random
weights; (2) the gap grows with the pre-training set, and (3) with its token overlap with the
classification set; (4) a soft committee of shallow models is as accurate as a deep model, and
faster. A bag of words is measured beside them (with scikit-learn).

Every run is a command of experiments/plan.py, with its files in out/reproduce-SCALE/NAME, its
output in NAME.log, and a row in experiments/results/SCALE.jsonl once it has ended well; SCALE.md
beside it is the report. Nothing is run twice. Both come with the repository: to run everything on
your machine, begin with --fresh. After Ctrl-C, or in slices such as

    timeout -s INT 9m python -m experiments.reproduce --scale=laptop

the same command goes on, without --fresh; a pre-training goes on from where it stopped. Start one
of them at a time.
"""
import base64
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from committee import load_outputs
from data.files import read_json_lines, write_json_lines
from data.flags import new_parser, number, run_script
from data.overlap import overlap
from data.tokenfile import Dataset, dataset_folder
from experiments import figures, report
from experiments.plan import SCALES, data_commands, plan, read_corpus
from training import Interruption

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments"  # of results/ and figures/


# ---- data and results ----------------------------------------------------------------------------

def make_datasets(scale):
    """Make the datasets of a scale that are not in data/bin. SystemExit if that fails."""
    chosen = {read_corpus(name)[0] for name in scale.overlap_sets}
    for dataset, command in data_commands(scale).items():
        if (dataset_folder(dataset) / "meta.json").exists():
            continue
        print(command)
        if subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT).returncode:
            help_line = f"; make it from files of yours with {command} --source=FILES"
            needs_none = dataset in chosen or dataset.startswith("pocket")
            raise SystemExit(f"dataset {dataset} could not be made" + help_line * (not needs_none))


def run_folder(scale, run):
    return ROOT / scale.folder / run.name


def results_file(scale):
    return RESULTS / "results" / f"{scale.name}.jsonl"


def read_results(scale):
    """-> the rows of results/SCALE.jsonl as {name: row}, in the plan's order and without runs that
    it no longer has; empty if there is no such file. SystemExit if it is damaged."""
    rows = {row["name"]: row for row in read_json_lines(results_file(scale), "name")}
    return {run.name: rows[run.name] for run in plan(scale) if run.name in rows}


def machine():
    """What trains: the GPU's name, or the processor's and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def measure_overlap(name):
    """Of a pre-training set chosen by its overlap with a classification set -> the shares that it
    has of that (dict, 0 to 1), and how far its topics are from the pool's (see data/overlap.py)."""
    if name.startswith("pocket"):
        return {"countries told of": float(name.partition("-")[2] or 1)}
    dataset = Dataset(name)
    choice = dataset.meta["source"]["overlap"]
    shares = overlap(dataset, Dataset(choice["with"]))
    return {"unigram overlap": shares["unigram_overlap"],
            "tokens that occur 100 times": shares["occurrences_100"],
            "topic shift": choice["topic_shift"]}


def pretraining_facts(scale, run):
    """What the tables need of a pre-training besides its last evaluation (dict)."""
    dataset, subset, _ = read_corpus(run.facts["corpus"])
    share = float(subset.removeprefix("--subset=") or 1)
    n_docs = Dataset(dataset).meta["splits"]["train"]["n_docs"]
    facts = {"n_articles": max(1, round(n_docs * share))}
    if run.facts["corpus"] in scale.overlap_sets:
        facts["overlap"] = measure_overlap(dataset)
    return facts


def make_row(scale, run):
    """The row (dict) of a run that has ended well, from the files that it left."""
    folder = run_folder(scale, run)
    row = {"name": run.name, "kind": run.kind, "command": run.command, **run.facts}
    if run.kind == "committee":
        row |= json.loads((folder / "committee.json").read_text())
        row["members"] = list(row["members"].values())
    else:
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        wanted = ("accuracy", "macro_f1", "val_loss", "val_accuracy", "tokens", "positions",
                  "flops", "seconds", "dtype", "n_examples")
        row |= {key: last[key] for key in wanted if key in last}
    if run.kind == "pretrain":
        row |= pretraining_facts(scale, run)
    else:  # which test texts are classified right: a bit each, for the intervals in report.py
        voters = run.needs[:scale.n_members] if run.kind == "committee" else [run.name]
        outputs, labels = load_outputs([ROOT / scale.folder / name for name in voters])
        right = outputs.mean(0).argmax(-1) == labels
        row |= {"n": len(labels), "right": base64.b64encode(np.packbits(right)).decode()}
    return row | {"date": datetime.date.today().isoformat(), "machine": machine(),
                  "torch": torch.__version__}


# ---- running -------------------------------------------------------------------------------------

def is_whole(row, folder):
    """Whether the run of this row is in its folder; an interrupted one has a checkpoint, too."""
    tokens = [last["tokens"] for last in read_json_lines(folder / "log.jsonl", "tokens")[-1:]]
    return (folder / "ckpt.pt").exists() and tokens == [row["tokens"]]


def find_missing(scale, rows):
    """-> the runs of the plan that have no row, and those that these need and that are gone or half
    run. SystemExit if a row belongs to another command than the plan's."""
    missing, needed = [], set()
    for run in reversed(plan(scale)):
        row, folder = rows.get(run.name), run_folder(scale, run)
        if row and row["command"] != run.command:
            raise SystemExit(f"{run.name} was run with other flags ({row['command']}); undo that "
                             "change, or run everything again with --fresh")
        if not row or (run.name in needed and not is_whole(row, folder)):
            missing.append(run)
            needed.update(run.needs)
    return missing[::-1]


def start(scale, run, n_threads):
    """Start a run; a pre-training that was interrupted is resumed. -> its process (Popen)."""
    folder = run_folder(scale, run)
    command = [sys.executable, *run.command.split()[1:]]
    if run.kind == "finetune":  # one that was killed before its row was written begins anew
        (folder / "ckpt.pt").unlink(missing_ok=True)
    if run.kind == "pretrain" and (folder / "ckpt.pt").exists():
        command.append("--resume")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log:
        # In a session of its own it gets no Ctrl-C: interrupt() stops it.
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                env=os.environ | {"OMP_NUM_THREADS": str(n_threads)})


def pick_next(todo, running, unfinished, jobs):
    """-> the first of the runs `todo` that can start beside those that are running, or None."""
    for run in todo:
        is_alone = "committee" in [run.kind, *(other.kind for other in running)]  # it measures time
        if len(running) < (1 if is_alone else jobs) and unfinished.isdisjoint(run.needs):
            return run


def interrupt(processes):
    """Let processes save and end. On Windows Ctrl-C has reached them already."""
    for process in processes:
        if os.name != "nt":
            process.terminate()  # SIGTERM: SIGINT is ignored in the background of a script


def run_missing(scale, jobs):
    """Run what is missing, `jobs` processes at a time, to the end or until Ctrl-C or SIGTERM.
    -> the names of the runs that failed (list), and how many are still missing."""
    rows, cores, began = read_results(scale), os.cpu_count() or 1, time.time()
    todo, n_runs = find_missing(scale, rows), len(plan(scale))
    if not find_spec("sklearn") and any(run.kind == "bag_of_words" for run in todo):
        print("left out: the bag of words; pip install scikit-learn")
        todo = [run for run in todo if run.kind != "bag_of_words"]
    unfinished, failed, running = {run.name for run in todo}, [], {}  # running: process: run
    print(f"{scale.name}: {len(rows.keys() - unfinished)} of {n_runs} runs are done; {jobs} at a "
          f"time, {max(1, cores // jobs)} thread(s) each")
    if todo:
        make_datasets(scale)
    else:
        print("to run them again, on this machine: --fresh")
    with Interruption() as interruption:
        is_stopping = False
        try:
            while todo or running:
                if interruption.asked and not is_stopping:
                    todo, is_stopping = [], True
                    interrupt(running)
                while run := pick_next(todo, running.values(), unfinished, jobs):
                    todo.remove(run)
                    n_threads = max(1, cores // (1 if run.kind == "committee" else jobs))
                    running[start(scale, run, n_threads)] = run
                if not running:
                    break  # what is left needs a run that has failed
                time.sleep(0.1)
                for process in [process for process in running if process.poll() is not None]:
                    run = running.pop(process)
                    if process.returncode == 0:
                        rows[run.name] = make_row(scale, run)
                        write_json_lines(results_file(scale), rows.values())
                        unfinished.remove(run.name)
                        print(f"[{len(rows.keys() - unfinished)}/{n_runs}, "
                              f"{(time.time() - began) / 60:.1f} min] {run.name}", flush=True)
                    elif not is_stopping:
                        failed.append(run.name)
                        print(f"{run.name} failed, see {run_folder(scale, run)}.log", flush=True)
        finally:  # whatever happens here, no run is left behind
            if not is_stopping:
                interrupt(running)
    for run in todo:
        print(f"{run.name} is left out: a run that it needs has failed")
    return failed, len(unfinished)


def forget(scale):
    """Empty results/SCALE.jsonl and delete the runs of a scale, so that all are missing."""
    make_datasets(scale)  # nothing is lost where that fails
    write_json_lines(results_file(scale), [])
    shutil.rmtree(ROOT / scale.folder, ignore_errors=True)


def report_on(scale):
    """Write the tables and figures of the rows that there are."""
    rows = list(read_results(scale).values())
    if not rows:
        return print("no results yet")
    points = report.write(scale, rows, results_file(scale).with_suffix(".md"))
    try:
        figures.draw(scale, points, RESULTS / "figures")
    except ImportError:
        print("no figures: pip install matplotlib")


def main(argv=None):
    parser = new_parser("python -m experiments.reproduce", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    flag("--scale", choices=list(SCALES), required=True,
         help="minutes, three hours, a night, or an hour of a GPU")
    flag("--jobs", type=number(int, 1),
         help="runs at a time; by default the CPU's cores, with a GPU 1")
    flag = parser.add_mutually_exclusive_group().add_argument
    flag("--fresh", action="store_true",
         help="first forget what was run, here or by whom the results come from")
    flag("--list", action="store_true", help="run nothing, only print the commands")
    flag("--collect", action="store_true", help="run nothing, only write tables and figures")
    args = parser.parse_args(argv)
    scale, failed, n_missing = SCALES[args.scale], [], 0
    if args.list:
        commands = [*data_commands(scale).values(), *(run.command for run in plan(scale))]
        return print(*dict.fromkeys(commands), sep="\n")
    if args.fresh:
        forget(scale)
    if not args.collect:
        jobs = args.jobs or (1 if torch.accelerator.is_available() else os.cpu_count() or 1)
        failed, n_missing = run_missing(scale, jobs)
    report_on(scale)
    if n_missing:
        print(f"{n_missing} runs are missing; the same command goes on, without --fresh")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
