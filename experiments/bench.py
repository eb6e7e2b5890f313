"""Time this project's training step against the plain way with transformers, in one run on one machine.

    python -m experiments.bench --n_layer=1                     # pre-training
    python -m experiments.bench --n_layer=1 --dataset=fewrel    # fine-tuning on a prepared classification set

In pre-training both train the paper's 768-wide model with its vocabulary of 30,522 on rows of 128 real tokens; in
fine-tuning on the set's own texts, the same in the same order. They take turns, so that a machine whose speed drifts
favours neither. The plain way is what the paper's own code does: BertForMaskedLM, logits at all positions, or
BertForSequenceClassification, every text padded to 128, AdamW, and reading the loss after every step. transformers is
a development extra: pip install transformers.
"""
import argparse
import itertools
import statistics
import time

import torch

import pretrain
from data.batches import Corpus, make_batches
from data.tokenfile import open_labels, open_split, read_meta
from model import IGNORE, BertConfig, BertForClassification, BertForMaskedLM

VOCAB_SIZE, T, MASK_PROB = 30522, 128, 0.15


def ours(n_layer, batch_size, device, dtype, optimizer, dropout):
    """-> a function that makes one training step: masking, forward, backward, clipping, update."""
    model = BertForMaskedLM(BertConfig(VOCAB_SIZE + 6, T, n_layer, 12, 768, dropout=dropout, pos="learned")).to(device)
    optimizers = pretrain.make_optimizers(model, optimizer, 1e-4, 1e-4, 0.01, device)
    autocast = torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    tokenizer = argparse.Namespace(mask=3, n_words=VOCAB_SIZE)
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
    """-> the same step as transformers' users write it; on a GPU under autocast, on a CPU in float32."""
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


def examples(dataset, batch_size, device, pad_to_128):
    """Yield tokens, mask, labels of batch after batch, in the order of finetune.py; padded little, or all to 128."""
    tokenizer, _ = pretrain.open_tokenizer(dataset)
    corpus, labels = Corpus(*open_split(dataset, "train"), T, device), open_labels(dataset, "train")
    for epoch in itertools.count():
        for batch in make_batches(corpus.lengths, batch_size, 0, epoch):
            tokens, _, mask = corpus.rows(batch, tokenizer, T if pad_to_128 else 8)
            yield tokens, mask, torch.from_numpy(labels[batch]).to(device)


def ours_classifier(config, dataset, batch_size, device, dtype, pooling):
    """-> a function that makes one step of fine-tuning."""
    model = BertForClassification(config, len(read_meta(dataset)["labels"]), pooling).to(device)
    optimizers = pretrain.make_optimizers(model, "adamw", 1e-4, 1e-4, 0.01, device)
    autocast = torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    batches = examples(dataset, batch_size, device, pad_to_128=False)

    def step():
        tokens, mask, labels = next(batches)
        with autocast:
            loss = model(tokens, mask, labels) / len(labels)
        loss.backward()
        pretrain.update(model, optimizers, scaler, 1.0, 1.0)
    return step


def plain_classifier(config, dataset, batch_size, device):
    """-> the same step as transformers' users write it."""
    import transformers
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=config.vocab_size, num_hidden_layers=config.n_layer, num_attention_heads=config.n_head,
        hidden_size=config.n_embd, intermediate_size=4 * config.n_embd, num_labels=len(read_meta(dataset)["labels"])))
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    batches = examples(dataset, batch_size, device, pad_to_128=True)

    def step():
        tokens, mask, labels = next(batches)
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            loss = model(tokens, None if mask is None else mask.long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return step


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n_layer", type=int, default=1)
    parser.add_argument("--n_embd", type=int, default=768, help="in fine-tuning")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dataset", help="time fine-tuning on this classification set, instead of pre-training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="turns; each is two steps of every contestant")
    args = parser.parse_args(argv)
    device = pretrain.pick_device(args.device)
    dtype = pretrain.pick_dtype("auto", device)
    if args.dataset:
        title, per_row, unit = f"fine-tuning on {args.dataset}, {args.n_embd} wide", 1, "examples/s"
        config = BertConfig(pretrain.open_tokenizer(args.dataset)[0].vocab_size, T, args.n_layer, args.n_embd // 64,
                            args.n_embd, dropout=0.1, pos="learned")
        contestants = {"transformers, plain": plain_classifier(config, args.dataset, args.batch_size, device)}
        for pooling, number in itertools.product(("mean", "cls"), (dtype, "float32")):
            contestants[f"ours, {pooling}, {number}"] = ours_classifier(config, args.dataset, args.batch_size, device,
                                                                        number, pooling)
    else:
        title, per_row, unit = "pre-training, 768 wide", T, "tokens/s"
        contestants = {
            "transformers, plain": plain(args.n_layer, args.batch_size, device),
            f"ours, AdamW, dropout 0.1, {dtype}": ours(args.n_layer, args.batch_size, device, dtype, "adamw", 0.1),
            f"ours, AdamW, {dtype}": ours(args.n_layer, args.batch_size, device, dtype, "adamw", 0.0),
            f"ours, Muon, {dtype}": ours(args.n_layer, args.batch_size, device, dtype, "muon", 0.0),
            "ours, AdamW, float32": ours(args.n_layer, args.batch_size, device, "float32", "adamw", 0.0)}
    seconds = {name: [] for name in contestants}
    for turn in range(args.repeats + 1):  # the first is the warm-up
        for name, step in contestants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(2):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((time.perf_counter() - start) / 2)
    base = seconds["transformers, plain"]
    print(f"BERT-{args.n_layer}, {title}, batch {args.batch_size} x {T}, {device}, torch {torch.__version__}")
    for name, values in seconds.items():
        ratios, median = [b / v for b, v in zip(base, values)], statistics.median(values)
        print(f"{name:40s} {median * 1e3:8.0f} ms/step {args.batch_size * per_row / median:9,.0f} {unit}   "
              f"{statistics.median(ratios):5.1f}x ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
