"""Pre-train a BERT encoder by masked-language modelling (Devlin et al. 2018, arXiv 1810.04805).

    python pretrain.py --n_layer=1                    # minutes on a laptop, without network
    python pretrain.py --n_layer=1 --fill="The capital of France is [MASK]."
    python pretrain.py --dataset=mytext --init_from=out/pocket-bert1  # a second stage on other text
    torchrun --standalone --nproc_per_node=4 pretrain.py            # the same on several GPUs

Some tokens of every text are hidden, and the model learns to name them from what stands around
them. First comes the story: masking, evaluation, and the loop, train(). Then what it is made of:
set-up, optimizers, learning rate, checkpoints, devices. Last the flags, each with its help.
"""
import argparse
import atexit
import contextlib
import copy
import ctypes
import functools
import json
import math
import os
import signal
import time
import zipfile
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from data import pocket
from data.batches import Corpus, cut_into_blocks, make_batches
from data.flags import ABOVE_0, BELOW_1, new_parser, parse, refuse, run_script
from data.tokenfile import MAX_TOKENS, open_split, read_meta, replacing, write_atomically
from data.tokenizer import get_tokenizer, open_tokenizer
from model import (
    IGNORE,
    BertConfig,
    BertForMaskedLM,
    count_parameters,
    flops_per_token,
    sample_words,
)

SAVE_EVERY = 120  # seconds at most between two checkpoints
FEW_STEPS = 300  # fewer have left classifiers no better than random weights (RESULTS.md)


class Batch(NamedTuple):
    """What is learned from at once: the arguments of BertForMaskedLM.forward."""
    tokens: Tensor  # (B, T) int64, some of them masked
    mask: Tensor | None  # (B, T) bool, False at padding; None where nothing is padded
    at: Tensor  # (B, K) int64, the positions to predict
    targets: Tensor  # (B, K) int64, what stood there, or IGNORE
    words: Tensor | None = None  # (W,) int64, the words of a sampled softmax
    shift: Tensor | None = None  # (W,) what is added to their logits

    def split(self, n_rows):
        """-> parts of n_rows rows each, which share the words (list of Batch)."""
        masks = [None] * len(self.tokens) if self.mask is None else self.mask.split(n_rows)
        rows = zip(self.tokens.split(n_rows), masks, self.at.split(n_rows),
                   self.targets.split(n_rows))
        return [Batch(*part, self.words, self.shift) for part in rows]


def draw_seed(*numbers):
    """One 32-bit seed from several numbers, such as (seed, step): sums of them would clash."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def mask_tokens(tokens, n, mask_prob, tokenizer, generator):
    """BERT's masking. tokens (B, T) with n (B,) of them in each row between [CLS] and [SEP]
    -> tokens (B, T), at (B, K), targets (B, K).

    mask_prob of a row's tokens, rounded, at least one, are to be predicted: 80 % of them become
    [MASK], 10 % a random token, 10 % stay. K follows from T alone, so that shapes are static;
    targets beyond a row's number are IGNORE.
    """
    B, T = tokens.shape
    K = max(1, round(mask_prob * (T - 2)))
    column = torch.arange(T, device=tokens.device)
    special = (column == 0) | (column > n[:, None])  # (B, T) [CLS], [SEP] and padding
    score = torch.rand(B, T, generator=generator, device=tokens.device)
    at = score.masked_fill(special, 2.0).argsort(dim=1)[:, :K]  # (B, K) special tokens come last
    wanted = (mask_prob * n).round().clamp(min=1, max=K) * (n > 0)  # (B,)
    chosen = column[:K] < wanted[:, None]  # (B, K)
    old = tokens.gather(1, at)
    dice = torch.rand(B, K, generator=generator, device=tokens.device)
    random = torch.randint(tokenizer.n_words, (B, K), generator=generator, device=tokens.device)
    new = torch.where(dice < 0.8, tokenizer.mask, torch.where(dice < 0.9, random, old))
    tokens = tokens.scatter(1, at, torch.where(chosen, new, old))
    return tokens, at, torch.where(chosen, old, IGNORE)


def draw_batch(corpus, documents, tokenizer, mask_prob, seed, n_rows=None, pad_to=1, n_words=0):
    """The batch of these documents (index array), masked as `seed` says. With n_words the softmax
    is a sampled one (see sample_words). n_rows and pad_to as in Corpus.rows."""
    tokens, n, mask = corpus.rows(documents, tokenizer, pad_to, n_rows)
    generator = torch.Generator(tokens.device).manual_seed(seed)
    tokens, at, targets = mask_tokens(tokens, n, mask_prob, tokenizer, generator)
    if not n_words:
        return Batch(tokens, mask, at, targets)
    words, shift, targets = sample_words(targets, n_words, tokenizer.vocab_size, generator)
    return Batch(tokens, mask, at, targets, words, shift)


# ---- evaluation ---------------------------------------------------------------------------------

def validation_batches(dataset, tokenizer, block_size, device):
    """The validation documents under fixed masks of 15 %, the same for every run, device and
    --mask_prob (list of Batch)."""
    split, every = validation_split(dataset)
    corpus = Corpus(*open_split(dataset, split), block_size)
    documents = np.arange(0, len(corpus.lengths), every)
    by_length = documents[np.argsort(corpus.lengths[documents], kind="stable")]
    parts = np.array_split(by_length, math.ceil(len(by_length) / 64))
    batches = [draw_batch(corpus, part, tokenizer, 0.15, seed) for seed, part in enumerate(parts)]
    return [Batch(*(None if t is None else t.to(device) for t in batch)) for batch in batches]


@torch.no_grad()
def evaluate(model, batches, autocast):
    """-> loss (nats a masked token) and accuracy (share of the masked tokens that come first),
    among the whole vocabulary."""
    model.eval()
    loss, right, n = 0.0, 0, 0
    for batch in batches:
        real = batch.targets != IGNORE
        with autocast:  # forward() passes torch.compile by, which would compile every length anew
            logits = model.forward(batch.tokens, batch.mask, batch.at)[real].float()  # (n, V)
        targets = batch.targets[real]
        loss += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        right += (logits.argmax(-1) == targets).sum().item()
        n += len(targets)
    model.train()
    return loss / n, right / n


# ---- the loop -----------------------------------------------------------------------------------

def training_step(model, parts, n_targets, setup, lr_factor):
    """One step of training: forward, backward, update. -> its loss, on the device.

    parts: arguments of the model's forward pass, which returns the sum of its targets' losses;
    n_targets: how many targets the whole step has. So the gradients of several parts, and of
    several processes, need only be added up.
    """
    step_loss = 0.0
    for part in parts:
        with setup.autocast:
            loss = model(*part) / n_targets
        setup.scaler.scale(loss).backward()
        step_loss += loss.detach()
    if dist.is_initialized():
        for tensor in [step_loss, *(p.grad for p in model.parameters())]:
            dist.all_reduce(tensor)
    update(model, setup, lr_factor)
    return step_loss


def train(args, checkpoint=None):
    """Train as the flags say, going on from `checkpoint` if there is one. -> the last evaluation
    (dict), which is also the last line of out_dir/log.jsonl."""
    device, rank, n_processes = start_processes(args.device)
    say = tqdm.write if rank == 0 else lambda line: None

    # data
    prepare_pocket(args.dataset, rank)
    tokenizer, checksums = open_tokenizer(args.dataset)
    corpus, documents = open_corpus(args, device)
    lengths = corpus.lengths[documents]
    part_size = min(args.batch_size, math.ceil(len(documents) / (args.grad_accum * n_processes)))
    n_rows = part_size * args.grad_accum * n_processes  # documents a step
    if checkpoint:
        refuse_other_steps(checkpoint, args.dataset, checksums, n_rows)
    steps_per_epoch = math.ceil(len(documents) / n_rows)
    n_steps = math.ceil(args.epochs * steps_per_epoch)
    eval_interval = args.eval_interval or math.ceil(n_steps / 10)
    val = validation_batches(args.dataset, tokenizer, args.block_size, device)
    plateau = unigram_baseline(args.dataset, tokenizer.vocab_size, val)

    # model
    torch.manual_seed(args.seed)
    model = BertForMaskedLM(make_config(args, tokenizer.vocab_size)).to(device)
    setup = set_up(model, args, device)
    done = {"step": 0, "tokens": 0, "positions": 0, "flops": 0.0, "seconds": 0.0}
    history, recent = [], []  # the evaluations; the losses of the steps since the last of them
    if checkpoint:
        restore(checkpoint, model, setup)
        done, history = checkpoint["done"], checkpoint["history"]
        recent = [loss.to(device) for loss in checkpoint["recent"]]
    elif args.init_from:
        model.load_state_dict(load_pretraining(args.init_from, tokenizer, args.dataset)["model"])
    say(f"{args.dataset}: {len(documents):,} texts, {corpus.describe(documents)}\n"
        f"{introduce(model)}\n{n_steps:,} steps of {n_rows} texts on {n_processes} x {device}, "
        f"{args.dtype}, compile {setup.compile}\n{expectation(args, tokenizer, n_steps, *plateau)}")

    def evaluate_and_log(train_loss):
        loss, accuracy = evaluate(model, val, setup.autocast)
        check_finite(loss, args, done["step"])
        history.append(done | {"epoch": done["step"] / steps_per_epoch, "dtype": args.dtype,
                               "train_loss": train_loss, "val_loss": loss,
                               "val_accuracy": accuracy})
        say(describe(history[-1]))

    def save():
        if rank == 0:
            save_checkpoint(args.out_dir, pack(model, tokenizer, args, history, setup) | {
                "dataset": checksums, "n_rows": n_rows, "done": done, "recent": recent[-100:]})
            if args.keep and history[-1]["step"] == done["step"]:
                save_checkpoint(Path(args.out_dir) / f"step-{done['step']}",
                                pack(model, tokenizer, args, history))

    if not checkpoint:
        evaluate_and_log(train_loss=None)
        refuse_existing_run(args.out_dir, rank)  # another may have begun meanwhile
        save()
    machine = (device, args.dtype, n_processes)
    first_step, bar = done["step"], new_bar(n_steps, done["step"], rank)
    with bar, Interruption() as interruption:
        clock = saved = time.monotonic()
        for step, chosen in batch_order(lengths, n_rows, args.seed, first_step, n_steps):
            # Every process draws the whole step's batch and takes its own rows, so that the masks
            # and the loss do not depend on how many processes and parts share the work.
            batch = draw_batch(corpus, documents[chosen], tokenizer, args.mask_prob,
                               draw_seed(args.seed, step), n_rows, setup.pad_to,
                               args.sampled_words)
            parts = batch.split(part_size)[rank * args.grad_accum:][:args.grad_accum]
            n_targets = (batch.targets != IGNORE).sum()
            if setup.compile and step == first_step:
                compile_model(model, parts[0], setup.autocast)
                clock = time.monotonic()  # compiling is not training
            interval = steps_per_epoch if args.lr_per_epoch else 1
            factor = lr_factor(step, n_steps, args.warmup, interval)
            torch.manual_seed(draw_seed(args.seed, step, rank))  # of dropout
            recent.append(training_step(model, parts, n_targets, setup, factor))
            count_work(done, batch, lengths[chosen], model.bert.config)
            bar.update()
            evaluating = done["step"] % eval_interval == 0 or done["step"] == n_steps
            saving = evaluating or interruption.asked or time.monotonic() - saved > SAVE_EVERY
            if saving or step % 20 == 19:
                train_loss = torch.stack(recent[-100:]).mean().item()  # waits for the device
                check_finite(train_loss, args, done["step"])
                done["seconds"] += time.monotonic() - clock
                bar.set_postfix_str(f"loss {train_loss:.3f}, {speed(done, *machine)}")
                if evaluating:
                    evaluate_and_log(train_loss)
                    recent.clear()
                if saving:
                    save()
                    saved = time.monotonic()
                clock = time.monotonic()
            if interruption.asked:
                raise SystemExit(f"interrupted: step {done['step']:,} of {n_steps:,} is saved in "
                                 f"{args.out_dir}; pretrain.py --resume goes on")
    marks = {"ln V": math.log(tokenizer.vocab_size), "frequencies alone": plateau[0]}
    drawn = draw_curves(history, Path(args.out_dir) / "loss.png", marks) if rank == 0 else ""
    say(f"{summary(history[-1], plateau, machine)}\nwrote {args.out_dir}/ckpt.pt, log.jsonl{drawn}")
    return history[-1]


# ---- what the loop calls ------------------------------------------------------------------------

def refuse_existing_run(out_dir, rank=0):
    if rank == 0 and os.path.exists(f"{out_dir}/ckpt.pt"):
        raise SystemExit(f"{out_dir} holds a run: name another --out_dir, delete it, or go on with "
                         "an interrupted pre-training by --resume")


def refuse_other_steps(checkpoint, dataset, checksums, n_rows):
    """One line if a run that goes on would learn from other texts than it began with, or from
    other numbers of them at once."""
    if checkpoint["dataset"] != checksums:
        raise SystemExit(f"--resume: {dataset} is not the one that this run began with")
    if checkpoint.get("n_rows", n_rows) != n_rows:
        raise SystemExit(f"--resume: the run's steps are of {checkpoint['n_rows']} texts, here "
                         f"they would be of {n_rows}; start as many processes as it began with")


def prepare_pocket(dataset, rank):
    """Make the corpus of the first run, where it is asked for and missing; other processes wait."""
    if dataset == "pocket" and rank == 0:
        pocket.prepare()
    if dist.is_initialized():
        dist.barrier()


def validation_split(dataset):
    """-> the split whose documents validate, and every which of them: each of "val", or of a
    classification set, which has none, every twentieth training text."""
    return ("val", 1) if "val" in read_meta(dataset)["splits"] else ("train", 20)


def open_corpus(args, device):
    """-> the training documents as a Corpus, by --blocks also what lies beyond their first block as
    documents of their own, and which of these to train on (index array): all, or those of
    --subset, but for the validation documents."""
    tokens, offsets = open_split(args.dataset, "train")
    n = len(offsets) - 1
    chosen = np.random.default_rng(args.seed).permutation(n)[:max(1, round(args.subset * n))]
    split, every = validation_split(args.dataset)
    if split == "train":
        chosen = chosen[chosen % every > 0]
    if not len(chosen):
        raise SystemExit(f"--subset={args.subset:g}: leaves no text of {args.dataset} to train on")
    blocks = cut_into_blocks(offsets, args.block_size - 2) if args.blocks == "all" else offsets
    document_of = np.searchsorted(offsets, blocks[:-1], side="right") - 1
    corpus = Corpus(tokens, blocks, args.block_size, device)
    return corpus, np.flatnonzero(np.isin(document_of, chosen))


def unigram_baseline(dataset, vocab_size, batches):
    """Loss and accuracy on `batches` of guessing by the tokens' frequencies alone: the plateau
    that training must leave."""
    tokens, _ = open_split(dataset, "train")
    counts = np.bincount(tokens[:10_000_000], minlength=vocab_size) + 1.0
    targets = np.concatenate([b.targets[b.targets != IGNORE].cpu().numpy() for b in batches])
    loss = -np.log(counts[targets] / counts.sum()).mean()
    return float(loss), float((targets == counts.argmax()).mean())


def batch_order(lengths, n_rows, seed, first_step, n_steps):
    """Yield (step, which documents) from first_step on: a function of the seed, the lengths and
    n_rows, whatever the first step."""
    steps_per_epoch = math.ceil(len(lengths) / n_rows)
    for step in range(first_step, n_steps):
        epoch, i = divmod(step, steps_per_epoch)
        if i == 0 or step == first_step:
            batches = make_batches(lengths, n_rows, seed, epoch)
        yield step, batches[i]


def count_work(done, batch, lengths, config):
    """Add a step to `done`: real tokens, positions computed, floating-point operations."""
    n_tokens = int(lengths.sum()) + 2 * len(lengths)
    T, K = batch.tokens.size(1), batch.at.size(1)
    n_words = None if batch.words is None else len(batch.words)
    done["step"] += 1
    done["tokens"] += n_tokens
    done["positions"] += batch.tokens.numel()
    done["flops"] += 3 * n_tokens * flops_per_token(config, T, K / T, n_words)


def check_finite(loss, args, step):
    if not math.isfinite(loss):
        muon_lr = f" or --muon_lr={args.muon_lr:g}" if args.optimizer == "muon" else ""
        raise SystemExit(f"the loss is not finite at step {step}: lower --lr={args.lr:g}{muon_lr}, "
                         f"raise --warmup, or try --dtype=float32; {args.out_dir} keeps the last "
                         "good checkpoint")


def describe(row):
    """An evaluation (dict) in one line."""
    trained = "    --" if row["train_loss"] is None else f"{row['train_loss']:6.3f}"
    rate = row["tokens"] / max(row["seconds"], 1e-9)
    return (f"step {row['step']:6,}  epoch {row['epoch']:5.2f}  train loss {trained}  val loss "
            f"{row['val_loss']:6.3f}  masked accuracy {row['val_accuracy']:6.1%}  "
            f"{rate:9,.0f} tokens/s")


def draw_curves(history, path, marks):
    """Draw the losses and accuracies of `history` (list of dict) over tokens and minutes, and
    horizontal lines at `marks` (name: loss). -> ", loss.png" for the user, or why not; "" without
    matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    figure = Figure(figsize=(6, 4), layout="constrained")
    losses = figure.subplots()
    accuracies = losses.twinx()
    names = {"train_loss": (losses, "C0--"), "val_loss": (losses, "C0-"),
             "val_accuracy": (accuracies, "C1-."), "holdout_accuracy": (accuracies, "C1-.")}
    for key, (axes, style) in names.items():
        points = [(row["tokens"] / 1e6, row[key]) for row in history if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points), style, marker=".", markersize=3,
                      label=key.replace("_", " "))
    for name, loss in marks.items():
        losses.axhline(loss, color="gray", linewidth=0.8)
        losses.annotate(name, (1, loss), xycoords=("axes fraction", "data"), ha="right",
                        va="bottom")
    seconds = max(history[-1]["seconds"], 1e-9)  # the clock may be coarse
    minutes = seconds / 60 / history[-1]["tokens"] * 1e6  # of a million tokens
    top = losses.secondary_xaxis("top", functions=(lambda x: x * minutes, lambda x: x / minutes))
    top.set_xlabel("minutes of training")
    highest = max(losses.dataLim.y1, *marks.values(), 0)
    losses.set(xlabel="million tokens", ylabel="loss (nats)", ylim=(0, 1.1 * highest))
    accuracies.set(ylabel="accuracy", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:  # the run itself is saved
        return f", but not loss.png ({error.strerror})"
    return ", loss.png"


def introduce(model):
    config = model.bert.config
    return f"BERT-{config.n_layer}: {count_parameters(model):,} parameters, {vars(config)}"


def expectation(args, tokenizer, n_steps, plateau_loss, plateau_accuracy):
    if args.init_from:
        return (f"goes on from {args.init_from}; by the tokens' frequencies alone the loss would "
                f"be {plateau_loss:.2f}, masked accuracy {plateau_accuracy:.1%}")
    words = (f"expect a loss of {math.log(tokenizer.vocab_size):.2f} at first, {plateau_loss:.2f} "
             f"(masked accuracy {plateau_accuracy:.1%})\nwhile only the tokens' frequencies are "
             "known, then less")
    if n_steps < FEW_STEPS:
        epochs = math.ceil(args.epochs * FEW_STEPS / n_steps)
        words += ("\nso few steps hardly make a model that classifies better than random weights; "
                  f"--epochs={epochs} would be {FEW_STEPS} steps or more")
    return words


def summary(row, plateau, machine):
    """The last evaluation (dict) in words."""
    padding = 1 - row["tokens"] / row["positions"]
    return (f"{row['tokens']:,} tokens in {row['seconds']:,.0f} s, {speed(row, *machine)}; padding "
            f"was {padding:.1%} of what was computed\nmasked accuracy {row['val_accuracy']:.1%} "
            f"(guessing by frequency: {plateau[1]:.1%}), loss {row['val_loss']:.3f}")


def speed(done, device, dtype, n_processes):
    """The rate of the work done (dict) and, where it is known, the share of the device's peak."""
    seconds = max(done["seconds"], 1e-9)  # the clock may be coarse
    words = f"{done['tokens'] / seconds:,.0f} tokens/s"
    if peak := peak_flops(device, dtype):
        share = done["flops"] / seconds / peak / n_processes
        words += f", {share:.0%} of the rate of its matrix products"
    return words


def new_bar(n_steps, done=0, rank=0):
    """A progress bar on a terminal; none in a log file, and none of other processes."""
    return tqdm(total=n_steps, initial=done, unit="step", disable=None if rank == 0 else True)


class Interruption:
    """While it is entered, Ctrl-C and SIGTERM only set `asked`, so that a step can be finished and
    saved. A second one stops at once. One of several processes stops at once, too: it could not
    leave the loop without the others, which would wait for its gradients."""

    def __enter__(self):
        self.asked = False
        numbers = [] if dist.is_initialized() else [signal.SIGINT, signal.SIGTERM]
        self.handlers = {number: signal.signal(number, self.ask) for number in numbers}
        return self

    def ask(self, *_):
        self.asked = True
        self.__exit__()

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


# ---- optimizers ---------------------------------------------------------------------------------

class Setup(NamedTuple):
    """How a model is trained."""
    autocast: torch.autocast  # the number format of matrix products
    scaler: torch.amp.GradScaler  # keeps float16 gradients from vanishing, else does nothing
    optimizers: list
    grad_clip: float  # largest norm of the gradient; 0: any
    compile: bool
    pad_to: int  # batches are padded to a multiple of so many tokens


def set_up(model, args, device, rate_of=lambda name: 1.0):
    """-> the Setup that the flags ask for. What they leave open is filled in: args.dtype.
    rate_of(name): see make_optimizers."""
    if args.dtype == "auto":
        args.dtype = fast_dtype(device)
    torch.set_float32_matmul_precision("high")
    autocast = torch.autocast(device.type, getattr(torch, args.dtype),
                              enabled=args.dtype != "float32")
    scaler = torch.amp.GradScaler(device.type, enabled=args.dtype == "float16")
    optimizers = make_optimizers(model, args, device, rate_of)
    on_gpu = device.type == "cuda"
    compiled = on_gpu if args.compile is None else args.compile
    # Compiled code is kept for eight shapes: four lengths, with and without padding. These are
    # also the only lengths that a GPU has been tried with for long, compiled or not.
    coarse = 8 * math.ceil(model.bert.config.block_size / 32)
    pad_to = args.pad_to or (coarse if compiled or on_gpu else 8)
    return Setup(autocast, scaler, optimizers, args.grad_clip, compiled, pad_to)


def make_optimizers(model, args, device, rate_of):
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
    if by_muon:  # float16 has too few exponents for Muon's products
        dtype = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(groups(by_muon, args.muon_lr), dtype))
    return optimizers


def orthogonalise(x, n_steps=5):
    """x (n, R, C), R <= C -> about U V' of each matrix U S V', with singular values of 0.7 to 1.2.

    Newton-Schulz iterations (Jordan et al. 2024): x becomes (a + b x x' + c (x x')^2) x, with
    coefficients that drive all singular values towards 1. Where C is larger than R the steps work
    on the small Gram matrix x x' alone: q gathers their polynomials, and meets x only at the end.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    # In bfloat16 the rounding errors of repeated Gram matrices ruin the result.
    by_gram = x.size(2) > x.size(1) and x.dtype != torch.bfloat16
    gram = x @ x.mT  # (n, R, R)
    q = None
    for step in range(n_steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        last = step == n_steps - 1
        if by_gram:
            polynomial.diagonal(dim1=1, dim2=2).add_(a)
            q = polynomial if q is None else polynomial @ q
            gram = None if last else polynomial @ gram @ polynomial
        else:
            x = torch.baddbmm(x, polynomial, x, beta=a)
            gram = None if last else x @ x.mT
    return q @ x if by_gram else x


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
        upright = [matrix.size(0) == shape[0] for matrix in matrices]
        gradient = torch.stack([matrix.grad if stands else matrix.grad.mT
                                for matrix, stands in zip(matrices, upright)])  # (n, R, C)
        state = self.state[matrices[0]]  # the momentum of all of them
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"].lerp_(gradient, 0.05)
        ahead = gradient.lerp(momentum, 0.95)  # Nesterov: where the momentum will be
        directions = orthogonalise(ahead.to(self.dtype)).to(gradient.dtype)
        directions = [direction if stands else direction.mT
                      for direction, stands in zip(directions, upright)]
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, directions, alpha=-lr * 0.2 * shape[1] ** 0.5)


def lr_factor(step, n_steps, warmup, interval=1):
    """The share of the peak learning rate: it rises over the first warmup * n_steps steps, then
    falls to zero, both linearly, and changes only after so many steps."""
    step -= step % interval
    n_warmup = max(1, round(warmup * n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    return (n_steps - step) / (n_steps - n_warmup + 1)


def update(model, setup, lr_factor):
    """One step of the optimizers at this share of their peak learning rates."""
    for optimizer in setup.optimizers:
        setup.scaler.unscale_(optimizer)
    overflow = False
    if setup.grad_clip:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), setup.grad_clip)
        # Clipped by it, what one optimizer would skip spoils the gradients of the other.
        overflow = setup.scaler.is_enabled() and not norm.isfinite()
    for optimizer in setup.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor
        if not overflow:
            setup.scaler.step(optimizer)
        optimizer.zero_grad()
    setup.scaler.update()


# ---- checkpoints --------------------------------------------------------------------------------

def pack(model, tokenizer, args, history, setup=None):
    """What every checkpoint holds (dict of tensors and plain values). With setup: to go on from."""
    state = {"model": model.state_dict(), "config": vars(model.bert.config), "args": vars(args),
             "tokenizer": tokenizer.name, "fingerprint": tokenizer.fingerprint,
             "vocabulary": tokenizer.vocabulary, "history": history}
    if setup:
        state["optimizers"] = [optimizer.state_dict() for optimizer in setup.optimizers]
        state["scaler"] = setup.scaler.state_dict()
    return state


def restore(checkpoint, model, setup):
    """Put the weights and the optimizers' states back."""
    model.load_state_dict(checkpoint["model"])
    for optimizer, state in zip(setup.optimizers, checkpoint["optimizers"]):
        optimizer.load_state_dict(state)
    setup.scaler.load_state_dict(checkpoint["scaler"])


def save_checkpoint(out_dir, checkpoint):
    """Write out_dir/ckpt.pt, which is always whole, the old one or the new, then log.jsonl."""
    path = Path(out_dir) / "ckpt.pt"
    try:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
    except (OSError, RuntimeError) as error:  # torch's own, on a full disk, says nothing of it
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        raise SystemExit(f"cannot write {path}: {reason}; what it held is kept") from None
    write_log(out_dir, checkpoint["history"])


def write_log(out_dir, history):
    """out_dir/log.jsonl: a line for each of `history` (list of dict)."""
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(Path(out_dir) / "log.jsonl", lines.encode())


def load_checkpoint(out_dir):
    """The checkpoint (dict) of a run directory. One line if there is none, or a damaged one."""
    path = Path(out_dir) / "ckpt.pt"
    try:
        with zipfile.ZipFile(path) as file:  # which is what torch writes, without reading the sums
            if file.testzip():
                raise zipfile.BadZipFile("wrong checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if "history" not in checkpoint:
            raise KeyError("history")
        return checkpoint
    except FileNotFoundError:
        raise SystemExit(f"no checkpoint {path}: train it first, or name another run") from None
    except Exception as error:  # a cut or foreign file fails in zipfile, torch or pickle
        if isinstance(error, PermissionError) or is_out_of_memory(error):  # the file may be good
            raise SystemExit(f"cannot read {path}: {type(error).__name__}") from None
        raise SystemExit(f"cannot read {path}: {type(error).__name__}; it is damaged or no "
                         "checkpoint: delete it and train again") from None


def load_run(out_dir):
    """-> the checkpoint of a run, its tokenizer. One line if that has changed since."""
    checkpoint = load_checkpoint(out_dir)
    tokenizer = get_tokenizer(checkpoint["tokenizer"], checkpoint.get("vocabulary"))
    if tokenizer.fingerprint != checkpoint["fingerprint"]:
        raise SystemExit(f"{out_dir}: trained with another vocabulary than {tokenizer.name} is "
                         "now; train it again")
    return checkpoint, tokenizer


def load_pretraining(run, tokenizer, dataset):
    """-> the checkpoint (dict) of a pre-training, to begin with on a dataset. One line if it is of
    another vocabulary, or a classifier."""
    checkpoint = load_checkpoint(run)
    if "labels" in checkpoint:
        raise SystemExit(f"{run} is a classifier already; give a run of pretrain.py")
    if checkpoint["fingerprint"] != tokenizer.fingerprint:
        raise SystemExit(f"{run} was trained with the vocabulary {checkpoint['tokenizer']}, but "
                         f"--dataset={dataset} is encoded with {tokenizer.name}; prepare one of "
                         "them again")
    return checkpoint


def load_model(out_dir, device="cpu"):
    """-> the pre-trained BertForMaskedLM in evaluation mode, its tokenizer."""
    checkpoint, tokenizer = load_run(out_dir)
    if "labels" in checkpoint:
        raise SystemExit(f"{out_dir} is a classifier of finetune.py; name a run of pretrain.py")
    model = BertForMaskedLM(BertConfig(**checkpoint["config"]))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), tokenizer


def refuse_long(tokens, model, what):
    """One line if these tokens (list) are more than the model takes; `what` they are."""
    if len(tokens) > (longest := model.bert.config.block_size):
        raise SystemExit(f"{what}: {len(tokens)} tokens are more than the model's {longest}")


def as_sequence(text, tokenizer):
    """A text, in which [MASK] is one, as the model reads it (list of int)."""
    return [tokenizer.cls, *tokenizer.encode(text, allow=["[MASK]"]), tokenizer.sep]


@torch.no_grad()
def fill(out_dir, text, device):
    """Print the five likeliest tokens with their probabilities for each [MASK] in text."""
    model, tokenizer = load_model(out_dir, device)
    tokens = as_sequence(text, tokenizer)
    at = [i for i, token in enumerate(tokens) if token == tokenizer.mask]
    if not at:
        raise SystemExit("--fill: the text has no [MASK], "
                         'for example --fill="The capital of France is [MASK]."')
    refuse_long(tokens, model, "--fill")
    tokens, at = torch.tensor([tokens], device=device), torch.tensor([at], device=device)
    for row in model(tokens, None, at)[0].softmax(-1):  # (V,)
        likeliest = row[:tokenizer.n_words].topk(5)
        words = [f"{tokenizer.decode([token])} {p:.1%}"
                 for p, token in zip(likeliest.values.tolist(), likeliest.indices.tolist())]
        print("[MASK] = " + "   ".join(words))


# ---- data, model, device ------------------------------------------------------------------------

def make_config(args, vocab_size):
    """The BertConfig that the flags ask for. Vocabularies of a multiple of 64 are faster."""
    flags = {field.name: getattr(args, field.name)
             for field in fields(BertConfig) if field.name != "vocab_size"}
    flags["n_head"] = args.n_head or max(1, args.n_embd // 64)
    try:
        return BertConfig(vocab_size=math.ceil(vocab_size / 64) * 64, **flags)
    except ValueError as error:
        raise SystemExit(f"--{error}") from None


def compile_model(model, example, autocast):
    """torch.compile in place, so that parameter names stay plain. It is tried on a copy first:
    where it fails (no compiler, an unsupported GPU, on some CPUs gradients of NaN in bfloat16) the
    model stays as it is."""
    try:
        trial = copy.deepcopy(model)
        trial.compile(dynamic=False)
        with torch.random.fork_rng(), autocast:
            trial(*example).backward()
        if not all(p.grad.isfinite().all() for p in trial.parameters()):
            raise FloatingPointError
    except Exception as error:  # whatever the compiler throws
        print(f"torch.compile failed ({type(error).__name__}); going on without it. "
              "--no-compile skips the try")
        return
    model.compile(dynamic=False)


def start_processes(device_name):
    """-> this process's device, its rank, the number of processes (torchrun starts several)."""
    device = pick_device(device_name)
    rank, n_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if n_processes > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return device, rank, n_processes


def pick_device(name):
    """The torch.device that --device names; "auto" is the best one that works. One line if it is
    not there."""
    names = [name]
    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        names = [name for name in there if there[name]] + ["cpu"]
    for name in names:
        try:
            torch.ones(1, device=name).add(1).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            problem = str(error).partition("\n")[0]
            if len(names) == 1:
                raise SystemExit(f"--device={name}: does not work on this machine ({problem}); "
                                 "--device=auto uses what does") from None
            print(f"{name} is there but does not work ({problem}); going on without it")
        else:
            break
    device = torch.device(name)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":  # at some lengths cuDNN's attention gives NaN (PyTorch issue 196678)
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def wait_for(device):
    """Wait until a GPU has done what it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def keep_freed_memory():
    """Tell the C library not to give freed memory back to the system, which would have to clear
    each page of it at the next step."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large tensors
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def fast_dtype(device):
    """The number format in which the device multiplies matrices fastest: "bfloat16", on older GPUs
    "float16", or "float32". It is asked what it can do, not timed: other work on the machine must
    not decide how a run computes."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    if device.type != "cpu":
        return "float32"  # Apple's GPUs: bfloat16 and float16 are reported to give NaN there
    can = torch.cpu.get_capabilities()
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    x86 = wide and (can.get("avx512_bf16") or can.get("amx_bf16"))
    arm = can.get("bf16") and torch.backends.mkldnn.is_available()
    return "bfloat16" if x86 or arm else "float32"  # emulated it is a hundred times slower


# Peak bfloat16 rate in FLOP/s of dense matrix products, from the makers' data sheets; others show
# no utilisation.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12,
              "3090": 71e12}


@functools.cache
def peak_flops(device, dtype):
    """The rate in FLOP/s of matrix products in this number format (str): a GPU's in PEAK_FLOPS,
    None if it is not known; a CPU's is measured, which takes tenths of a second."""
    if device.type == "cpu":
        size, seconds = 1024, []
        matrix = torch.ones(size, size, dtype=getattr(torch, dtype))
        for _ in range(5):
            start = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - start)
        return 2 * size**3 / min(seconds)
    is_known = device.type == "cuda" and dtype != "float32"
    name = torch.cuda.get_device_name(device) if is_known else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


# ---- flags --------------------------------------------------------------------------------------

MANY = 10**6
LIMITS = {"subset": (ABOVE_0, 1), "n_layer": (1, 1000), "n_head": (1, 1000), "n_embd": (1, 20_000),
          "block_size": (3, MAX_TOKENS + 2), "n_conv": (0, 100), "conv_kernel": (1, 255),
          "conv_channels": (1, 10_000), "dropout": (0, BELOW_1), "epochs": (ABOVE_0, MANY),
          "batch_size": (1, MANY), "grad_accum": (1, 10_000), "lr": (ABOVE_0, math.inf),
          "muon_lr": (ABOVE_0, math.inf), "warmup": (0, BELOW_1), "weight_decay": (0, 100),
          "grad_clip": (0, MANY), "mask_prob": (ABOVE_0, BELOW_1), "sampled_words": (0, MANY),
          "pad_to": (0, MANY), "seed": (0, 2**32 - 1), "eval_interval": (0, 10**9)}


def add_model_flags(parser, title="model"):
    flag = parser.add_argument_group(title).add_argument
    flag("--n_layer", type=int, default=6, help="transformer layers")
    flag("--n_head", type=int, help="attention heads; by default n_embd / 64")
    flag("--n_embd", type=int, default=256, help="width; the paper's is 768")
    flag("--block_size", type=int, default=128,
         help="tokens of the longest block, [CLS] and [SEP] included; longer texts are cut")
    flag("--pos", choices=["rotary", "learned"], default="rotary",
         help="how a token's position enters; the paper's are learned")
    flag("--n_conv", type=int, default=0, help="convolution layers in front of the transformer")
    flag("--conv_kernel", type=int, nargs="+", default=[3], help="their size, or one for each")
    flag("--conv_channels", type=int, default=64, help="their channels")


def add_system_flags(parser):
    flag = parser.add_argument_group("system").add_argument
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
         help="number format of matrix products; auto: the fastest that the device computes well")
    flag("--compile", action=argparse.BooleanOptionalAction,
         help="torch.compile, slow to begin and faster then; by default of pre-training on CUDA")


def add_training_flags(flag):
    """The flags of training that pretrain.py and finetune.py share."""
    flag("--optimizer", choices=["muon", "adamw"], default="muon",
         help="what trains the matrices of the layers; all else is trained by AdamW")
    flag("--warmup", type=float, default=0.05,
         help="share of the steps in which the learning rate rises")
    flag("--lr_per_epoch", action="store_true",
         help="change the learning rate only when an epoch begins, as the paper does; the first "
         "then runs at almost none, unless --warmup=0")
    flag("--grad_clip", type=float, default=1.0, help="largest norm of the gradient; 0: any")
    flag("--pad_to", type=int, default=0,
         help="pad batches to a multiple of so many tokens; 0: of 8, or of a quarter of the block "
         "on a GPU or if compiled; the paper's is 128, the block")


def get_parser():
    parser = new_parser("pretrain.py", __doc__.split("\n\n")[0])
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", default="pocket", help="a folder of data/bin; pocket is made on first use")
    flag("--subset", type=float, default=1.0,
         help="share of the training documents to use, drawn by the seed")
    flag("--blocks", choices=["all", "first"], default="all",
         help="train on whole documents, in blocks of at most block_size tokens, or on the first "
         "block of each, as the paper does and every evaluation")
    flag("--init_from", metavar="RUN",
         help="begin with the weights of another pre-training, and with its architecture: a second "
         "stage, on text that is closer to what the model is for")
    add_model_flags(parser)
    flag = parser.add_argument_group("training").add_argument
    flag("--dropout", type=float, default=0.0, help="the paper's is 0.1")
    flag("--epochs", type=float, default=4, help="passes over the training documents")
    flag("--batch_size", type=int, default=64,
         help="documents a forward pass; lower it if memory runs out")
    flag("--grad_accum", type=int, default=1, help="forward passes a step")
    flag("--lr", type=float,
         help="AdamW's peak learning rate; by default 0.006 for steps of 64 documents, growing "
         "with the square root of their number; a third for deeper models, half in a second stage; "
         "the paper's is 5e-5")
    flag("--muon_lr", type=float, help="Muon's peak learning rate; by default 0.02 and likewise")
    add_training_flags(flag)
    flag("--weight_decay", type=float, default=0.8,
         help="of matrices, not of biases and norms; the paper's is 0.01")
    flag("--mask_prob", type=float, default=0.4,
         help="share of a document's tokens to predict; the paper's is 0.15")
    flag("--sampled_words", type=int, default=2048,
         help="name a token among so many words (at least one for each masked place) instead of "
         "all: those masked in the step and others, drawn anew each step; 0: among all, as the "
         "paper and every evaluation do")
    flag("--seed", type=int, default=0, help="of weights, order of documents and masks")
    add_system_flags(parser)
    flag = parser.add_argument_group("output").add_argument
    flag("--out_dir",
         help="run directory; by default out/DATASET-bertN_LAYER, or out/RUN-then-DATASET")
    flag("--eval_interval", type=int, default=0,
         help="steps between evaluations; 0: a tenth of all")
    flag("--keep", action="store_true",
         help="also keep the model as it is at each evaluation, in out_dir/step-N, a run directory "
         "for --fill, finetune.py and experiments.look")
    flag("--resume", action="store_true",
         help="go on with the run in out_dir, exactly as if it had not stopped")
    flag("--fill", metavar="TEXT",
         help="don't train: print what the run in out_dir puts at each [MASK] of TEXT")
    return parser


def resumed_args(parser, argv, saved):
    """The flags of a run (dict) that goes on, and those of argv that may differ. One line for
    others."""
    # Of flags that are newer than the run it had the default, but for --blocks.
    saved = vars(parser.parse_args([])) | {"blocks": "first"} | saved
    parser.set_defaults(**saved)
    args = parser.parse_args(argv)
    free = {"device", "compile", "out_dir", "eval_interval", "keep", "resume", "fill"}
    for name in sorted(saved.keys() - free):
        if getattr(args, name) != saved[name]:
            raise SystemExit(f"--resume: the run was begun with --{name}={saved[name]}, not "
                             f"{getattr(args, name)}; leave the flag out, or start another run "
                             "with another --out_dir")
    return args


def refuse_other_shape(args, typed, config, run):
    """One line for a typed flag that asks for another architecture than the run has."""
    for name, value in vars(config).items():
        if name not in typed or name == "dropout":
            continue
        asked = getattr(args, name)
        if name == "conv_kernel":
            asked = tuple(asked) * (config.n_conv if len(asked) == 1 else 1)
        if asked != value:
            raise SystemExit(f"--{name}={asked}: {run} has {value}; leave the flag out, or begin "
                             "with random weights (finetune.py: --init_from=scratch without "
                             "--like)")


def take_shape(args, typed):
    """Let the flags of the architecture be those of the run --init_from."""
    config = BertConfig(**load_checkpoint(args.init_from)["config"])
    refuse_other_shape(args, typed, config, args.init_from)
    for name, value in vars(config).items():
        if name not in ("vocab_size", "dropout"):
            setattr(args, name, list(value) if name == "conv_kernel" else value)


def choose_learning_rates(args):
    """Fill in what the flags leave open. A step of more documents may be longer, by the square
    root of their number; deep models diverge at the rates of shallow ones; a second stage should
    not undo the first."""
    n_rows = args.batch_size * args.grad_accum * int(os.environ.get("WORLD_SIZE", 1))
    scale = (n_rows / 64) ** 0.5 / (1 if args.n_layer == 1 else 3) / (2 if args.init_from else 1)
    args.lr = 0.006 * scale if args.lr is None else args.lr
    args.muon_lr = 0.02 * scale if args.muon_lr is None else args.muon_lr


def refuse_idle_flags(args, typed):
    """One line for a flag that was typed and would do nothing."""
    if args.optimizer == "adamw":
        refuse(typed & {"muon_lr"}, "is Muon's, but --optimizer=adamw")
    if not args.n_conv:
        refuse(typed & {"conv_kernel", "conv_channels"}, "needs --n_conv=1 or more")


def is_out_of_memory(error):
    """Whether an exception says so: torch has many ways."""
    words = "out of memory", "allocate memory", "not enough memory"
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


def train_or_say_why_not(train, args, *more):
    """train(args, *more), with one line if memory runs out."""
    try:
        return train(args, *more)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SystemExit(f"out of memory: lower --batch_size={args.batch_size} (and raise "
                         "--grad_accum of pretrain.py by as much), --block_size or --n_embd"
                         ) from None


def main(argv=None):
    parser = get_parser()
    args, typed = parse(parser, argv, LIMITS)
    name = f"{Path(args.dataset).name}-bert{args.n_layer}"
    if args.init_from:
        name = f"{Path(args.init_from).name}-then-{Path(args.dataset).name}"
    args.out_dir = args.out_dir or f"out/{name}"
    if args.fill is not None:
        return fill(args.out_dir, args.fill, pick_device(args.device))
    checkpoint = None
    if args.resume:
        checkpoint = load_checkpoint(args.out_dir)
        if "recent" not in checkpoint:
            raise SystemExit(f"--resume: {args.out_dir} is no pre-training that can go on, but a "
                             "classifier, a model kept by --keep or a run of an older version")
        # The folder may have been moved or copied since.
        args = resumed_args(parser, argv, checkpoint["args"] | {"out_dir": args.out_dir})
    else:
        refuse_existing_run(args.out_dir)
        if args.init_from:
            take_shape(args, typed)
    refuse_idle_flags(args, typed)
    choose_learning_rates(args)
    return train_or_say_why_not(train, args, checkpoint)


if __name__ == "__main__":
    run_script(main)
