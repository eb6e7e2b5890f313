"""Time this project's training step against the plain way with transformers, in one run on one machine.

    python -m experiments.bench --n_layer=1

Both train the paper's 768-wide model with its vocabulary of 30,522 on rows of 128 real tokens, and take turns, so that
a machine whose speed drifts favours neither. The plain way is what the paper's own code does: BertForMaskedLM, logits
at all positions, AdamW, and reading the loss after every step. It is a development extra: pip install transformers.
"""
import argparse
import statistics
import time

import torch

import pretrain
from model import IGNORE, BertConfig, BertForMaskedLM

VOCAB_SIZE, T, MASK_PROB = 30522, 128, 0.15


def ours(n_layer, batch_size, device, dtype, optimizer, dropout):
    """-> a function that makes one training step: masking, forward, backward, clipping, update."""
    model = BertForMaskedLM(BertConfig(VOCAB_SIZE + 6, T, n_layer, 12, 768, dropout=dropout, pos="learned")).to(device)
    optimizers = pretrain.make_optimizers(model, optimizer, 1e-4, 1e-4, 0.01, device)
    autocast = torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
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


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n_layer", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="turns; each is two steps of every contestant")
    args = parser.parse_args(argv)
    device = pretrain.pick_device(args.device)
    dtype = pretrain.pick_dtype("auto", device)
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
    print(f"BERT-{args.n_layer}, 768 wide, batch {args.batch_size} x {T}, {device}, torch {torch.__version__}")
    for name, values in seconds.items():
        ratios = [b / v for b, v in zip(base, values)]
        print(f"{name:40s} {statistics.median(values) * 1e3:8.0f} ms/step "
              f"{args.batch_size * T / statistics.median(values):9,.0f} tokens/s   {statistics.median(ratios):5.1f}x "
              f"({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
