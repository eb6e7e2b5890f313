"""Time this project against transformers, in one run on one machine.

    python -m experiments.bench                                 # all; an hour on two cores
    python -m experiments.bench pretrain finetune --n_layer 1   # only these

The peers are transformers' models (a development extra: pip install transformers):
- plain: BERT as the paper's own code runs it: logits at all positions, dropout 0.1, every text
  padded to 128, AdamW, reading the loss after every step; in float32, on a GPU in float16.
- expert: the same model as an expert would run it: fused AdamW, PyTorch's fused attention, no
  dropout, logits at the masked positions only, texts of like length together, the number format
  that the device multiplies fastest, torch.compile on a GPU.
- ModernBERT: the same, with its own sparse prediction. Its MLP has three matrices of 8/3 of the
  width, as many weights as BERT's two of 4 times the width; it has no biases, norms in front,
  rotary positions, and in two of three layers a window of 128 tokens.

All are 768 wide, with 12 heads and a vocabulary of 30,528 in pre-training. "Ours" does the same
work as the expert: the same positions, all words, no dropout, the same number format; what our
recipe leaves out has rows that say so. All take turns, each in a process of its own, so that a
machine whose speed drifts favours none. A rate is that of the best turn, which other work on the
machine disturbs least; in brackets are the least and the largest ratio of a turn. "Of the matrix
rate": what a step does in matrix products (torch's FlopCounterMode), against large products of the
same number format, the best of the run.
"""
import functools
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils import flop_counter
from tqdm import tqdm

import committee
import finetune
import pretrain
from data.batches import Corpus, make_batches
from data.flags import AT_LEAST_1, check_limits, new_parser, run_script
from data.tokenfile import open_labels, open_split, read_meta
from data.tokenizer import open_tokenizer
from model import BertConfig, BertForClassification, BertForMaskedLM, sum_of_losses, take

VOCAB_SIZE, T, WIDTH, BATCH_SIZE = 30528, 128, 768, 32
TURN = 2  # seconds

# FlopCounterMode knows all matrix products but those of the fused attention of CPUs.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda q, k, v, *_, **options: flop_counter.sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, q, k, v, *_, **options: flop_counter.sdpa_backward_flop_count(grad, q, k, v)}


class Contestant(NamedTuple):
    name: str
    side: str  # plain, expert, ModernBERT or ours
    dtype: str  # the number format of its matrix products
    make: object  # make(side, dtype, device, *args) -> its step, a function -> units of work done
    args: tuple


# ---- measuring -----------------------------------------------------------------------------------

@functools.cache
def made(make, *args):
    """A contestant's step (function), made once in its process."""
    return make(*args)


def own_bytes(name):
    """What Linux says of this process's memory under this name; nan elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), math.nan)


@functools.cache
def bytes_before():
    """What this process held when this was first called: before it had a model."""
    return own_bytes("VmRSS")


def first_turn(make, *args):
    """A step that is not timed. -> floating-point operations in matrix products a unit of work"""
    step = made(make, *args)
    with flop_counter.FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        n_units = step()
    return counter.get_total_flops() / n_units


def turn(device, make, *args):
    """Steps for TURN seconds, at least one. -> units of work a second, finished on the device too;
    the peak memory of this process in bytes"""
    step = made(make, *args)
    pretrain.wait_for(device)
    start, n_units = time.perf_counter(), 0
    while not n_units or time.perf_counter() - start < TURN:
        n_units += step()
    pretrain.wait_for(device)
    rate = n_units / (time.perf_counter() - start)
    if device.type == "cuda":
        return rate, torch.cuda.max_memory_allocated(device)
    return rate, own_bytes("VmHWM") - bytes_before()


def matrix_product(dtype, device, size):
    """Multiplies two matrices of size x size; the unit of work is an operation."""
    torch.set_float32_matmul_precision("high")  # as in training
    a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype))

    def step():
        torch.matmul(a, b)
        return 2 * size ** 3
    return step


def fresh_process():
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def compare(title, contestants, device, repeats):
    """Print a table of the contestants (list). The title ends in the unit of their work, of which
    it shows how many are done a second."""
    processes = [fresh_process() for _ in contestants]
    steps = [(contestant.make, contestant.side, contestant.dtype, device, *contestant.args)
             for contestant in contestants]
    first_turns = [process.submit(first_turn, *step)  # together: on a GPU they compile
                   for process, step in zip(processes, steps)]
    flops = [first.result() for first in first_turns]
    rates, memory = [[] for _ in contestants], [0] * len(contestants)
    limits = {contestant.dtype: 0.0 for contestant in contestants}  # FLOP/s
    size = 8192 if device.type == "cuda" else 2048
    with fresh_process() as process:
        for _ in tqdm(range(repeats), disable=None, leave=False):
            for dtype in limits:
                product = matrix_product, dtype, device, size
                rate, _ = process.submit(turn, device, *product).result()
                limits[dtype] = max(limits[dtype], rate)
            for i, step in enumerate(steps):
                rate, memory[i] = processes[i].submit(turn, device, *step).result()
                rates[i].append(rate)
    for process in processes:
        process.shutdown()
    peers = [values for contestant, values in zip(contestants, rates) if contestant.side != "ours"]
    peer = max(peers, key=max)
    print(f"\n| {title} | | of the first | of the best peer | of the matrix rate | peak MB |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for i, (contestant, values) in enumerate(zip(contestants, rates)):
        best, of_peer = max(values), [a / b for a, b in zip(values, peer)]
        share = best * flops[i] / limits[contestant.dtype]
        print(f"| {contestant.name} | {best:,.{0 if best > 100 else 1}f} | "
              f"{best / max(rates[0]):.1f}x | {best / max(peer):.2f}x ({min(of_peer):.2f} to "
              f"{max(of_peer):.2f}) | {share:.0%} | {memory[i] / 1e6:,.0f} |", flush=True)
    print("\nThe matrix rate: " + ", ".join(f"{limit / 1e9:,.0f} GFLOP/s in {dtype}"
                                            for dtype, limit in limits.items()), flush=True)


# ---- models and their training -------------------------------------------------------------------

class MaskedPeer(torch.nn.Module):
    """transformers' BertForMaskedLM or ModernBertForMaskedLM, called as our model is."""

    def __init__(self, model, side):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, tokens, mask, at, targets, *_):
        """-> the sum of the targets' losses"""
        if self.side == "expert":
            states = take(self.model.bert(tokens, mask).last_hidden_state, at)  # (B, K, C)
            return sum_of_losses(self.model.cls(states).flatten(0, 1), targets.flatten())
        labels = torch.full_like(tokens, -100).scatter(1, at, targets)
        return self.model(tokens, mask, labels=labels).loss * targets.numel()


class ClassifyingPeer(torch.nn.Module):
    """transformers' classifiers, called as ours is."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, mask=None, targets=None):
        logits = self.model(tokens, None if mask is None else mask.long()).logits
        return logits if targets is None else sum_of_losses(logits, targets)


def make_model(side, device, n_layer, vocab_size=0, n_classes=0, pooling="cls", dropout=0.0,
               pos="learned"):
    """-> a classifier, or with n_classes=0 a masked-language model"""
    vocab_size = vocab_size or VOCAB_SIZE
    if side == "ours":
        bytes_before()
        pretrain.pick_device(str(device))  # with its settings for a CPU
        config = BertConfig(vocab_size, T, n_layer, WIDTH // 64, WIDTH, dropout, pos)
        model = (BertForClassification(config, n_classes, pooling) if n_classes
                 else BertForMaskedLM(config))
        return model.to(device)
    import transformers  # not on top: without it the rest of this file can be imported
    family = "ModernBert" if side == "ModernBERT" else "Bert"
    head = "ForSequenceClassification" if n_classes else "ForMaskedLM"
    peer = getattr(transformers, family + head)
    bytes_before()  # transformers itself is not counted
    options = {"vocab_size": vocab_size, "num_hidden_layers": n_layer, "hidden_size": WIDTH,
               "num_attention_heads": WIDTH // 64, "intermediate_size": 4 * WIDTH,
               "num_labels": n_classes or 2, "pad_token_id": 0}
    if side == "expert":
        options |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if side == "ModernBERT":
        options |= {"intermediate_size": 8 * WIDTH // 3, "sparse_prediction": True}
        options |= dict.fromkeys(["bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"])
    config = getattr(transformers, family + "Config")(**options, attn_implementation="sdpa")
    model = peer(config).to(device).train()
    return ClassifyingPeer(model) if n_classes else MaskedPeer(model, side)


def autocast(dtype, device):
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")


def make_trainer(model, side, dtype, device, optimizer="adamw"):
    """-> a function that makes a step of training: of a batch, the arguments of the model's forward
    pass, and the number of its targets"""
    if side == "ours":
        args = SimpleNamespace(dtype=dtype, optimizer=optimizer, lr=1e-4, muon_lr=1e-4,
                               weight_decay=0.01, grad_clip=1.0, compile=None, pad_to=0)
        setup = pretrain.set_up(model, args, device)
        if setup.compile:
            model.compile(dynamic=False)
        return lambda batch, n: pretrain.training_step(model, [batch], n, setup, lr_factor=1.0)
    adamw = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=side != "plain")
    if side != "plain":
        torch.set_float32_matmul_precision("high")
        if device.type == "cuda":
            model.compile(dynamic=False)

    def step(batch, n_targets):
        with autocast(dtype, device):
            loss = model(*batch) / n_targets
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        if side == "plain":
            loss.item()
    return step


# ---- the contestants: -> a function that makes one step ------------------------------------------

def pretraining(side, dtype, device, n_layer, batch_size, optimizer="adamw", mask_prob=0.15,
                n_words=0, pos="learned"):
    """On texts of 126 random words."""
    rng, n_texts = np.random.default_rng(0), 1000
    words = rng.integers(VOCAB_SIZE, size=n_texts * (T - 2), dtype=np.uint16)
    corpus = Corpus(words, np.arange(0, len(words) + 1, T - 2), T, device)
    tokenizer = SimpleNamespace(cls=0, sep=1, pad=2, mask=3, n_words=VOCAB_SIZE,
                                vocab_size=VOCAB_SIZE)
    model = make_model(side, device, n_layer, pos=pos)
    train = make_trainer(model, side, dtype, device, optimizer)

    def step():
        documents = rng.integers(n_texts, size=batch_size)
        batch = pretrain.draw_batch(corpus, documents, tokenizer, mask_prob, int(documents[0]),
                                    n_words=n_words)
        train(batch, batch.targets.numel())
        return batch.tokens.numel()
    return step


def open_examples(side, device, n_layer, dataset, pooling, dropout):
    """-> the Examples of a prepared set, a classifier for it"""
    tokenizer, _ = open_tokenizer(dataset)
    corpus, labels = Corpus(*open_split(dataset, "train"), T, device), open_labels(dataset, "train")
    pad_to = T if side == "plain" else 32 if device.type == "cuda" else 8
    vocab_size = 64 * math.ceil(tokenizer.vocab_size / 64)
    n_classes = len(read_meta(dataset)["labels"])
    return (finetune.Examples(corpus, labels, tokenizer, pad_to),
            make_model(side, device, n_layer, vocab_size, n_classes, pooling, dropout))


def finetuning(side, dtype, device, n_layer, dataset, pooling="cls", dropout=0.0):
    """On the first eight batches of an epoch; plain, to which all are alike, on one."""
    examples, model = open_examples(side, device, n_layer, dataset, pooling, dropout)
    train = make_trainer(model, side, dtype, device)
    batches = make_batches(examples.corpus.lengths, BATCH_SIZE, seed=0, epoch=0)
    batches = batches[:1 if side == "plain" else 8]

    def step():
        for documents in batches:
            train(examples.batch(documents), len(documents))
        return sum(map(len, batches))
    return step


def classifying(side, dtype, device, n_layer, dataset, n_texts, pooling="cls"):
    """n_texts of the training texts: plain as they come, else as finetune.py groups them."""
    examples, model = open_examples(side, device, n_layer, dataset, pooling, dropout=0.0)
    documents = np.random.default_rng(0).permutation(len(examples.corpus.lengths))[:n_texts]

    @torch.no_grad()
    def plain_step():
        model.eval()
        for part in np.split(documents, range(BATCH_SIZE, n_texts, BATCH_SIZE)):
            tokens, mask, _ = examples.batch(part)
            with autocast(dtype, device):
                model(tokens, mask).softmax(-1).cpu()
        return n_texts

    def step():
        finetune.classify(model, examples.corpus, examples.tokenizer, autocast(dtype, device),
                          documents)
        return n_texts
    return plain_step if side == "plain" else step


def answering(side, dtype, device, n_layer, combine="", n_members=1):
    """One text of 128 tokens, by weights of this number format. combine: a function of committee.py
    that makes one function of several models."""
    models = [make_model(side, device, n_layer, n_classes=14).to(getattr(torch, dtype)).eval()
              for _ in range(n_members)]
    function = getattr(committee, combine)(models) if combine else models[0]
    if device.type == "cuda":
        function = torch.compile(function, mode="reduce-overhead")
    tokens = torch.randint(1000, (1, T), device=device)

    @torch.no_grad()
    def step():
        function(tokens)
        return 1
    return step


# ---- the tables ----------------------------------------------------------------------------------

def bench_pretrain(args, device, n_layer):
    def row(name, side, *options, dtype=pretrain.fast_dtype(device), batch_size=BATCH_SIZE):
        return Contestant(name, side, dtype, pretraining, (n_layer, batch_size, *options))

    compare(f"pre-training, BERT-{n_layer}, {WIDTH} wide, {BATCH_SIZE} x {T}, tokens/s", [
        row("plain", "plain", dtype=plain_dtype(device)),
        row("expert", "expert"),
        row("ModernBERT", "ModernBERT"),
        row("ours, AdamW", "ours"),
        row("ours, Muon", "ours", "muon"),
        row("ours, AdamW, 2,048 words", "ours", "adamw", 0.15, 2048),
        row(f"ours by our recipe: Muon, {2 * BATCH_SIZE} x {T}, 40 % masked, 3,200 words", "ours",
            "muon", 0.4, 2048, "rotary", batch_size=2 * BATCH_SIZE),
    ], device, args.repeats)


def bench_batch(args, device, n_layer):
    sizes = (32, 128, 512) if device.type == "cuda" else (8, 32, 128)
    compare(f"pre-training, BERT-{n_layer}, {WIDTH} wide, texts of {T}, AdamW, tokens/s", [
        Contestant(f"{side}, batches of {size}", side, pretrain.fast_dtype(device), pretraining,
                   (n_layer, size))
        for side in ("expert", "ModernBERT", "ours") for size in sizes], device, args.repeats)


def bench_finetune(args, device, n_layer):
    def row(name, side, *options, dtype=pretrain.fast_dtype(device)):
        return Contestant(name, side, dtype, finetuning, (n_layer, args.dataset, *options))

    compare(f"fine-tuning on {args.dataset}, BERT-{n_layer}, {WIDTH} wide, batches of "
            f"{BATCH_SIZE}, examples/s", [
        row("plain", "plain", "cls", 0.1, dtype=plain_dtype(device)),
        row("expert", "expert"),
        row("ModernBERT", "ModernBERT"),
        row("ours, [CLS]", "ours"),
        row("ours, mean, dropout 0.1", "ours", "mean", 0.1),
    ], device, args.repeats)


def bench_classify(args, device, n_layer):
    n_texts = min(10_000, len(open_labels(args.dataset, "train"))) // n_layer

    def row(name, side, *options, dtype=pretrain.fast_dtype(device), n=n_texts):
        return Contestant(name, side, dtype, classifying, (n_layer, args.dataset, n, *options))

    compare(f"classifying {n_texts:,} texts of {args.dataset}, BERT-{n_layer}, {WIDTH} wide, "
            "texts/s", [
        row("plain, 64 of them", "plain", dtype=plain_dtype(device), n=min(64, n_texts)),
        row("expert", "expert"),
        row("ModernBERT", "ModernBERT"),
        row("ours, [CLS]", "ours"),
        row("ours, mean", "ours", "mean"),
    ], device, args.repeats)


def bench_latency(args, device, n_layer):
    for dtype in dict.fromkeys(["float32", pretrain.fast_dtype(device)]):
        contestants = [
            (f"expert, BERT-{n_layer}", "expert", n_layer),
            (f"ModernBERT, {n_layer} layers", "ModernBERT", n_layer),
            (f"ours, BERT-{n_layer}", "ours", n_layer)]
        if n_layer > 1:
            contestants += [
                ("ours, BERT-1", "ours", 1),
                (f"ours, {n_layer} BERT-1 in turn", "ours", 1, "one_after_the_other", n_layer),
                (f"ours, {n_layer} BERT-1 stacked", "ours", 1, "stack", n_layer)]
        compare(f"one text of {T} tokens, {WIDTH} wide, {dtype}, texts/s",
                [Contestant(name, side, dtype, answering, tuple(options))
                 for name, side, *options in contestants], device, args.repeats)


def plain_dtype(device):
    return "float16" if device.type == "cuda" else "float32"


ROWS = {"pretrain": bench_pretrain, "batch": bench_batch, "finetune": bench_finetune,
        "classify": bench_classify, "latency": bench_latency}


def main(argv=None):
    parser = new_parser("python -m experiments.bench", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    flag("tables", nargs="*", metavar="TABLE", help=f"of {' '.join(ROWS)}; by default all")
    flag("--n_layer", type=int, nargs="+", default=[1, 6], help="depths")
    flag("--dataset", default="fewrel", help="prepared set of finetune and classify")
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--repeats", type=int, default=5, help="turns of two seconds, or one step")
    args = parser.parse_args(argv)
    check_limits(args, {"n_layer": AT_LEAST_1, "repeats": AT_LEAST_1})
    for name in args.tables:
        if name not in ROWS:
            raise SystemExit(f"unknown table {name}: choose from {' '.join(ROWS)}")
    if not find_spec("transformers"):
        raise SystemExit("the peers are transformers' models: pip install transformers")
    device = pretrain.pick_device(args.device)
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name() if is_cuda else f"{torch.get_num_threads()} threads"
    print(f"{device} ({name}), torch {torch.__version__}, {pretrain.fast_dtype(device)}")
    for name in args.tables or ROWS:
        for n_layer in args.n_layer:
            ROWS[name](args, device, n_layer)


if __name__ == "__main__":
    run_script(main)
