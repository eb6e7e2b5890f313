"""What can be known of a GPU without one.

PyTorch's meta device has shapes but no data: whatever reads a value there fails, as it would wait
for a GPU, and so do most operators that meet a tensor of the host. Compiled code is counted on the
CPU."""
import contextlib
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import finetune
import pretrain
import training
from data.batches import Corpus
from data.tokenfile import write_dataset
from data.tokenizer import get_tokenizer
from model import IGNORE, BertConfig, BertForClassification, BertForMaskedLM

META = torch.device("meta")
TOKENIZER = SimpleNamespace(cls=0, sep=1, pad=2, mask=3, n_plain=90, vocab_size=90)
VARIANTS = [{}, {"pos": "learned", "dropout": 0.1}, {"n_conv": 2, "conv_channels": 3}]


def a_corpus():
    tokens = np.arange(400, dtype=np.uint16) % 90
    return Corpus(tokens, np.arange(0, 401, 20), 24, META)


def set_up(model, optimizer):
    """What training.set_up does, whose fused AdamW and autocast there are none of on meta."""
    args = SimpleNamespace(optimizer=optimizer, lr=0.01, muon_lr=0.01, weight_decay=0.1,
                           dtype="float32")
    optimizers = training.make_optimizers(model, args, torch.device("mps"), "float32",
                                          lambda name: 1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return training.Setup("float32", contextlib.nullcontext(), scaler, optimizers, 1.0, 8)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_candidates", [0, 50])
def test_pretraining_reads_nothing(monkeypatch, optimizer, variant, n_candidates):
    config = BertConfig(vocab_size=90, block_size=24, n_layer=2, n_embd=32, n_head=2, **variant)
    model = BertForMaskedLM(config).to(META)
    setup = set_up(model, optimizer)
    # Meta has no Generator; None stands for the device's own.
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(
        manual_seed=lambda seed: None))
    for _ in range(2):
        batch = pretrain.draw_batch(a_corpus(), np.arange(6), TOKENIZER, 0.4, seed=0, n_rows=8,
                                    pad_to=8, n_candidates=n_candidates)
        n_targets = (batch.targets != IGNORE).sum()
        loss = training.training_step(model, batch.split(4), n_targets, setup, lr_factor=0.5)
    assert loss.device == META and all(p.device == META for p in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "entities"])
def test_finetuning_reads_nothing(variant, pooling):
    config = BertConfig(vocab_size=90, block_size=24, n_layer=2, n_embd=32, n_head=2, **variant)
    model = BertForClassification(config, 3, pooling, [1, 2]).to(META)
    examples = finetune.Examples(a_corpus(), np.arange(20) % 3, TOKENIZER, pad_to=8, n_rows=8)
    setup = set_up(model, "adamw")
    for _ in range(2):
        batch = examples.batch(np.arange(6))
        assert training.training_step(model, [batch], 6, setup, lr_factor=0.5).device == META


class Copies(TorchDispatchMode):
    """Counts the copies to another device for which the host waits while it is entered."""
    n_waited_for = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and "device" in kwargs:
            moves = torch.device(kwargs["device"]) != args[0].device
            self.n_waited_for += moves and not kwargs.get("non_blocking")
        return function(*args, **kwargs)


def test_batches_are_copied_without_waiting():
    examples = finetune.Examples(a_corpus(), np.arange(20) % 3, TOKENIZER, pad_to=8, n_rows=8)
    with Copies() as copies:
        examples.batch(np.arange(6))
    assert copies.n_waited_for == 0


def test_all_lengths_are_compiled(tmp_path, monkeypatch):
    """Batches of every length, with padding and without: what is compiled is never more than the
    compiler keeps, beyond which it would quietly go on without compiling."""
    if not hasattr(torch._dynamo.config, "fail_on_recompile_limit_hit"):
        pytest.skip("this PyTorch does not tell of too many shapes")
    rng, words = random.Random(0), "the sun moon rain wet dark blue old small house".split()
    items = [("train", " ".join(rng.choices(words, k=n))) for n in range(14, 544, 16)
             for _ in range(4)]  # one pool: texts of one length share a batch
    write_dataset(tmp_path / "texts", [*items, ("val", "the sun")], get_tokenizer(), {})
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compile_(
        module, backend="eager", **options))  # the same graphs, without minutes of code making
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        pretrain.main([f"--dataset={tmp_path / 'texts'}", f"--out_dir={tmp_path / 'run'}",
                       "--block_size=512", "--n_layer=1", "--n_embd=32", "--n_head=2",
                       "--batch_size=4", "--epochs=1", "--device=cpu", "--dtype=float32",
                       "--n_candidates=64", "--compile"])
    assert counters["frames"]["ok"] == counters["frames"]["total"] >= 4
    torch._dynamo.reset()
