"""Time this project against the plain way with transformers, in one run on one machine.

    python -m experiments.bench                                 # every row; about half an hour on two cores
    python -m experiments.bench pretrain finetune --n_layer 1   # only these

The plain way is what the paper's own code does: BertForMaskedLM with logits at all positions, or
BertForSequenceClassification, every text padded to 128, AdamW, reading the loss after every step; on a GPU under
float16 autocast, on a CPU in float32. Both sides have the paper's shape: 768 wide, 12 heads, a vocabulary of 30,522 in
pre-training, and in fine-tuning the texts of a prepared set, the same in the same order. They take turns, so that a
machine whose speed drifts favours neither. transformers is a development extra: pip install transformers.
"""
import itertools
import json
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
from data.tokenfile import open_labels, open_split, read_meta, write_dataset
from model import IGNORE, BertConfig, BertForClassification, BertForMaskedLM, flops_per_token

VOCAB_SIZE, T, MASK_PROB, BATCH_SIZE = 30522, 128, 0.15, 32


# ---- measuring -------------------------------------------------------------------------------------------------------

def seconds_of(step, n, device):
    """Seconds that one of n calls of step() takes, finished on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(n):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / n


def hold(make, *args):
    """In a contestant's process: make its step."""
    global step
    step = make(*args)


def run(n, device):
    """In a contestant's process: n of its steps. -> seconds a step"""
    return seconds_of(step, n, device)


def in_a_fresh_process(function, *args):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def compare(title, contestants, device, repeats):
    """Print what each contestant does a second, against the first. contestants (dict): name -> (how many units of work
    a step is, steps a turn, function that makes the step, its arguments ...). The title ends in the unit. Each lives in
    a process of its own, so that our settings of the process don't touch the plain way. -> rates (dict, unit/s)."""
    pools, seconds = {}, {name: [] for name in contestants}
    for name, (_, _, make, *args) in contestants.items():
        pools[name] = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pools[name].submit(hold, make, *args).result()
    for turn in tqdm(range(repeats + 1), disable=None, leave=False):  # the first is the warm-up
        for name, pool in pools.items():
            seconds[name].append(pool.submit(run, contestants[name][1], device).result())
    for pool in pools.values():
        pool.shutdown()
    rates = {name: [contestants[name][0] / s for s in values[1:]] for name, values in seconds.items()}
    print(title)
    for name, values in rates.items():
        ratios = [rate / base for rate, base in zip(values, next(iter(rates.values())))]
        print(f"    {name:42s} {statistics.median(values):12,.1f}   {statistics.median(ratios):6.2f}x "
              f"({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return {name: statistics.median(values) for name, values in rates.items()}


def memory_in_use(function, *args):
    """Call function(*args) in this process, which is a fresh one -> peak memory that it took, in bytes. (A process
    starts with the peak of the one that started it: that one must have remained small.)"""
    if torch.cuda.is_available():
        function(*args)
        return torch.cuda.max_memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    function(*args)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()


# ---- the contestants -------------------------------------------------------------------------------------------------

def ours(n_layer, batch_size, device, dtype="auto", optimizer="adamw", dropout=0.0, n_embd=768):
    """-> a function that makes one pre-training step: masking, forward, backward, clipping, update."""
    pretrain.pick_device(device.type)  # with its settings for a CPU
    config = BertConfig(VOCAB_SIZE + 6, T, n_layer, n_embd // 64, n_embd, dropout=dropout, pos="learned")
    model, dtype = BertForMaskedLM(config).to(device), pretrain.fast_dtype(device) if dtype == "auto" else dtype
    optimizers = pretrain.make_optimizers(model, optimizer, 1e-4, 1e-4, 0.01, device, dtype)
    autocast = torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    tokenizer = SimpleNamespace(mask=3, n_words=VOCAB_SIZE)
    n = torch.full((batch_size,), T - 2, device=device)
    generator = torch.Generator(device).manual_seed(0)
    if device.type == "cuda":
        model.compile(dynamic=False)

    def step():
        tokens = torch.randint(VOCAB_SIZE, (batch_size, T), generator=generator, device=device)
        tokens, at, targets = pretrain.mask_tokens(tokens, n, MASK_PROB, tokenizer, generator)
        with autocast:
            loss = model(tokens, None, at, targets) / (targets != IGNORE).sum()
        loss.backward()
        pretrain.update(model, optimizers, scaler, 1.0, 1.0)
    return step


def plain(n_layer, batch_size, device):
    """-> the same step as transformers' users write it."""
    import transformers
    config = transformers.BertConfig(vocab_size=VOCAB_SIZE, num_hidden_layers=n_layer)  # else BERT-base, dropout 0.1
    model = transformers.BertForMaskedLM(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def step():
        tokens = torch.randint(VOCAB_SIZE, (batch_size, T), device=device)
        masked = torch.rand(tokens.shape, device=device) < MASK_PROB
        labels = torch.where(masked, tokens, -100)
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            loss = model(torch.where(masked, 103, tokens), torch.ones_like(tokens), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return step


def steps_of(make, *args):
    """Two steps of a contestant: the process for which memory is asked."""
    step = make(*args)
    for _ in range(2):
        step()


def examples(dataset, device, pad_to):
    """Yield tokens, mask, labels of batch after batch, in the order of finetune.py."""
    tokenizer, _ = pretrain.open_tokenizer(dataset)
    corpus, labels = Corpus(*open_split(dataset, "train"), T, device), open_labels(dataset, "train")
    for epoch in itertools.count():
        for batch in make_batches(corpus.lengths, BATCH_SIZE, 0, epoch):
            tokens, _, mask = corpus.rows(batch, tokenizer, pad_to, BATCH_SIZE)
            yield tokens, mask, torch.from_numpy(np.pad(labels[batch], (0, len(tokens) - len(batch)))).to(device)


def classifier_config(n_layer, dataset):
    vocab_size = pretrain.open_tokenizer(dataset)[0].vocab_size
    return BertConfig(-(-vocab_size // 64) * 64, T, n_layer, 12, 768, dropout=0.1, pos="learned")


def ours_classifier(n_layer, dataset, device, dtype, pooling, training=True):
    """-> a function that makes one step of fine-tuning or, if not training, classifies 10,000 texts."""
    pretrain.pick_device(device.type)
    model = BertForClassification(classifier_config(n_layer, dataset), len(read_meta(dataset)["labels"]), pooling)
    model.to(device)
    autocast = torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")
    if not training:
        tokenizer, documents = pretrain.open_tokenizer(dataset)[0], some_documents(dataset)
        corpus = Corpus(*open_split(dataset, "train"), T, device)
        return lambda: finetune.classify(model, corpus, tokenizer, autocast, documents)
    optimizers = pretrain.make_optimizers(model, "adamw", 1e-4, 1e-4, 0.01, device, dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    batches = examples(dataset, device, pad_to=32 if device.type == "cuda" else 8)
    if device.type == "cuda":
        model.compile(dynamic=False)

    def step():
        tokens, mask, labels = next(batches)
        with autocast:
            loss = model(tokens, mask, labels) / len(labels)
        loss.backward()
        pretrain.update(model, optimizers, scaler, 1.0, 1.0)
    return step


def plain_classifier(n_layer, dataset, device, training=True):
    """-> the same step as transformers' users write it; if not training, one that classifies 64 texts."""
    import transformers
    config = classifier_config(n_layer, dataset)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=config.vocab_size, num_hidden_layers=n_layer, num_attention_heads=config.n_head,
        hidden_size=config.n_embd, intermediate_size=4 * config.n_embd,
        num_labels=len(read_meta(dataset)["labels"]))).to(device).train(training)
    autocast = torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    batches = examples(dataset, device, pad_to=T)

    @torch.no_grad()
    def classify():
        for _ in range(64 // BATCH_SIZE):
            tokens, mask, _ = next(batches)
            with autocast:
                model(tokens, None if mask is None else mask.long()).logits.softmax(-1).cpu()

    def step():
        tokens, mask, labels = next(batches)
        with autocast:
            loss = model(tokens, None if mask is None else mask.long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return step if training else classify


def classify_one(n_members, n_layer, stacked, device):
    """-> a function that classifies one text of T tokens by a committee."""
    pretrain.pick_device(device.type)
    config = BertConfig(30528, T, n_layer, 12, 768)
    models = [BertForClassification(config, 14, "cls").to(device).eval() for _ in range(n_members)]
    function = committee.stack(models) if stacked else committee.one_after_the_other(models)
    if device.type == "cuda":
        function = torch.compile(function, mode="reduce-overhead")
    tokens = torch.randint(1000, (1, T), device=device)
    return torch.no_grad()(lambda: function(tokens))


# ---- the rows of the table -------------------------------------------------------------------------------------------

def bench_pretrain(args, device):
    for n_layer in args.n_layer:
        work, sizes = BATCH_SIZE * T, (n_layer, BATCH_SIZE, device)
        rates = compare(f"pre-training, BERT-{n_layer}, 768 wide, batch {BATCH_SIZE} x {T}, tokens/s", {
            "transformers": (work, 1, plain, *sizes),
            "ours, AdamW, dropout 0.1": (work, 2, ours, *sizes, "auto", "adamw", 0.1),
            "ours, AdamW": (work, 2, ours, *sizes),
            "ours, Muon": (work, 2, ours, *sizes, "auto", "muon"),
            "ours, AdamW, float32": (work, 1, ours, *sizes, "float32")}, device, args.repeats)
        print_utilisation(n_layer, rates["ours, AdamW"], device)


def print_utilisation(n_layer, rate, device):
    """What our rate (tokens/s) of the 768-wide model means in FLOP/s and, where known, as a share of the peak."""
    config = BertConfig(VOCAB_SIZE + 6, T, n_layer, 12, 768)
    flops = 3 * rate * flops_per_token(config, T, round(MASK_PROB * (T - 2)) / T)
    peak = pretrain.peak_flops(device)
    print(f"    ours: {flops / 1e12:.2f} TFLOP/s" + (f", {flops / peak:.0%} of the peak" if peak else ""), flush=True)


def best_rate(n, make, n_layer, batch_size, device, *args):
    """Tokens a second: the best of three turns of n steps, after a step that doesn't count."""
    step = make(n_layer, batch_size, device, *args)
    step()
    return batch_size * T / min(seconds_of(step, n, device) for _ in range(3))


def bench_batch(args, device):
    sizes, n = ((32, 128, 512), 10) if device.type == "cuda" else ((8, 16, 32, 64), 1)
    for n_layer in args.n_layer:
        print(f"pre-training, BERT-{n_layer}, 768 wide, tokens/s by batch size")
        best = []
        for name, make in [("transformers", plain), ("ours, AdamW", ours)]:
            rates = {size: in_a_fresh_process(best_rate, n, make, n_layer, size, device) for size in sizes}
            print(f"    {name:42s}" + "".join(f"{size:5}: {rate:9,.0f}" for size, rate in rates.items()))
            best.append(max(rates.values()))
        print(f"    each at its best: {best[1] / best[0]:.1f}x")
        print_utilisation(n_layer, best[1], device)


def bench_finetune(args, device):
    for n_layer in args.n_layer:
        # The plain way's steps all cost the same; ours depend on the lengths, so more of them make a turn.
        contestants = {"transformers": (BATCH_SIZE, 1, plain_classifier, n_layer, args.dataset, device)}
        for pooling, dtype in itertools.product(("cls", "mean"), (pretrain.fast_dtype(device), "float32")):
            contestants[f"ours, {pooling}, {dtype}"] = (BATCH_SIZE, 8, ours_classifier, n_layer, args.dataset, device,
                                                        dtype, pooling)
        compare(f"fine-tuning on {args.dataset}, BERT-{n_layer}, 768 wide, batch {BATCH_SIZE}, examples/s", contestants,
                device, args.repeats)


def some_documents(dataset):
    """10,000 of the training texts, or all if there are fewer (numpy)."""
    return np.random.default_rng(0).permutation(len(open_labels(dataset, "train")))[:10_000]


def bench_classify(args, device):
    n, dtype = len(some_documents(args.dataset)), pretrain.fast_dtype(device)
    for n_layer in args.n_layer:
        contestants = {"transformers, 64 at a time": (64, 1, plain_classifier, n_layer, args.dataset, device, False)}
        for pooling in ("cls", "mean"):
            contestants[f"ours, {pooling}, all at once"] = (n, 1, ours_classifier, n_layer, args.dataset, device, dtype,
                                                            pooling, False)
        compare(f"classifying {n:,} texts of {args.dataset}, BERT-{n_layer}, 768 wide, texts/s", contestants, device, 2)


def bench_latency(args, device):
    compare(f"latency, a text of {T} tokens, 768 wide, texts/s", {
        "BERT-6": (1, 10, classify_one, 1, 6, False, device),
        "one BERT-1": (1, 10, classify_one, 1, 1, False, device),
        "6 BERT-1, one after the other": (1, 10, classify_one, 6, 1, False, device),
        "6 BERT-1, stacked": (1, 10, classify_one, 6, 1, True, device)}, device, max(10, args.repeats))


def bench_memory(args, device):
    takes = [in_a_fresh_process(memory_in_use, steps_of, make, 1, BATCH_SIZE, device) for make in (plain, ours)]
    print(f"peak memory of pre-training steps, BERT-1, 768 wide, batch {BATCH_SIZE} x {T}: transformers "
          f"{takes[0] / 1e6:,.0f} MB, ours {takes[1] / 1e6:,.0f} MB, {takes[1] / takes[0]:.2f}x", flush=True)


def bench_data(args, device):
    tokenizer, _ = pretrain.open_tokenizer(args.corpus)
    tokens, offsets = open_split(args.corpus, "train")
    texts = [tokenizer.decode(tokens[a:b].tolist()) for a, b in zip(offsets[:20_000], offsets[1:])]
    items = [("val" if i < 100 else "train", text) for i, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        seconds = [seconds_of(lambda: write_dataset(Path(folder) / "bench", items, tokenizer, {}), 1, device)
                   for _ in range(3)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"data preparation: {len(texts):,} articles, {size:.1f} MB of text to token files, "
          f"{size / min(seconds):.1f} MB/s, {size / min(seconds) / os.cpu_count():.1f} a core", flush=True)


def bench_startup(args, device):
    with tempfile.TemporaryDirectory() as folder:
        for title, flags in [("--help", ["--help"]), ("prepare the corpus, one step, evaluate twice, save",
                             ["--n_layer=1", "--epochs=0.001", f"--out_dir={folder}/run", f"--device={args.device}"])]:
            start = time.perf_counter()
            subprocess.run([sys.executable, "pretrain.py", *flags], check=True, capture_output=True)
            print(f"python pretrain.py, {title}: {time.perf_counter() - start:.1f} s", flush=True)


def pretrain_steps(folder, n_steps, n_docs):
    """A few steps of pretrain.py on a corpus in `folder`."""
    pretrain.main([f"--dataset={folder}", "--n_layer=1", "--n_embd=64", f"--epochs={n_steps * 32 / n_docs}",
                   f"--out_dir={folder}/run"])


def bench_scaling(args, device):
    """Time and memory of our steps against batch size, width and number of articles; a figure, with matplotlib."""
    points = {"batch size": [], "width": [], "articles": []}
    for axis, x, batch_size, n_embd in [*(("batch size", size, size, 256) for size in (8, 16, 32, 64, 128, 256)),
                                        *(("width", width, 32, width) for width in (64, 128, 256, 512, 1024))]:
        setting = (ours, 1, batch_size, device, "auto", "adamw", 0.0, n_embd)
        points[axis].append((x, in_a_fresh_process(best_rate, 3, *setting),
                             in_a_fresh_process(memory_in_use, steps_of, *setting)))
    tokenizer, rng = pretrain.get_tokenizer(), np.random.default_rng(0)
    words = [tokenizer.decode([token]) for token in rng.integers(tokenizer.n_words, size=5000)]
    for n_docs in (10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            items = (("val" if i < 100 else "train", " ".join(rng.choice(words, 150))) for i in range(n_docs + 100))
            write_dataset(Path(folder) / "corpus", items, tokenizer, {})
            memory = in_a_fresh_process(memory_in_use, pretrain_steps, f"{folder}/corpus", 40, n_docs)
            row = json.loads((Path(folder) / "corpus" / "run" / "log.jsonl").read_text().splitlines()[-1])
        points["articles"].append((n_docs, row["tokens"] / row["seconds"], memory))
    for axis, rows in points.items():
        print(f"{axis:>12s}     tokens/s    peak memory")
        for x, rate, memory in rows:
            print(f"{x:12,} {rate:12,.0f} {memory / 1e6:11,.0f} MB", flush=True)
    try:
        plot_scaling(points)
    except ImportError:
        print("no plot: pip install matplotlib")


def plot_scaling(points):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, len(points), figsize=(8, 4.5), layout="constrained", sharey="row")
    for (name, rows), (top, bottom) in zip(points.items(), axes.T):
        x, rate, memory = zip(*rows)
        top.plot(x, rate, "o-k")
        bottom.plot(x, [m / 1e6 for m in memory], "s-k")
        top.set(xscale="log", yscale="log")
        bottom.set(xscale="log", xlabel=name, ylim=(0, None))
        for each in (top, bottom):
            each.set_xticks(x, [f"{v:,}" for v in x])
            each.minorticks_off()
    axes[0, 0].set_ylabel("training, tokens/s")
    axes[1, 0].set_ylabel("peak memory, MB")
    path = Path(__file__).parent / "figures" / "scaling.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=200)
    print(f"wrote {path}")


ROWS = {"pretrain": bench_pretrain, "batch": bench_batch, "finetune": bench_finetune, "classify": bench_classify,
        "latency": bench_latency, "memory": bench_memory, "data": bench_data, "startup": bench_startup,
        "scaling": bench_scaling}


def main(argv=None):
    parser = pretrain.new_parser(__doc__.split("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {' '.join(ROWS)}; by default all")
    parser.add_argument("--n_layer", type=int, nargs="+", default=[1, 6], help="depths")
    parser.add_argument("--dataset", default="fewrel", help="prepared classification set of finetune and classify")
    parser.add_argument("--corpus", default="wikipedia-20000", help="prepared corpus whose texts the row data encodes")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu or auto")
    parser.add_argument("--repeats", type=int, default=5, help="turns, after one that doesn't count")
    args = parser.parse_args(argv)
    if unknown := set(args.rows) - ROWS.keys():
        raise SystemExit(f"unknown row {unknown.pop()}: choose from {' '.join(ROWS)}")
    device = pretrain.pick_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{device} ({name}), torch {torch.__version__}, {pretrain.fast_dtype(device)}")
    torch.set_float32_matmul_precision("high")
    for row in args.rows or ROWS:
        ROWS[row](args, device)


if __name__ == "__main__":
    main()
