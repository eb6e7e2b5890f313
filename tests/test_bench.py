"""The benchmark: its tables, small, with threads instead of processes for the contestants."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from data.tokenfile import write_dataset
from data.tokenizer import get_tokenizer

pytest.importorskip("transformers")
from experiments import bench  # noqa: E402


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "new_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench, "WIDTH", 192)
    monkeypatch.setattr(bench, "VOCAB_SIZE", 1024)
    monkeypatch.setattr(bench, "BATCH_SIZE", 2)
    monkeypatch.setattr(bench, "TURN", 0)
    bench.make_once.cache_clear()


@pytest.mark.parametrize("table, n_layer, n_rows",
                         [("pretrain", 1, 4), ("finetune", 1, 4), ("latency", 2, 2)])
def test_tables(tiny, tmp_path, capsys, table, n_layer, n_rows):
    texts = [("train", "the sun " * (1 + i % 5), i % 2) for i in range(20)]
    write_dataset(tmp_path / "task", texts, get_tokenizer(), {}, labels=["day", "night"])
    bench.main([table, f"--n_layer={n_layer}", "--repeats=1", "--device=cpu",
                f"--dataset={tmp_path / 'task'}"])
    _, *lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if "x (" in line]
    assert len(rows) in (n_rows, 2 * n_rows)  # latency has a table for each number format
    assert rows[0][2] == "1.0x" and "1.00x (1.00 to 1.00)" in [row[3] for row in rows]


def test_unknown_table():
    with pytest.raises(SystemExit, match="unknown table absent: choose from"):
        bench.main(["absent"])


def test_peers_do_the_same_work(tiny):
    """The expert's logits at the masked positions are those of all positions, and our model has as
    many parameters, except those of two segments and of positions from 128 to 511."""
    tokens = torch.randint(1000, (2, 128))
    positions, targets = torch.tensor([[3, 5], [8, 9]]), torch.tensor([[4, 6], [7, 8]])
    expert = bench.make_model("expert", torch.device("cpu"), 1)
    here, everywhere = (loss_of(expert, tokens, None, positions, targets)
                        for loss_of in (bench.loss_at_positions, bench.loss_everywhere))
    assert torch.allclose(here, everywhere)
    ours = bench.make_model("ours", torch.device("cpu"), 1)
    n_ours, n_expert = (sum(p.numel() for p in model.parameters()) for model in (ours, expert))
    assert n_expert - n_ours == (2 + 512 - 128) * 192
