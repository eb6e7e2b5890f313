"""The toolbox: learning rate, Muon, optimizers, checkpoints, devices."""
import copy
import errno
import os
import random
import signal
import sys
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch
from conftest import needs_signals

import training
from model import BertConfig, BertForMaskedLM
from pretrain import choose_learning_rates, get_parser

CPU = torch.device("cpu")


def small_model(n_layer=1):
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=64, n_embd=32, n_head=2, n_layer=n_layer))


def parse(*flags):
    args = get_parser().parse_args(["--dtype=float32", *flags])
    choose_learning_rates(args, args.batch_size * args.grad_accum)
    return args


def test_learning_rate_schedule():
    rates = [training.lr_factor(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1), "the first of ten warm-up steps has a tenth, not 0"
    assert rates[4] == pytest.approx(0.5), "the fifth of ten warm-up steps has a half"
    assert rates[9] == 1, "the last warm-up step has the whole rate"
    assert max(rates) == 1, "a step has more than the whole rate"
    assert rates[10] < 1, "the first step after the warm-up has less than the last one in it"
    assert rates[99] > 0, "the last step has a little: with 0 it would be wasted"
    for a, b in zip(rates[9:], rates[10:]):
        assert a - b == pytest.approx(1 / 91), "each step falls by 1/91: one more would have 0"
    assert training.lr_factor(0, 1, 0.0) == 1, "the warm-up has at least one step"
    assert training.lr_factor(0, 16, 0.1) == 0.5, "a warm-up of 1.6 steps is rounded to 2"
    assert training.lr_factor(57, 100, 0.1, interval=10) == rates[50], \
        "with an interval of 10 the steps 50 to 59 have the rate of step 50"


def test_our_muon_is_torchs(monkeypatch):
    """Both in float64; ours puts matrices of one shape in one batch, the wide ones by their Gram
    matrices."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    # torch's computes in bfloat16, by one name or the other.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    in_float64 = ModuleType("torch")
    vars(in_float64).update(vars(torch), bfloat16=torch.float64)
    monkeypatch.setattr("torch.optim._muon.torch", in_float64)
    torch.manual_seed(0)
    shapes = [(24, 24), (24, 24), (24, 96), (96, 24), (24, 96), (8, 24)]
    ours = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    group = {"params": ours, "lr": 0.01, "weight_decay": 0.3}
    optimizers = [training.Muon([group], torch.float64),
                  torch.optim.Muon(theirs, 0.01, 0.3, adjust_lr_fn="match_rms_adamw")]
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9,
                               msg="four steps of Muon lead to other weights than PyTorch's Muon")


@pytest.mark.parametrize("n_columns", [20, 80])
def test_directions_become_about_equally_long(n_columns):
    """Each step is a polynomial of the singular values alone; the larger ones end near 1."""
    torch.manual_seed(0)
    x = torch.randn(3, 20, n_columns)
    u, s, vt = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
    single, double = training.orthogonalise(x), training.orthogonalise(x.double())
    torch.testing.assert_close(double, u * s[:, None] @ vt, msg="the singular vectors must stay, "
                               "each singular value goes through the polynomial five times")
    torch.testing.assert_close(single, double.float(), atol=1e-5, rtol=0,
                               msg="float32 gives another result than float64")
    assert 0.6 < s[:, :10].min()
    assert s.max() < 1.3


def test_optimizer_groups():
    model = small_model(n_layer=2)
    names = {p: name for name, p in model.named_parameters()}
    args = parse("--lr=1e-3", "--muon_lr=5e-3", "--weight_decay=0.01")
    adamw, muon = training.set_up(model, args, CPU).optimizers
    matrices = {names[p] for p in muon.param_groups[0]["params"]}
    assert matrices == {f"bert.blocks.{i}.{name}.weight" for i in range(2) for name in (
        "attn.query", "attn.key", "attn.value", "attn.proj", "mlp.fc", "mlp.proj")}
    decayed, free = ({names[p] for p in group["params"]} for group in adamw.param_groups)
    assert decayed == {"bert.wte.weight", "dense.weight"}
    assert all("bias" in name or "ln" in name for name in free)
    assert decayed | free | matrices == set(names.values())
    groups = adamw.param_groups + muon.param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0, 0.01]
    assert [group["peak_lr"] for group in groups] == [1e-3, 1e-3, 5e-3]


def test_a_float16_step_that_overflows_anywhere_is_skipped():
    """By both optimizers, though only the gradients of one of them are not finite."""
    model = small_model()
    setup = training.set_up(model, parse(), CPU)
    setup = setup._replace(scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    before = copy.deepcopy(model.state_dict())
    for is_finite in (False, True):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model.bert.wte.weight.grad[5, 0] = 1.0 if is_finite else torch.nan
        setup.scaler.scale(torch.ones(()))  # as training_step does; it makes the scale
        training.update_weights(model, setup, lr_factor=1.0)
        after = model.state_dict()
        if not is_finite:
            torch.testing.assert_close(after, before, rtol=0, atol=0)
            assert setup.scaler.get_scale() == 4.0
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not any(torch.equal(before[name], after[name]) for name in
                   ("bert.wte.weight", "bert.blocks.0.mlp.fc.weight"))


def test_number_formats_follow_what_the_processor_can_do(monkeypatch):
    bf16 = {"avx512_bf16": True}
    for level, found, answer in [("AVX2", bf16, "float32"), ("AVX512", {}, "float32"),
                                 ("AVX512", bf16, "bfloat16"), ("DEFAULT", {}, "float32")]:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda level=level: level)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert training.fast_dtype(CPU) == answer
    assert training.set_up(small_model(), parse("--dtype=auto"), CPU).dtype == "float32"


def test_a_c_library_without_mallopt_will_do(monkeypatch):
    monkeypatch.setattr(training.ctypes, "CDLL", lambda name: object())
    assert training.pick_device("cpu").type == "cpu"


def test_a_gpu_that_is_there_but_does_not_work(monkeypatch, capsys):
    ones = torch.ones

    def broken(n, device):
        if device == "cuda":
            raise RuntimeError("no kernel image is available")
        return ones(n, device=device)
    monkeypatch.setattr(torch, "ones", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert training.pick_device("auto").type == "cpu"
    assert "cuda is there but does not work" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--device=cuda: does not work on this machine"):
        training.pick_device("cuda")


def test_what_fails_to_compile_runs_uncompiled(monkeypatch, capsys):
    model, tokens = small_model(), torch.randint(64, (2, 9))

    no_compiler = Mock(side_effect=RuntimeError("no C++ compiler"))

    def wrong_compiler(self, **kwargs):
        self.ln.weight.data.fill_(torch.nan)
    example = tokens, None, torch.zeros(2, 1, dtype=torch.long), tokens[:, :1]
    for compiler, error in [(no_compiler, "RuntimeError"), (wrong_compiler, "FloatingPointError")]:
        monkeypatch.setattr(torch.nn.Module, "compile", compiler)
        training.compile_model(model, example, torch.autocast("cpu", enabled=False))
        assert f"torch.compile failed ({error})" in capsys.readouterr().out
        assert model(*example).isfinite()


def test_curves_are_drawn_where_matplotlib_is(tmp_path, monkeypatch, capsys):
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.undo()  # conftest.no_pictures
    drawn, save = [], figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda self, *args, **options: (
        drawn.append(self), save(self, *args, **options)))
    history = [{"tokens": 1000 * step, "seconds": float(step), "val_loss": 9.0 - step,
                "train_loss": None if step == 0 else 8.0 - step, "val_accuracy": 0.1 * step}
               for step in range(3)]
    training.finish(tmp_path, ["ckpt.pt"], history, {"ln V": 9.7})
    assert capsys.readouterr().out == f"wrote {tmp_path}/ckpt.pt, loss.png\n"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    losses, accuracies = drawn[0].axes[:2]
    lines = {line.get_label(): line.get_ydata() for line in (*losses.lines, *accuracies.lines)}
    assert list(lines["val loss"]) == [9, 8, 7] and list(lines["train loss"]) == [7, 6]
    assert list(lines["val accuracy"]) == [0, 10, 20]
    assert [text.get_text() for text in losses.texts] == ["ln V"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # or any other error
    training.finish(tmp_path, ["ckpt.pt"], history, {})
    assert "ckpt.pt, but no loss.png (" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_never_used(tmp_path):
    """Of single flipped bits and of cuts: one line, or the flip lies where nothing is read."""
    content = {"kind": "pretrain", "model": {"w": torch.arange(64.0)}, "history": []}
    training.save_checkpoint(tmp_path, content)
    path, rng, n_refused = tmp_path / "ckpt.pt", random.Random(0), 0
    whole = path.read_bytes()
    flips = [(rng.randrange(len(whole)), 1 << rng.randrange(8)) for _ in range(60)]
    damaged = [whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1:] for i, bit in flips]
    for data in [*damaged, *(whole[:len(whole) * i // 5] for i in range(5)), whole + b"x" * 99]:
        path.write_bytes(data)
        try:
            loaded = training.load_checkpoint(tmp_path)["model"]
            assert torch.equal(loaded["w"], content["model"]["w"])
        except SystemExit as stop:
            assert str(path) in str(stop) and "train again" in str(stop) and "\n" not in str(stop)
            n_refused += 1
    assert n_refused > 20  # zip files are mostly padding here


@needs_signals
def test_a_second_ctrl_c_stops_at_once():
    with training.Interruption() as interruption:
        for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler's second one does not
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interruption.asked and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("error", [PermissionError(), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    training.save_checkpoint(tmp_path, {"kind": "pretrain", "history": []})
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    with pytest.raises(SystemExit, match=f"cannot read .*: {type(error).__name__}$"):
        training.load_checkpoint(tmp_path)


@pytest.mark.parametrize("error, reason", [
    (OSError(errno.ENOSPC, "No space left"), "No space left"),
    (RuntimeError("enforce fail"), "is the disk full?")])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, error, reason):
    training.save_checkpoint(tmp_path, {"kind": "pretrain", "history": []})
    before = (tmp_path / "ckpt.pt").read_bytes()
    monkeypatch.setattr(torch, "save", Mock(side_effect=error))
    with pytest.raises(SystemExit) as stop:
        training.save_checkpoint(tmp_path, {"history": [{"step": 1}]})
    assert str(stop.value) == f"cannot write {tmp_path}/ckpt.pt: {reason}; its old content is kept"
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    assert {"ckpt.pt", "log.jsonl"} == set(os.listdir(tmp_path)) - {"loss.png"}


def test_not_every_error_of_saving_is_called_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", Mock(side_effect=RuntimeError("CUDA error")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        training.save_checkpoint(tmp_path, {"history": []})
    assert not os.listdir(tmp_path)


def test_several_processes_are_refused_where_one_is_used(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="start this with python instead of torchrun"):
        training.pick_device("cpu")
    monkeypatch.delenv("RANK")  # a scheduler's variables alone mean nothing
    assert training.start_processes("cpu")[1:] == (0, 1)


def test_several_processes_without_a_gpu_use_the_cpu(monkeypatch):
    backends = []
    start = "init_process_group"
    monkeypatch.setattr(training, "rank_and_processes", lambda: (1, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training.dist, start, lambda name, **_: backends.append(name))
    assert training.start_processes("auto") == (torch.device("cpu"), 1, 2) and backends == ["gloo"]
