"""The report: statistics with known values, statements that claims hold or do not."""
import base64

import numpy as np
import pytest

from experiments import figures, plan, report

TIMES = {"deep model": 0.02, "one member": 0.01, "2 members, stacked": 0.03}
LATENCY = [{"name": name, "parameters": 10, "flops": 1e6, "seconds_1": time,
            "seconds_64": 50 * time} for name, time in TIMES.items()]


def test_intervals_and_verdicts():
    # R: t.test(c(1, 2, 4)): -1.461 to 6.128; t.test(c(4, 5, 6, 7, 8)): 4.037 to 7.963
    assert report.interval([1, 2, 4]) == pytest.approx((7 / 3, -1.4612, 6.1279), abs=1e-3)
    assert report.interval([4, 5, 6, 7, 8]) == pytest.approx((6, 4.0368, 7.9632), abs=1e-3)
    assert report.interval([3]) == (3, -float("inf"), float("inf"))
    assert report.interval([0, 1] * 50)[1] == pytest.approx(0.5 - 2.086 * 0.50252 / 10, abs=1e-4)
    for values, least, verdict in [
            ([4, 5, 6], 0, "supported"), ([1, 2, 4], 0, "undecided"), ([-4, -5, -6], 0, "refuted"),
            ([-0.5, -0.4, -0.6], -1, "supported"), ([9], 0, "undecided"), ([2, 2], 2, "undecided"),
            ([2, 2], 0, "supported")]:
        assert report.judge({"A": values}, "A", least) == {"A": verdict}
    assert report.judge({"A": np.empty((0, 1))}, "A") == {}


def test_intervals_that_hold_the_sampling_of_test_texts():
    # two seeds alike: a quarter of 100 texts, +- 1.96 sqrt(0.25 * 0.75 / 99)
    alike = [np.repeat([100.0, 0], [25, 75])] * 2
    assert report.interval(alike) == pytest.approx((25, 16.470, 33.530), abs=1e-3)
    # the seeds' half-width 4.3027 * 10 / sqrt(3) = 24.842, the texts' 1.96 * 20 / sqrt(2) = 27.719
    seeds = [np.array([mean - 10 * 2 ** 0.5, mean + 10 * 2 ** 0.5]) for mean in (0, 10, 20)]
    half = (24.842 ** 2 + 27.719 ** 2) ** 0.5
    assert report.interval(seeds) == pytest.approx((10, 10 - half, 10 + half), abs=0.01)
    assert report.p_value(seeds, 10 + half) == pytest.approx(0.05, abs=1e-4)
    # unlike test sets, or texts that are not known: the seeds' alone
    for other in (np.array([20.0]), np.array([10, 20, 30.0])):
        assert report.interval([*seeds[:2], other]) == report.interval([0, 10, 20])


def test_intervals_cover_the_truth_in_new_texts_and_seeds():
    rng, n_covered = np.random.default_rng(0), 0
    for _ in range(300):
        texts, seeds = rng.normal(0, 30, 200), rng.normal(0, 1, (3, 1))
        values = 5 + texts + seeds + rng.normal(0, 20, (3, 200))
        _, low, high = report.interval(values)
        n_covered += low < 5 < high
    assert 0.93 < n_covered / 300


def test_p_values():
    """Against tables, and the closed forms for 1 and 2 degrees of freedom."""
    for n, quantile in enumerate(report.T_QUANTILES, 1):
        assert report.two_sided_p(quantile, n) == pytest.approx(0.05, abs=5e-5)
    for t, df, p in [(9.925, 2, 0.01), (31.599, 2, 0.001), (4.604, 4, 0.01), (3.169, 10, 0.01)]:
        assert report.two_sided_p(t, df) == pytest.approx(p, rel=1e-3)
    assert report.two_sided_p(1, 1) == pytest.approx(0.5)
    assert report.two_sided_p(3, 2) == pytest.approx(1 - 3 / 11 ** 0.5)
    assert report.two_sided_p(0, 3) == pytest.approx(1)
    # t = 7 ** 0.5 of 1, 2, 4 against 0, and (100 / 7) ** 0.5 against -1
    assert report.p_value([1, 2, 4], 0) == pytest.approx(1 - (7 / 9) ** 0.5)
    assert report.p_value([1, 2, 4], -1) == pytest.approx(1 - (100 / 114) ** 0.5)
    assert report.p_value([3], 0) == 1


def test_holm_corrects_all_but_the_main_comparison():
    corrected = report.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert report.holm({}) == {}
    values = [2, 3, 4]  # p = 0.035
    assert set(report.judge(dict.fromkeys("ab", values), "").values()) == {"undecided"}
    verdicts = report.judge(dict.fromkeys("abc", values), "a")
    assert verdicts == {"a": "supported", "b": "undecided", "c": "undecided"}
    assert report.tally(verdicts, "a") == (
        "supported 1, undecided 2, refuted 0; the main comparison, a, is supported")
    assert report.tally({}, "a") == "supported 0, undecided 0, refuted 0"


def test_rows_that_know_which_texts_are_right():
    """Half of 100 texts by random weights, others by pre-training: no interval of the seeds, but
    one of the texts."""
    def row(corpus, seed, right):
        return {"kind": "finetune", "model": "A", "task": "t", "corpus": corpus, "seed": seed,
                "accuracy": right.mean(), "n": 100,
                "right": base64.b64encode(np.packbits(right)).decode()}
    scratch, trained = np.arange(100) < 50, np.arange(100) >= 40
    rows = [row(corpus, seed, right) for seed in range(3)
            for corpus, right in [(None, scratch), ("large", trained)]]
    assert (report.accuracy(rows[0]) == 100 * scratch).all()
    gap = report.gaps(rows, "A", "t", "large")
    half = 196 * np.subtract(trained, scratch, dtype=float).std(ddof=1) / 10
    assert report.interval(gap.values()) == pytest.approx((10, 10 - half, 10 + half))
    doublings = report.slopes({100: gap, 400: {seed: 3 * values for seed, values in gap.items()}})
    assert report.interval(doublings) == pytest.approx((10, 10 - half, 10 + half))
    del rows[3]["right"]
    assert report.interval(report.gaps(rows, "A", "t", "large").values()) == pytest.approx(
        (10, 10, 10))


def a_study():
    """A scale, and rows with known numbers. A has a gap, B none; the gap grows by 2 points a
    doubling; overlap changes nothing; the committee is 5 points worse than the deep model; it is
    slower."""
    scale = plan.Scale(
        name="x", models={"A": "", "B": ""}, main_model="A", deep_model="B", main_corpus="large",
        pretrain="", tasks={"t": ""}, sizes=["small", "large"],
        equal_steps=["small, 4 epochs", "large"], overlap_task="t", overlap_sets=["low", "high"],
        pool="", n_committees=1, n_members=2)
    common = {"tokens": 1000, "positions": 1200, "flops": 1e9, "seconds": 2.0, "machine": "a cpu",
              "date": "2026-01-01", "torch": "2.0", "command": ""}
    rows, noise = [], [0.0, 0.002, 0.004]

    def add(kind, model, corpus, seed, **facts):
        rows.append(common | {"kind": kind, "model": model, "corpus": corpus, "seed": seed} | facts)

    accuracies = {("A", "large"): 0.64, ("A", "small"): 0.60,
                  ("A", "small, 4 epochs"): 0.64, ("A", "low"): 0.6, ("A", "high"): 0.6,
                  ("A", None): 0.5, ("B", "large"): 0.7, ("B", None): 0.7}
    more = {"low": {"overlap": {"tokens": 0.2}}, "high": {"overlap": {"tokens": 0.9}},
            "small": {"n_articles": 100}, "small, 4 epochs": {"n_articles": 100},
            "large": {"n_articles": 400}}
    for (model, corpus), accuracy in accuracies.items():
        for seed in range(3):
            if corpus:
                add("pretrain", model, corpus, seed, val_loss=5.0, **more[corpus])
            wobble = seed if (model, corpus) == ("B", None) else corpus in ("high", "large")
            add("finetune", model, corpus, seed, task="t", accuracy=accuracy + noise[seed] * wobble)
    rows.append({"kind": "committee", "task": "t", "seed": 0, "soft": 0.65, "latency": LATENCY,
                 "by_size": [{"mean": 0.64, "sd": 0.01}, {"mean": 0.65, "sd": 0.0}], **common})
    rows.append({"kind": "committee", "task": "t", "seed": 0, "soft": 0.63, **common,
                 "one_pretraining": True})
    rows += [common | {"kind": "bag_of_words", "task": "t", "seed": seed, "accuracy": 0.62,
                       "n_examples": 9}
             for seed in range(3)]
    for seed in range(3):
        add("finetune", "A, second stage", "large", seed, task="t", accuracy=0.66)
    return scale, rows


def test_tables_and_statements_from_known_numbers(tmp_path, capsys):
    scale, rows = a_study()
    path = tmp_path / "x.md"
    path.write_text("stale")
    report.write(scale, rows, path)
    text = path.read_text()
    assert text.startswith("# Reproduction: x\n\n`python -m experiments.reproduce --scale=x`")
    flat = " ".join(text.split())
    for part in [
        "| A | t | 3 | 64.2 +- 0.2 | 50.0 +- 0.0 | +14.2 (+13.7 to +14.7) | supported | ",
        "| 62.0 +- 0.0 | +2.2 (+1.7 to +2.7) |",
        "| B | t | 3 | 70.2 +- 0.2 | 70.3 +- 0.4 | -0.1 (-0.7 to +0.4) | undecided |",
        "| A, second stage | t | 3 | 66.0 +- 0.0 | 50.0 +- 0.0 | +16.0 (+16.0 to +16.0) | sup",
        "makes a gap**: supported 2, undecided 1, refuted 0; the main comparison, A on t, is sup",
        "[size](../figures/x-size.png), [overlap](../figures/x-o",
        "Points a doubling: +2.1 (+1.9 to +2.3) on t (3 seeds): supported.",
        "read more often: supported 0, undecided 1, refuted 0; the main comparison, t, is undeci",
        "Points a doubling: +0.1 (-0.1 to +0.3) on t (3 seeds): undecided.",
        "on t: supported 0, undecided 1, refuted 0: high against low +0.2 (-0.3 to +0.7) points",
        "By the same test B is better than one A of the same examples on 1 of 1 classification",
        "as accurate as B** (at most 1 point worse): supported 0, undecided 0, refuted 1; the main",
        "| t | 64.0 +- 1.0 | 65.0 | 63.0 | +3.0 | 70.2 +- 0.2 | +6.0 (+6.0 to +6.0) | more than 2 ",
        "| more than 2 | -5.2 (-5.7 to -4.7) | refuted |",
        "batches of 1 the deep model takes 0.67 times as long as 2 members, stacked, and 2.00",
    ]:
        assert part in flat
    assert "stale" not in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert "**Claim 3" in capsys.readouterr().out
    report.write(scale, rows, path)
    assert path.read_text() == text
    for n in range(len(rows)):  # whatever is still missing, the rest is reported
        report.page(scale, rows[n:])


def test_committees_are_compared_with_what_has_seen_their_examples():
    scale, rows = a_study()
    scale = scale._replace(n_committees=3)
    assert report.claim_committee(scale, rows).table[1][-1] == "undecided"
    row = next(row for row in rows if row["kind"] == "committee" and "by_size" in row)
    for seed, soft in [(1, 0.66), (2, 0.67)]:
        by_size = [{"mean": soft - 0.02, "sd": 0.9}, {"mean": soft, "sd": 0.0}]
        rows.append(row | {"seed": seed, "soft": soft, "by_size": by_size})
    claim = report.claim_committee(scale, rows)
    # 65, 66, 67 against 70.0, 70.2, 70.4: each against its own
    assert claim.table[1:] == [["t", "64.3 +- 0.6", "66.0 +- 1.0", "63.0", "+4.0 (+1.5 to +6.5)",
                                "70.2 +- 0.2", "+6.0 (+6.0 to +6.0)", "more than 2",
                                "-4.2 (-6.2 to -2.2)", "refuted"]]
    assert "over 3 committees" in claim.statement[0]
    assert "on 1 of 1 classification sets, and the committee than the bag of words on 1." in (
        claim.statement[0])
    assert claim.points["t"][1] == pytest.approx((2, -4.2, 0.8))

    # without a deep model, and 65, 66, 67 against words of 62, 65, 68: +3, +1, -1
    words = [{"kind": "bag_of_words", "task": "t", "seed": seed, "accuracy": accuracy}
             for seed, accuracy in enumerate([0.62, 0.65, 0.68])]
    alone = report.claim_committee(scale, [row for row in rows if row["kind"] == "committee"]
                                   + words)
    assert alone.table[1:] == [["t", "64.3 +- 0.6", "66.0 +- 1.0", "63.0", "+1.0 (-4.0 to +6.0)",
                                "-", "-", "-", "-", "-"]]
    assert "and the committee than the bag of words on 0." in alone.statement[0]
    assert not alone.points

    for row in rows:
        if (row["kind"], row.get("model")) == ("finetune", "B"):
            row["accuracy"] -= 0.035
    assert report.claim_committee(scale, rows).table[1][7] == 2  # at most a point less than 66.7


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    scale, rows = a_study()
    figures.draw(scale, report.page(scale, rows)[1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "x-committee.png", "x-overlap.png", "x-size.png"]
    assert report.page(scale, rows)[1]["size"]["t"] == (
        [(100, pytest.approx(10), 0), (400, pytest.approx(14.2), pytest.approx(0.2))],
        [(100, pytest.approx(14), 0), (400, pytest.approx(14.2), pytest.approx(0.2))])

    # without the control of the sizes
    points = report.page(scale._replace(equal_steps=[]), rows)[1]
    assert points["size"]["t"][1] == []
    figures.draw(scale, {"size": points["size"]}, tmp_path / "no-control")
    assert (tmp_path / "no-control" / "x-size.png").exists()

    # several numbers of examples of one set share a panel
    rows = [row | {"task": f"t --n_per_class={n}", "n_examples": n} for n in (10, 30)
            for row in rows if "task" in row]
    several = scale._replace(tasks={f"t --n_per_class={n}": "" for n in (10, 30)})
    points = report.page(several, rows + a_study()[1])[1]
    assert points["examples"]["t"]["bag of words"] == [(10, 62, 0), (30, 62, 0)]
    figures.draw(several, {"examples": points["examples"]}, tmp_path / "several")
    assert (tmp_path / "several" / "x-examples.png").exists()
    words = [row for row in rows if row["kind"] == "bag_of_words"]
    assert list(report.page(several, words)[1]) == ["examples"]


def test_every_scale_has_the_figures_that_it_needs(tmp_path):
    """The night scale has more tasks than a figure has colours."""
    pytest.importorskip("matplotlib")
    scale = max(plan.SCALES.values(), key=lambda scale: len(scale.tasks))
    points = {"committee": dict.fromkeys(scale.tasks, [(1, 60.0, 1.0), (2, 61.0, 1.0)])}
    figures.draw(scale, points, tmp_path)
    assert (tmp_path / f"{scale.name}-committee.png").exists()
