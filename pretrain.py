"""Pre-train a BERT encoder by masked-language modelling.

    python pretrain.py --n_layer=1                              # minutes on a laptop, no network: the pocket corpus
    python pretrain.py --n_layer=1 --fill="The capital of France is [MASK]."
    torchrun --standalone --nproc_per_node=4 pretrain.py        # the same on several GPUs

Read it top to bottom: flags, batches, masking, optimizer, evaluation, checkpoint, the loop.
"""
import argparse
import contextlib
import copy
import ctypes
import json
import math
import os
import signal
import time
from collections import defaultdict
from pathlib import Path


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):  # "(default: None)" helps nobody
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def new_parser(description):
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False, formatter_class=HelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}; see --help\n")  # one line, not the usage
    return parser


def add_model_flags(parser, title="model"):
    flag = parser.add_argument_group(title).add_argument
    flag("--n_layer", type=int, default=6, help="transformer layers")
    flag("--n_head", type=int, help="attention heads; by default n_embd / 64")
    flag("--n_embd", type=int, default=256, help="width; the paper's is 768")
    flag("--block_size", type=int, default=128, help="tokens a document is cut to, [CLS] and [SEP] included")
    flag("--pos", choices=["rotary", "learned"], default="rotary", help="positions; the paper's are learned")
    flag("--n_conv", type=int, default=0, help="convolution layers in front of the transformer")
    flag("--conv_kernel", type=int, nargs="+", default=[3], help="their kernel size, or one for each")
    flag("--conv_channels", type=int, default=64, help="their channels")


def add_system_flags(parser):
    flag = parser.add_argument_group("system").add_argument
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of matrix products")
    flag("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; by default on CUDA only")


def get_parser():
    parser = new_parser(__doc__.split("\n\n")[0])
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", default="pocket", help="a folder of data/bin; pocket is made on first use")
    flag("--subset", type=float, default=1.0, help="share of the training documents to use, drawn by the seed")
    add_model_flags(parser)
    flag = parser.add_argument_group("training").add_argument
    flag("--dropout", type=float, default=0.0, help="the paper's is 0.1")
    flag("--epochs", type=float, default=4, help="passes over the training documents")
    flag("--batch_size", type=int, default=64, help="documents a forward pass; lower it if memory runs out")
    flag("--grad_accum", type=int, default=1, help="forward passes a step")
    flag("--optimizer", choices=["muon", "adamw"], default="muon", help="of the layers' matrices; AdamW has the rest")
    flag("--lr", type=float, help="AdamW's peak learning rate; by default 0.006 for steps of 64 documents, growing "
         "with the square root of their number; a third for deeper models; the paper's is 5e-5, for everything")
    flag("--muon_lr", type=float, help="Muon's peak learning rate; by default 0.02 and likewise")
    flag("--warmup", type=float, default=0.05, help="share of the steps in which the learning rate rises")
    flag("--lr_per_epoch", action="store_true", help="change the learning rate only when an epoch begins, as the paper "
         "does; the first then runs at almost none, unless --warmup=0")
    flag("--weight_decay", type=float, default=0.8, help="of matrices, not of biases and norms; the paper's is 0.01")
    flag("--grad_clip", type=float, default=1.0, help="largest gradient norm; 0: no clipping")
    flag("--mask_prob", type=float, default=0.4, help="share of a document's tokens to predict; the paper's is 0.15")
    flag("--sampled_words", type=int, default=2048, help="name a token among so many words instead of all: those "
         "masked in the step and others, drawn anew each step; 0: among all, as the paper does, and as evaluation does")
    flag("--pad_to", type=int, default=0, help="pad batches to a multiple of so many tokens; 0: of 8, compiled of 32; "
         "the paper's is 128, the block")
    flag("--seed", type=int, default=0, help="of weights, order of documents and masks")
    add_system_flags(parser)
    flag = parser.add_argument_group("output").add_argument
    flag("--out_dir", help="run directory; by default out/DATASET-bertN_LAYER")
    flag("--eval_interval", type=int, default=0, help="steps between evaluations and checkpoints; 0: a tenth of all")
    flag("--resume", action="store_true", help="go on with the run in out_dir, exactly as if it had not stopped")
    flag("--fill", metavar="TEXT", help="don't train: print what the run in out_dir puts at each [MASK] of TEXT")
    return parser


if __name__ == "__main__":
    get_parser().parse_args()  # --help and wrong flags are answered before torch takes its seconds to load

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data import pocket  # noqa: E402
from data.batches import Corpus, make_batches  # noqa: E402
from data.tokenfile import open_split, read_meta, write_atomically  # noqa: E402
from data.tokenizer import get_tokenizer  # noqa: E402
from model import IGNORE, BertConfig, BertForMaskedLM, count_parameters, flops_per_token  # noqa: E402

# Peak bfloat16 rate in FLOP/s of dense matrix products, from the makers' data sheets; others show no utilisation.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}


# ---- masking ---------------------------------------------------------------------------------------------------------

def draw_seed(*numbers):
    """One 32-bit seed from several numbers, such as (seed, step), without the clashes that adding them would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def mask_tokens(x, n, mask_prob, tokenizer, generator):
    """BERT's masking: x (B, T) with n (B,) tokens in each row between [CLS] and [SEP] -> x, at (B, K), targets (B, K).

    mask_prob of a row's tokens, rounded, at least one, are to be predicted: 80 % of them become [MASK], 10 % a random
    token, 10 % stay. K follows from T alone, so that shapes are static; targets beyond a row's number are IGNORE.
    """
    B, T = x.shape
    K = max(1, round(mask_prob * (T - 2)))
    column = torch.arange(T, device=x.device)
    score = torch.rand(B, T, generator=generator, device=x.device)
    score = score.masked_fill((column == 0) | (column > n[:, None]), 2.0)  # special tokens come last
    at = score.argsort(dim=1)[:, :K]  # (B, K)
    wanted = (mask_prob * n).round().clamp(min=1, max=K) * (n > 0)  # (B,)
    chosen = column[:K] < wanted[:, None]  # (B, K)
    old = x.gather(1, at)
    dice = torch.rand(B, K, generator=generator, device=x.device)
    random = torch.randint(tokenizer.n_words, (B, K), generator=generator, device=x.device)
    new = torch.where(dice < 0.8, tokenizer.mask, torch.where(dice < 0.9, random, old))
    return x.scatter(1, at, torch.where(chosen, new, old)), at, torch.where(chosen, old, IGNORE)


def sample_words(targets, n_words, vocab_size, generator):
    """Words for a sampled softmax: the targets (B, K) themselves and others, drawn evenly without replacement until
    there are n_words (or as many as there are targets, if that is more).

    -> words (W,), shift (W,), and the targets as indices into `words`. The words drawn stand for all that were not:
    shift, the logarithm of how many each stands for, is added to their logits, so that on average the sum in the
    softmax is that of the whole vocabulary (Bengio and Senecal 2003; Jean et al. 2015). All shapes are static.
    """
    n_words = min(vocab_size, max(n_words, targets.numel()))
    real = targets != IGNORE
    score = torch.rand(vocab_size, generator=generator, device=targets.device)
    wanted = torch.zeros_like(score).index_fill_(0, targets.where(real, targets.max()).flatten(), 1.0)
    words = (score + wanted).topk(n_words, sorted=False).indices  # (W,), the targets among them
    n_wanted = wanted.sum()
    weight = (vocab_size - n_wanted) / (n_words - n_wanted).clamp(min=1)
    shift = torch.where(wanted[words] > 0, 0.0, weight.log())  # (W,)
    place = torch.zeros(vocab_size, dtype=torch.long, device=targets.device)
    place[words] = torch.arange(n_words, device=targets.device)
    return words, shift, torch.where(real, place[targets.clamp(min=0)], IGNORE)


def draw_batch(corpus, documents, n_rows, pad_to, tokenizer, mask_prob, seed, n_words=0):
    """-> tokens (n_rows, T), mask (n_rows, T) or None, at, targets (n_rows, K), words, shift (W,): documents, masked
    as `seed` says, and the words that compete for the masked places; None, None without n_words: all do."""
    x, n, mask = corpus.rows(documents, tokenizer, pad_to, n_rows)
    generator = torch.Generator(x.device).manual_seed(seed)
    x, at, targets = mask_tokens(x, n, mask_prob, tokenizer, generator)
    if not n_words:
        return x, mask, at, targets, None, None
    words, shift, targets = sample_words(targets, n_words, tokenizer.vocab_size, generator)
    return x, mask, at, targets, words, shift


# ---- device, model, optimizer ----------------------------------------------------------------------------------------

def tune_cpu():
    """A setting of the C library, for the whole process, that makes training on a CPU faster."""
    # Keep freed memory instead of giving it back to the system, which must clear each page of it at the next step.
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: another system, which has its own ways
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large tensors
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def pick_device(name):
    """The torch.device that --device names. One line if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SystemExit(f"--device={name}: not available on this machine; leave the flag out to use what is") from None
    if name == "cpu":
        tune_cpu()
    return torch.device(name)


def fast_dtype(device):
    """The number format in which the device multiplies matrices fastest: "bfloat16", on older GPUs "float16", or
    "float32". It is asked what it can do, not timed: other work on the machine must not decide how a run computes."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        x86 = "AVX512" in torch.backends.cpu.get_cpu_capability() and (can.get("avx512_bf16") or can.get("amx_bf16"))
        arm = can.get("bf16") and torch.backends.mkldnn.is_available()
        return "bfloat16" if x86 or arm else "float32"  # without these instructions bfloat16 is a hundred times slower
    return "float32"  # Apple's GPUs: bfloat16 and float16 are reported to give NaN there


def peak_flops(device):
    """The device's rate in PEAK_FLOPS, None if it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def open_tokenizer(dataset):
    """-> the tokenizer of a prepared dataset, the counts of its splits. One line if the two don't fit together."""
    meta = read_meta(dataset)
    tokenizer = get_tokenizer(meta["tokenizer"])
    if tokenizer.fingerprint != meta["fingerprint"]:
        raise SystemExit(f"--dataset={dataset}: encoded with another vocabulary than {tokenizer.name} is now; "
                         "prepare it again")
    return tokenizer, meta["splits"]


def make_config(args, vocab_size):
    """The BertConfig that the flags ask for; the vocabulary is rounded up to a multiple of 64, which is faster."""
    try:
        return BertConfig(vocab_size=math.ceil(vocab_size / 64) * 64, block_size=args.block_size, n_layer=args.n_layer,
                          n_head=args.n_head or max(1, args.n_embd // 64), n_embd=args.n_embd, dropout=args.dropout,
                          pos=args.pos, n_conv=args.n_conv, conv_kernel=tuple(args.conv_kernel),
                          conv_channels=args.conv_channels)
    except ValueError as error:
        raise SystemExit(f"--{error}") from None


def orthogonalise(x, n_steps=5):
    """x (n, R, C), R <= C -> about U V' of each matrix U S V', with singular values of 0.7 to 1.2 instead of S.

    Newton-Schulz iterations (Jordan et al. 2024): every step replaces x by (a + b x x' + c (x x')^2) x, whose
    coefficients drive all singular values towards 1. Where C is larger than R the steps are done on the small Gram
    matrix x x' alone: their products, one polynomial after the other, are gathered in q, and x is met only at the end.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is larger than 1
    wide = x.size(2) > x.size(1) and x.dtype == torch.float32
    gram = x @ x.mT  # (n, R, R)
    q = None
    for step in range(n_steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if wide:
            polynomial.diagonal(dim1=1, dim2=2).add_(a)
            q = polynomial if q is None else polynomial @ q
        else:
            x = torch.baddbmm(x, polynomial, x, beta=a)
        if step < n_steps - 1:
            gram = polynomial @ gram @ polynomial if wide else x @ x.mT
    return q @ x if wide else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): every step moves a matrix by lr times its
    orthogonalised momentum, so that all directions are learned at the same speed, rare ones too.

    The update is scaled to the size that AdamW's have (0.2 sqrt(max(rows, columns)), Liu et al. 2025), so the learning
    rates of both can be compared. Matrices of one shape, transposed or not, are computed together. `dtype`: the number
    format of the products.
    """

    def __init__(self, matrices, lr, weight_decay, dtype=torch.float32):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                by_shape[tuple(sorted(matrix.shape))].append(matrix)
            for (n_rows, n_columns), matrices in by_shape.items():
                gradient = torch.stack([m.grad if m.size(0) == n_rows else m.grad.mT for m in matrices])  # (n, R, C)
                state = self.state[matrices[0]]  # of all matrices of the shape
                if not state:
                    state["momentum"] = torch.zeros_like(gradient)
                momentum = state["momentum"].lerp_(gradient, 0.05)
                update = gradient.lerp(momentum, 0.95)  # Nesterov's momentum: look ahead by one step
                update = orthogonalise(update.to(self.dtype)).to(gradient.dtype)
                updates = [u if m.size(0) == n_rows else u.mT for m, u in zip(matrices, update)]
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates, alpha=-group["lr"] * 0.2 * n_columns ** 0.5)


def make_optimizers(model, optimizer, lr, muon_lr, weight_decay, device, dtype="float32"):
    """Muon for the matrices of the layers, AdamW for all else; or AdamW for everything.

    Each group of parameters keeps its peak learning rate as "peak_lr".
    """
    matrices = [p for p in model.bert.blocks.parameters() if p.ndim == 2 and optimizer == "muon"]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    groups = [{"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=device.type != "mps")]
    if matrices:
        products = torch.bfloat16 if dtype == "bfloat16" else torch.float32  # float16 has too few exponents for it
        optimizers.append(Muon(matrices, muon_lr, weight_decay, products))
    for group in (group for each in optimizers for group in each.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def lr_factor(step, n_steps, warmup):
    """The share of the peak learning rate: linear warm-up over warmup * n_steps steps, then linear decay to zero."""
    n_warmup = max(1, round(warmup * n_steps))
    return min((step + 1) / n_warmup, (n_steps - step) / max(1, n_steps - n_warmup + 1))


def update(model, optimizers, scaler, factor, grad_clip):
    """One step of the optimizers at `factor` times their peak learning rates, with the gradients clipped. The scaler
    (torch.amp.GradScaler) takes back what it multiplied a float16 loss by; for other numbers it does nothing."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    if grad_clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()


# ---- evaluation ------------------------------------------------------------------------------------------------------

def validation_batches(dataset, tokenizer, block_size, device):
    """The validation documents under fixed masks of 15 %, the same for every run, device and --mask_prob.
    -> a list of what draw_batch gives."""
    corpus = Corpus(*open_split(dataset, "val"), block_size)
    by_length, n_batches = np.argsort(corpus.lengths, kind="stable"), math.ceil(len(corpus.lengths) / 64)
    batches = [draw_batch(corpus, documents, None, 1, tokenizer, 0.15, seed)
               for seed, documents in enumerate(np.array_split(by_length, n_batches))]
    return [[None if t is None else t.to(device) for t in batch] for batch in batches]


@torch.no_grad()
def evaluate(model, batches, autocast):
    """-> loss (nats a masked token), accuracy (share of the masked tokens that come first), over all batches."""
    model.eval()
    loss, right, n = 0.0, 0, 0
    for tokens, mask, at, targets, *_ in batches:
        with autocast:
            # forward() passes torch.compile by, which would compile anew for every length that occurs here
            logits = model.forward(tokens, mask, at).float()  # (B, K, V)
        real = targets != IGNORE
        loss += torch.nn.functional.cross_entropy(logits[real], targets[real], reduction="sum").item()
        right += (logits.argmax(-1) == targets)[real].sum().item()
        n += real.sum().item()
    model.train()
    return loss / n, right / n


def unigram_baseline(dataset, vocab_size, batches):
    """Loss and accuracy on `batches` of guessing by token frequency alone: the plateau that training must leave."""
    tokens, _ = open_split(dataset, "train")
    counts = np.bincount(tokens[:10_000_000], minlength=vocab_size) + 1.0
    targets = np.concatenate([targets[targets != IGNORE].cpu().numpy() for *_, targets, _, _ in batches])
    return float(-np.log(counts[targets] / counts.sum()).mean()), float((targets == counts.argmax()).mean())


# ---- checkpoint ------------------------------------------------------------------------------------------------------

def save_checkpoint(out_dir, checkpoint):
    """Write out_dir/ckpt.pt so that the file is always whole, the old checkpoint or the new one, then log.jsonl."""
    temporary = Path(out_dir) / "ckpt.pt.tmp"
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, temporary)
        os.replace(temporary, Path(out_dir) / "ckpt.pt")
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise SystemExit(f"cannot write {temporary}: {error}; the previous checkpoint is kept") from None
    write_log(out_dir, checkpoint["history"])


def write_log(out_dir, history):
    """out_dir/log.jsonl: a line for each of `history` (list of dict)."""
    write_atomically(Path(out_dir) / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())


def load_checkpoint(out_dir):
    """The checkpoint (dict of tensors and plain values) of a run directory. One line if there is none."""
    path = Path(out_dir) / "ckpt.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"no checkpoint {path}: train it first, or name another run") from None
    except Exception as error:  # a cut or foreign file fails in torch, zipfile or pickle, each with its own errors
        raise SystemExit(f"cannot read {path}: {type(error).__name__}; it is not a checkpoint") from None


def load_run(out_dir):
    """-> the checkpoint of a run, its tokenizer. One line if that has changed since."""
    checkpoint = load_checkpoint(out_dir)
    tokenizer = get_tokenizer(checkpoint["tokenizer"])
    if tokenizer.fingerprint != checkpoint["fingerprint"]:
        raise SystemExit(f"{out_dir}: trained with another vocabulary than {tokenizer.name} is now; train it again")
    return checkpoint, tokenizer


def load_model(out_dir, device="cpu"):
    """-> the pre-trained BertForMaskedLM in evaluation mode, its tokenizer."""
    checkpoint, tokenizer = load_run(out_dir)
    if "labels" in checkpoint:
        raise SystemExit(f"{out_dir} is a classifier of finetune.py; name a run of pretrain.py")
    model = BertForMaskedLM(BertConfig(**checkpoint["config"]))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def fill(out_dir, text, device):
    """Print the five likeliest tokens with their probabilities for each [MASK] in text."""
    model, tokenizer = load_model(out_dir, device)
    tokens = [tokenizer.cls, *tokenizer.encode(text, allow=["[MASK]"]), tokenizer.sep]
    places = [i for i, token in enumerate(tokens) if token == tokenizer.mask]
    if not places:
        raise SystemExit('--fill: the text has no [MASK], for example --fill="The capital of France is [MASK]."')
    if len(tokens) > model.bert.config.block_size:
        raise SystemExit(f"--fill: {len(tokens)} tokens are more than the model's {model.bert.config.block_size}")
    at = torch.tensor([places], device=device)
    probabilities = model(torch.tensor([tokens], device=device), None, at)[0].softmax(-1)  # (K, V)
    for row in probabilities:
        likeliest = zip(*(t.tolist() for t in row[:tokenizer.n_words].topk(5)))
        print("[MASK] = " + "   ".join(f"{tokenizer.decode([token])} {p:.1%}" for p, token in likeliest))


# ---- the loop --------------------------------------------------------------------------------------------------------

def check(args):
    """One line for the first flag whose value makes no sense."""
    positive = ["subset", "n_layer", "n_head", "n_embd", "block_size", "conv_channels", "epochs", "batch_size",
                "grad_accum", "lr", "muon_lr", "mask_prob"]
    shares = ["dropout", "warmup", "mask_prob", "holdout"]
    for name, value in vars(args).items():
        if isinstance(value, (int, float)) and (value < 0 or value == 0 and name in positive
                                                or value >= 1 and name in shares or name == "subset" and value > 1):
            raise SystemExit(f"--{name}={value}: out of range; see --help")


def start_processes(args):
    """-> rank of this process, number of processes (torchrun starts several), device of this one."""
    rank, world, device = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), pick_device(args.device)
    if world > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return rank, world, device


def compile_model(model, example, autocast, say):
    """torch.compile in place, so that parameter names stay plain. It is tried on a copy first: where it fails (no
    compiler, an unsupported GPU) the model stays as it is."""
    try:
        trial = copy.deepcopy(model)
        trial.compile(dynamic=False)
        with torch.random.fork_rng(), autocast:
            trial(*example).backward()
    except Exception as error:  # whatever the compiler throws
        say(f"torch.compile failed ({type(error).__name__}); going on without it. --no-compile skips the try")
        return
    model.compile(dynamic=False)


def train(args, checkpoint=None):
    """Train as the flags say, going on from `checkpoint` if there is one. -> the last evaluation (dict), which is
    also the last line of out_dir/log.jsonl."""
    check(args)
    rank, world, device = start_processes(args)
    say = tqdm.write if rank == 0 else lambda line: None
    out_dir = Path(args.out_dir)
    if not checkpoint and (out_dir / "ckpt.pt").exists():
        raise SystemExit(f"{out_dir} holds a run: go on with it by --resume, name another --out_dir, or delete it")

    # data
    if args.dataset == "pocket" and rank == 0:
        pocket.prepare()
    if world > 1:
        dist.barrier()
    tokenizer, splits = open_tokenizer(args.dataset)
    if checkpoint and checkpoint["splits"] != splits:
        raise SystemExit(f"--resume: the dataset {args.dataset} is not the one that this run began with")
    corpus = Corpus(*open_split(args.dataset, "train"), args.block_size, device)
    documents = np.arange(len(corpus.lengths))
    if args.subset < 1:
        n = max(1, round(args.subset * len(documents)))
        documents = np.random.default_rng(args.seed).permutation(documents)[:n]
    lengths = corpus.lengths[documents]
    rows = args.batch_size * args.grad_accum * world  # documents a step
    steps_per_epoch = math.ceil(len(documents) / rows)
    n_steps = math.ceil(args.epochs * steps_per_epoch)
    eval_interval = args.eval_interval or math.ceil(n_steps / 10)
    val = validation_batches(args.dataset, tokenizer, args.block_size, device)
    unigram_loss, unigram_accuracy = unigram_baseline(args.dataset, tokenizer.vocab_size, val)

    # model
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    args.dtype = fast_dtype(device) if args.dtype == "auto" else args.dtype
    autocast = torch.autocast(device.type, getattr(torch, args.dtype), enabled=args.dtype != "float32")
    model = BertForMaskedLM(make_config(args, tokenizer.vocab_size)).to(device)
    optimizers = make_optimizers(model, args.optimizer, args.lr, args.muon_lr, args.weight_decay, device, args.dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=args.dtype == "float16")
    done, history = {"step": 0, "tokens": 0, "positions": 0, "flops": 0.0, "seconds": 0.0}, []
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
        scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["cuda_rng"], device)
        done, history = checkpoint["done"], checkpoint["history"]
    use_compile = device.type == "cuda" if args.compile is None else args.compile
    pad_to = args.pad_to or (32 if use_compile else 8)  # compiled code wants few distinct shapes
    peak = peak_flops(device)
    if use_compile:
        example = draw_batch(corpus, documents[:args.batch_size], args.batch_size, pad_to, tokenizer, args.mask_prob, 0,
                             args.sampled_words)
        compile_model(model, example, autocast, say)
    parallel = DistributedDataParallel(model) if world > 1 else model

    def evaluate_and_save(train_loss):
        loss, accuracy = evaluate(model, val, autocast)
        if not math.isfinite(train_loss + loss):
            raise SystemExit(f"the loss is not finite at step {done['step']}: lower --lr={args.lr} or --muon_lr="
                             f"{args.muon_lr}, or raise --warmup; {out_dir} keeps the last good checkpoint")
        history.append(done | {"epoch": done["step"] / steps_per_epoch, "dtype": args.dtype,
                               "train_loss": train_loss, "val_loss": loss, "val_accuracy": accuracy})
        say(f"step {done['step']:6,}  epoch {history[-1]['epoch']:5.2f}  train loss {train_loss:6.3f}  val loss "
            f"{loss:6.3f}  masked accuracy {accuracy:6.1%}  {done['tokens'] / max(done['seconds'], 1):9,.0f} tokens/s")
        if rank == 0:
            save_checkpoint(out_dir, {
                "model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "scaler": scaler.state_dict(), "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
                "done": dict(done), "history": history, "config": vars(model.bert.config), "args": vars(args),
                "tokenizer": tokenizer.name, "fingerprint": tokenizer.fingerprint, "splits": splits})

    say(f"{args.dataset}: {len(documents):,} documents, {lengths.sum():,} tokens of {tokenizer.name}")
    say(f"BERT-{args.n_layer}: {count_parameters(model):,} parameters, {vars(model.bert.config)}")
    say(f"{n_steps:,} steps of {rows} documents on {world} x {device}, {args.dtype}, compile {use_compile}")
    say(f"expect a loss of {math.log(model.bert.config.vocab_size):.2f} at first, {unigram_loss:.2f} (masked accuracy "
        f"{unigram_accuracy:.1%}) while only the tokens' frequencies are known, then less")
    interrupted, old_handler = [], signal.getsignal(signal.SIGINT)
    if world == 1:  # Ctrl-C: finish the step and save; a second one stops at once
        signal.signal(signal.SIGINT, lambda *_: (interrupted.append(1), signal.signal(signal.SIGINT, old_handler)))
    bar = tqdm(total=n_steps, initial=done["step"], unit="step", disable=None if rank == 0 else True)
    batches, recent, stopping = None, [], False
    if not history:
        evaluate_and_save(math.log(model.bert.config.vocab_size))
    clock = time.time()
    while done["step"] < n_steps and not stopping:
        step = done["step"]
        epoch, i = divmod(step, steps_per_epoch)
        if batches is None or i == 0:
            batches = make_batches(lengths, rows, args.seed, epoch)
        *batch, words, shift = draw_batch(corpus, documents[batches[i]], rows, pad_to, tokenizer, args.mask_prob,
                                          draw_seed(args.seed, step), args.sampled_words)
        # Every process draws the whole step's batch and takes its own rows, so that the masks, and with them the loss,
        # do not depend on how many processes and passes share the work.
        n_targets, step_loss = (batch[3] != IGNORE).sum(), 0.0
        for part in range(rank * args.grad_accum, (rank + 1) * args.grad_accum):
            some = [None if t is None else t[part * args.batch_size:(part + 1) * args.batch_size] for t in batch]
            waits = world > 1 and part < (rank + 1) * args.grad_accum - 1  # gradients are exchanged after the last pass
            with parallel.no_sync() if waits else contextlib.nullcontext(), autocast:
                loss = parallel(*some, words, shift) * world / n_targets  # the wrapper averages over the processes
            scaler.scale(loss).backward()
            step_loss += loss.detach()
        factor = lr_factor(step - i if args.lr_per_epoch else step, n_steps, args.warmup)
        update(model, optimizers, scaler, factor, args.grad_clip)

        T, K = batch[0].size(1), batch[2].size(1)
        n_tokens = int(lengths[batches[i]].sum()) + 2 * len(batches[i])
        done = {"step": step + 1, "tokens": done["tokens"] + n_tokens, "positions": done["positions"] + rows * T,
                "flops": done["flops"] + 3 * n_tokens * flops_per_token(
                    model.bert.config, T, K / T, None if words is None else len(words)),
                "seconds": done["seconds"]}
        recent.append(step_loss)
        bar.update()
        stopping = bool(interrupted)  # asked once a step, so that the last step is also the one that is saved
        evaluating = done["step"] % eval_interval == 0 or done["step"] == n_steps or stopping
        if evaluating or step % 20 == 19:  # only here the host waits for the device
            train_loss = torch.stack(recent).mean()
            if world > 1:
                dist.all_reduce(train_loss)
            train_loss = train_loss.item() / world
            done["seconds"] += time.time() - clock
            flops_per_second = done["flops"] / done["seconds"]
            bar.set_postfix_str(f"loss {train_loss:.3f}, {done['tokens'] / done['seconds']:,.0f} tokens/s"
                                + (f", {flops_per_second / peak / world:.0%} of peak" if peak else ""))
            if evaluating or not math.isfinite(train_loss):
                evaluate_and_save(train_loss)
                recent = []
            clock = time.time()
    bar.close()
    signal.signal(signal.SIGINT, old_handler)
    if world > 1:
        dist.destroy_process_group()
    if stopping:
        raise SystemExit(f"interrupted: step {done['step']:,} of {n_steps:,} is saved in {out_dir}; --resume goes on")
    padding = 1 - done["tokens"] / done["positions"]
    say(f"{done['tokens']:,} tokens in {done['seconds']:,.0f} s; padding was {padding:.1%} of what was computed")
    say(f"masked accuracy {history[-1]['val_accuracy']:.1%} (guessing by frequency: {unigram_accuracy:.1%}), loss "
        f"{history[-1]['val_loss']:.3f}; wrote {out_dir}/ckpt.pt and log.jsonl")
    return history[-1]


def main(argv=None):
    parser = get_parser()
    args = parser.parse_args(argv)
    args.out_dir = args.out_dir or f"out/{Path(args.dataset).name}-bert{args.n_layer}"
    if args.fill is not None:
        return fill(args.out_dir, args.fill, pick_device(args.device))
    checkpoint = load_checkpoint(args.out_dir) if args.resume else None
    if checkpoint:  # the run's own flags are the defaults, and only those that don't change its course may differ
        saved = vars(parser.parse_args([])) | checkpoint["args"]  # which lacks the flags that are newer than the run
        parser.set_defaults(**saved)
        args = parser.parse_args(argv)
        for name in sorted(saved.keys() - {"device", "compile", "out_dir", "eval_interval", "resume", "fill"}):
            if getattr(args, name) != saved[name]:
                raise SystemExit(f"--resume: the run was begun with --{name}={saved[name]}, not {getattr(args, name)}; "
                                 "leave the flag out, or start another run with another --out_dir")
    # A step of more documents may be longer, by the square root of their number. Deep models diverge at such rates.
    n_rows = args.batch_size * args.grad_accum * int(os.environ.get("WORLD_SIZE", 1))
    scale = (n_rows / 64) ** 0.5 / (1 if args.n_layer == 1 else 3)
    args.lr = 0.006 * scale if args.lr is None else args.lr
    args.muon_lr = 0.02 * scale if args.muon_lr is None else args.muon_lr
    try:
        return train(args, checkpoint)
    except torch.OutOfMemoryError:
        raise SystemExit(f"out of memory on the GPU: lower --batch_size={args.batch_size} and raise --grad_accum by as "
                         "much; the result is the same") from None


if __name__ == "__main__":
    main()
