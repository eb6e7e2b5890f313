"""The benchmark: its tables, small, with threads instead of processes for the contestants."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from data.tokenfile import write_dataset
from data.tokenizer import get_tokenizer
from experiments import bench


@pytest.fixture
def tiny(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(bench, "fresh_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench, "WIDTH", 192)
    monkeypatch.setattr(bench, "VOCAB_SIZE", 1024)
    monkeypatch.setattr(bench, "BATCH_SIZE", 2)
    monkeypatch.setattr(bench, "TURN", 0)
    bench.made.cache_clear()


@pytest.mark.parametrize("table, n_layer, n_rows",
                         [("pretrain", 1, 7), ("finetune", 1, 5), ("classify", 1, 5),
                          ("latency", 2, 6)])
def test_tables(tiny, tmp_path, capsys, table, n_layer, n_rows):
    texts = [("train", "the sun " * (1 + i % 5), i % 2) for i in range(20)]
    write_dataset(tmp_path / "task", texts, get_tokenizer(), {}, labels=["day", "night"])
    bench.main([table, f"--n_layer={n_layer}", "--repeats=1", "--device=cpu",
                f"--dataset={tmp_path / 'task'}"])
    _, *lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if "x (" in line]
    assert len(rows) in (n_rows, 2 * n_rows)  # latency has a table for each number format
    assert rows[0][2] == "1.0x" and "1.00x (1.00 to 1.00)" in [row[3] for row in rows]
    assert all(0 <= int(row[4].removesuffix("%")) < 150 for row in rows)
    assert "GFLOP/s" in lines[-1]


def test_peers_do_the_same_work(tiny):
    """The expert's logits at the masked positions are those of all positions; all products are
    counted, the fused attention's too."""
    tokens = torch.randint(1000, (2, 128))
    at = torch.tensor([[3, 5], [8, 9]])
    targets = torch.tensor([[4, 6], [7, 8]])
    model = bench.make_model("expert", torch.device("cpu"), 1)
    expert = model(tokens, None, at, targets)
    model.side = "plain"
    assert torch.allclose(expert, model(tokens, None, at, targets))
    flops = {}
    for side in ("expert", "ModernBERT", "ours"):
        step = bench.pretraining, side, "float32", torch.device("cpu"), 1, 2
        flops[side] = 256 * bench.first_turn(*step)
    layer, head = 2 * 12 * 192 ** 2 + 4 * 128 * 192, 2 * 192 * (192 + bench.VOCAB_SIZE)
    peer = 3 * (256 * layer + 2 * 19 * head)
    assert flops["expert"] == pytest.approx(peer, rel=0.02)
    assert flops["ModernBERT"] == pytest.approx(peer, rel=0.02)
    assert flops["ours"] < 0.9 * peer
