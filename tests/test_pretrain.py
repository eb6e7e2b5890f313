"""Pre-training: a step written out by hand, masks, the loop from flags to files, errors."""
import copy
import gc
import os
import random
import signal
import subprocess
import sys
from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import IS_WINDOWS, OWN, ROOT, log_of, needs_signals
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain
import training
from data.batches import Corpus
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import get_tokenizer
from model import IGNORE, BertConfig, BertForMaskedLM, sample_candidates, sum_of_losses

SMALL = ["--n_layer=1", "--n_embd=32", "--n_head=2", "--block_size=32", "--batch_size=8",
         "--epochs=2", "--device=cpu", "--dtype=float32"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """85 sentences of which much can be guessed; an epoch's last batch has 5 rows instead of 8."""
    folder, rng = tmp_path_factory.mktemp("bin"), random.Random(0)
    food = {"cat": "milk", "dog": "meat", "cow": "grass", "bee": "roses"}

    def sentence():
        animal = rng.choice(sorted(food))
        when = rng.choice(["every day", "in the morning", "at night",
                           "when it rains and the sun is away"])
        return f"the {animal} likes {food[animal]} {when}."
    items = [("train", sentence()) for _ in range(85)] + [("val", sentence()) for _ in range(30)]
    write_dataset(folder / "animals", items, get_tokenizer(), {})
    return folder / "animals"


def run(dataset, out_dir, *flags):
    return pretrain.main([f"--dataset={dataset}", f"--out_dir={out_dir}", *SMALL, *flags])


def interrupt(monkeypatch, n_saves, run, *arguments):
    """run(*arguments) is cut off at its n-th save. -> the steps of its saves (list)"""
    save, saved = training.save_checkpoint, []

    def save_and_die(out_dir, checkpoint):
        save(out_dir, checkpoint)
        saved.append(checkpoint["totals"]["step"])
        if len(saved) == n_saves:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_checkpoint", save_and_die)
        run(*arguments)
    return saved


def open_corpus(dataset):
    return Corpus(*Dataset(dataset).split("train"), block_size=32)


def test_whole_documents_or_their_first_blocks(tmp_path):
    """--subset draws documents; all of their blocks are trained on, or the first of each."""
    items = [(split, "word " * n) for split in ("train", "val") for n in (3, 40, 100, 7)]
    write_dataset(tmp_path / "long", items, get_tokenizer(), {})

    def lengths(*flags):
        args = pretrain.get_parser().parse_args(["--block_size=32", *flags])
        corpus, documents = pretrain.choose_documents(Dataset(tmp_path / "long"), args, "cpu")
        return corpus.lengths[documents].tolist()
    assert lengths() == [3, 20, 20, 25, 25, 25, 25, 7]
    assert lengths("--blocks=first") == [3, 30, 30, 7]
    items = [(split, "word " * 300) for split in ("train", "val") for _ in range(50)]
    write_dataset(tmp_path / "longer", items, get_tokenizer(), {})
    batches = pretrain.validation_batches(Dataset(tmp_path / "longer"), 512, torch.device("cpu"))
    assert [len(batch.tokens) for batch in batches] == [27, 23]  # at most 8,192 tokens each
    halves = [lengths("--subset=0.5", f"--seed={seed}") for seed in range(8)]
    possible = {3: [3], 40: [20, 20], 100: [25] * 4, 7: [7]}
    assert all(half in [a + b for n, a in possible.items() for m, b in possible.items() if n != m]
               for half in halves) and len(set(map(str, halves))) > 1


def test_a_training_step_written_out_by_hand(dataset):
    """What train() does in a step: mask, name the masked tokens, clip the gradient, AdamW."""
    args = pretrain.get_parser().parse_args([
        "--optimizer=adamw", "--lr=0.01", "--weight_decay=0.1", "--dtype=float32", "--n_embd=32",
        "--n_layer=1"])
    tokenizer, device = get_tokenizer(), torch.device("cpu")
    batch = pretrain.draw_batch(open_corpus(dataset), np.arange(8), tokenizer, 0.4, seed=1)
    torch.manual_seed(0)
    ours = BertForMaskedLM(training.make_config(args, tokenizer.vocab_size))
    by_hand = copy.deepcopy(ours)
    setup = training.set_up(ours, args, device)
    n_targets = (batch.targets != IGNORE).sum()
    loss = training.training_step(ours, batch.split(3), n_targets, setup, lr_factor=0.5)

    logits = by_hand(batch.tokens, batch.mask)  # (B, T, V), of all positions
    wanted = batch.targets != IGNORE  # (B, K)
    rows = torch.arange(8)[:, None].expand_as(batch.positions)
    expected = F.cross_entropy(logits[rows[wanted], batch.positions[wanted]], batch.targets[wanted])
    gradients = torch.autograd.grad(expected, list(by_hand.parameters()))
    norm = torch.stack([g.norm() for g in gradients]).norm()
    for p, gradient in zip(by_hand.parameters(), gradients):
        gradient = gradient / max(1.0, norm)
        decay = 0.1 if p.ndim == 2 else 0.0
        # the first step of Adam: both averages are the gradient itself
        step = gradient / (gradient.abs() + 1e-8) + decay * p
        with torch.no_grad():
            p -= 0.5 * 0.01 * step
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5, msg="the loss is not the mean "
                               "over all targets of the step")
    large = [g.abs() > 1e-6 for g in gradients]  # below, rounding decides the sign
    for a, b, there in zip(ours.parameters(), by_hand.parameters(), large):
        torch.testing.assert_close(a[there], b[there], rtol=1e-3, atol=1e-5, msg="the weights are "
                                   "not those after one step on the mean over all targets")


def test_masks_follow_bert():
    tokenizer = get_tokenizer()
    B, T, p = 4000, 64, 0.15
    n = torch.arange(B) % (T - 1)  # rows of 0 to T - 2 tokens
    column = torch.arange(T)
    x = torch.where(column == 0, tokenizer.cls, torch.where(column <= n[:, None], 7, tokenizer.pad))
    x = torch.where(column == n[:, None] + 1, tokenizer.sep, x)
    generator = torch.Generator().manual_seed(0)
    masked, positions, targets = pretrain.mask_tokens(x, n, p, tokenizer, generator)
    real = targets != IGNORE
    assert positions.shape == (B, round(p * (T - 2))), "K is mask_prob of T - 2, rounded"
    assert targets.shape == positions.shape, "each position needs a target, or IGNORE"
    expected = torch.where(n > 0, (p * n).round().clamp(min=1), 0)
    assert (real.sum(1) == expected).all(), \
        "a row of n tokens has mask_prob * n targets, rounded, at least one, and none if n is 0"
    assert (targets[real] == 7).all(), "a target is not the token that stood there"
    assert ((positions >= 1) & (positions <= n[:, None]))[real].all(), \
        "a special token or padding is to be predicted"
    assert all(len(set(row[r].tolist())) == r.sum()
               for row, r in zip(positions[:200], real[:200])), "a position was drawn twice"
    changed = torch.zeros_like(x, dtype=torch.bool).scatter(1, positions, real)
    assert (masked[~changed] == x[~changed]).all(), "a token that is no target has changed"
    new = masked.gather(1, positions)[real]
    N = len(new)
    for share, count, what in ((0.8, (new == tokenizer.mask).sum(), "[MASK]"),
                               (0.1, (new == 7).sum(), "the old token")):
        assert abs(count - share * N) < 5 * (N * share * (1 - share)) ** 0.5, \
            f"{count / N:.1%} of the targets became {what}, more than five deviations off {share}"
    random = new[(new != tokenizer.mask) & (new != 7)]
    assert (random < tokenizer.n_plain).all(), "a random token is a special one"
    assert len(random.unique()) > 0.8 * len(random), "the random tokens are mostly the same"
    full = n == T - 2
    counts = torch.bincount(positions[full].flatten(), minlength=T)[1:T - 1].float()
    assert counts.min() > 0, "a position is never drawn"
    assert counts.std() / counts.mean() < 0.6, "some positions are drawn more often than others"


def test_masks_are_a_function_of_their_seed(dataset):
    def draw(seed):
        return pretrain.draw_batch(open_corpus(dataset), np.arange(12), get_tokenizer(), 0.3, seed,
                                   12, 8, n_candidates=300)
    first = draw(3)
    torch.manual_seed(9)  # what other code draws must not matter
    assert all(torch.equal(a, b) for a, b in zip(first, draw(3))), \
        "all random numbers must come from the generator"
    assert not torch.equal(first.tokens, draw(4).tokens), "another seed must draw other masks"


def test_training_learns_and_leaves_its_files(dataset, tmp_path, capsys):
    row = run(dataset, tmp_path, "--epochs=60", "--muon_lr=1e-2", "--lr=1e-2", "--n_embd=64",
              "--weight_decay=0.01")
    assert row["step"] == 60 * 11 and row["val_accuracy"] > 0.6
    rows = log_of(tmp_path)
    assert rows[-1] == row and len(rows) == 11 and rows[0]["step"] == 0
    assert rows[0]["val_loss"] == pytest.approx(np.log(get_tokenizer().vocab_size), abs=0.1)
    assert {"ckpt.pt", "log.jsonl"} == set(os.listdir(tmp_path)) - {"loss.png"}
    output = capsys.readouterr().out
    assert f"masked accuracy {row['val_accuracy']:.1%}" in output and "padding was" in output
    assert "the training takes about" in output
    lengths = open_corpus(dataset).lengths + 2  # with [CLS] and [SEP]
    assert row["tokens"] == 60 * lengths.sum() and row["positions"] >= row["tokens"]
    # the model comes back as it was, its embedding still tied
    model, tokenizer = pretrain.load_model(tmp_path)
    assert model.decoder.weight is model.bert.wte.weight
    batches = pretrain.validation_batches(Dataset(dataset), 32, torch.device("cpu"))
    loss, accuracy = pretrain.evaluate(model, batches, torch.autocast("cpu", enabled=False))
    assert (loss, accuracy) == (row["val_loss"], row["val_accuracy"])
    # and fills in the blanks
    run(dataset, tmp_path, "--fill=the cow likes [MASK] at night.")
    first, rest = capsys.readouterr().out.removeprefix("[MASK] = ").split("%", 1)
    assert first.startswith("grass ") and rest.count("%") == 4


def test_a_step_leaves_no_tensor_behind(dataset, tmp_path, monkeypatch):
    """Small tensors that stay would lie between the large ones, whose memory then can't be used."""
    training_step, counts = training.training_step, []

    def count_and_step(*args):
        counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
        return training_step(*args)

    monkeypatch.setattr(training, "training_step", count_and_step)
    run(dataset, tmp_path / "run", "--epochs=3", "--eval_interval=1000000")
    assert len(counts) > 30 and max(counts[3:]) < counts[3] + 5  # some batches have a mask


@pytest.mark.parametrize("n_stages", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted(dataset, tmp_path, monkeypatch, n_stages):
    """Weights, optimizer and log to the last bit, dropout and a partial last batch included."""
    flags = ["--dropout=0.1", "--eval_interval=5", "--grad_accum=2"]
    if n_stages == 2:
        run(dataset, tmp_path / "first", "--epochs=1")
        flags.append(f"--init_from={tmp_path}/first")
    whole = run(dataset, tmp_path / "whole", *flags)
    saved = interrupt(monkeypatch, 3, run, dataset, tmp_path / "parts", *flags)
    assert saved == [0, 5, 10] and whole["step"] == 12
    torch.manual_seed(123)
    pretrain.main([f"--out_dir={tmp_path / 'parts'}", "--resume"])  # every flag comes from the run
    a, b = (training.load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    for x, y in zip(a["optimizers"], b["optimizers"]):
        torch.testing.assert_close(x["state"], y["state"], rtol=0, atol=0)
    for row in a["history"] + b["history"]:
        del row["seconds"]
    assert a["history"] == b["history"]


def test_a_copy_of_a_run_goes_on_beside_it(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(dataset, "first", "--epochs=0.2", "--n_conv=2", "--conv_kernel", "3", "5")
    run(dataset, "out/animals-bert1", "--epochs=1", "--init_from=first")
    whole = (tmp_path / "out/animals-bert1/ckpt.pt").read_bytes()
    checkpoint = training.load_checkpoint("out/animals-bert1")
    training.save_checkpoint("copy", checkpoint | {
        "totals": checkpoint["totals"] | {"step": 3}, "history": checkpoint["history"][:1]})
    flags = [f"--dataset={dataset}", "--n_layer=1", "--resume", "--conv_kernel", "3", "5",
             "--dtype=auto"]
    assert pretrain.main([*flags, "--out_dir=copy"])["step"] == 11
    assert training.load_checkpoint("copy")["args"]["out_dir"] == "copy"
    (tmp_path / "out/animals-bert1").rename(tmp_path / "elsewhere")
    (tmp_path / "copy").rename(tmp_path / "out/animals-bert1")
    pretrain.main(flags)
    assert not (tmp_path / "copy").exists()
    assert (tmp_path / "elsewhere/ckpt.pt").read_bytes() == whole


def test_a_run_goes_on_with_as_many_processes_as_it_began(dataset, tmp_path, monkeypatch):
    run(dataset, tmp_path, "--epochs=0.2")
    monkeypatch.setattr(training, "start_processes", lambda name: (torch.device("cpu"), 0, 2))
    with pytest.raises(SystemExit, match="steps are of 8 texts, here they would be of 16"):
        pretrain.main([f"--out_dir={tmp_path}", "--resume"])


def test_a_second_stage_has_the_weights_and_the_shape_of_the_first(
        dataset, weather, tmp_path, capsys):
    """Here on the texts of a classification set, of which every twentieth validates."""
    run(dataset, tmp_path / "first", "--epochs=1")
    assert "--epochs=342 would train on 29,000 texts" in capsys.readouterr().out
    texts, cpu = f"{weather}/labelled", torch.device("cpu")
    flags = [f"--dataset={texts}", f"--init_from={tmp_path}/first", f"--out_dir={tmp_path}/second",
             "--device=cpu", "--dtype=float32", "--epochs=8"]
    with pytest.raises(SystemExit, match="--n_embd=64: .* has 32; leave the flag out"):
        pretrain.main([*flags, "--n_embd=64"])
    assert not (tmp_path / "second").exists()
    result = pretrain.main(flags)
    assert "so little training" not in capsys.readouterr().out
    model, tokenizer = pretrain.load_model(tmp_path / "first")
    val = pretrain.validation_batches(Dataset(texts), 32, cpu)
    before = log_of(tmp_path / "second")[0]
    loss, accuracy = pretrain.evaluate(model, val, nullcontext())
    assert before["val_loss"] == pytest.approx(loss) and before["val_accuracy"] == accuracy
    assert result["val_loss"] < before["val_loss"] - 0.3
    second, _ = pretrain.load_model(tmp_path / "second")
    assert second.bert.config == model.bert.config
    assert training.load_checkpoint(tmp_path / "second")["args"]["lr"] == 0.003
    assert sum(len(batch.tokens) for batch in val) == 4
    args = pretrain.get_parser().parse_args(flags)
    args.subset = 1e-9
    args.seed = next(seed for seed in range(999)
                     if np.random.default_rng(seed).permutation(69)[0] == 20)
    with pytest.raises(SystemExit, match="--subset=1e-09: leaves no text of"):
        pretrain.choose_documents(Dataset(args.dataset), args, cpu)


def test_no_text_that_validates_is_trained_on(tmp_path):
    """Not even where it comes twice, as sentences of FewRel do."""
    items = [(split, f"text number {i // 2}", i % 2) for split in ("train", "test")
             for i in range(100)]  # each text twice
    write_dataset(tmp_path / "pairs", items, get_tokenizer(), {}, ["a", "b"])
    args = pretrain.get_parser().parse_args([])
    _, documents = pretrain.choose_documents(Dataset(tmp_path / "pairs"), args, "cpu")
    validating = {i // 2 for i in range(0, 100, 20)}
    assert {i // 2 for i in documents} == set(range(50)) - validating


def test_the_papers_schedule_and_padding(dataset, tmp_path, monkeypatch):
    factors, update = [], training.update_weights
    monkeypatch.setattr(training, "update_weights", lambda *args: (
        factors.append(args[2]), update(*args)))
    row = run(dataset, tmp_path, "--epochs=5", "--warmup=0.2", "--lr_per_epoch", "--pad_to=32")
    assert row["positions"] == 5 * 11 * 8 * 32  # the last batch of an epoch has empty rows
    assert factors == [factors[11 * epoch] for epoch in range(5) for _ in range(11)]
    assert factors[::11] == pytest.approx([0, 1, 0.75, 0.5, 0.25], abs=0.1)


@needs_signals
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_saves_and_resume_finishes(dataset, tmp_path, monkeypatch, name):
    step = training.training_step
    with monkeypatch.context() as patch:
        patch.setattr(training, "training_step", lambda *args: (
            signal.raise_signal(getattr(signal, name)), step(*args))[1])
        with pytest.raises(SystemExit, match="interrupted: step 1 of 22 is saved in .* --resume "):
            run(dataset, tmp_path)
    assert training.load_checkpoint(tmp_path)["totals"]["step"] == 1
    assert pretrain.main([f"--out_dir={tmp_path}", "--resume"])["step"] == 22


@pytest.mark.skipif(IS_WINDOWS, reason="torchrun needs libuv, which PyTorch lacks there")
def test_passes_and_processes_do_not_change_the_loss(dataset, tmp_path):
    """One process with batch 8 = two passes of 4 = two processes of 4 (torchrun, gloo)."""
    flags = ["--eval_interval=4", "--n_conv=0"]
    run(dataset, tmp_path / "one", *flags)
    run(dataset, tmp_path / "accum", *flags, "--batch_size=4", "--grad_accum=2")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         "pretrain.py", f"--dataset={dataset}", f"--out_dir={tmp_path}/two", *SMALL, *flags,
         "--batch_size=4"],
        cwd=ROOT, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120)
    one = log_of(tmp_path / "one")
    assert len(one) == 7
    for name in ("accum", "two"):
        for a, b in zip(one, log_of(tmp_path / name), strict=True):
            assert a["step"] == b["step"] and a["tokens"] == b["tokens"]
            assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-4)
            assert a["val_loss"] == pytest.approx(b["val_loss"], abs=2e-4)


@pytest.mark.parametrize("lr, interval", [("1e30", 1), ("1e39", 1000)])
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(dataset, tmp_path,
                                                                      monkeypatch, lr, interval):
    """Also where it is saved between evaluations, with a loss that is older than the weights."""
    monkeypatch.setattr(pretrain, "SAVE_EVERY", -1)  # so after every step
    with pytest.raises(SystemExit, match=r"not finite at step .* lower --lr=1e\+3., raise"):
        run(dataset, tmp_path, "--optimizer=adamw", f"--lr={lr}", f"--eval_interval={interval}")
    model = training.load_checkpoint(tmp_path)["model"]
    assert all(tensor.isfinite().all() for tensor in model.values())


@pytest.mark.parametrize("flags, message", [
    (["--n_layer=0"], "--n_layer: 0 must be at least 1 and at most 1,000,000"),
    (["--lr=-1"], "--lr: -1 must be above 0"), (["--subset=2"], "--subset: 2 must be at most 1"),
    (["--mask_prob=1.5"], "--mask_prob: 1.5 must be"), (["--dropout=1"], "below 1"),
    (["--epochs=0"], "--epochs: 0 must be"), (["--n_head=5"], "n_head=5"), (["--n_l=1"], "--n_l"),
    (["--n_conv=3", "--conv_kernel", "3", "5"], "conv_kernel"), (["--batch_size=x"], "batch_size"),
    (["--device=tpu9"], "--device=tpu9"), (["--dataset=absent"], "--dataset=absent"),
    (["--resume"], "no checkpoint"), (["--fill=[MASK]"], "no checkpoint"),
])
def test_wrong_flags_end_with_one_line(dataset, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        run(dataset, tmp_path, *flags)
    text = capsys.readouterr().err if isinstance(error.value.code, int) else error.value.code
    assert message in text and len(text.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_errors_around_checkpoints(dataset, tmp_path):
    run(dataset, tmp_path, "--epochs=0.2")
    checkpoint = training.load_checkpoint(tmp_path)
    other_data = {"checksums": checkpoint["checksums"] | {"train.bin": 1}}
    for name, changes in (("vocabulary", {"fingerprint": "other"}), ("data", other_data)):
        training.save_checkpoint(tmp_path / name, checkpoint | changes)
    (tmp_path / "foreign").mkdir()
    torch.save({"model": {}, "config": {"block_size": 8}}, tmp_path / "foreign" / "ckpt.pt")
    for name, flags, message in [
            ("", [], "holds a run"),
            ("", ["--resume", "--epochs=0.2", "--lr=0.5"],
             r"--lr=0.5: the run in .* has 0.0\d+; .* new run, with --init_from="),
            ("", ["--fill=nothing to fill"], "has no .MASK."),
            ("", ["--fill=[MASK]" + " word" * 40], "more than the model's 32"),
            ("foreign", ["--fill=[MASK]"], "is damaged or not a checkpoint"),
            ("data", ["--resume", "--epochs=0.2"], "not the one that this run began with"),
            ("vocabulary", ["--fill=[MASK]"], "another vocabulary")]:
        with pytest.raises(SystemExit, match=message):
            run(dataset, tmp_path / name, *flags)


def test_sampled_softmax_estimates_the_whole_one():
    """The targets are among the candidates, none of which comes twice, and on average the loss is
    nearly that of the whole vocabulary."""
    V, targets = 400, torch.randint(60, (4, 10), generator=torch.Generator().manual_seed(0))
    targets[0, 8:] = IGNORE
    logits = torch.randn(4, 10, V, generator=torch.Generator().manual_seed(1))
    whole = sum_of_losses(logits.flatten(0, 1), targets.flatten())
    losses, generator = [], torch.Generator().manual_seed(2)
    for _ in range(300):
        candidates, correction, indices = sample_candidates(targets, 100, V, generator)
        assert len(candidates.unique()) == 100 and (indices == IGNORE).equal(targets == IGNORE)
        assert (candidates[indices] == targets)[targets != IGNORE].all()
        sampled = logits[..., candidates] + correction
        losses.append(sum_of_losses(sampled.flatten(0, 1), indices.flatten()))
    losses = torch.stack(losses)
    assert losses.std() > 0.001 * whole and abs(losses.mean() - whole) < 0.01 * whole
    candidates, correction, indices = sample_candidates(targets, V, V, generator)
    assert not correction.any()
    loss = sum_of_losses(logits[..., candidates].flatten(0, 1), indices.flatten())
    torch.testing.assert_close(loss, whole)
    candidates, _, _ = sample_candidates(targets, 5, V, generator)  # too few: as many as targets
    assert len(candidates) == targets.numel()
    assert torch.isin(targets[targets != IGNORE], candidates).all()


def test_sampled_softmax_has_the_gradients_of_its_candidates_logits(dataset):
    """Loss and gradients, those of the embedding's two uses together, as with whole logits."""
    tokenizer = get_tokenizer()
    batch = pretrain.draw_batch(open_corpus(dataset), np.arange(8), tokenizer, 0.4, seed=1,
                                n_candidates=300)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32))
    torch.nn.init.normal_(model.decoder.bias)
    logits = model(batch.tokens, batch.mask, batch.positions)[..., batch.candidates]
    logits = logits + batch.logit_correction
    expected = sum_of_losses(logits.flatten(0, 1), batch.targets.flatten())
    loss = model(*batch)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, parameters),
                               torch.autograd.grad(expected, parameters), rtol=1e-4, atol=1e-4)


class Products(TorchDispatchMode):
    """While it is entered: the operators that are computed, the number formats of products."""
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


def test_a_float32_step_computes_in_float32(dataset, tmp_path):
    """What is slow must not slip in: on many processors a bfloat16 product takes a hundred times
    as long, and the fused attention is slow in its backward pass."""
    with Products() as products:
        run(dataset, tmp_path / "run", "--epochs=0.1", "--n_conv=2", "--conv_channels=4")
    assert products.formats == {torch.float32}
    assert {"mm", "bmm"} <= products.operators
    assert not any("attention" in name for name in products.operators)


def test_a_run_carries_its_vocabulary(tmp_path):
    """One's own is not looked for in a file: here there is none."""
    items = [(split, "the sun and the moon") for split in ("train", "val")]
    write_dataset(tmp_path / "texts", items, OWN, {})
    run(tmp_path / "texts", tmp_path / "run", "--epochs=1")
    assert pretrain.load_model(tmp_path / "run")[1].vocabulary == OWN.vocabulary


def test_of_two_first_runs_at_once_one_is_refused(dataset, tmp_path, monkeypatch):
    evaluate = pretrain.evaluate

    def other_run_is_faster(*args):
        training.save_checkpoint(tmp_path, {"kind": "pretrain", "history": ["the other's"]})
        return evaluate(*args)
    monkeypatch.setattr(pretrain, "evaluate", other_run_is_faster)
    with pytest.raises(SystemExit, match="holds a run"):
        run(dataset, tmp_path)
    assert training.load_checkpoint(tmp_path)["history"] == ["the other's"]


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: an illegal memory access was encountered")])
def test_memory_that_runs_out_is_one_line(dataset, tmp_path, monkeypatch, error):
    monkeypatch.setattr(training, "update_weights", Mock(side_effect=error))
    is_other = "illegal" in str(error)
    with pytest.raises(RuntimeError if is_other else SystemExit,
                       match="illegal" if is_other else "out of memory: lower --batch_size=8 "):
        run(dataset, tmp_path)


def test_a_batch_larger_than_the_corpus(dataset, tmp_path):
    """Not more rows are computed than there are documents, and none is without a process."""
    row = run(dataset, tmp_path, "--batch_size=1000", "--grad_accum=3")
    assert row["step"] == 2 and row["positions"] <= 2 * 87 * 32  # 85 documents in 3 parts of 29
