"""The committee: what is averaged and counted, the stacked model, training members, and what is refused."""
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch

import committee
import pretrain
from data.tokenfile import write_dataset
from data.tokenizer import get_tokenizer
from model import BertConfig, BertForClassification

NAMES = ["day", "night", "rain"]
SMALL = ["--n_embd=32", "--n_head=2", "--block_size=32", "--device=cpu", "--no-latency",
         "--pretrain=--epochs=1 --dtype=float32", "--finetune=--epochs=3 --lr=1e-2 --batch_size=8 --dtype=float32"]


def random_outputs(K=5, N=200, n_classes=4):
    """Softmax outputs of K members that are right rather often, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(n_classes, size=N)
    logits = rng.normal(size=(K, N, n_classes)) + np.eye(n_classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), labels, logits


def save(folder, probabilities, labels, test_set="x"):
    folder.mkdir()
    np.savez(folder / "test.npz", probabilities=probabilities, labels=labels, test_set=test_set)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """-> flags that train two members on a tiny task, and the folder where they are."""
    folder = tmp_path_factory.mktemp("bin")
    words = ["the sun shines on a {} road", "the moon and {} stars", "wet {} drops"]
    fillers = ["small", "old", "quiet", "long", "far", "good"]
    items = [(split, words[label].format(filler), label) for split in ("train", "test") for filler in fillers
             for label in range(3)]
    write_dataset(folder / "task", items, get_tokenizer(), {}, labels=NAMES)
    items = [("val" if i % 4 == 0 else "train", text) for i, (_, text, _) in enumerate(items * 2)]
    write_dataset(folder / "texts", items, get_tokenizer(), {})
    flags = [f"--corpus={folder / 'texts'}", f"--dataset={folder / 'task'}", f"--out_dir={folder / 'out'}", *SMALL]
    committee.main([*flags, "--n_members=2", "--subset=0.5"])
    return flags, folder / "out"


@pytest.mark.parametrize("variant", [{}, {"pos": "learned", "n_head": 2}, {"n_conv": 2, "conv_kernel": (4, 3)}])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("padded", [False, True])
def test_stacked_members_equal_the_members_one_by_one(variant, pooling, padded):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=97, block_size=24, n_layer=1, n_embd=32, **variant)
    models = [BertForClassification(config, 5, pooling).eval() for _ in range(3)]
    for p in itertools.chain(*(model.parameters() for model in models)):
        torch.nn.init.normal_(p, std=0.3)
    tokens = torch.randint(97, (4, 24))
    mask = torch.arange(24) < torch.tensor([24, 7, 15, 1])[:, None] if padded else None
    with torch.no_grad():
        expected = torch.stack([model(tokens, mask) for model in models])
        torch.testing.assert_close(committee.stack(models)(tokens, mask), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(committee.one_after_the_other(models)(tokens, mask), expected)


def test_votes():
    outputs, labels, logits = random_outputs()
    mean = logits.mean(0)
    expected = np.exp(mean) / np.exp(mean).sum(-1, keepdims=True)
    np.testing.assert_allclose(committee.mean_of_logits(outputs), expected, rtol=1e-6)
    for i, each in enumerate(outputs.argmax(-1).T):
        counts = np.bincount(each, minlength=4)
        winners = np.flatnonzero(counts == counts.max())
        winner = committee.majority(outputs)[i].argmax()
        assert winner == winners[outputs.mean(0)[i][winners].argmax()]


def test_calibration_error():
    outputs, labels, _ = random_outputs()
    confidence, right = outputs[0].max(-1), outputs[0].argmax(-1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert committee.calibration_error(outputs[0], labels) == pytest.approx(expected)
    assert committee.calibration_error(np.eye(4)[labels], labels) == 0  # sure, and right


def test_accuracy_by_size():
    outputs, labels, _ = random_outputs()
    rows = committee.by_size(outputs, labels)
    assert [row["subsets"] for row in rows] == [5, 10, 10, 5, 1]
    pairs = [(outputs[[a, b]].mean(0).argmax(-1) == labels).mean() for a, b in itertools.combinations(range(5), 2)]
    assert rows[1]["mean"] == pytest.approx(np.mean(pairs)) and rows[1]["sd"] == pytest.approx(np.std(pairs))
    assert rows[4]["mean"] == committee.accuracy(outputs.mean(0), labels) and rows[4]["sd"] == 0
    assert rows[4]["mean"] > rows[0]["mean"]  # independent errors cancel
    assert committee.by_size(outputs, labels, n_draws=4)[1]["subsets"] == 4


def test_members_are_trained_once_and_go_on_where_they_stopped(trained, capsys):
    flags, out_dir = trained
    result = json.loads((out_dir / "committee.json").read_text())
    assert list(result["members"]) == [str(out_dir / f"member-{seed}") for seed in (0, 1)]
    assert result["soft"] == result["by_size"][1]["mean"] > 0.5 and result["n"] == 18
    a, b = (pretrain.load_checkpoint(out_dir / f"pretrained-{seed}") for seed in (0, 1))
    assert not torch.equal(a["model"]["bert.wte.weight"], b["model"]["bert.wte.weight"])
    assert a["args"]["subset"] == 0.5 and a["done"]["step"] == 1  # 13 of 27 documents in batches of 32
    before = {path: path.stat().st_mtime_ns for path in out_dir.glob("*/ckpt.pt")}
    shutil.rmtree(out_dir / "member-1")
    capsys.readouterr()
    assert committee.main([*flags, "--n_members=2", "--subset=0.5"]) == result  # the same member once more
    assert "member 2 of 2" in (output := capsys.readouterr().out) and "member 1 of 2" not in output
    after = {path: path.stat().st_mtime_ns for path in out_dir.glob("*/ckpt.pt")}
    assert [path.parent.name for path in before if after[path] != before[path]] == ["member-1"]


def test_runs_and_globs_prediction_and_latency(trained, capsys, tmp_path):
    flags, out_dir = trained
    member = str(out_dir / "member-0")
    result = committee.main([f"{out_dir}/member-*", f"--out_dir={tmp_path}", f"--deep={member}", "--device=cpu"])
    assert len(result["members"]) == 2 and result["deep"]["accuracy"] == result["members"][member]
    names = [row["name"] for row in result["latency"]]
    assert names == ["deep model", "one member", "2 members, one after the other", "2 members, stacked"]
    assert all(row["seconds_1"] > 0 and row["seconds_64"] > 0 and row["flops"] > 0 for row in result["latency"])
    assert result["latency"][2]["parameters"] == 2 * result["latency"][1]["parameters"]
    assert sorted(os.listdir(tmp_path)) in (["committee.json"], ["committee.json", "committee.png"])
    capsys.readouterr()
    committee.main([f"{out_dir}/member-*", "--predict=moon and stars", "--device=cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["committee", member, str(out_dir / "member-1")]
    assert all(line.count("%") == 3 for line in lines)


def test_what_does_not_fit_together_is_named(trained, tmp_path):
    flags, out_dir = trained
    outputs, labels, _ = random_outputs()
    a, b, other_set, nan, small = (
        save(tmp_path / "a", outputs[0], labels), save(tmp_path / "b", outputs[1], labels),
        save(tmp_path / "other", outputs[2], labels, "y"), save(tmp_path / "nan", outputs[3] * np.nan, labels),
        save(tmp_path / "small", outputs[4][:50], labels[:50]))
    assert committee.evaluate([a, b])["n"] == 200
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "test.npz").write_bytes((tmp_path / "a" / "test.npz").read_bytes()[:300])
    for run, message in [(other_set, "another dataset"), (small, "another dataset"), (nan, "not finite"),
                         (str(tmp_path / "cut"), "damaged"), (str(tmp_path / "none"), "has no test.npz"),
                         (str(out_dir / "pretrained-0"), "has no test.npz")]:
        with pytest.raises(SystemExit) as stop:
            committee.evaluate([a, run])
        assert message in str(stop.value) and str(stop.value).startswith(run) and "\n" not in str(stop.value)
    with pytest.raises(SystemExit, match="needs two members"):
        committee.main([a, f"--out_dir={tmp_path}"])
    checkpoint = pretrain.load_checkpoint(out_dir / "member-0") | {"labels": ["x", "y", "z"]}
    pretrain.save_checkpoint(tmp_path / "renamed", checkpoint)
    with pytest.raises(SystemExit, match="renamed tells other labels apart"):
        committee.main([str(out_dir / "member-0"), str(tmp_path / "renamed"), "--predict=x", "--device=cpu"])
