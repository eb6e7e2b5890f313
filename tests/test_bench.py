"""The benchmark: a row of it, small, with threads instead of processes for the contestants."""
from concurrent.futures import ThreadPoolExecutor

import pytest


def test_pretraining_is_compared(monkeypatch, capsys):
    pytest.importorskip("transformers")
    from experiments import bench
    monkeypatch.setattr(bench, "fresh_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench, "WIDTH", 64)
    monkeypatch.setattr(bench, "BATCH_SIZE", 2)
    bench.main(["pretrain", "--n_layer=1", "--repeats=1", "--device=cpu"])
    out = capsys.readouterr().out
    assert "pre-training, BERT-1, 64 wide, batch 2 x 128, tokens/s" in out
    assert "transformers" in out and "   1.00x (1.00 to 1.00)" in out
    assert out.count("x (") == 5 and "TFLOP/s" in out
