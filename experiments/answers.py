"""Measure the answers to "Change one thing" in experiments/exercises.md: its own commands, with
five seeds.

    python -m experiments.answers              # what is missing; an hour and a half of two cores
    python -m experiments.answers --collect    # runs nothing, only writes the tables

A question's commands run in a working copy of the project, out/answers/QUESTION-SEED, in which its
change of the code, if it has one, is made. What they end with is a line of
experiments/results/exercises.jsonl, its means a table in the question's fold.
"""
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.flags import AT_LEAST_1, check_limits, new_parser, run_script
from data.tokenfile import write_atomically
from experiments.exercise import ROOT, copy_project
from experiments.reproduce import processor

TEXT = ROOT / "experiments" / "exercises.md"
RESULTS = ROOT / "experiments" / "results" / "exercises.jsonl"
OUT = ROOT / "out" / "answers"
SEEDS = range(5)
COLUMNS = {"val_accuracy": ("masked accuracy, %", 100, 1), "val_loss": ("loss, nats", 1, 2),
           "seconds": ("training, s", 1, 0), "accuracy": ("test accuracy, %", 100, 1),
           "agreement": ("two members agree, %", 100, 1)}  # key: (title, factor, digits)


def find_questions(text):
    """exercises.md -> the parts of "Change one thing" (list of str): what stands before the first
    question, question 1, question 2, ..."""
    text = text.partition("## Change one thing\n")[2].partition("\n## ")[0]
    return re.split(r"\n(?=### )", text)


def find_blocks(question):
    """-> its indented blocks (list of str): commands, or a line of code."""
    blocks = re.findall(r"(?:^    .*\n?)+", question, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]


def with_seed(commands, seed):
    """The commands with this seed; with ten times as much added to the seeds that they have."""
    commands = re.sub(r"--seed=(\S+)", rf"--seed=$((\1 + {10 * seed}))", commands)
    return re.sub(r"^(python (?:pretrain|finetune)\.py (?!.*--seed).*)$", rf"\1 --seed={seed}",
                  commands, flags=re.MULTILINE)


def change_code(file, line):
    """Put a line of code behind the last line of a file that begins alike, up to the "="."""
    lines = file.read_text("utf-8").splitlines()
    start = line.partition("=")[0] + "="
    i = max(i for i, other in enumerate(lines) if other.strip().startswith(start))
    indent = lines[i][:len(lines[i]) - len(lines[i].lstrip())]
    lines.insert(i + 1, indent + line.strip())
    file.write_text("\n".join(lines) + "\n", "utf-8")


def read_rows():
    """-> the rows of results/exercises.jsonl (list of dict), none if there is no such file."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def read_run(folder):
    """-> what a run ended with (dict)."""
    if (folder / "committee.json").exists():
        result = json.loads((folder / "committee.json").read_text())
        return {"accuracy": result["soft"], "agreement": result["agreement"]}
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    return {key: last[key] for key in COLUMNS if key in last}


def measure(number, question, seed, threads):
    """Run the commands of a question, append their row to results/exercises.jsonl. SystemExit if
    one fails."""
    folder, first = OUT / f"{number}-{seed}", OUT / f"0-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    copy_project(folder)
    if number:  # the model to compare with is there already
        shutil.copytree(first / "out", folder / "out")
        shutil.copytree(first / "data" / "bin", folder / "data" / "bin")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in find_blocks(question):
        if "python" not in block:
            change_code(folder / "pretrain.py", block)
            continue
        with open(folder / "log", "a") as log:
            done = subprocess.run(["bash", "-e", "-c", with_seed(block, seed)], cwd=folder,
                                  stdout=log, stderr=log, env=os.environ | {
                                      "PATH": path, "OMP_NUM_THREADS": str(threads)})
        if done.returncode:
            raise SystemExit(f"question {number} failed, see {folder}/log")
    known = {run.name for run in (first / "out").iterdir()} if number else set()
    runs = sorted((folder / "out").iterdir(), key=lambda run: run.stat().st_ctime)
    row = {"question": number, "seed": seed,
           "runs": {run.name: read_run(run) for run in runs if run.name not in known},
           "date": datetime.date.today().isoformat(), "machine": processor(), "threads": threads}
    with open(RESULTS, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"question {number}, seed {seed}: {row['runs']}", flush=True)
    if number:
        shutil.rmtree(folder)


def spread(values, factor, digits):
    mean = f"{factor * statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} +- {factor * statistics.stdev(values):.{digits}f}"


def make_table(rows):
    """The rows of one question -> a line for each of its runs, mean and deviation over seeds. Runs
    that only a number tells apart are one, by their mean."""
    values = {}  # run: key: a value for each seed
    for row in rows:
        pooled = {}
        for name, result in row["runs"].items():
            for key, value in result.items():
                run = pooled.setdefault(re.sub(r"-\d+$", "", name), {})
                run.setdefault(key, []).append(value)
        for name, run in pooled.items():
            for key, several in run.items():
                values.setdefault(name, {}).setdefault(key, []).append(statistics.mean(several))
    keys = [key for key in COLUMNS if any(key in run for run in values.values())]
    lines = [[f"{len(rows)} seeds", *(COLUMNS[key][0] for key in keys)], ["---"] * (len(keys) + 1)]
    for name, run in values.items():
        lines.append([name, *(spread(run[key], *COLUMNS[key][1:]) if key in run else ""
                              for key in keys)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_tables(text, rows):
    """exercises.md -> the same with the rows' tables at the end of each question's fold, or before
    the first question."""
    for number, question in enumerate(find_questions(text)):
        own = [row for row in rows if row["question"] == number]
        if not own:
            continue
        bare = re.sub(r"\n(?:^\|.*\n)+", "", question, flags=re.MULTILINE)  # of older tables
        table = f"\n{make_table(own)}"
        filled = bare.replace("</details>", f"{table}</details>") if number else bare + table
        text = text.replace(question, filled)
    return text


def main(argv=None):
    parser = new_parser("python -m experiments.answers", __doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1,
                        help="questions at once; by default the CPU's cores")
    parser.add_argument("--collect", action="store_true",
                        help="run nothing, only write the tables into exercises.md")
    args = parser.parse_args(argv)
    check_limits(args, {"jobs": AT_LEAST_1})
    text = TEXT.read_text("utf-8")
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    rows = read_rows()
    done = {(row["question"], row["seed"]) for row in rows}
    todo = [(number, question, seed, threads) for number, question in
            enumerate(find_questions(text)) for seed in SEEDS if (number, seed) not in done]
    if not args.collect:
        with ThreadPoolExecutor(args.jobs) as pool:
            try:
                for group in ([task for task in todo if not task[0]],  # the others need its files
                              [task for task in todo if task[0]]):
                    list(pool.map(measure, *zip(*group)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        rows = read_rows()
    rows.sort(key=lambda row: (row["question"], row["seed"]))
    write_atomically(TEXT, write_tables(text, rows).encode())


if __name__ == "__main__":
    run_script(main)
