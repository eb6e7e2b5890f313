"""Time this project against transformers' BERT, in one run on one machine.

    python -m experiments.bench                                 # by estimate half an hour on a CPU
    python -m experiments.bench pretrain finetune --n_layer 1   # only these

The contestants (transformers is a development extra: pip install transformers):
- plain: transformers' BERT as the paper's own code runs it: logits at all positions, dropout 0.1,
  every text padded to 128, AdamW, reading the loss after every step; in float32, on a GPU in
  float16.
- expert: the same model as an expert would run it: fused AdamW, PyTorch's fused attention, no
  dropout, logits at the masked positions only, texts of similar length together, the number format
  that the device multiplies fastest, torch.compile on a GPU.
- ours: the expert's work by our code: AdamW, all of the vocabulary, no dropout, [CLS].
- recipe: ours by its defaults: Muon, twice the texts, 40 % masked, a sampled softmax and rotary
  positions in pre-training; the mean of the states and dropout 0.1 in fine-tuning.

All are 768 wide, with 12 heads and a vocabulary of 30,528 in pre-training. They take turns, each in
a process of its own, so that a machine whose speed drifts favours none. A rate is that of the best
turn, which other work on the machine disturbs least; in brackets are the least and the largest
ratio of a turn.
"""
import functools
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import finetune
import pretrain
import training
from data.batches import Corpus, make_batches
from data.flags import new_parser, number, run_script, user_path
from data.tokenfile import Dataset
from model import (
    BertConfig,
    BertForClassification,
    BertForMaskedLM,
    gather_positions,
    sum_of_losses,
)

try:
    import transformers
    from transformers import BertForMaskedLM as MaskedPeer
    from transformers import BertForSequenceClassification as ClassifyingPeer
except ImportError:
    raise SystemExit("the peers are transformers' models: pip install transformers") from None

VOCAB_SIZE, T, WIDTH, BATCH_SIZE = 30528, 128, 768, 32
PEERS, OURS = ["plain", "expert"], ["ours", "recipe"]
TURN = 2  # seconds


# ---- measuring -----------------------------------------------------------------------------------

def process_memory(name):
    """This process's memory in bytes that Linux counts under this name; nan elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), math.nan)


@functools.cache
def make_once(make, *args):
    """-> a contestant's step (function), made at its first turn, and the memory before."""
    memory = process_memory("VmRSS")
    return make(*args), memory


def take_turn(seconds, make, kind, device, *args):
    """Steps for so many seconds, at least one. -> units of work a second, with the device's work
    finished; the peak memory of model and training in bytes."""
    step, memory_before = make_once(make, kind, device, *args)
    training.wait_for(device)
    start, n_units = time.perf_counter(), 0
    while not n_units or time.perf_counter() - start < seconds:
        n_units += step()
    training.wait_for(device)
    rate = n_units / (time.perf_counter() - start)
    if device.type == "cuda":
        return rate, torch.cuda.max_memory_allocated(device)
    return rate, process_memory("VmHWM") - memory_before


def new_process():
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def compare(title, kinds, repeats, make, *args):
    """Print a table of contestants (list of kinds). make(kind, *args) -> a contestant's step, a
    function -> units of work done, in which the title ends."""
    processes = {kind: new_process() for kind in kinds}
    # The first steps together, which take long: on a GPU they compile.
    for first in [processes[kind].submit(take_turn, 0, make, kind, *args) for kind in kinds]:
        first.result()
    turns = [[processes[kind].submit(take_turn, TURN, make, kind, *args).result()
              for kind in kinds] for _ in range(repeats)]
    for process in processes.values():
        process.shutdown()
    rates, memory = np.moveaxis(np.array(turns), 2, 0)  # (repeats, contestants) each
    best = rates.max(0)
    peer = max(range(len(kinds)), key=lambda i: best[i] * (kinds[i] in PEERS))
    print(f"\n| {title} | | of the first | of the best peer | peak MB |\n"
          "| --- | --- | --- | --- | --- |")
    for i, kind in enumerate(kinds):
        ratios = rates[:, i] / rates[:, peer]
        print(f"| {kind} | {best[i]:,.{0 if best[i] > 100 else 1}f} | {best[i] / best[0]:.1f}x | "
              f"{best[i] / best[peer]:.2f}x ({ratios.min():.2f} to {ratios.max():.2f}) | "
              f"{memory[-1, i] / 1e6:,.0f} |", flush=True)


# ---- models and their training -------------------------------------------------------------------

def make_model(kind, device, n_layer, n_classes=0, vocab_size=None):
    """-> a classifier, or with n_classes=0 a masked-language model"""
    vocab_size = vocab_size or VOCAB_SIZE
    if kind in OURS:
        training.pick_device(str(device))  # which configures a CPU
        is_recipe = kind == "recipe"
        config = BertConfig(vocab_size, T, n_layer, WIDTH // 64, WIDTH, pos="learned")
        if n_classes:
            config.dropout = 0.1 if is_recipe else 0.0
            model = BertForClassification(config, n_classes, "mean" if is_recipe else "cls")
        else:
            config.pos = "rotary" if is_recipe else "learned"
            model = BertForMaskedLM(config)
        return model.to(device)
    dropout = 0.1 if kind == "plain" else 0.0
    config = transformers.BertConfig(
        vocab_size=vocab_size, num_hidden_layers=n_layer, hidden_size=WIDTH,
        num_attention_heads=WIDTH // 64, intermediate_size=4 * WIDTH, num_labels=n_classes or 2,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        attn_implementation="sdpa")
    return (ClassifyingPeer if n_classes else MaskedPeer)(config).to(device).train()


def loss_everywhere(model, tokens, mask, positions, targets, *_):
    """The sum of the targets' losses by transformers' masked-language model, as it is."""
    labels = torch.full_like(tokens, -100).scatter(1, positions, targets)
    return model(tokens, mask, labels=labels).loss * targets.numel()


def loss_at_positions(model, tokens, mask, positions, targets, *_):
    """The same, with logits at the masked positions only."""
    states = gather_positions(model.bert(tokens, mask).last_hidden_state, positions)  # (B, K, C)
    return sum_of_losses(model.cls(states).flatten(0, 1), targets.flatten())


def loss_of_classes(model, tokens, mask, targets):
    """The sum of the losses of transformers' classifier."""
    return sum_of_losses(model(tokens, None if mask is None else mask.long()).logits, targets)


def make_trainer(model, kind, device, loss_of, optimizer="adamw"):
    """-> a function that makes a step of training: of a batch, the arguments of the model's forward
    pass, and the number of its targets. loss_of(model, *batch): the loss of a peer."""
    if kind in OURS:
        args = SimpleNamespace(dtype="auto", optimizer=optimizer, lr=1e-4, muon_lr=1e-4,
                               weight_decay=0.01, grad_clip=1.0, compile=None, pad_to=0)
        setup = training.set_up(model, args, device)
        if setup.compile:
            model.compile(dynamic=False)
        return lambda batch, n: training.training_step(model, [batch], n, setup, lr_factor=1.0)
    is_expert, on_gpu = kind == "expert", device.type == "cuda"
    dtype = training.fast_dtype(device) if is_expert else "float16" if on_gpu else "float32"
    adamw = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=is_expert)
    if is_expert:
        torch.set_float32_matmul_precision("high")
        loss_of = torch.compile(loss_of, dynamic=False, disable=not on_gpu)

    def step(batch, n_targets):
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = loss_of(model, *batch) / n_targets
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        if not is_expert:
            loss.item()
    return step


# ---- the contestants' steps ----------------------------------------------------------------------

def pretraining(kind, device, n_layer):
    """-> a function that trains on a batch of texts of 126 random tokens, and returns how many"""
    rng, n_texts, is_recipe = np.random.default_rng(0), 1000, kind == "recipe"
    tokens = rng.integers(VOCAB_SIZE, size=n_texts * (T - 2), dtype=np.uint16)
    corpus = Corpus(tokens, np.arange(0, len(tokens) + 1, T - 2), T, device)
    tokenizer = SimpleNamespace(cls=0, sep=1, pad=2, mask=3, n_plain=VOCAB_SIZE,
                                vocab_size=VOCAB_SIZE)
    loss_of = loss_everywhere if kind == "plain" else loss_at_positions
    train = make_trainer(make_model(kind, device, n_layer), kind, device, loss_of,
                         "muon" if is_recipe else "adamw")
    batch_size, mask_prob, n_candidates = (
        (2 * BATCH_SIZE, 0.4, 2048) if is_recipe else (BATCH_SIZE, 0.15, 0))

    def step():
        documents = rng.integers(n_texts, size=batch_size)
        batch = pretrain.draw_batch(corpus, documents, tokenizer, mask_prob, int(documents[0]),
                                    n_candidates=n_candidates)
        train(batch, batch.targets.numel())
        return batch.tokens.numel()
    return step


def finetuning(kind, device, n_layer, name):
    """-> a function that trains on the first eight batches of an epoch (plain, whose batches are
    all alike: on one), and returns how many examples that were"""
    dataset = Dataset(name)
    corpus = Corpus(*dataset.split("train"), T, device)
    pad_to = T if kind == "plain" else 32 if device.type == "cuda" else 8
    examples = finetune.Examples(corpus, dataset.labels("train"), dataset.tokenizer, pad_to)
    model = make_model(kind, device, n_layer, len(dataset.label_names),
                       dataset.tokenizer.vocab_size)
    train = make_trainer(model, kind, device, loss_of_classes)
    batches = make_batches(corpus.lengths, BATCH_SIZE, seed=0, epoch=0)
    batches = batches[:1 if kind == "plain" else 8]

    def step():
        for documents in batches:
            train(examples.batch(documents), len(documents))
        return sum(map(len, batches))
    return step


def answering(kind, device, n_layer, dtype):
    """-> a function that classifies a text of 128 tokens, by weights of this number format"""
    model = make_model(kind, device, n_layer, n_classes=14).to(getattr(torch, dtype)).eval()
    if device.type == "cuda":
        model = torch.compile(model, mode="reduce-overhead")
    tokens = torch.randint(1000, (1, T), device=device)

    @torch.no_grad()
    def step():
        model(tokens)
        return 1
    return step


TABLES = ["pretrain", "finetune", "latency"]


def main(argv=None):
    parser = new_parser("python -m experiments.bench", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    flag("tables", nargs="*", metavar="TABLE", help=f"of {' '.join(TABLES)}; by default all")
    flag("--n_layer", type=number(int, 1), nargs="+", default=[1, 6], help="depths")
    flag("--dataset", type=user_path, default="fewrel", help="prepared set of the table finetune")
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--repeats", type=number(int, 1), default=5, help="turns of two seconds, or one step")
    args = parser.parse_args(argv)
    if unknown := set(args.tables) - set(TABLES):
        raise SystemExit(f"unknown table {unknown.pop()}: choose from {' '.join(TABLES)}")
    device = training.pick_device(args.device)
    is_gpu, formats = device.type == "cuda", ["float32", training.fast_dtype(device)]
    name = torch.cuda.get_device_name() if is_gpu else f"{torch.get_num_threads()} threads"
    print(f"{device} ({name}), torch {torch.__version__}, {formats[-1]}")
    for table in args.tables or TABLES:
        for n_layer in args.n_layer:
            size = f"BERT-{n_layer}, {WIDTH} wide"
            if table == "pretrain":
                compare(f"pre-training, {size}, {BATCH_SIZE} x {T}, tokens/s", PEERS + OURS,
                        args.repeats, pretraining, device, n_layer)
            if table == "finetune":
                compare(f"fine-tuning on {args.dataset}, {size}, {BATCH_SIZE} a batch, examples/s",
                        PEERS + OURS, args.repeats, finetuning, device, n_layer, args.dataset)
            for dtype in dict.fromkeys(formats) if table == "latency" else []:
                compare(f"one text of {T} tokens, {size}, {dtype}, texts/s", ["expert", "ours"],
                        args.repeats, answering, device, n_layer, dtype)


if __name__ == "__main__":
    run_script(main)
