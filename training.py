"""The toolbox that pretrain.py and finetune.py share: one training step, optimizers (Muon),
checkpoints, curves, devices, flags. It knows nothing of masks or of classes.
"""
import argparse
import contextlib
import copy
import ctypes
import math
import os
import signal
import zipfile
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from data.files import replacing, write_json_lines
from data.flags import handle_signals, number, refuse, refuse_other
from data.tokenfile import MAX_TOKENS
from data.tokenizer import get_tokenizer
from model import BertConfig, count_parameters

# ---- one step of training -----------------------------------------------------------------------

class Setup(NamedTuple):
    """How a model is trained."""
    dtype: str  # the number format of matrix products: float32, bfloat16 or float16
    autocast: contextlib.AbstractContextManager  # the same as a context for the forward pass
    scaler: torch.amp.GradScaler  # keeps float16 gradients from vanishing, else does nothing
    optimizers: list
    grad_clip: float  # largest norm of the gradient; 0: any
    pad_to: int  # batches are padded to a multiple of so many tokens


def training_step(model, micro_batches, n_targets, setup, lr_factor):
    """One step of training: forward, backward, update. -> its loss, on the device.

    micro_batches: lists of arguments of the model's forward pass, which returns the sum of its
    targets' losses; n_targets: how many targets the whole step has. So the gradients of several
    micro-batches, and of several processes, need only be added up.
    """
    step_loss = 0.0
    for micro_batch in micro_batches:
        with setup.autocast:
            loss = model(*micro_batch) / n_targets
        setup.scaler.scale(loss).backward()
        step_loss += loss.detach()
    if dist.is_initialized():
        tensors = [step_loss, *(p.grad for p in model.parameters())]
        message = torch.cat([tensor.flatten() for tensor in tensors])  # one is faster than many
        dist.all_reduce(message)
        for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))
    update_weights(model, setup, lr_factor)
    return step_loss


def update_weights(model, setup, lr_factor):
    """One step of the optimizers at this share of their peak learning rates."""
    for optimizer in setup.optimizers:
        setup.scaler.unscale_(optimizer)
    overflow = False
    if setup.grad_clip or setup.scaler.is_enabled():
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), setup.grad_clip or math.inf)
        # Where the gradients of one optimizer are not finite, all skip the step.
        overflow = setup.scaler.is_enabled() and not norm.isfinite()
    for optimizer in setup.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor
        if not overflow:
            optimizer.step()
        optimizer.zero_grad()
    setup.scaler.update()


def lr_factor(step, n_steps, warmup, interval=1):
    """The share of the peak learning rate at a step (from 0): it rises linearly over the first
    warmup * n_steps steps (rounded, at least one), to 1 at the last of them, then falls linearly;
    the step after the last of all would have 0. It changes only every `interval` steps."""
    step -= step % interval
    n_warmup = max(1, round(warmup * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return (n_steps - step) / (n_steps - n_warmup + 1)


def draw_seed(*numbers):
    """One 32-bit seed from several numbers, such as (seed, step): their sum would repeat seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def count_work(totals, tokens, lengths, flops_per_token):
    """Add a step to `totals` (dict), whose "positions" count tokens and padding. tokens (B, T);
    lengths: of the texts without [CLS] and [SEP]; flops_per_token: of a forward pass."""
    n_tokens = int(lengths.sum()) + 2 * len(lengths)
    totals["tokens"] += n_tokens
    totals["positions"] += tokens.numel()
    totals["flops"] += 3 * n_tokens * flops_per_token


# ---- optimizers ---------------------------------------------------------------------------------

def set_up(model, args, device, rate_of=lambda name: 1.0):
    """-> the Setup that the flags ask for. rate_of(name): see make_optimizers."""
    dtype = fast_dtype(device) if args.dtype == "auto" else args.dtype
    autocast = contextlib.nullcontext()  # float32; on Apple's GPUs autocast would warn of it
    if dtype != "float32":
        autocast = torch.autocast(device.type, getattr(torch, dtype))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    if device.type == "mps":  # convolutions in channels_last have wrong gradients (issue 175189)
        model.to(memory_format=torch.contiguous_format)
    optimizers = make_optimizers(model, args, device, dtype, rate_of)
    # Compiled code is kept for eight shapes: four lengths, with and without padding. These are
    # also the only lengths that a GPU has been tried with for long, compiled or not.
    coarse = 8 * math.ceil(model.bert.config.block_size / 32)
    pad_to = args.pad_to or (coarse if args.compile or device.type == "cuda" else 8)
    return Setup(dtype, autocast, scaler, optimizers, args.grad_clip, pad_to)


def make_optimizers(model, args, device, dtype, rate_of):
    """Muon for the matrices of the layers and AdamW for all else, or AdamW for everything. Each
    group of parameters keeps its peak learning rate as "peak_lr": the flag's, times
    rate_of(name) of the parameter."""
    by_muon, by_adamw = defaultdict(list), defaultdict(list)  # (rate, weight decay): parameters
    for name, p in model.named_parameters():
        if p.ndim == 2 and ".blocks." in name and args.optimizer == "muon":
            by_muon[rate_of(name), args.weight_decay].append(p)
        else:
            by_adamw[rate_of(name), args.weight_decay if p.ndim >= 2 else 0.0].append(p)

    def groups(parameters, lr):
        return [{"params": members, "lr": rate * lr, "peak_lr": rate * lr, "weight_decay": decay}
                for (rate, decay), members in parameters.items()]
    fused = device.type != "mps"
    optimizers = [torch.optim.AdamW(groups(by_adamw, args.lr), betas=(0.9, 0.98), fused=fused)]
    if by_muon:  # the exponents of float16 are too few for Muon's products
        muon_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(groups(by_muon, args.muon_lr), muon_dtype))
    return optimizers


def orthogonalise(x, n_steps=5):
    """x (n, R, C), R <= C -> about U V' of each matrix U S V', with singular values of 0.7 to 1.2.

    Newton-Schulz iterations (Jordan et al. 2024): x becomes (a + b x x' + c (x x')^2) x, with
    coefficients that bring all singular values close to 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    # In bfloat16 rounding errors of repeated Gram matrices ruin the result, and a GPU's TF32 is
    # nearly as coarse.
    if x.size(2) > x.size(1) and x.dtype != torch.bfloat16 and x.is_cpu:
        return orthogonalise_by_gram(x, a, b, c, n_steps)
    for _ in range(n_steps):
        gram = x @ x.mT  # (n, R, R)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def orthogonalise_by_gram(x, a, b, c, n_steps):
    """The same steps on the Gram matrix x x' (n, R, R), which is smaller than x (n, R, C): the
    product of their polynomials multiplies x only at the end."""
    gram, product = x @ x.mT, None
    for step in range(n_steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < n_steps - 1:
            gram = polynomial @ gram @ polynomial
    return product @ x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): a step moves a matrix
    by lr times its orthogonalised momentum, so that all directions are learned equally fast, rare
    ones too.

    Updates are scaled to the size of AdamW's (0.2 sqrt(max(rows, columns)), Liu et al. 2025), so
    that the learning rates of both can be compared. Matrices of one shape, transposed or not, are
    computed together. dtype: of the products.
    """

    def __init__(self, groups, dtype=torch.float32):
        super().__init__(groups, {})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                by_shape[tuple(sorted(matrix.shape))].append(matrix)
            for shape, matrices in by_shape.items():
                self.update(matrices, shape, group["lr"], group["weight_decay"])

    def update(self, matrices, shape, lr, weight_decay):
        """Move matrices that are all (R, C) or (C, R), shape = (R, C), R <= C."""
        is_wide = [matrix.size(0) == shape[0] for matrix in matrices]
        gradient = torch.stack([matrix.grad if wide else matrix.grad.mT
                                for matrix, wide in zip(matrices, is_wide)])  # (n, R, C)
        state = self.state[matrices[0]]  # the momentum of all of them
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"].lerp_(gradient, 0.05)
        nesterov = gradient.lerp(momentum, 0.95)  # Nesterov's: the momentum one step ahead
        directions = orthogonalise(nesterov.to(self.dtype)).to(gradient.dtype)
        directions = [direction if wide else direction.mT
                      for direction, wide in zip(directions, is_wide)]
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, directions, alpha=-lr * 0.2 * shape[1] ** 0.5)


# ---- checkpoints --------------------------------------------------------------------------------

def pack(kind, model, tokenizer, args, history):
    """What every checkpoint holds (dict of tensors and plain values). kind: the script that trained
    it, "pretrain" or "finetune"."""
    return {"kind": kind, "model": model.state_dict(), "config": vars(model.bert.config),
            "args": vars(args), "tokenizer": tokenizer.name, "fingerprint": tokenizer.fingerprint,
            "vocabulary": tokenizer.vocabulary, "history": history}


def save_checkpoint(out_dir, checkpoint):
    """Write out_dir/ckpt.pt, which is always whole, the old one or the new, then log.jsonl.
    SystemExit if it cannot be written."""
    path = Path(out_dir) / "ckpt.pt"
    try:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
    except (OSError, RuntimeError) as error:
        if "CUDA" in str(error) or is_out_of_memory(error):
            raise
        # torch's own error does not say why.
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        raise SystemExit(f"cannot write {path}: {reason}; its old content is kept") from None
    write_log(out_dir, checkpoint["history"])


def write_log(out_dir, history):
    """out_dir/log.jsonl: a line for each of `history` (list of dict)."""
    write_json_lines(Path(out_dir) / "log.jsonl", history)


def check_existing_run(out_dir):
    """SystemExit if a new run would overwrite another."""
    if (Path(out_dir) / "ckpt.pt").exists():
        raise SystemExit(f"{out_dir} holds a run: name another --out_dir; an interrupted "
                         "pre-training goes on by --resume")


def load_checkpoint(out_dir):
    """The checkpoint (dict) of a run directory. SystemExit if there is none, or a damaged one."""
    path = Path(out_dir) / "ckpt.pt"
    if not path.exists():
        raise SystemExit(f"no checkpoint {path}: train it first, or name another run")
    try:
        with zipfile.ZipFile(path) as file:  # torch writes zip files, but ignores their checksums
            if file.testzip():
                raise zipfile.BadZipFile("wrong checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["kind"], checkpoint["history"]  # another program's file lacks them
        return checkpoint
    except Exception as error:  # a cut or foreign file fails in zipfile, torch or pickle
        problem = f"cannot read {path}: {type(error).__name__}"
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            problem += "; it is damaged or not a checkpoint: restore a copy, or train again"
        raise SystemExit(problem) from None


def load_run(out_dir, kind):
    """-> the checkpoint (dict) of a run of a script, "pretrain" or "finetune", its tokenizer.
    SystemExit if it is the other script's, or its vocabulary has changed since."""
    checkpoint = load_checkpoint(out_dir)
    if checkpoint["kind"] != kind:
        raise SystemExit(f"{out_dir} is a run of {checkpoint['kind']}.py; name a run of {kind}.py")
    tokenizer = get_tokenizer(checkpoint["tokenizer"], checkpoint["vocabulary"])
    if tokenizer.fingerprint != checkpoint["fingerprint"]:
        raise SystemExit(f"{out_dir}: trained with another vocabulary than {tokenizer.name} is "
                         "now; train it again")
    return checkpoint, tokenizer


def check_vocabulary(run, fingerprint, dataset):
    """SystemExit if a run's vocabulary, of this fingerprint, is not that of a Dataset."""
    if fingerprint != dataset.tokenizer.fingerprint:
        raise SystemExit(f"{run} was trained with another vocabulary than {dataset.name} is "
                         f"encoded with ({dataset.tokenizer.name}); prepare one of them again")


# ---- interruption, and the end of a run ---------------------------------------------------------

class Interruption:
    """While it is entered, Ctrl-C, SIGTERM and SIGHUP only set `asked`, so that a step can be
    finished and saved. A second Ctrl-C stops at once. One of several processes stops at once, too:
    it could not leave the loop without the others, which would wait for its gradients."""

    def __enter__(self):
        self.asked = False
        self.handlers = {} if dist.is_initialized() else handle_signals(self.ask)
        return self

    def ask(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for signal_number, handler in self.handlers.items():
            signal.signal(signal_number, handler)


def describe_model(model):
    config = model.bert.config
    return f"BERT-{config.n_layer}: {count_parameters(model):,} parameters, {vars(config)}"


def draw_curves(history, path, reference_losses):
    """Draw the losses and accuracies of `history` (list of dict) over tokens, with lines at
    reference_losses (name: loss)."""
    from matplotlib.figure import Figure  # not on top: the rest works without it
    figure = Figure(figsize=(6, 4), layout="constrained")
    losses = figure.subplots()
    losses.set_xscale("function", functions=(np.sqrt, np.square))  # the plateau is soon left
    accuracies = losses.twinx()
    for key, axes, style in [("train_loss", losses, "C0--"), ("val_loss", losses, "C0-"),
                             ("val_accuracy", accuracies, "C1-."),
                             ("holdout_accuracy", accuracies, "C1-.")]:
        unit = 100 if axes is accuracies else 1
        points = [(row["tokens"] / 1e6, unit * row[key]) for row in history
                  if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points), style, marker=".", markersize=3, label=key.replace("_", " "))
    for name, loss in reference_losses.items():
        losses.axhline(loss, color="gray", linewidth=0.8)
        losses.annotate(name, (0.99, loss), xycoords=("axes fraction", "data"), ha="right",
                        va="bottom")
    losses.set(xlabel=f"million tokens ({history[-1]['seconds'] / 60:.1f} minutes of training)",
               ylabel="loss (nats)", ylim=(0, 1.1 * losses.dataLim.y1), xlim=0)
    accuracies.set(ylabel="accuracy (%)", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def finish(out_dir, files, history, reference_losses):
    """Draw the curves of a run that is saved, and print what was written. No error of a picture
    (no matplotlib, a full disk, a notebook's settings) may spoil the end of a run."""
    try:
        draw_curves(history, Path(out_dir) / "loss.png", reference_losses)
        print(f"wrote {out_dir}/{', '.join(files)}, loss.png")
    except Exception as error:
        print(f"wrote {out_dir}/{', '.join(files)}, but no loss.png ({error})")


# ---- devices ------------------------------------------------------------------------------------

def rank_and_processes():
    """-> which of several processes this is, and how many there are, as torchrun says."""
    is_one_of_several = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_one_of_several else (0, 1)


def start_processes(device_name):
    """-> this process's device, its rank, the number of processes."""
    rank, n_processes = rank_and_processes()
    if n_processes == 1:
        return pick_device(device_name), 0, 1
    if device_name in ("auto", "cuda") and torch.cuda.is_available():
        device_name = f"cuda:{os.environ.get('LOCAL_RANK', rank)}"
    device = open_device("cpu" if device_name == "auto" else device_name)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    return device, rank, n_processes


def pick_device(name):
    """-> the torch.device that --device names, configured for training; "auto" is the best one that
    works. SystemExit if it does not work, or to one of several processes."""
    if rank_and_processes()[1] > 1:
        raise SystemExit("only pre-training by pretrain.py can use several processes; start this "
                         "with python instead of torchrun")
    if name != "auto":
        return open_device(name)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name in filter(there.get, there):
        if not (problem := find_problem(name)):
            return open_device(name)
        print(f"{name} is there but does not work ({problem}); going on without it")
    return open_device("cpu")


def open_device(name):
    """-> the torch.device of this name, configured for training. SystemExit if it does not work."""
    if problem := find_problem(name):
        raise SystemExit(f"--device={name}: does not work on this machine ({problem}); "
                         "--device=auto uses what does")
    torch.set_float32_matmul_precision("high")  # on CUDA, products of float32 are TF32: faster
    device = torch.device(name)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":  # at some lengths cuDNN's attention gives NaN (PyTorch issue 196678)
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def find_problem(device_name):
    """-> why a device does not work (str), or None."""
    try:
        torch.ones(1, device=device_name).add(1).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).partition("\n")[0]


def keep_freed_memory():
    """Tell the C library not to give freed memory back to the system, which would have to clear
    each page of it at the next step."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large tensors
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def wait_for(device):
    """Wait until a GPU has finished what it was told to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def fast_dtype(device):
    """The number format in which the device multiplies matrices fastest: "bfloat16", on older GPUs
    "float16", or "float32". The device is asked, not timed: other work on the machine must not
    decide how a run computes."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    if device.type != "cpu":
        return "float32"  # Apple's GPUs: bfloat16 and float16 are reported to give NaN there
    can = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.11 cannot tell
    has_avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
    x86 = has_avx512 and (can.get("avx512_bf16") or can.get("amx_bf16"))
    arm = can.get("bf16") and torch.backends.mkldnn.is_available()
    return "bfloat16" if x86 or arm else "float32"  # emulated it is a hundred times slower


# Peak bfloat16 rate in FLOP/s of dense matrix products, from the makers' data sheets (H100: SXM).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12,
              "3090": 71e12}


def format_speed(totals, device, n_processes=1):
    """The tokens a second of `totals` (dict) and, on a GPU of PEAK_FLOPS, its utilisation."""
    seconds = max(totals["seconds"], 1e-9)  # the clock may be coarse
    text = f"{totals['tokens'] / seconds:,.0f} tokens/s"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for part, peak in PEAK_FLOPS.items():
        if part in name.replace("-", " ").split():
            text += f", {totals['flops'] / seconds / peak / n_processes:.0%} of the peak FLOP/s"
    return text


def compile_model(model, example, autocast):
    """torch.compile in place, so that parameter names stay plain. It is tried on a copy first:
    where it fails (no compiler, an unsupported GPU, on some CPUs gradients of NaN in bfloat16) the
    model stays as it is. example: arguments of its forward pass. Draws random numbers."""
    try:
        trial = copy.deepcopy(model)
        trial.compile(dynamic=False)
        with autocast:
            trial(*example).backward()
        if not all(p.grad.isfinite().all() for p in trial.parameters()):
            raise FloatingPointError
    except Exception as error:  # whatever the compiler throws
        print(f"torch.compile failed ({type(error).__name__}); going on without it")
        return
    model.compile(dynamic=False)


def is_out_of_memory(error):
    """Whether an exception says that memory ran out: torch has many ways to say so."""
    words = "out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED"
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


@contextlib.contextmanager
def explain_out_of_memory(args):
    """Inside, SystemExit if memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SystemExit(f"out of memory: lower --batch_size={args.batch_size} (and raise "
                         "--grad_accum of pretrain.py by as much), --block_size or --n_embd"
                         ) from None


# ---- flags and architecture ---------------------------------------------------------------------

SHAPE = {field.name for field in fields(BertConfig)} - {"vocab_size", "dropout"}
COUNT, RATE, SHARE = number(int, 1, 10**6), number(float, above=0), number(float, 0, below=1)
SEED = number(int, 0, 2**32 - 1)


def add_model_flags(parser, title="model"):
    flag = parser.add_argument_group(title).add_argument
    flag("--n_layer", type=COUNT, default=6, help="transformer layers")
    flag("--n_head", type=COUNT, help="attention heads; by default n_embd / 64")
    flag("--n_embd", type=COUNT, default=256, help="width: features of a token; the paper's is 768")
    flag("--block_size", type=number(int, 3, MAX_TOKENS + 2), default=128,
         help="tokens of the longest block, [CLS] and [SEP] included; longer texts are cut")
    flag("--pos", choices=["rotary", "learned"], default="rotary", help="the paper's is learned")
    flag("--n_conv", type=number(int, 0, 100), default=0, help="convolutional layers in front")
    flag("--conv_kernel", type=COUNT, nargs="+", default=[3], help="their size, or a size for each")
    flag("--conv_channels", type=COUNT, default=64, help="channels of the convolutions")


def add_system_flags(parser):
    flag = parser.add_argument_group("system").add_argument
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
         help="number format of matrix products; auto: the fastest that the device computes well")
    flag("--compile", action=argparse.BooleanOptionalAction, default=False,
         help="use torch.compile: minutes to begin with; may pay in long trainings on a GPU")


def add_training_flags(flag, optimizer, warmup, weight_decay):
    """The flags of training that pretrain.py and finetune.py share, with their defaults."""
    flag("--optimizer", choices=["muon", "adamw"], default=optimizer,
         help="trains the matrices of the layers; AdamW trains everything else")
    flag("--warmup", type=SHARE, default=warmup,
         help="share of steps until the learning rate is highest")
    flag("--lr_per_epoch", action="store_true",
         help="change the learning rate once an epoch, as the paper does; the first epoch then "
         "barely learns, unless --warmup=0")
    flag("--weight_decay", type=number(float, 0), default=weight_decay,
         help="weight decay of matrices, not of biases and norms; the paper's is 0.01")
    flag("--grad_clip", type=number(float, 0), default=1.0,
         help="scale larger gradients down to this norm; 0: never")
    flag("--pad_to", type=number(int, 0, 10**6), default=0,
         help="pad batches to a multiple of so many tokens; the paper's is 128; 0: of 8, but of a "
         "quarter of --block_size on CUDA or with --compile")


def make_config(args, vocab_size):
    """The BertConfig that the flags ask for. SystemExit if they don't fit together."""
    flags = {name: getattr(args, name) for name in SHAPE | {"dropout"}}
    try:
        return BertConfig(vocab_size=vocab_size, **flags)
    except ValueError as error:
        raise SystemExit(f"--{error}") from None


def architecture_of(run, checkpoint, typed):
    """-> the architecture of a run as flags (dict). SystemExit if a typed flag asks for another."""
    config = {name: list(value) if name == "conv_kernel" else value
              for name, value in checkpoint["config"].items() if name in SHAPE}
    asked = {name: value for name, value in typed.items() if name in config}
    if len(asked.get("conv_kernel", ())) == 1:  # one stands for all
        asked["conv_kernel"] = asked["conv_kernel"] * config["n_conv"]
    refuse_other(asked, config, run)
    return config


def check_unused_flags(args, typed):
    """SystemExit for a typed flag that would do nothing."""
    if args.optimizer == "adamw":
        refuse(typed, {"muon_lr"}, "is Muon's, but --optimizer=adamw")
    if not args.n_conv:
        refuse(typed, {"conv_kernel", "conv_channels"}, "needs --n_conv=1 or more")
