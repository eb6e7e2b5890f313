"""The training loop from the command line's flags to the files it leaves: learning, exact resume, errors."""
import copy
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain
from data.batches import Corpus
from data.tokenfile import open_split, write_dataset
from data.tokenizer import get_tokenizer
from model import IGNORE, BertConfig, BertForMaskedLM, sample_words, sum_of_losses

ROOT = Path(__file__).parent.parent
SMALL = ["--n_layer=1", "--n_embd=32", "--n_head=2", "--block_size=32", "--batch_size=8", "--epochs=2",
         "--device=cpu", "--dtype=float32"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """85 sentences of which much can be guessed; the last batch of an epoch has 5 rows instead of 8."""
    folder, rng = tmp_path_factory.mktemp("bin"), random.Random(0)
    food = {"cat": "milk", "dog": "meat", "cow": "grass", "bee": "roses"}

    def sentence():
        animal = rng.choice(sorted(food))
        when = rng.choice(["every day", "in the morning", "at night", "when it rains and the sun is away"])
        return f"the {animal} likes {food[animal]} {when}."
    items = [("train", sentence()) for _ in range(85)] + [("val", sentence()) for _ in range(30)]
    write_dataset(folder / "animals", items, get_tokenizer(), {})
    return folder / "animals"


def run(dataset, out_dir, *flags):
    return pretrain.main([f"--dataset={dataset}", f"--out_dir={out_dir}", *SMALL, *flags])


def lengths_of(dataset):
    """Tokens of each training document, [CLS] and [SEP] included."""
    return (Corpus(*open_split(dataset, "train"), 32).lengths + 2).tolist()


def weights(out_dir):
    return pretrain.load_checkpoint(out_dir)["model"]


def assert_equal(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_training_step_written_out_by_hand(dataset):
    """What train() does in a step: mask, name the masked tokens, clip the gradient, AdamW."""
    args = pretrain.get_parser().parse_args(["--optimizer=adamw", "--lr=0.01", "--dtype=float32",
                                             "--weight_decay=0.1", "--n_embd=32", "--n_layer=1"])
    tokenizer, device = get_tokenizer(), torch.device("cpu")
    corpus = Corpus(*open_split(dataset, "train"), 32)
    batch = pretrain.draw_batch(corpus, np.arange(8), tokenizer, 0.4, seed=1)
    torch.manual_seed(0)
    ours = BertForMaskedLM(pretrain.make_config(args, tokenizer.vocab_size))
    by_hand = copy.deepcopy(ours)
    setup = pretrain.set_up(ours, args, device)
    n_targets = (batch.targets != IGNORE).sum()
    loss = pretrain.training_step(ours, batch.split(3), n_targets, setup, lr_factor=0.5)

    logits = by_hand(batch.tokens, batch.mask)  # (B, T, V), of all positions
    wanted = batch.targets != IGNORE  # (B, K)
    rows = torch.arange(8)[:, None].expand_as(batch.at)
    expected = F.cross_entropy(logits[rows[wanted], batch.at[wanted]], batch.targets[wanted])
    gradients = torch.autograd.grad(expected, list(by_hand.parameters()))
    norm = torch.stack([g.norm() for g in gradients]).norm()
    for p, gradient in zip(by_hand.parameters(), gradients):
        gradient = gradient / max(1.0, norm)
        decay = 0.1 if p.ndim == 2 else 0.0
        # the first step of Adam: both averages are the gradient itself
        step = gradient / (gradient.abs() + 1e-8) + decay * p
        with torch.no_grad():
            p -= 0.5 * 0.01 * step
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    large = [g.abs() > 1e-6 for g in gradients]  # below, rounding decides the sign
    for a, b, there in zip(ours.parameters(), by_hand.parameters(), large):
        torch.testing.assert_close(a[there], b[there], rtol=1e-3, atol=1e-5)


def test_training_learns_and_leaves_its_files(dataset, tmp_path, capsys):
    row = run(dataset, tmp_path, "--epochs=60", "--muon_lr=1e-2", "--lr=1e-2", "--n_embd=64", "--weight_decay=0.01")
    assert row["step"] == 60 * 11 and row["val_accuracy"] > 0.6
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1] == row and len(rows) == 11 and rows[0]["step"] == 0
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pt", "log.jsonl"]
    output = capsys.readouterr().out
    assert f"masked accuracy {row['val_accuracy']:.1%}" in output and "padding was" in output
    assert row["tokens"] == 60 * sum(lengths_of(dataset)) and row["positions"] >= row["tokens"]
    # the model comes back as it was, its embedding still tied
    model, tokenizer = pretrain.load_model(tmp_path)
    assert model.decoder.weight is model.bert.wte.weight
    batches = pretrain.validation_batches(dataset, tokenizer, 32, torch.device("cpu"))
    loss, accuracy = pretrain.evaluate(model, batches, torch.autocast("cpu", enabled=False))
    assert (loss, accuracy) == (row["val_loss"], row["val_accuracy"])
    # and fills in the blanks
    run(dataset, tmp_path, "--fill=the cow likes [MASK] at night.")
    first, rest = capsys.readouterr().out.removeprefix("[MASK] = ").split("%", 1)
    assert first.startswith("grass ") and rest.count("%") == 4


def test_interrupted_and_resumed_equals_uninterrupted(dataset, tmp_path, monkeypatch):
    """Weights, optimizer and log to the last bit, dropout and a partial last batch included."""
    flags = ["--dropout=0.1", "--eval_interval=5", "--grad_accum=2"]
    whole = run(dataset, tmp_path / "whole", *flags)
    save, saved = pretrain.save_checkpoint, []

    def save_and_die(out_dir, checkpoint):
        save(out_dir, checkpoint)
        saved.append(checkpoint["done"]["step"])
        if len(saved) == 3:
            raise KeyboardInterrupt
    monkeypatch.setattr(pretrain, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "parts", *flags)
    assert saved == [0, 5, 10] and whole["step"] == 12
    monkeypatch.setattr(pretrain, "save_checkpoint", save)
    torch.manual_seed(123)
    pretrain.main([f"--out_dir={tmp_path / 'parts'}", "--resume"])  # every flag comes from the run
    a, b = (pretrain.load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert_equal(a["model"], b["model"])
    for x, y in zip(a["optimizers"], b["optimizers"]):
        for i in x["state"]:
            assert_equal({k: torch.as_tensor(v) for k, v in x["state"][i].items()},
                         {k: torch.as_tensor(v) for k, v in y["state"][i].items()})
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in c["history"]] for c in (a, b)]
    assert timeless[0] == timeless[1]


def test_the_papers_optimizer(dataset, tmp_path):
    row = run(dataset, tmp_path, "--epochs=10", "--lr=5e-3", "--optimizer=adamw", "--pos=learned", "--dropout=0.1")
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert row["val_loss"] < 0.5 * first["val_loss"] and len(pretrain.load_checkpoint(tmp_path)["optimizers"]) == 1


def test_the_papers_schedule_and_padding(dataset, tmp_path, monkeypatch):
    factors, update = [], pretrain.update
    monkeypatch.setattr(pretrain, "update", lambda *args: (factors.append(args[2]), update(*args)))
    row = run(dataset, tmp_path, "--epochs=5", "--warmup=0.2", "--lr_per_epoch", "--pad_to=32")
    assert row["positions"] == 5 * 11 * 8 * 32  # the last batch of an epoch has empty rows
    assert factors == [factors[11 * epoch] for epoch in range(5) for _ in range(11)]
    assert factors[::11] == pytest.approx([0, 1, 0.75, 0.5, 0.25], abs=0.1)


def test_a_run_from_before_a_flag_was_added_goes_on(dataset, tmp_path):
    run(dataset, tmp_path, "--epochs=0.2")
    checkpoint = pretrain.load_checkpoint(tmp_path)
    for name in ("lr_per_epoch", "pad_to"):
        del checkpoint["args"][name]
    pretrain.save_checkpoint(tmp_path, checkpoint)
    assert pretrain.main([f"--out_dir={tmp_path}", "--resume"])["step"] == 3
    with pytest.raises(SystemExit, match="begun with --lr_per_epoch=False, not True"):
        pretrain.main([f"--out_dir={tmp_path}", "--resume", "--lr_per_epoch"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_saves_and_resume_finishes(dataset, tmp_path, number):
    command = [sys.executable, "pretrain.py", f"--dataset={dataset}", f"--out_dir={tmp_path}", *SMALL, "--epochs=200"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step    220 "):  # its evaluation after a tenth of the steps
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "interrupted: step" in errors and "--resume" in errors
    step = pretrain.load_checkpoint(tmp_path)["done"]["step"]
    assert 220 <= step < 2200 and f"step {step:,} of 2,200" in errors
    row = pretrain.main([f"--out_dir={tmp_path}", "--resume"])
    assert row["step"] == 2200


def test_passes_and_processes_do_not_change_the_loss(dataset, tmp_path):
    """One process with batch 8 = two passes of 4 = two processes of 4 (torchrun, gloo)."""
    flags = ["--eval_interval=4", "--n_conv=0"]
    run(dataset, tmp_path / "one", *flags)
    run(dataset, tmp_path / "accum", *flags, "--batch_size=4", "--grad_accum=2")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "pretrain.py",
                    f"--dataset={dataset}", f"--out_dir={tmp_path / 'two'}", *SMALL, *flags, "--batch_size=4"],
                   cwd=ROOT, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    one = pretrain.load_checkpoint(tmp_path / "one")["history"]
    for name in ("accum", "two"):
        other = pretrain.load_checkpoint(tmp_path / name)["history"]
        assert len(other) == len(one) == 7
        for a, b in zip(one, other):
            assert a["step"] == b["step"] and a["tokens"] == b["tokens"]
            assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-4)
            assert a["val_loss"] == pytest.approx(b["val_loss"], abs=2e-4)


def test_seeds(dataset, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(dataset, tmp_path / name, f"--seed={seed}", "--epochs=0.5")
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(weights(tmp_path / "a")["bert.wte.weight"], weights(tmp_path / "c")["bert.wte.weight"])


def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(dataset, tmp_path):
    with pytest.raises(SystemExit, match="not finite at step .* lower --lr"):
        run(dataset, tmp_path, "--lr=1e30", "--optimizer=adamw", "--warmup=0.5", "--eval_interval=1")
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


@pytest.mark.parametrize("flags, message", [
    (["--n_layer=0"], "--n_layer=0"), (["--lr=-1"], "--lr=-1"), (["--mask_prob=1.5"], "--mask_prob=1.5"),
    (["--subset=2"], "--subset=2"), (["--n_head=5"], "n_head=5"), (["--dropout=1"], "--dropout=1"),
    (["--epochs=0"], "--epochs=0"),
    (["--n_conv=3", "--conv_kernel", "3", "5"], "conv_kernel"), (["--device=tpu9"], "--device=tpu9"),
    (["--dataset=absent"], "--dataset=absent"), (["--resume"], "no checkpoint"), (["--fill=[MASK]"], "no checkpoint"),
    (["--batch_size=x"], "batch_size"), (["--learning_rate=1"], "--learning_rate"), (["--n_l=1"], "--n_l"),
])
def test_wrong_flags_end_with_one_line(dataset, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        run(dataset, tmp_path, *flags)
    text = capsys.readouterr().err if isinstance(error.value.code, int) else error.value.code
    assert message in text and len(text.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_errors_around_checkpoints(dataset, tmp_path, monkeypatch):
    run(dataset, tmp_path, "--epochs=0.2")
    before = (tmp_path / "ckpt.pt").read_bytes()
    with pytest.raises(SystemExit, match="holds a run"):
        run(dataset, tmp_path)
    checkpoint = pretrain.load_checkpoint(tmp_path)
    del checkpoint["recent"]
    pretrain.save_checkpoint(tmp_path / "older", checkpoint)
    with pytest.raises(SystemExit, match="no pre-training that can go on"):
        run(dataset, tmp_path / "older", "--resume")
    with pytest.raises(SystemExit, match=r"begun with --lr=0.0\d+, not 0.5"):
        run(dataset, tmp_path, "--epochs=0.2", "--resume", "--lr=0.5")
    with pytest.raises(SystemExit, match="has no .MASK."):
        run(dataset, tmp_path, "--fill=nothing to fill")
    with pytest.raises(SystemExit, match="more than the model's 32"):
        run(dataset, tmp_path, "--fill=[MASK]" + " word" * 40)

    def full_disk(*args, **kwargs):
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(SystemExit, match="No space left.*previous checkpoint is kept"):
            pretrain.save_checkpoint(tmp_path, {})
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    (tmp_path / "ckpt.pt").write_bytes(before[:len(before) // 2])
    with pytest.raises(SystemExit, match="not a checkpoint"):
        run(dataset, tmp_path, "--resume")


def test_checkpoint_of_another_vocabulary_or_dataset_is_refused(dataset, tmp_path):
    run(dataset, tmp_path, "--epochs=0.2")
    checkpoint = pretrain.load_checkpoint(tmp_path)
    checkpoint["splits"]["train"]["n_docs"] += 1
    pretrain.save_checkpoint(tmp_path, checkpoint)
    with pytest.raises(SystemExit, match="not the one that this run began with"):
        run(dataset, tmp_path, "--epochs=0.2", "--resume")
    pretrain.save_checkpoint(tmp_path, checkpoint | {"fingerprint": "other"})
    with pytest.raises(SystemExit, match="another vocabulary"):
        run(dataset, tmp_path, "--fill=[MASK]")


def test_what_fails_to_compile_runs_uncompiled(dataset, tmp_path, monkeypatch, capsys):
    def no_compiler(self, **kwargs):
        raise RuntimeError("no C++ compiler")
    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    run(dataset, tmp_path, "--compile", "--epochs=0.2")
    assert "torch.compile failed (RuntimeError)" in capsys.readouterr().out


def test_optimizer_groups():
    model = BertForMaskedLM(BertConfig(vocab_size=64, n_embd=32, n_head=2, n_layer=2))
    names = {p: name for name, p in model.named_parameters()}
    args = pretrain.get_parser().parse_args(["--lr=1e-3", "--muon_lr=5e-3", "--weight_decay=0.01"])
    adamw, muon = pretrain.make_optimizers(model, args, torch.device("cpu"))
    matrices = {names[p] for p in muon.param_groups[0]["params"]}
    assert matrices == {f"bert.blocks.{i}.{name}.weight" for i in range(2) for name in (
        "attn.query", "attn.key", "attn.value", "attn.proj", "mlp.fc", "mlp.proj")}
    decayed, free = ({names[p] for p in group["params"]} for group in adamw.param_groups)
    assert decayed == {"bert.wte.weight", "dense.weight"} and adamw.param_groups[1]["weight_decay"] == 0
    assert [group["peak_lr"] for group in adamw.param_groups + muon.param_groups] == [1e-3, 1e-3, 5e-3]
    assert decayed | free | matrices == set(names.values()) and all("bias" in n or "ln" in n for n in free)


def test_learning_rate_schedule():
    rates = [pretrain.lr_factor(step, 100, 0.1) for step in range(100)]
    assert rates[9] == 1.0 > rates[10] and max(rates) == 1.0 and 0 < rates[99] < 0.015
    assert rates[0] == pytest.approx(0.1) and rates[55] == pytest.approx(0.5, abs=0.02)
    assert pretrain.lr_factor(0, 1, 0.0) == 1.0


def test_help_names_every_flag():
    text = subprocess.run([sys.executable, "pretrain.py", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    for flag in ("--dataset", "--n_layer", "--grad_accum", "--mask_prob", "--compile", "--resume", "--fill"):
        assert flag in text


def test_a_c_library_without_mallopt_will_do(monkeypatch):
    monkeypatch.setattr(pretrain.ctypes, "CDLL", lambda name: object())
    assert pretrain.pick_device("cpu").type == "cpu"


def test_sampled_softmax_estimates_the_whole_one():
    """The targets are among the words, no word comes twice, and on average the loss is nearly that of all words."""
    V, targets = 400, torch.randint(60, (4, 10), generator=torch.Generator().manual_seed(0))
    targets[0, 8:] = IGNORE
    logits = torch.randn(4, 10, V, generator=torch.Generator().manual_seed(1))
    whole = sum_of_losses(logits.flatten(0, 1), targets.flatten())
    losses, generator = [], torch.Generator().manual_seed(2)
    for _ in range(300):
        words, shift, places = sample_words(targets, 100, V, generator)
        assert len(words.unique()) == 100 and (places == IGNORE).equal(targets == IGNORE)
        assert (words[places] == targets)[targets != IGNORE].all()
        losses.append(sum_of_losses((logits[..., words] + shift).flatten(0, 1), places.flatten()))
    losses = torch.stack(losses)
    assert losses.std() > 0.001 * whole and abs(losses.mean() - whole) < 0.01 * whole
    words, shift, places = sample_words(targets, V, V, generator)
    assert not shift.any()
    torch.testing.assert_close(sum_of_losses((logits[..., words]).flatten(0, 1), places.flatten()), whole)
    words, _, _ = sample_words(targets, 5, V, generator)  # too few: as many as there are places
    assert len(words) == targets.numel() and torch.isin(targets[targets != IGNORE], words).all()


def test_our_muon_is_torchs(monkeypatch):
    """Both compute in float64 here; ours has matrices of one shape in one batch, and the wide ones by Gram matrices."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's own orthogonalises in bfloat16
    torch.manual_seed(0)
    shapes = [(24, 24), (24, 24), (24, 96), (96, 24), (24, 96), (8, 24)]
    ours = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = [pretrain.Muon(ours, 0.01, 0.3, torch.float64),
                  torch.optim.Muon(theirs, 0.01, 0.3, adjust_lr_fn="match_rms_adamw")]
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    x = torch.randn(3, 20, 80)
    torch.testing.assert_close(pretrain.orthogonalise(x), pretrain.orthogonalise(x.double()).float(), atol=1e-5, rtol=0)
    rows = pretrain.orthogonalise(x) @ pretrain.orthogonalise(x).mT  # all directions of about one length
    assert 0.4 < torch.linalg.eigvalsh(rows).min() and torch.linalg.eigvalsh(rows).max() < 1.5


class Products(TorchDispatchMode):
    """Records the number formats of the matrix products and convolutions that are computed while it is entered."""
    NAMES = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}

    def __init__(self):
        super().__init__()
        self.formats, self.operators = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.operators.add(name)
        if name in self.NAMES:
            self.formats |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("flags", [["--optimizer=muon"], ["--optimizer=adamw"], ["--n_conv=2", "--conv_channels=4"]])
def test_a_float32_step_computes_in_float32(dataset, tmp_path, flags):
    """What the processor is slow with must not slip in: a bfloat16 product is a hundred times slower on many."""
    with Products() as products:
        run(dataset, tmp_path / "run", "--epochs=0.1", *flags)
    assert products.formats == {torch.float32}
    assert {"mm", "bmm"} <= products.operators
    assert not any("attention" in name for name in products.operators)  # the fused kernel is slow in its backward


def test_number_formats_follow_what_the_processor_can_do(dataset, tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    for level, found, answer in [("AVX2", {"avx512_bf16": True}, "float32"), ("AVX512", {}, "float32"),
                                 ("AVX512", {"avx512_bf16": True}, "bfloat16"), ("DEFAULT", {}, "float32")]:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda level=level: level)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert pretrain.fast_dtype(cpu) == answer
    assert run(dataset, tmp_path, "--epochs=0.1")["dtype"] == "float32"
