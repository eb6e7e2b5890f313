"""The reproduction: its commands, runs that stop and go on, failures that are reported."""
import json
import shutil
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
from conftest import needs_signals

import committee
import finetune
import pretrain
from data.files import read_json_lines, write_json_lines
from experiments import bag_of_words, reproduce
from experiments.plan import SCALES, Scale, data_command, data_commands, plan, read_corpus
from training import make_config

MODEL = "--n_layer=1 --n_embd=32 --n_head=2 --block_size=32"


@pytest.mark.parametrize("name", SCALES)
def test_commands_of_the_scales_are_understood(name, monkeypatch, capsys):
    """Every flag parses, every model can be made, and every run follows those that it needs."""
    modules = {"pretrain": pretrain, "finetune": finetune, "committee": committee,
               "bag_of_words": bag_of_words}
    seen, runs = {}, plan(SCALES[name])
    for run in runs:
        script = f"-m experiments.{run.kind}" if run.kind == "bag_of_words" else f"{run.kind}.py"
        flags = run.command.removeprefix(f"python {script} ").split()
        args = modules[run.kind].get_parser().parse_args(flags)
        if run.kind in ("pretrain", "finetune"):
            make_config(args, 16384)
        assert run.name not in seen and run.name in run.command
        parts = [seen[name] for name in run.needs]
        if run.kind == "committee" and parts[0].n_per_class:  # all members saw the same few
            assert len({part.seed if part.example_seed is None else part.example_seed
                        for part in parts}) == 1
        seen[run.name] = args
    timed = [run for run in runs if run.kind == "committee" and seen[run.name].latency]
    assert timed == runs[-1:]
    monkeypatch.setattr(reproduce, "run_missing", None)
    reproduce.main([f"--scale={name}", "--list"])
    lines = capsys.readouterr().out.splitlines()
    datasets, commands = lines[:-len(runs)], lines[-len(runs):]
    assert commands == [run.command for run in runs]
    assert set(datasets) == set(data_commands(SCALES[name]).values())


def test_names_of_datasets_become_commands():
    assert read_corpus("news") == ("news", "", "")
    assert read_corpus("news --subset=0.5, 8 epochs") == ("news", "--subset=0.5", "--epochs=8")
    assert data_command("wikipedia-500") == "python -m data.wikipedia --n_articles=500"
    assert data_command("wikipedia-500-high-fewrel", "wikipedia-2000") == (
        "python -m data.overlap --dataset=wikipedia-2000 --with=fewrel --choose=high "
        "--n_articles=500")
    assert data_command("pocket-0.5") == "python -m data.pocket --coverage=0.5"
    assert data_command("pocket-places") == "python -m data.pocket"
    assert data_command("agnews") == "python -m data.agnews"
    for scale in SCALES.values():  # what a dataset is made of is made before it
        datasets = list(data_commands(scale))
        for chosen in scale.overlap_sets if scale.pool else []:
            chosen, _, _ = read_corpus(chosen)
            parts = [scale.overlap_task.split()[0], scale.pool]
            assert max(map(datasets.index, parts)) < datasets.index(chosen)


@pytest.fixture
def tiny(weather, tmp_path, monkeypatch):
    """A scale of seconds, named tiny, with its files in tmp_path."""
    corpus, task = f"{weather}/plain", f"{weather}/labelled"
    monkeypatch.setattr("experiments.plan.OUT", tmp_path / "out")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    scale = Scale(
        name="tiny", models={"BERT-1": MODEL}, main_model="BERT-1", deep_model="BERT-1",
        main_corpus=corpus,
        pretrain="--epochs=1 --batch_size=8", tasks={task: "--epochs=1"}, sizes=[corpus],
        overlap_task=task, overlap_sets=[], pool="", n_committees=1, n_members=2,
        equal_steps=[f"{corpus} --subset=0.5, 2 epochs"], second={task: "--epochs=2"}, seeds=1)
    monkeypatch.setitem(SCALES, "tiny", scale)
    return scale


def test_runs_that_fail_are_reported_and_run_again(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    folder, results = tmp_path / "out" / "reproduce-tiny", tmp_path / "results" / "tiny.jsonl"
    runs = {run.name: run for run in plan(tiny)}
    first, member, scratch, *_, bag, _, _, last = runs
    (folder / scratch).mkdir(parents=True)
    (folder / scratch / "log.jsonl").mkdir()  # a folder where a file must go: this run will fail
    with pytest.raises(SystemExit, match=f"failed: {scratch}$"):
        reproduce.main(["--scale=tiny", "--jobs=2"])
    assert f"{scratch} failed, see {folder / scratch}.log" in capsys.readouterr().out
    assert "cannot write" in (folder / f"{scratch}.log").read_text()
    rows = {row["name"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert rows.keys() == runs.keys() - {scratch} and rows[last]["latency"][0]["seconds_1"] > 0
    assert rows[first]["n_articles"] == 50
    repeated = next(row for name, row in rows.items() if name.endswith("2-epochs.0")
                    and row["kind"] == "pretrain")
    assert repeated["n_articles"] == 25 and "--epochs=2 --batch_size" in repeated["command"]
    assert rows[first]["torch"] and rows[first]["machine"] == reproduce.machine()
    assert 0 <= rows[member]["accuracy"] <= 1 and 0.6 < rows[bag]["accuracy"] <= 1
    for name, key in [(member, "accuracy"), (bag, "accuracy"), (last, "soft")]:
        right = reproduce.report.accuracy(rows[name])
        assert len(right) == 30 and right.mean() == pytest.approx(100 * rows[name][key])
    assert rows[member]["command"].startswith("python finetune.py --dataset=")
    assert results.with_suffix(".md").read_text().startswith("# Reproduction: tiny")

    # the same again runs only what failed, and a fine-tuning whose row was lost
    monkeypatch.setattr(reproduce.figures, "draw", lambda *args: None)  # drawn once is enough
    shutil.rmtree(folder / scratch)
    left = [row for name, row in rows.items() if name != member]
    left.append(rows[first] | {"name": "no longer in the plan"})
    results.write_text("".join(json.dumps(row) + "\n" for row in left))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/ckpt.pt")}
    reproduce.main(["--scale=tiny", "--jobs=1"])
    changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == [folder / member / "ckpt.pt"]
    assert results.read_text().count("\n") == len(runs)
    assert "11 of 13 runs are done" in capsys.readouterr().out


def test_what_is_done_is_not_run_again(tiny, tmp_path, monkeypatch, capsys):
    """Files that nobody needs any more are not missed; a row of other flags is not taken for ours;
    --fresh loses nothing where the data can't be made."""
    monkeypatch.setattr(reproduce, "report_on", lambda scale: None)
    finished = tmp_path / "results" / "tiny.jsonl"
    write_json_lines(finished, [run._asdict() for run in plan(tiny)])
    content = finished.read_text()
    reproduce.main(["--scale=tiny", "--jobs=1"])
    out = capsys.readouterr().out
    assert "13 of 13 runs are done" in out and "to run them again" in out
    assert not (tmp_path / "out").exists() and finished.read_text() == content
    first, member, *_ = plan(tiny)  # the second needs the first, of which a half is there
    folder = reproduce.run_folder(tiny, first)
    folder.mkdir(parents=True)
    (folder / "ckpt.pt").touch()
    write_json_lines(folder / "log.jsonl", [{"tokens": 5}])
    for n_tokens, expected in [(9, [first, member]), (5, [member])]:
        rows = reproduce.read_results(tiny) | {first.name: first._asdict() | {"tokens": n_tokens}}
        del rows[member.name]
        assert reproduce.find_missing(tiny, rows) == expected

    monkeypatch.setattr(reproduce, "make_datasets", Mock(side_effect=SystemExit("no network")))
    with pytest.raises(SystemExit, match="no network"):
        reproduce.main(["--scale=tiny", "--fresh"])
    assert finished.read_text() == content
    monkeypatch.setattr(reproduce, "make_datasets", lambda scale: None)
    reproduce.forget(tiny)
    assert not finished.read_text()
    finished.write_text(content)
    SCALES["tiny"] = tiny._replace(pretrain=f"{tiny.pretrain} --lr=1e-3")
    with pytest.raises(SystemExit, match="was run with other flags"):
        reproduce.main(["--scale=tiny", "--jobs=1"])
    reproduce.main(["--scale=tiny", "--collect"])  # needs neither the files nor the flags
    for damage in ("{", "[]", "{}"):
        finished.write_text(content + damage)
        with pytest.raises(SystemExit, match="tiny.jsonl is damaged .* restore a copy, or move it"):
            reproduce.main(["--scale=tiny", "--jobs=1"])


def test_what_needs_a_failed_run_is_left_out(tiny, monkeypatch, capsys):
    """And without scikit-learn the bag of words."""
    first, member, *_ = runs = plan(tiny)
    started = []

    def start(scale, run, n_threads):
        started.append(run.name)
        return subprocess.Popen([sys.executable, "-Sc", f"raise SystemExit({run is first})"])
    monkeypatch.setattr(reproduce, "plan", lambda scale: runs)
    monkeypatch.setattr(reproduce, "start", start)
    monkeypatch.setattr(reproduce, "make_row", lambda scale, run: {"name": run.name})
    monkeypatch.setattr(reproduce, "find_spec", lambda name: None)
    failed, n_missing = reproduce.run_missing(tiny, jobs=2)
    lines = capsys.readouterr().out.splitlines()
    assert failed == [first.name] and any("pip install scikit-learn" in line for line in lines)
    lost = {line.split()[0] for line in lines if " is left out: a run that it needs" in line}
    assert member.name in lost and n_missing == len(lost) + 1
    words = {run.name for run in runs if run.kind == "bag_of_words"}
    assert set(started) == {run.name for run in runs} - lost - words
    for run in runs:
        assert run.name not in started or started.index(run.name) >= max(
            map(started.index, run.needs), default=0)


def test_a_committee_runs_alone(tiny):
    runs = {run.kind: run for run in plan(tiny)}  # the last of each kind
    vote, other = runs["committee"], runs["bag_of_words"]
    for todo, running, unfinished, expected in [
            ([vote, other], [other], set(), other), ([vote, other], [], set(), vote),
            ([other], [vote], set(), None), ([other], [other, other], set(), None),
            ([vote], [], set(vote.needs), None)]:
        assert reproduce.pick_next(todo, running, unfinished, jobs=2) is expected


@needs_signals
def test_an_interrupted_pretraining_goes_on(tiny, monkeypatch, capsys):
    """By SIGTERM, in the background of a script, where Ctrl-C is ignored."""
    scale = tiny._replace(pretrain="--epochs=30 --batch_size=8")  # long enough to be interrupted
    monkeypatch.setattr("experiments.plan.EVALUATE_ONCE", "--eval_interval=30")
    runs, sleep = plan(scale)[:2], reproduce.time.sleep
    log = reproduce.run_folder(scale, runs[0]) / "log.jsonl"
    monkeypatch.setitem(SCALES, "tiny", scale)
    monkeypatch.setattr(reproduce, "plan", lambda scale: runs)

    def steps():
        return [row["step"] for row in read_json_lines(log, "step")]

    def terminate(seconds):
        sleep(seconds)
        if max(steps(), default=0) > 0:
            monkeypatch.setattr(reproduce.time, "sleep", sleep)
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(reproduce.time, "sleep", terminate)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        reproduce.main(["--scale=tiny", "--jobs=1"])
    finally:
        signal.signal(signal.SIGINT, before)
    stopped = steps()
    assert 0 < stopped[-1] < 210 and not reproduce.read_results(scale)
    assert "2 runs are missing; the same command goes on" in capsys.readouterr().out
    reproduce.main(["--scale=tiny", "--jobs=1"])
    assert steps()[:len(stopped)] == stopped and steps()[-1] == 210
    assert list(reproduce.read_results(scale)) == [run.name for run in runs]
