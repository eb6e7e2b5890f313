"""The committee: what is averaged and counted, the stacked model, training, what is refused."""
import io
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import write

import committee
import training
from model import BertConfig, BertForClassification

SMALL = ["--n_embd=32", "--n_head=2", "--block_size=32", "--device=cpu", "--no-latency",
         "--n_members=2", "--subset=0.5", "--pretrain=--epochs=1 --dtype=float32",
         "--finetune=--epochs=3 --lr=1e-2 --batch_size=8 --dtype=float32"]


def random_outputs(K=5, N=200, n_classes=4):
    """Softmax outputs of K members that are right rather often, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(n_classes, size=N)
    logits = rng.normal(size=(K, N, n_classes)) + np.eye(n_classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), labels


def save(folder, probabilities, labels, test_set="x"):
    folder.mkdir()
    np.savez(folder / "test.npz", probabilities=probabilities, labels=labels, test_set=test_set)
    return str(folder)


@pytest.fixture(scope="module")
def trained(weather, tmp_path_factory):
    """-> flags that train two members on a tiny task, and the folder where they are."""
    out_dir = tmp_path_factory.mktemp("out")
    flags = [f"--corpus={weather}/plain", f"--dataset={weather}/labelled", f"--out_dir={out_dir}",
             *SMALL]
    committee.main(flags)
    return flags, out_dir


@pytest.mark.parametrize("variant", [{}, {"pos": "learned", "n_head": 2},
                                     {"n_conv": 2, "conv_kernel": (4, 3)}])
@pytest.mark.parametrize("pooling", ["cls", "mean", "entities"])
def test_stacked_members_equal_the_members_one_by_one(variant, pooling):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=97, block_size=24, n_layer=1, n_embd=32, **variant)
    models = [BertForClassification(config, 5, pooling, [1, 2]).eval() for _ in range(3)]
    for p in itertools.chain(*(model.parameters() for model in models)):
        torch.nn.init.normal_(p, std=0.3)
    tokens = torch.randint(97, (4, 24))
    with torch.no_grad():
        expected = torch.stack([model(tokens) for model in models])
        stacked = committee.stack(models)(tokens)
    torch.testing.assert_close(stacked, expected, rtol=1e-5, atol=1e-5)


def test_votes():
    outputs, _ = random_outputs()
    votes = committee.majority_vote(outputs)
    assert votes.shape == (200, 4), "each of the 200 examples has a share for each of 4 classes"
    for i, each in enumerate(outputs.argmax(-1).T):
        counts = np.bincount(each, minlength=4)
        assert votes[i] == pytest.approx(counts / 5, abs=0.01), \
            f"of five members {counts} vote for each class: these are not their shares"
        winners = np.flatnonzero(counts == counts.max())
        assert votes[i].argmax() == winners[outputs.mean(0)[i][winners].argmax()], \
            "of classes with most votes, the one of the largest mean probability must win"


def test_calibration_error():
    outputs, labels = random_outputs()
    confidence, right = outputs[0].max(-1), outputs[0].argmax(-1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert committee.calibration_error(outputs[0], labels) == pytest.approx(expected), \
        "not the mean of |accuracy - confidence| over 15 bins, weighted by their examples"
    assert committee.calibration_error(np.eye(4)[labels], labels) == 0, \
        "who is sure (a confidence of 1) and right each time has an error of 0"


def test_accuracy_by_size():
    outputs, labels = random_outputs()
    rows = committee.accuracy_by_size(outputs, labels)
    assert [row["size"] for row in rows] == [1, 2, 3, 4, 5], "one row for each committee size"
    assert [row["subsets"] for row in rows] == [5, 10, 10, 5, 1], \
        "the numbers of all subsets of five members, by size"
    pairs = [(outputs[list(pair)].mean(0).argmax(-1) == labels).mean()
             for pair in itertools.combinations(range(5), 2)]
    assert rows[1]["mean"] == pytest.approx(np.mean(pairs)), \
        "not the mean accuracy of the ten committees of two"
    assert rows[1]["sd"] == pytest.approx(np.std(pairs)), \
        "not the standard deviation of these ten (divide by 10, not by 9)"
    assert rows[4]["mean"] == committee.accuracy(outputs.mean(0), labels), \
        "not the accuracy of the one committee of all five"
    assert rows[4]["sd"] == 0, "one committee alone has no deviation"
    assert rows[4]["mean"] > rows[0]["mean"], "these members' errors are independent: they cancel"
    assert committee.accuracy_by_size(outputs, labels, n_draws=4)[1]["subsets"] == 4, \
        "with n_draws=4 only four of the ten committees of two are drawn"


def test_members_are_trained_once_and_go_on_where_they_stopped(trained, capsys):
    flags, out_dir = trained
    result = json.loads((out_dir / "committee.json").read_text())
    assert list(result["members"]) == [str(out_dir / f"member-{seed}") for seed in (0, 1)]
    assert result["soft"] == result["by_size"][1]["mean"] > 0.5 and result["n"] == 30
    a, b = (training.load_checkpoint(out_dir / f"pretrained-{seed}") for seed in (0, 1))
    assert not torch.equal(a["model"]["bert.wte.weight"], b["model"]["bert.wte.weight"])
    assert a["args"]["subset"] == 0.5 and a["totals"]["step"] == 1  # 25 documents of 50
    before = {path: path.stat().st_mtime_ns for path in out_dir.glob("*/ckpt.pt")}
    shutil.rmtree(out_dir / "member-1")
    capsys.readouterr()
    assert committee.main(flags) == result  # the same member once more
    output = capsys.readouterr().out
    assert "member 2 of 2" in output and "member 1 of 2" not in output
    after = {path: path.stat().st_mtime_ns for path in out_dir.glob("*/ckpt.pt")}
    assert [path.parent.name for path in before if after[path] != before[path]] == ["member-1"]


def test_runs_and_globs_prediction_and_latency(trained, capsys, tmp_path, monkeypatch):
    _, out_dir = trained
    member = str(out_dir / "member-0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(committee.seconds_of, "__defaults__", (0.01,))
    same = f"{out_dir}/../{out_dir.name}/member-0"  # a run votes once
    result = committee.main([f"{out_dir}/member-*", same, f"--deep={member}", "--device=cpu"])
    for name in ("run1", "run[1]"):
        (tmp_path / name).mkdir()
    assert committee.find_runs(["run[1]", "run?"]) == ["run[1]", "run1"]
    assert len(result["members"]) == 2 and result["deep"]["accuracy"] == result["members"][member]
    latency = {row.pop("name"): row for row in result["latency"]}
    assert list(latency) == ["deep model", "one member", "2 members, one after the other",
                             "2 members, stacked"]
    assert all(row[key] > 0 for row in latency.values()
               for key in ("seconds_1", "seconds_64", "flops"))
    in_turn = latency["2 members, one after the other"]
    assert in_turn["parameters"] == 2 * latency["one member"]["parameters"]
    assert os.listdir("out/committee") == ["committee.json"]
    capsys.readouterr()
    committee.main([f"{out_dir}/member-*", "--predict=moon and stars", "--device=cpu"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(": ")[0] for line in lines]
    assert names == ["committee", member, str(out_dir / "member-1")]
    assert all(line.count("%") == 3 for line in lines)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the sun\nthe rain\n")))
    committee.main([f"{out_dir}/member-*", "--predict=-", "--device=cpu"])
    assert capsys.readouterr().out.count("committee: ") == 2


def test_all_are_timed_with_the_same_texts(monkeypatch):
    """Of a length and of words that all can read."""
    def shape(function, tokens):
        function(tokens)
        assert tokens.max() < 97
        return tuple(tokens.shape)
    monkeypatch.setattr(committee, "seconds_of", shape)
    members, deep = [BertForClassification(BertConfig(97, 16, 1, 2, 8), 3) for _ in range(2)], (
        BertForClassification(BertConfig(300, 24, 2, 2, 8), 3))
    rows = committee.measure_latency([model.eval() for model in members], deep.eval(),
                                     torch.device("cpu"))
    assert [(row["seconds_1"], row["seconds_64"]) for row in rows] == [((1, 16), (64, 16))] * 4


def test_what_does_not_fit_together_is_named(trained, tmp_path):
    _, out_dir = trained
    outputs, labels = random_outputs()
    a, b = (save(tmp_path / name, outputs[i], labels) for i, name in enumerate("ab"))
    assert committee.evaluate_committee([a, b])["n"] == 200
    other_set = save(tmp_path / "other", outputs[2], labels, "y")
    smaller = save(tmp_path / "smaller", outputs[2][:50], labels[:50])
    cut = save(tmp_path / "cut", outputs[2], labels)
    write(tmp_path / "cut" / "test.npz", (tmp_path / "a" / "test.npz").read_bytes()[:300])
    for run, message in [(other_set, "another dataset"), (smaller, "another dataset"),
                         (cut, "damaged"), (f"{tmp_path}/none", "no test.npz"),
                         (f"{out_dir}/pretrained-0", "no test.npz")]:
        with pytest.raises(SystemExit) as stop:
            committee.evaluate_committee([a, run])
        said = str(stop.value)
        assert said.startswith(run) and message in said and "\n" not in said
    with pytest.raises(SystemExit, match="needs two members"):
        committee.main([a, a, f"--out_dir={tmp_path}"])
    member = f"{out_dir}/member-0"
    checkpoint = training.load_checkpoint(member) | {"labels": ["x", "y", "z"]}
    training.save_checkpoint(tmp_path / "renamed", checkpoint)
    with pytest.raises(SystemExit, match="renamed has different labels"):
        committee.main([member, f"{tmp_path}/renamed", "--predict=x", "--device=cpu"])


@pytest.mark.parametrize("flags, message", [
    (["--n_embd=64"], "--n_embd=64: the committee in {out_dir} has 32; give that value, or"),
    (["--dataset=typo"], "--dataset=typo: not prepared"),
    (["--subset=0.25"], "--subset=0.25: the committee in"),
    (["--pretrain=--epochs=2"], "--pretrain=--epochs=2: the committee in"),
    (["--corpus=other"], "--corpus=other: the committee in"),
    (["--pretrain=--seed=3"], "--seed: not in --pretrain: it is set by committee.py"),
    (["--finetune=--init_from=scratch"], "--init_from: not in --finetune: it is set"),
    (["--finetune=--lr='1"], "--finetune=--lr='1: No closing quotation"),
    (["--n_members=0"], "--block_size: goes with --n_members"),
])
def test_members_that_are_made_otherwise_are_refused(trained, flags, message):
    train, out_dir = trained
    with pytest.raises(SystemExit) as stop:
        committee.main([*train, *flags])
    assert str(stop.value).startswith(message.format(out_dir=out_dir))
