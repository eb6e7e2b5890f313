"""Reproduce the paper's four claims: one command a scale runs what is missing, then reports.

    python -m experiments.reproduce --scale=pocket                # no network
    python -m experiments.reproduce --scale=laptop --minutes=9    # a slice; again: it goes on
    python -m experiments.reproduce --scale=night                 # twelve hours of two cores
    python -m experiments.reproduce --scale=paper                 # for a large GPU
    python -m experiments.reproduce --scale=pocket --list         # its commands; runs nothing
    python -m experiments.reproduce --scale=pocket --collect      # tables and figures; runs nothing

The claims are (1) the gap: a pre-trained model classifies better than the same model from random
weights; (2) the gap grows with the pre-training set, and (3) with its token overlap with the
classification set; (4) a soft committee of shallow models is as accurate as a deep model, and
faster. Beside them stands what counting words gets right (with scikit-learn), and what a loss costs
by the paper's recipe and by ours.

Every run is a command of experiments/plan.py, with its files in out/reproduce-SCALE/NAME, its
output in NAME.log, and a line in experiments/results/SCALE.jsonl once it has ended well; SCALE.md
beside it is the report. Nothing is run twice. Both come with the repository: to run everything on
your machine, begin with --fresh, and go on without it.
Runs are stopped and locked by the ways of Linux and macOS.
"""
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch

import pretrain
from data.flags import AT_LEAST_0, AT_LEAST_1, check_limits, new_parser, run_script
from data.overlap import overlap
from data.tokenfile import BIN_DIR, read_meta, write_atomically
from data.tokenizer import open_tokenizer
from experiments import figures, report
from experiments.plan import SCALES, data_commands, plan, read_corpus

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments"  # of results/ and figures/


# ---- data and rows -------------------------------------------------------------------------------

def prepare(scale):
    """Make the datasets of a scale that are not in data/bin. SystemExit if that fails."""
    chosen = {read_corpus(name)[0] for name in scale.overlap_sets}
    for dataset, command in data_commands(scale).items():
        if (BIN_DIR / dataset / "meta.json").exists():
            continue
        print(command)
        if subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT).returncode:
            help_line = f"; make it from files of yours with {command} --source=FILES"
            raise SystemExit(f"dataset {dataset} could not be made"
                             + ("" if dataset in chosen else help_line))


def folder_of(scale, run):
    return ROOT / scale.folder / run.name


def results_file(scale):
    return RESULTS / "results" / f"{scale.name}.jsonl"


def read_rows(scale):
    """-> the rows of results/SCALE.jsonl as {name: row}, in the plan's order and without runs that
    it no longer has; empty if there is no such file. SystemExit if it is damaged."""
    path = results_file(scale)
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        rows = {row["name"]: row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is damaged ({error}); restore it, or delete it to run everything "
                         "again") from None
    return {run.name: rows[run.name] for run in plan(scale) if run.name in rows}


def processor():
    """The processor's name and its cores."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def measure_overlap(dataset):
    """-> how much of the classification set that it was chosen by a pre-training set shares (dict
    of shares, 0 to 1), and how far its topics are from the pool's (see data/overlap.py)."""
    if dataset.startswith("pocket"):
        return {"countries told of": float(dataset.partition("-")[2] or 1)}
    choice = read_meta(dataset)["source"]["overlap"]
    shares = overlap(dataset, choice["with"])
    return {"unigram overlap": shares["unigram_overlap"],
            "tokens that occur 100 times": shares["occurrences_100"],
            "topics apart": choice["topics_apart"]}


def facts_of_pretraining(scale, run, log):
    """What the tables want to know of a pre-training beside its last evaluation (dict)."""
    dataset, subset, _ = read_corpus(run.facts["corpus"])
    share = float(subset.removeprefix("--subset=") or 1)
    n_docs = read_meta(dataset)["splits"]["train"]["n_docs"]
    facts = {"n_articles": max(1, round(n_docs * share))}
    if run.facts["corpus"] in scale.overlap_sets:
        facts["overlap"] = measure_overlap(dataset)
    if "recipe" in run.facts:
        facts["curve"] = [[evaluation[key] for key in report.CURVE] for evaluation in log]
        tokenizer, _ = open_tokenizer(dataset)
        block_size = pretrain.load_checkpoint(folder_of(scale, run))["config"]["block_size"]
        val = pretrain.validation_batches(dataset, tokenizer, block_size, torch.device("cpu"))
        facts["plateau"], _ = pretrain.unigram_baseline(dataset, tokenizer.vocab_size, val)
    return facts


def make_row(scale, run):
    """The row (dict) of a run that has ended well, from the files that it left."""
    folder = folder_of(scale, run)
    row = {"name": run.name, "kind": run.kind, "command": run.command, **run.facts}
    if run.kind == "committee":
        row |= json.loads((folder / "committee.json").read_text())
        row["members"] = list(row["members"].values())
    else:
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        wanted = ("accuracy", "macro_f1", "val_loss", "val_accuracy", "tokens", "positions",
                  "flops", "seconds", "dtype", "n_examples")
        row |= {key: log[-1][key] for key in wanted if key in log[-1]}
    if run.kind in ("pretrain", "finetune"):
        row["tokens_per_second"] = row["tokens"] / row["seconds"]
    if run.kind == "pretrain":
        row |= facts_of_pretraining(scale, run, log)
    has_gpu = torch.cuda.is_available()
    return row | {"date": datetime.date.today().isoformat(),
                  "machine": torch.cuda.get_device_name() if has_gpu else processor(),
                  "processor": processor(), "torch": torch.__version__}


# ---- running -------------------------------------------------------------------------------------

def find_missing(scale, runs, rows):
    """-> the runs that have no row, and those whose files they need and which are gone. SystemExit
    if a row belongs to another command than the plan's."""
    missing, needed = [], set()
    for run in reversed(runs):
        row, folder = rows.get(run.name), folder_of(scale, run)
        if row and row["command"] != run.command:
            raise SystemExit(f"{run.name} was run with other flags ({row['command']}); begin anew "
                             f"with --fresh, or delete its row in experiments/results/{scale.name}"
                             f".jsonl and {folder} to run it again")
        if not row or (run.name in needed and not (folder / "ckpt.pt").exists()):
            missing.append(run)
            needed.update(run.needs)
    return missing[::-1]


def lock(scale):
    """-> a file that is locked for as long as this process, or a run that it has started, lives.
    SystemExit if it is locked already: two at work would write the same files."""
    import fcntl  # not on top: Windows has none, and can list and collect without it
    path = ROOT / f"{scale.folder}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{path}: somebody is at work on this scale, or a run of a killed "
                         "reproduce has not ended yet; wait for it, or end it") from None
    return file


def start(scale, run, threads, locked):
    """Start a run, a pre-training where an earlier one was interrupted. -> its process (Popen)."""
    folder = folder_of(scale, run)
    command = [sys.executable, *run.command.split()[1:]]
    if run.kind == "finetune":  # one that was killed before its row was written begins anew
        (folder / "ckpt.pt").unlink(missing_ok=True)
    if run.kind == "pretrain" and (folder / "ckpt.pt").exists():
        command.append("--resume")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log:
        # In a session of its own, Ctrl-C reaches it through us only.
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                pass_fds=[locked.fileno()],
                                env=os.environ | {"OMP_NUM_THREADS": str(threads)})


class Work:
    """The missing runs of a scale: which are to do, which run (`jobs` at once), which failed."""

    def __init__(self, scale, jobs):
        self.scale, self.jobs, self.began = scale, jobs, time.time()
        self.runs, self.rows = plan(scale), read_rows(scale)
        self.todo = find_missing(scale, self.runs, self.rows)
        left_out = {run.name for run in self.todo
                    if run.kind == "bag_of_words" and not find_spec("sklearn")}
        if left_out:
            print("left out: the bag of words; pip install scikit-learn")
            self.runs, self.todo = ([run for run in runs if run.name not in left_out]
                                    for runs in (self.runs, self.todo))
        self.unfinished = {run.name for run in self.todo}
        self.running, self.failed, self.is_stopping = {}, [], False  # name: (run, process)
        self.threads = max(1, (os.cpu_count() or 1) // jobs)

    def n_done(self):
        return f"{len(self.runs) - len(self.unfinished)} of {len(self.runs)}"

    def record(self, run):
        """Write the row of a run that has ended well."""
        self.rows[run.name] = make_row(self.scale, run)
        lines = [json.dumps(row) + "\n" for row in self.rows.values()]
        write_atomically(results_file(self.scale), "".join(lines).encode())
        self.unfinished.remove(run.name)
        minutes = (time.time() - self.began) / 60
        print(f"[{self.n_done().replace(' of ', '/')}, {minutes:.1f} min] {run.name}", flush=True)

    def has_room_for(self, run):
        if "committee" in [run.kind, *(other.kind for other, _ in self.running.values())]:
            return not self.running  # it measures time
        return len(self.running) < self.jobs

    def start_what_can(self, locked):
        for run in list(self.todo):
            if any(name in self.failed for name in run.needs):
                print(f"{run.name} is left out: a run that it needs has failed", flush=True)
                self.failed.append(run.name)
            elif not self.has_room_for(run) or any(name in self.unfinished for name in run.needs):
                continue
            else:
                threads = os.cpu_count() if run.kind == "committee" else self.threads
                self.running[run.name] = run, start(self.scale, run, threads, locked)
            self.todo.remove(run)

    def see_what_has_ended(self):
        for name, (run, process) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            if process.returncode == 0:
                self.record(run)
            elif not self.is_stopping:
                self.failed.append(name)
                print(f"{name} failed, see {folder_of(self.scale, run)}.log", flush=True)

    def stop(self):
        """Start no more, and let what runs save and end as after Ctrl-C."""
        self.is_stopping, self.todo = True, []
        for _, process in self.running.values():
            process.send_signal(signal.SIGINT)


def forget(scale):
    """Empty results/SCALE.jsonl and delete the runs of a scale, so that all are missing."""
    with lock(scale):
        prepare(scale)  # nothing is lost where that fails
        write_atomically(results_file(scale), b"")
        shutil.rmtree(ROOT / scale.folder, ignore_errors=True)


def run_missing(scale, jobs, minutes):
    """Run what is missing, `jobs` processes at once, for at most so many minutes (0: to the end).
    -> the names of the runs that failed (list), and how many were not finished."""
    with lock(scale) as locked:  # only then are the rows read, to which no other adds any more
        work = Work(scale, jobs)
        print(f"{scale.name}: {work.n_done()} runs are done; {jobs} at once, {work.threads} "
              "thread(s) each")
        if work.todo:
            prepare(scale)
        else:
            print("to run them again, on this machine: --fresh")
        try:
            while work.todo or work.running:
                try:
                    work.start_what_can(locked)
                    time.sleep(0.1)
                    is_over = minutes and time.time() - work.began > 60 * minutes
                    if is_over and not work.is_stopping:
                        work.stop()
                except KeyboardInterrupt:
                    work.stop()
                work.see_what_has_ended()
        finally:  # whatever happens here, no run is left behind
            work.stop()
    return work.failed, len(work.unfinished)


def report_on(scale):
    """Write the tables and figures of the rows that there are."""
    rows = list(read_rows(scale).values())
    if not rows:
        return print("no results yet")
    points = report.write(scale, rows, results_file(scale).with_suffix(".md"))
    try:
        figures.draw(scale, points, RESULTS / "figures")
    except ImportError:
        print("no figures: pip install matplotlib")


def get_parser():
    parser = new_parser("python -m experiments.reproduce", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    flag("--scale", choices=list(SCALES), required=True,
         help="minutes, three hours, a night, or a GPU's hour")
    flag("--jobs", type=int, help="runs at once; by default the CPU's cores, with a GPU 1")
    flag("--minutes", type=float, default=0, help="stop after so many; 0: when all is done")
    flag = parser.add_mutually_exclusive_group().add_argument
    flag("--fresh", action="store_true",
         help="first forget what was run, here or by whom the results come from")
    flag("--list", action="store_true", help="run nothing, only print the commands")
    flag("--collect", action="store_true", help="run nothing, only write tables and figures")
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    check_limits(args, {"jobs": AT_LEAST_1, "minutes": AT_LEAST_0})
    scale = SCALES[args.scale]
    if args.list:
        commands = [*data_commands(scale).values(), *(run.command for run in plan(scale))]
        return print(*dict.fromkeys(commands), sep="\n")
    failed, unfinished = [], 0
    # kill and timeout end it as Ctrl-C does. A script's background jobs start deaf to Ctrl-C, and
    # so would their runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if args.fresh:
        forget(scale)
    if not args.collect:
        jobs = args.jobs or (1 if torch.accelerator.is_available() else os.cpu_count() or 1)
        failed, unfinished = run_missing(scale, jobs, args.minutes)
    report_on(scale)
    if unfinished:
        print(f"{unfinished} runs are missing; the same command goes on")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
