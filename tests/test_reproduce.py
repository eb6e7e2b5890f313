"""The reproduction: statistics with known values, statements that claims hold or do not, runs that stop and go on."""
import json
import shutil

import pytest

from data.tokenfile import write_dataset
from data.tokenizer import get_tokenizer
from experiments import report, reproduce

MODEL = "--n_layer=1 --n_embd=32 --n_head=2 --block_size=32"
WORDS = ["the sun shines on a {} road", "the moon and {} stars", "wet {} drops"]


def test_intervals_and_verdicts():
    # R: t.test(c(1, 2, 4)) has the interval -1.461 to 6.128; t.test(c(4, 5, 6, 7, 8)) 4.037 to 7.963
    assert report.interval([1, 2, 4]) == pytest.approx((7 / 3, -1.4612, 6.1279), abs=1e-3)
    assert report.interval([4, 5, 6, 7, 8]) == pytest.approx((6, 4.0368, 7.9632), abs=1e-3)
    assert report.interval([3]) == (3, -float("inf"), float("inf"))
    assert report.interval([0, 1] * 50)[1] == pytest.approx(0.5 - 2.086 * 0.50252 / 10, abs=1e-4)
    assert report.verdict([4, 5, 6]) == "supported"
    assert report.verdict([1, 2, 4]) == "**not supported**: 3 seeds don't decide it"
    assert report.verdict([-4, -5, -6]) == "**not supported**, the opposite holds"
    assert report.verdict([-0.5, -0.4, -0.6], -1) == "supported"
    assert report.verdict([9]) == "**not decided** (one seed)"


def test_reaching_a_loss_is_interpolated():
    curve = [[0, 0, 0, 9.0, 0.0], [100, 80, 10, 7.0, 0.2], [200, 160, 30, 6.0, 0.3], [300, 240, 50, 6.5, 0.4]]
    assert report.reach(curve, "val_loss", 8.0) == {"positions": 50, "tokens": 40, "seconds": 5}
    assert report.reach(curve, "val_loss", 6.25) == {"positions": 175, "tokens": 140, "seconds": 25}
    assert report.reach(curve, "val_accuracy", 0.4) == {"positions": 300, "tokens": 240, "seconds": 50}
    assert report.reach(curve, "val_loss", 5.9) is None


def rows_of_a_study():
    """Rows with known numbers, and the scale that they belong to. A has a gap, B none; the gap grows by 2 points a
    doubling; overlap changes nothing; the committee is 5 points worse than the deep model; it is slower."""
    s = {"models": {"A": ("", "large"), "B": ("", "large")}, "main": "A", "deep": "B", "tasks": {"t": ""},
         "sizes": ["small", "large"], "overlap": ("t", ["low", "high"]), "committee": (1, 2), "recipe": ("", "")}
    common = {"tokens": 1000, "positions": 1200, "flops": 1e9, "seconds": 2.0, "tokens_per_second": 500.0,
              "date": "2026-01-01", "machine": "a machine", "torch": "2.0"}
    rows, noise = [], [0.0, 0.002, 0.004]
    accuracies = {("A", "large"): 0.64, ("A", "small"): 0.60, ("A", "low"): 0.6, ("A", "high"): 0.6, ("A", None): 0.5,
                  ("B", "large"): 0.7, ("B", None): 0.7}
    for (model, corpus), accuracy in accuracies.items():
        for seed in range(3):
            if corpus:
                more = {"overlap": {"tokens": {"low": 0.2, "high": 0.9}[corpus]}} if corpus in ("low", "high") else {}
                if (model, corpus) == ("A", "large"):
                    more["recipe"] = "ours"
                    more["curve"] = [[0, 0, 0, 9.0, 0.0], [120, 100, 2, 7.0, 0.1], [240, 200, 4, 5.0, 0.2]]
                rows.append({"name": f"{model}.{corpus}.{seed}", "kind": "pretrain", "model": model, "corpus": corpus,
                             "seed": seed, "command": "python pretrain.py", "val_loss": 5.0, "val_accuracy": 0.2,
                             "n_articles": {"small": 100, "large": 400}.get(corpus, 200), **more, **common})
            wobble = noise[seed] * (seed if model == "B" and not corpus else corpus in ("high", "large"))
            rows.append({"name": f"t.{model}.{corpus}.{seed}", "kind": "finetune", "model": model, "corpus": corpus,
                         "task": "t", "seed": seed, "command": "python finetune.py", "accuracy": accuracy + wobble,
                         **common})
    latency = [{"name": name, "parameters": 10, "flops": 1e6, "seconds_1": time, "seconds_64": 50 * time}
               for name, time in [("deep model", 0.02), ("one member", 0.01), ("2 members, stacked", 0.03)]]
    rows.append({"name": "t.committee.0", "kind": "committee", "task": "t", "seed": 0, "soft": 0.65, "latency": latency,
                 "by_size": [{"size": 1, "mean": 0.64, "sd": 0.01}, {"size": 2, "mean": 0.65, "sd": 0.0}], **common})
    paper = common | {"tokens": 1000, "positions": 1200, "seconds": 20.0}
    rows.append({"name": "paper", "kind": "pretrain", "model": "A, the paper's recipe", "corpus": "large", "seed": 0,
                 "recipe": "paper", "command": "", "val_loss": 7.0, "val_accuracy": 0.15, "plateau": 7.2,
                 "n_articles": 400, **paper})
    rows += [{"name": f"t.paper.{seed}", "kind": "finetune", "model": "A, the paper's recipe", "corpus": "large",
              "task": "t", "seed": seed, "command": "", "accuracy": 0.6, **common} for seed in range(3)]
    return s, rows


def test_tables_and_statements_from_known_numbers(tmp_path, capsys):
    s, rows = rows_of_a_study()
    (tmp_path / "RESULTS.md").write_text("before\n\n<!-- reproduce x -->\nstale\n<!-- end x -->\n\nafter\n")
    report.write("x", s, rows, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.startswith("before\n\n<!-- reproduce x -->\n## Reproduction: x") and "stale" not in text
    assert text.endswith("<!-- end x -->\n\nafter\n") and text.count("<!--") == 2
    flat = " ".join(text.split())
    assert "| A | large | t | 3 | 64.2 +- 0.2 | 50.0 +- 0.0 | +14.2 (+13.7 to +14.7) | supported |" in flat
    assert "| B | large | t | 3 | 70.2 +- 0.2 | 70.3 +- 0.4 | -0.1 (-0.7 to +0.4) | **not supported**: 3 seeds" in flat
    assert "supported for 1 of 2 pairs of a model and a classification set" in flat
    assert "[gap](figures/x-gap.png), [size](figures/x-size.png), [overlap](figures/x-overlap.png)" in flat
    assert "on t: +2.1 (+1.9 to +2.3) points a doubling (3 seeds): supported" in flat
    assert "on t: high against low +0.2 (-0.3 to +0.7) points (3 seeds): **not supported**" in flat
    assert "on t: -5.2 (-5.7 to -4.7) points (1 committee, 3 deep models): **not supported**, the opposite" in flat
    assert "batches of 1: the deep model takes 0.67 times as long as 2 members, stacked, and 2.00 times" in flat
    assert "took it 10.0 times the tokens and 10.0 times the seconds" in flat and "is reached by every seed" in flat
    assert "6.7 times the tokens and 6.7 times" in flat  # accuracy 0.15, half way between two evaluations
    assert "our whole runs took 1.0 times fewer tokens and 10.0 times fewer seconds" in flat
    assert "| t | 3 | 60.0 +- 0.0 | 64.2 +- 0.2 | +4.2 (+3.7 to +4.7) | supported |" in flat
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert "**Claim 3" in capsys.readouterr().out
    report.write("x", s, rows, tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == text
    for n in range(len(rows)):  # whatever is still missing, the rest is told
        report.section("x", s, rows[n:])
    report.write("y", s, rows, tmp_path)  # another scale gets a section of its own
    assert (tmp_path / "RESULTS.md").read_text().startswith(text.rstrip())


def test_committees_are_compared_with_the_deep_models_of_their_examples():
    s, rows = rows_of_a_study()
    committee = next(row for row in rows if row["kind"] == "committee")
    rows += [committee | {"seed": seed, "soft": soft, "by_size": [{"size": 1, "mean": soft - 0.02, "sd": 0.9},
                                                                  {"size": 2, "mean": soft, "sd": 0.0}]}
             for seed, soft in [(1, 0.66), (2, 0.67)]]
    text, points, _ = report.claim_committee(s, rows)
    text = " ".join(" ".join(text).split())
    # 65, 66, 67 against 70.0, 70.2, 70.4: each against its own
    assert "-4.2 (-6.2 to -2.2) points (3 committees, 3 deep models): **not supported**, the opposite" in text
    assert "| t | A, committee of 1 | 64.3 +- 0.6 |" in text and "over committees or seeds" in text
    assert points["t"][0][1] == pytest.approx((2, 66, 1))


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    report.write("x", *rows_of_a_study(), tmp_path)
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["x-committee.png", "x-gap.png", "x-latency.png", "x-overlap.png", "x-size.png"]


@pytest.mark.parametrize("scale", list(reproduce.SCALES))
def test_commands_of_the_scales_are_understood(scale):
    """Every flag of every command parses, every model can be made, and what a run needs stands before it."""
    import committee
    import finetune
    import pretrain
    parsers = {module.__name__: module.get_parser() for module in (committee, finetune, pretrain)}
    seen, runs = {}, reproduce.plan(scale)
    for run in runs:
        args = parsers[run["kind"]].parse_args(run["command"].split()[2:])
        if run["kind"] != "committee":
            pretrain.check(args)
            pretrain.make_config(args, 16384)
        assert run["name"] not in seen and run["name"] in run["command"]
        parts = [seen[name] for name in run["needs"]]
        if run["kind"] == "committee" and parts[0].n_per_class:  # of few examples, all have seen the same
            assert len({part.seed if part.example_seed is None else part.example_seed for part in parts}) == 1
        seen[run["name"]] = args
    assert runs[-1].get("alone") and sum(bool(run.get("alone")) for run in runs) == 1


def test_names_of_datasets_become_commands():
    assert reproduce.data_command("wikipedia-500") == ["data.wikipedia", "--n_articles=500"]
    assert reproduce.data_command("wikipedia-500-high-fewrel") == [
        "data.overlap", "--dataset=wikipedia-2000", "--with=fewrel", "--choose=high", "--n_articles=500"]
    assert reproduce.data_command("pocket-0.5") == ["data.pocket", "--coverage=0.5"]
    assert reproduce.data_command("pocket-places") == ["data.pocket"]
    assert reproduce.data_command("agnews") == ["data.agnews"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A scale of seconds, named tiny, with its files in tmp_path. -> its runs by name"""
    fillers = ["small", "old", "quiet", "long", "far", "good"]
    items = [(split, text.format(filler), label) for split in ("train", "test") for filler in fillers
             for label, text in enumerate(WORDS)]
    write_dataset(tmp_path / "task", items, get_tokenizer(), {}, labels=["day", "night", "rain"])
    texts = [("val" if i % 4 == 0 else "train", text) for i, (_, text, _) in enumerate(items * 2)]
    write_dataset(tmp_path / "texts", texts, get_tokenizer(), {})
    corpus, task = str(tmp_path / "texts"), str(tmp_path / "task")
    monkeypatch.setattr(reproduce, "BIN_DIR", tmp_path)
    monkeypatch.setattr(reproduce, "OUT", tmp_path / "out")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    monkeypatch.setattr(reproduce, "SEEDS", 1)
    monkeypatch.setitem(reproduce.SCALES, "tiny", {
        "models": {"BERT-1": (MODEL, corpus)}, "main": "BERT-1", "deep": "BERT-1", "tasks": {task: "--epochs=1"},
        "pretrain": "--epochs=1 --batch_size=8", "sizes": [corpus], "overlap": (task, []), "committee": (1, 2),
        "recipe": None})
    return {run["name"]: run for run in reproduce.plan("tiny")}


def test_runs_stop_and_go_on_and_failures_are_told(tiny, tmp_path, capsys):
    folder, results = tmp_path / "out" / "reproduce-tiny", tmp_path / "results" / "tiny.jsonl"
    first, member, scratch, *_, committee = tiny
    (folder / scratch).mkdir(parents=True)
    (folder / scratch / "log.jsonl").mkdir()  # a folder where a file must go: this run will fail
    with pytest.raises(SystemExit, match=f"failed: {scratch}$"):
        reproduce.main(["--scale=tiny", "--jobs=2"])
    assert f"{scratch} failed, see {folder / scratch}.log" in capsys.readouterr().out
    assert "cannot write" in (folder / f"{scratch}.log").read_text()
    rows = {row["name"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert rows.keys() == tiny.keys() - {scratch} and rows[committee]["latency"][0]["seconds_1"] > 0
    assert rows[first]["n_articles"] == 54 and rows[first]["tokens_per_second"] > 0 and rows[first]["torch"]
    assert 0 <= rows[member]["accuracy"] <= 1 and rows[member]["command"].startswith("python finetune.py --dataset=")
    assert (tmp_path / "RESULTS.md").read_text().startswith("<!-- reproduce tiny -->")

    # the same again runs only what failed, and a row that was lost though its run had ended
    shutil.rmtree(folder / scratch)
    left = [row for name, row in rows.items() if name != member] + [rows[first] | {"name": "no longer in the plan"}]
    results.write_text("".join(json.dumps(row) + "\n" for row in left))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/ckpt.pt")}
    reproduce.main(["--scale=tiny", "--jobs=1"])
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert results.read_text().count("\n") == len(tiny) and "4 of 6 runs are done" in capsys.readouterr().out
    # a model of other flags is not taken for ours, nor is a row; files that nobody needs any more are not missed
    scratch_run = tiny[scratch] | {"command": tiny[scratch]["command"].replace("--seed=0", "--seed=5")}
    assert reproduce.has_ended("tiny", tiny[scratch]) and not reproduce.has_ended("tiny", scratch_run)
    shutil.rmtree(folder)
    reproduce.main(["--scale=tiny", "--jobs=1"])
    out = capsys.readouterr().out
    assert "6 of 6 runs are done" in out and "to run them again" in out and not folder.exists()
    reproduce.SCALES["tiny"]["pretrain"] += " --lr=1e-3"
    with pytest.raises(SystemExit, match="was run with other flags"):
        reproduce.main(["--scale=tiny", "--jobs=1"])
    reproduce.main(["--scale=tiny", "--collect"])  # needs neither the files nor the flags


def test_two_at_once_are_refused(tiny):
    with reproduce.lock("tiny"), pytest.raises(SystemExit, match="somebody is at work on this scale"):
        reproduce.main(["--scale=tiny"])
    assert not reproduce.read_rows("tiny")
    reproduce.lock("tiny").close()


def test_an_interrupted_pretraining_goes_on(tiny, monkeypatch, capsys):
    reproduce.SCALES["tiny"]["pretrain"] = "--epochs=20 --batch_size=8 --eval_interval=10"
    runs, sleep = reproduce.plan("tiny")[:2], reproduce.time.sleep
    log = reproduce.folder_of("tiny", runs[0]) / "log.jsonl"
    monkeypatch.setattr(reproduce, "plan", lambda scale: runs)

    def steps():
        return [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []

    def ctrl_c(seconds):
        sleep(seconds)
        if max(steps(), default=0) > 0:
            monkeypatch.setattr(reproduce.time, "sleep", sleep)
            raise KeyboardInterrupt
    monkeypatch.setattr(reproduce.time, "sleep", ctrl_c)
    reproduce.main(["--scale=tiny", "--jobs=1"])
    stopped = steps()
    assert 0 < stopped[-1] < 140 and not reproduce.read_rows("tiny")
    assert "2 runs are missing; the same command goes on" in capsys.readouterr().out
    reproduce.main(["--scale=tiny", "--jobs=1", "--minutes=0.001"])  # over before it has begun
    assert steps() == stopped and not reproduce.read_rows("tiny")
    reproduce.main(["--scale=tiny", "--jobs=1"])
    assert steps()[:len(stopped)] == stopped and steps()[-1] == 140
    assert list(reproduce.read_rows("tiny")) == [run["name"] for run in runs]
