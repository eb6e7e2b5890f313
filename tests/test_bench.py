"""The benchmark and the race: both small, and the race in this process."""
import math
from types import SimpleNamespace

import pytest
import torch
from test_model import copy_from_transformers, strengthen

import pretrain
import training
from data.files import read_json_lines
from data.tokenfile import Dataset
from experiments import bench, race
from model import BertConfig, BertForMaskedLM

pytest.importorskip("transformers")


def test_benchmark(monkeypatch, capsys):
    for name, value in {"VOCAB_SIZE": 1024, "BATCH_SIZE": 2, "TURN": 0}.items():
        monkeypatch.setattr(bench, name, value)
    bench.main(["--n_layer", "1", "2", "--n_embd=64", "--repeats=1"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "x (" in line]
    assert [row[0] for row in rows] == 2 * ["| transformers", "| ours"]
    assert rows[0][2] == "1.00x (1.00 to 1.00) |"


def test_the_peer_is_the_same_model_on_the_same_masks(weather):
    """With the same weights, the peer's validation loss and accuracy are ours; and it has as many
    parameters, except the second segment's vectors."""
    dataset = Dataset(str(weather / "plain"))
    config = BertConfig(dataset.tokenizer.vocab_size, 16, 2, 2, 32, pos="learned")
    peer, ours = strengthen(race.Peer(config)), BertForMaskedLM(config)
    copy_from_transformers(ours, peer.peer)
    batches = pretrain.validation_batches(dataset, 16, torch.device("cpu"))
    assert any(batch.mask is not None for batch in batches)
    here, there = (pretrain.evaluate(model, batches, torch.autocast("cpu", enabled=False))
                   for model in (ours, peer))
    assert here == pytest.approx(there, abs=1e-4)
    n_ours, n_peer = (sum(p.numel() for p in model.parameters()) for model in (ours, peer))
    assert n_peer - n_ours == 2 * 32


def test_race(monkeypatch, tmp_path, weather):
    """It goes on where it was interrupted; tables and picture come from its rows."""
    pytest.importorskip("matplotlib")
    for name, value in {"ROWS": tmp_path / "results" / "race.jsonl", "OUT": tmp_path / "out",
                        "RESULTS": tmp_path, "RATES": (1e-5, 0.001),
                        "PAIRS": ["--batch_size=8", "--batch_size=9"],
                        "LADDER": (9.6, 3.0)}.items():
        monkeypatch.setattr(race, name, value)
    monkeypatch.setattr(pretrain, "BertForMaskedLM", BertForMaskedLM)  # is put back in the end
    monkeypatch.setattr(training, "pick_device", lambda name: training.open_device("cpu"))
    (tmp_path / "figures").mkdir()
    name, trained = str(weather / "plain"), []

    def train(run, folder):
        trained.append((run["contestant"], run["seed"]))
        if len(trained) == 3:
            raise SystemExit("interrupted")
        race.train(run, folder)

    monkeypatch.setattr(race, "train_alone", train)
    argv = [f"--dataset={name}", "--epochs=1", "--seeds=1"]
    with pytest.raises(SystemExit, match="interrupted"):
        race.main(argv)
    race.main(argv)
    assert trained == [("transformers", 0)] * 4 + [
        ("ours", 1), ("ours by AdamW", 1), ("transformers", 1)]
    rows = read_json_lines(race.ROWS, "contestant")
    assert [row["flags"].removeprefix(f"{race.PEER_FLAGS} ") for row in rows[:3]] == [
        "--lr=1e-05 --batch_size=8", "--lr=0.001 --batch_size=8", "--lr=0.001 --batch_size=9"]
    assert len({row["curve"][-1][0] for row in rows}) == 1, "not as many tokens"
    for row in rows:
        assert row["curve"][0][1] == 0.0 < row["curve"][-1][1]
        assert row["curve"][0][2] == pytest.approx(math.log(16384), abs=0.1)
    dataset = Dataset(name)
    torch.manual_seed(0)
    peer = race.Peer(BertConfig(dataset.tokenizer.vocab_size, 128, 1, 4))
    setup = training.set_up(peer, SimpleNamespace(
        dtype="auto", optimizer="adamw", lr=1.0, weight_decay=0.0, grad_clip=0.0, compile=False,
        pad_to=0), torch.device("cpu"))
    batches = pretrain.validation_batches(dataset, 128, torch.device("cpu"))
    assert tuple(rows[0]["curve"][0][2:]) == pretrain.evaluate(peer, batches, setup.autocast)

    page, picture = race.ROWS.with_suffix(".md"), tmp_path / "figures" / "race.png"
    text = page.read_text()
    assert "| ours | ours by AdamW | transformers | best of tuning |" in text
    assert "| 9.60 | 0.0" in text and "| 3.00" not in text
    picture.unlink()
    race.main(["--collect"])
    assert len(trained) == 7 and picture.exists() and page.read_text() == text
    assert not list(race.OUT.iterdir())

    monkeypatch.setattr(race, "machine", lambda: "another")
    with pytest.raises(SystemExit, match="another machine has begun this race"):
        race.main(argv)


def test_time_to_a_loss():
    curve = [[0, 0, 9.0, 0.0], [10**6, 60, 7.0, 0.1], [2 * 10**6, 120, 5.0, 0.2],
             [3 * 10**6, 180, 5.5, 0.2]]
    assert race.first_below(6.0, curve) == (1.5, 1.5)
    assert race.first_below(7.0, curve) == (1.0, 1.0)
    assert race.first_below(4.9, curve) is None
    assert race.reach(5.0, [curve, curve]) == "2.00 (2.00)"
    assert race.reach(4.9, [curve, curve]) == "-"
