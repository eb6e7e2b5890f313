"""The GPU path. Where there is no GPU, the runs that need none are rehearsed on the CPU, as an
expectation that nobody tries is soon wrong; all else is skipped."""
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_pretrain import interrupt

import committee
import finetune
import pretrain
import training
from data.batches import Corpus
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import get_tokenizer
from model import IGNORE, BertConfig, BertForClassification

HAS_GPU = torch.cuda.is_available()
GPU = "cuda" if HAS_GPU else "cpu"
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
SMALL = ["--n_layer=2", "--n_embd=64", "--n_head=2", "--block_size=64", "--batch_size=16",
         "--epochs=2", "--eval_interval=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """"texts" to pre-train on and "task" to fine-tune on, of 5 to 60 words."""
    folder, rng = tmp_path_factory.mktemp("bin"), random.Random(0)
    words = "the sun moon rain wet dark blue old small house road town likes milk".split()

    def text():
        return " ".join(rng.choices(words, k=rng.randint(5, 60)))
    texts = [(split, text()) for split, n in (("train", 200), ("val", 20)) for _ in range(n)]
    examples = [(split, text(), i % 3) for split in ("train", "test") for i in range(60)]
    write_dataset(folder / "texts", texts, get_tokenizer(), {})
    write_dataset(folder / "task", examples, get_tokenizer(), {}, labels=["a", "b", "c"])
    return folder


def run(folder, out_dir, *flags):
    return pretrain.main([f"--dataset={folder / 'texts'}", f"--out_dir={out_dir}", *SMALL, *flags])


def losses(folder, out_dir, *flags):
    run(folder, out_dir, *flags)
    return [row["val_loss"] for row in training.load_checkpoint(out_dir)["history"]]


@needs_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_number_formats_end_near_float32(folder, tmp_path, dtype):
    """float16 with scaled losses."""
    flags = ["--device=cuda"]
    exact = losses(folder, tmp_path / "float32", *flags, "--dtype=float32")
    assert losses(folder, tmp_path / dtype, *flags, f"--dtype={dtype}") == pytest.approx(
        exact, abs=0.2)
    scale = training.load_checkpoint(tmp_path / dtype)["scaler"].get("scale", 1.0)
    assert (scale > 1) == (dtype == "float16")


@needs_gpu
def test_the_gpu_ends_where_the_cpu_does(folder, tmp_path):
    """The masks are drawn on the device, so a step differs; what is learned does not."""
    on_cpu = losses(folder, tmp_path / "cpu", "--dtype=float32", "--device=cpu")
    on_gpu = losses(folder, tmp_path / "gpu", "--dtype=float32", "--device=cuda")
    assert on_gpu[0] == pytest.approx(on_cpu[0], abs=1e-3)  # the validation masks are the same
    assert on_gpu == pytest.approx(on_cpu, abs=0.3)


@needs_gpu
def test_compiled_equals_eager(folder, tmp_path, capsys):
    flags = ["--device=cuda", "--dtype=float32", "--pad_to=32"]
    eager = losses(folder, tmp_path / "eager", *flags)
    assert losses(folder, tmp_path / "compiled", *flags, "--compile") == pytest.approx(
        eager, abs=0.02)
    assert "torch.compile failed" not in capsys.readouterr().out


def test_resumed_on_the_gpu_equals_uninterrupted(folder, tmp_path, monkeypatch):
    """Dropout's random state included; kernels that add in any order are allowed a little."""
    flags = [f"--device={GPU}", "--dropout=0.1", "--dtype=float32"]
    whole = losses(folder, tmp_path / "whole", *flags)
    interrupt(monkeypatch, 2, run, folder, tmp_path / "parts", *flags)
    pretrain.main([f"--out_dir={tmp_path / 'parts'}", "--resume"])
    parts = [row["val_loss"] for row in training.load_checkpoint(tmp_path / "parts")["history"]]
    assert parts == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("first, then", sorted({("cpu", GPU), (GPU, "cpu")}))
def test_a_run_moves_between_devices(folder, tmp_path, monkeypatch, first, then):
    interrupt(monkeypatch, 2, run, folder, tmp_path / "run", f"--device={first}", "--dtype=float32")
    row = pretrain.main([f"--out_dir={tmp_path / 'run'}", "--resume", f"--device={then}"])
    history = training.load_checkpoint(tmp_path / "run")["history"]
    assert row["epoch"] == 2 and history[-1]["val_loss"] < history[0]["val_loss"]


def test_finetuning(folder, tmp_path):
    run(folder, tmp_path / "run", f"--device={GPU}")
    result = finetune.main([f"--dataset={folder / 'task'}", f"--init_from={tmp_path / 'run'}",
                            f"--out_dir={tmp_path / 'task'}", "--epochs=2", f"--device={GPU}"])
    assert 0 <= result["accuracy"] <= 1 and np.isfinite(result["train_loss"])


@needs_gpu
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_steps_wait_for_nothing(folder, optimizer, dtype):
    """From the documents to the update, the host only gives orders. (With float16 it asks once a
    step whether the gradients are finite.)"""
    device, tokenizer = torch.device("cuda"), get_tokenizer()
    args = pretrain.get_parser().parse_args([*SMALL, f"--optimizer={optimizer}",
                                             f"--dtype={dtype}", "--lr=0.01", "--muon_lr=0.01"])
    model = pretrain.BertForMaskedLM(training.make_config(args, tokenizer.vocab_size)).to(device)
    setup = training.set_up(model, args, device)
    corpus = Corpus(*Dataset(folder / "texts").split("train"), 64, device)

    def step(number):
        batch = pretrain.draw_batch(corpus, np.arange(8 * number, 8 * number + 8), tokenizer, 0.4,
                                    number, n_rows=8, pad_to=32, n_candidates=200)
        n_targets = (batch.targets != IGNORE).sum()
        training.training_step(model, batch.split(4), n_targets, setup, lr_factor=1.0)
    step(0)  # the first makes the optimizers' states
    torch.cuda.set_sync_debug_mode("error" if dtype == "bfloat16" else "default")
    try:
        for number in range(1, 4):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_attention_under_a_mask_has_finite_gradients():
    """cuDNN's has NaN at 64 tokens where all scores are low (PyTorch issue 196678)."""
    device = training.pick_device("cuda")
    q, k, v = torch.ones(3, 1, 1, 64, 64, dtype=torch.bfloat16, device=device)  # (1, 1, T, hs)
    k = -15 * k  # all scores are -120
    q.requires_grad_()
    mask = torch.ones(1, 1, 1, 64, dtype=torch.bool, device=device)
    F.scaled_dot_product_attention(q, k, v, mask).sum().backward()
    assert q.grad.isfinite().all()


@needs_gpu
def test_stacked_committee_under_cuda_graphs():
    config = BertConfig(vocab_size=97, block_size=24, n_layer=1, n_head=2, n_embd=32)
    torch.manual_seed(0)
    models = [BertForClassification(config, 5).to("cuda").eval() for _ in range(3)]
    stacked = torch.compile(committee.stack(models), mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):  # the graph is recorded in the first calls
            tokens = torch.randint(97, (4, 24), device="cuda")
            expected = torch.stack([model(tokens) for model in models])
            torch.testing.assert_close(stacked(tokens).clone(), expected, rtol=1e-3, atol=1e-3)
