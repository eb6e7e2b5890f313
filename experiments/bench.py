"""Time this project against the plain way with transformers, in one run on one machine.

    python -m experiments.bench                                 # all; half an hour on two cores
    python -m experiments.bench pretrain finetune --n_layer 1   # only these

The plain way is what the paper's own code does: BertForMaskedLM with logits at all positions, or
BertForSequenceClassification, every text padded to 128, AdamW, reading the loss after every step;
on a GPU under float16 autocast, on a CPU in float32. Both sides have the paper's shape: 768 wide,
12 heads, a vocabulary of 30,522 in pre-training, and in fine-tuning the texts of a prepared set,
the same in the same order. They take turns, so that a machine whose speed drifts favours neither.
transformers is a development extra: pip install transformers.
"""
import functools
import itertools
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import committee
import finetune
import pretrain
from data.batches import Corpus, make_batches
from data.flags import new_parser, run_script
from data.tokenfile import open_labels, open_split, read_meta, write_dataset
from experiments import figures
from model import IGNORE, BertConfig, BertForClassification, BertForMaskedLM, flops_per_token

VOCAB_SIZE, T, MASK_PROB, BATCH_SIZE, WIDTH = 30522, 128, 0.15, 32, 768


# ---- measuring -----------------------------------------------------------------------------------

@functools.cache
def made(make, *args):
    """A contestant's step (function), made once in its process."""
    return make(*args)


def seconds_of(n, device, make, *args):
    """The seconds that one of n steps takes, finished on the device too."""
    step = made(make, *args)
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    wait()
    start = time.perf_counter()
    for _ in range(n):
        step()
    wait()
    return (time.perf_counter() - start) / n


def best_rate(n, device, make, batch_size, *args):
    """Tokens a second of pre-training: the best of three turns, after one that doesn't count."""
    seconds = [seconds_of(n, device, make, batch_size, *args) for _ in range(4)]
    return batch_size * T / min(seconds[1:])


def with_memory(function, *args):
    """-> what function(*args) returns, and the peak memory (bytes) that it takes in this process,
    a fresh one. (It starts with the peak of the one that started it, which must be small.)"""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    result = function(*args)
    if torch.cuda.is_available():
        return result, torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result, peak - pages * resource.getpagesize()


def fresh_process():
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def measure(function, *args):
    """-> the function's result and peak memory in a process of its own"""
    with fresh_process() as process:
        return process.submit(with_memory, function, *args).result()


def compare(title, contestants, device, repeats):
    """Print what each contestant does a second, against the first. Each lives in a process of its
    own, so that our settings of the process don't touch the plain way.

    contestants (dict): name -> (how many units of work a step is, steps a turn, function that makes
    the step, its arguments ...). The title ends in the unit. -> rates (dict, unit/s).
    """
    processes = {name: fresh_process() for name in contestants}
    rates = {name: [] for name in contestants}
    for turn in tqdm(range(repeats + 1), disable=None, leave=False):
        for name, (work, n, make, *args) in contestants.items():
            seconds = processes[name].submit(seconds_of, n, device, make, *args).result()
            if turn > 0:  # the first is the warm-up
                rates[name].append(work / seconds)
    for process in processes.values():
        process.shutdown()
    print(title)
    first, *_ = rates.values()
    for name, values in rates.items():
        ratios = [rate / base for rate, base in zip(values, first)]
        print(f"    {name:42s} {statistics.median(values):12,.1f}   "
              f"{statistics.median(ratios):6.2f}x ({min(ratios):.2f} to {max(ratios):.2f})",
              flush=True)
    return {name: statistics.median(values) for name, values in rates.items()}


# ---- training: our way and the plain one ---------------------------------------------------------

def our_autocast(device):
    dtype = pretrain.fast_dtype(device)
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")


def our_step(model, batches, device, dtype, optimizer="adamw"):
    """-> a function that makes a step of pretrain.py or finetune.py with the next of `batches`,
    the model's inputs, of which the targets are the last."""
    args = SimpleNamespace(dtype=dtype, optimizer=optimizer, lr=1e-4, muon_lr=1e-4,
                           weight_decay=0.01, grad_clip=1.0, compile=None, pad_to=0)
    setup = pretrain.set_up(model, args, device)
    if setup.compile:
        model.compile(dynamic=False)

    def step():
        batch = next(batches)
        n_targets = (batch[-1] != IGNORE).sum()
        pretrain.training_step(model, [batch], n_targets, setup, lr_factor=1.0)
    return step


def plain_step(model, batches, device):
    """-> the same as transformers' users write it, of batches (tokens, mask, labels)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def step():
        tokens, mask, labels = next(batches)
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            loss = model(tokens, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return step


# ---- the contestants: each -> a function that makes one step -------------------------------------

def our_masked(batch_size, device):
    generator, n = torch.Generator(device), torch.full((batch_size,), T - 2, device=device)
    tokenizer = SimpleNamespace(mask=3, n_words=VOCAB_SIZE)
    while True:
        tokens = torch.randint(VOCAB_SIZE, (batch_size, T), generator=generator, device=device)
        tokens, at, targets = pretrain.mask_tokens(tokens, n, MASK_PROB, tokenizer, generator)
        yield tokens, None, at, targets


def plain_masked(batch_size, device):
    while True:
        tokens = torch.randint(VOCAB_SIZE, (batch_size, T), device=device)
        chosen = torch.rand(tokens.shape, device=device) < MASK_PROB
        labels = torch.where(chosen, tokens, -100)
        yield torch.where(chosen, 103, tokens), torch.ones_like(tokens), labels


def our_pretraining(batch_size, n_layer, device, dtype="", optimizer="adamw", dropout=0.0,
                    n_embd=None):
    n_embd = n_embd or WIDTH
    pretrain.pick_device(device.type)  # with its settings for a CPU
    config = BertConfig(VOCAB_SIZE + 6, T, n_layer, n_embd // 64, n_embd, dropout=dropout,
                        pos="learned")
    return our_step(BertForMaskedLM(config).to(device), our_masked(batch_size, device), device,
                    dtype or "auto", optimizer)


def plain_config(n_layer, vocab_size, **options):
    import transformers  # not on top, here and below: our own rows need none
    return transformers.BertConfig(  # its dropout is 0.1
        vocab_size=vocab_size, num_hidden_layers=n_layer, num_attention_heads=WIDTH // 64,
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, **options)


def plain_pretraining(batch_size, n_layer, device):
    import transformers
    model = transformers.BertForMaskedLM(plain_config(n_layer, VOCAB_SIZE)).to(device)
    return plain_step(model.train(), plain_masked(batch_size, device), device)


def our_examples(dataset, device, pad_to=8):
    """Yield tokens, mask, labels of batch after batch, in the order of finetune.py."""
    tokenizer, _ = pretrain.open_tokenizer(dataset)
    corpus = Corpus(*open_split(dataset, "train"), T, device)
    labels = open_labels(dataset, "train")
    for epoch in itertools.count():
        for batch in make_batches(corpus.lengths, BATCH_SIZE, 0, epoch):
            tokens, _, mask = corpus.rows(batch, tokenizer, pad_to, BATCH_SIZE)
            n_missing = BATCH_SIZE - len(batch)
            targets = np.pad(labels[batch], (0, n_missing), constant_values=IGNORE)
            yield tokens, mask, torch.from_numpy(targets).to(device)


def plain_examples(dataset, device):
    for tokens, mask, labels in our_examples(dataset, device, pad_to=T):
        yield tokens, None if mask is None else mask.long(), labels


def our_classifier(n_layer, dataset, device, pooling):
    pretrain.pick_device(device.type)
    tokenizer, _ = pretrain.open_tokenizer(dataset)
    vocab_size = 64 * math.ceil(tokenizer.vocab_size / 64)
    config = BertConfig(vocab_size, T, n_layer, WIDTH // 64, WIDTH, dropout=0.1, pos="learned")
    n_classes = len(read_meta(dataset)["labels"])
    return BertForClassification(config, n_classes, pooling).to(device)


def plain_classifier(n_layer, dataset, device):
    meta = read_meta(dataset)
    config = plain_config(n_layer, meta["vocab_size"], num_labels=len(meta["labels"]))
    import transformers
    return transformers.BertForSequenceClassification(config).to(device)


def our_finetuning(n_layer, dataset, device, pooling, dtype):
    batches = our_examples(dataset, device, pad_to=32 if device.type == "cuda" else 8)
    return our_step(our_classifier(n_layer, dataset, device, pooling), batches, device, dtype)


def plain_finetuning(n_layer, dataset, device):
    model = plain_classifier(n_layer, dataset, device).train()
    return plain_step(model, plain_examples(dataset, device), device)


def texts_to_classify(dataset):
    """10,000 of the training texts, or all if there are fewer (numpy)."""
    return np.random.default_rng(0).permutation(len(open_labels(dataset, "train")))[:10_000]


def our_classifying(n_layer, dataset, device, pooling):
    """All of the texts, by finetune.py."""
    corpus = Corpus(*open_split(dataset, "train"), T, device)
    tokenizer, _ = pretrain.open_tokenizer(dataset)
    return functools.partial(
        finetune.classify, our_classifier(n_layer, dataset, device, pooling), corpus, tokenizer,
        our_autocast(device), texts_to_classify(dataset))


def plain_classifying(n_layer, dataset, device):
    """64 texts, in two batches."""
    model = plain_classifier(n_layer, dataset, device).eval()
    batches = plain_examples(dataset, device)

    @torch.no_grad()
    def step():
        for _ in range(64 // BATCH_SIZE):
            tokens, mask, _ = next(batches)
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                model(tokens, mask).logits.softmax(-1).cpu()
    return step


# ---- the rows of the table -----------------------------------------------------------------------

def print_utilisation(n_layer, rate, device):
    """What our rate (tokens/s) means in FLOP/s and, where known, as a share of the peak."""
    config = BertConfig(VOCAB_SIZE + 6, T, n_layer, WIDTH // 64, WIDTH)
    flops = 3 * rate * flops_per_token(config, T, round(MASK_PROB * (T - 2)) / T)
    peak = pretrain.peak_flops(device)
    share = f", {flops / peak:.0%} of the peak" if peak else ""
    print(f"    ours: {flops / 1e12:.2f} TFLOP/s{share}", flush=True)


def bench_pretrain(args, device, n_layer):
    work, sizes = BATCH_SIZE * T, (BATCH_SIZE, n_layer, device)
    title = f"pre-training, BERT-{n_layer}, {WIDTH} wide, batch {BATCH_SIZE} x {T}, tokens/s"
    rates = compare(title, {
        "transformers": (work, 1, plain_pretraining, *sizes),
        "ours, AdamW, dropout 0.1": (work, 2, our_pretraining, *sizes, "", "adamw", 0.1),
        "ours, AdamW": (work, 2, our_pretraining, *sizes),
        "ours, Muon": (work, 2, our_pretraining, *sizes, "", "muon"),
        "ours, AdamW, float32": (work, 1, our_pretraining, *sizes, "float32"),
    }, device, args.repeats)
    print_utilisation(n_layer, rates["ours, AdamW"], device)


def bench_batch(args, device, n_layer):
    sizes, n = ((32, 128, 512), 10) if device.type == "cuda" else ((8, 16, 32, 64), 1)
    print(f"pre-training, BERT-{n_layer}, {WIDTH} wide, by batch size: tokens/s, peak memory")
    best = []
    for name, make in [("transformers", plain_pretraining), ("ours, AdamW", our_pretraining)]:
        rates = []
        for size in sizes:
            rate, memory = measure(best_rate, n, device, make, size, n_layer, device)
            rates.append(rate)
            print(f"    {name:42s} {size:5}: {rate:9,.0f} {memory / 1e6:9,.0f} MB", flush=True)
        best.append(max(rates))
    print(f"    each at its best: {best[1] / best[0]:.1f}x")
    print_utilisation(n_layer, best[1], device)


def bench_finetune(args, device, n_layer):
    sizes = n_layer, args.dataset, device
    # The plain way's steps all cost the same; ours depend on the lengths: more make a turn.
    contestants = {"transformers": (BATCH_SIZE, 1, plain_finetuning, *sizes)}
    dtypes = pretrain.fast_dtype(device), "float32"
    for pooling, dtype in itertools.product(("cls", "mean"), dtypes):
        contestants[f"ours, {pooling}, {dtype}"] = (
            BATCH_SIZE, 8, our_finetuning, *sizes, pooling, dtype)
    compare(f"fine-tuning on {args.dataset}, BERT-{n_layer}, {WIDTH} wide, batch {BATCH_SIZE}, "
            "examples/s", contestants, device, args.repeats)


def bench_classify(args, device, n_layer):
    n, sizes = len(texts_to_classify(args.dataset)), (n_layer, args.dataset, device)
    title = f"classifying {n:,} texts of {args.dataset}, BERT-{n_layer}, {WIDTH} wide, texts/s"
    compare(title, {
        "transformers, 64 at a time": (64, 1, plain_classifying, *sizes),
        "ours, cls, all at once": (n, 1, our_classifying, *sizes, "cls"),
        "ours, mean, all at once": (n, 1, our_classifying, *sizes, "mean"),
    }, device, repeats=2)


def bench_latency(args, device):
    def classifier(n_layer):
        config = BertConfig(VOCAB_SIZE + 6, T, n_layer, WIDTH // 64, WIDTH)
        return BertForClassification(config, 14, "cls").to(device).eval()

    print(f"latency of BERT-6 (deep) and BERT-1, {WIDTH} wide, texts of {T} tokens, texts/s")
    rows = committee.measure_latency([classifier(1) for _ in range(6)], classifier(6), device)
    for row in rows:
        print(f"    {row['name']:42s} {1 / row['seconds_1']:12,.1f}   "
              f"{rows[0]['seconds_1'] / row['seconds_1']:6.2f}x", flush=True)


def bench_data(args, device):
    tokenizer, _ = pretrain.open_tokenizer(args.corpus)
    tokens, offsets = open_split(args.corpus, "train")
    spans = itertools.pairwise(offsets[:20_001])
    texts = [tokenizer.decode(tokens[start:end].tolist()) for start, end in spans]
    items = [("val" if i < 100 else "train", text) for i, text in enumerate(texts)]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            start = time.perf_counter()
            write_dataset(f"{folder}/bench", items, tokenizer, {})
            seconds.append(time.perf_counter() - start)
    size = sum(len(text.encode()) for text in texts) / 1e6
    rate = size / min(seconds)
    print(f"data preparation: {len(texts):,} articles, {size:.1f} MB of text to token files, "
          f"{rate:.1f} MB/s, {rate / os.cpu_count():.1f} a core", flush=True)


def bench_startup(args, device):
    with tempfile.TemporaryDirectory() as folder:
        run = ["--n_layer=1", "--epochs=0.001", f"--out_dir={folder}/run", f"--device={device}"]
        for title, flags in {"--help": ["--help"],
                             "prepare the corpus, one step, evaluate twice, save": run}.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "pretrain.py", *flags], check=True, capture_output=True)
            print(f"python pretrain.py, {title}: {time.perf_counter() - start:.1f} s", flush=True)


def pretrain_on_random_words(n_docs):
    """Forty steps of pretrain.py on so many documents. -> tokens/s, peak memory in bytes"""
    tokenizer, rng = pretrain.get_tokenizer(), np.random.default_rng(0)
    words = [tokenizer.decode([token]) for token in rng.integers(tokenizer.n_words, size=5000)]
    items = (("val" if i < 100 else "train", " ".join(rng.choice(words, 150)))
             for i in range(n_docs + 100))
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(f"{folder}/corpus", items, tokenizer, {})
        last, memory = measure(pretrain.main, [
            f"--dataset={folder}/corpus", "--n_layer=1", "--n_embd=64", "--batch_size=32",
            f"--epochs={40 * 32 / n_docs}", f"--out_dir={folder}/run"])
    return last["tokens"] / last["seconds"], memory


def bench_scaling(args, device):
    """Time and memory of our steps against batch size, width and number of articles."""
    def steps(batch_size, n_embd):
        return measure(best_rate, 3, device, our_pretraining, batch_size, 1, device, "", "adamw",
                       0.0, n_embd)

    points = {
        "batch size": [(size, *steps(size, 256)) for size in (8, 16, 32, 64, 128, 256)],
        "width": [(width, *steps(32, width)) for width in (64, 128, 256, 512, 1024)],
        "articles": [(n, *pretrain_on_random_words(n)) for n in (10_000, 100_000)]}
    for axis, rows in points.items():
        print(f"{axis:>12s}     tokens/s    peak memory")
        for x, rate, memory in rows:
            print(f"{x:12,} {rate:12,.0f} {memory / 1e6:11,.0f} MB", flush=True)
    try:
        figures.draw_scaling(points, Path(__file__).parent / "figures" / "scaling.png")
    except ImportError:
        print("no plot: pip install matplotlib")


BY_DEPTH = {"pretrain": bench_pretrain, "batch": bench_batch, "finetune": bench_finetune,
            "classify": bench_classify}
ONCE = {"latency": bench_latency, "data": bench_data, "startup": bench_startup,
        "scaling": bench_scaling}


def main(argv=None):
    parser = new_parser("python -m experiments.bench", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    names = [*BY_DEPTH, *ONCE]
    flag("rows", nargs="*", metavar="ROW", help=f"of {' '.join(names)}; by default all")
    flag("--n_layer", type=int, nargs="+", default=[1, 6], help="depths")
    flag("--dataset", default="fewrel", help="classification set of finetune and classify")
    flag("--corpus", default="wikipedia-20000", help="prepared corpus that the row data encodes")
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--repeats", type=int, default=5, help="turns, after one that doesn't count")
    args = parser.parse_args(argv)
    for name in args.rows:
        if name not in names:
            raise SystemExit(f"unknown row {name}: choose from {' '.join(names)}")
    device = pretrain.pick_device(args.device)
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name() if is_cuda else f"{torch.get_num_threads()} threads"
    print(f"{device} ({name}), torch {torch.__version__}, {pretrain.fast_dtype(device)}")
    torch.set_float32_matmul_precision("high")
    for name in args.rows or names:
        if name in ONCE:
            ONCE[name](args, device)
        else:
            for n_layer in args.n_layer:
                BY_DEPTH[name](args, device, n_layer)


if __name__ == "__main__":
    run_script(main)
