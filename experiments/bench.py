"""Time pre-training by this project's code and by transformers' BERT, both learning the same task.

    python -m experiments.bench                    # one and six layers; minutes on a CPU
    python -m experiments.bench --n_layer 6 --n_embd 256

How long it takes until a model is good is another question, and experiments/race.py answers it.
Here both train with AdamW, without dropout, on texts of 128 tokens, 15 % of them masked. Logits are
of the masked positions and the whole vocabulary, products in the device's fastest number format.
Ours computes the last layer at the masked positions only, which is most of its lead.
Both take turns, so that a machine whose speed drifts favours neither. A rate is that of the best
turn, which other work on the machine disturbs least; in brackets are the least and the largest
ratio of a turn.
"""
import time
from types import SimpleNamespace

import numpy as np
import torch

import pretrain
import training
from data.batches import Corpus
from data.flags import new_parser, number, run_script
from experiments.race import Peer
from experiments.reproduce import machine
from model import BertConfig, BertForMaskedLM

VOCAB_SIZE, BATCH_SIZE, T = 30528, 32, 128
MODELS = {"transformers": Peer, "ours": BertForMaskedLM}
TURN = 2  # seconds


def make_step(model_class, device, args):
    """-> a function that trains on a batch of texts of 126 random tokens, and returns how many
    tokens that were"""
    rng, n_texts = np.random.default_rng(0), 1000
    tokens = rng.integers(VOCAB_SIZE, size=n_texts * (T - 2), dtype=np.uint16)
    corpus = Corpus(tokens, np.arange(0, len(tokens) + 1, T - 2), T, device)
    tokenizer = SimpleNamespace(cls=0, sep=1, pad=2, mask=3, n_plain=VOCAB_SIZE)
    config = BertConfig(VOCAB_SIZE, T, args.n_layer, n_embd=args.n_embd, pos="learned")
    model = model_class(config).to(device)
    setup = training.set_up(model, SimpleNamespace(
        dtype="auto", optimizer="adamw", lr=1e-4, weight_decay=0.01, grad_clip=0, compile=False,
        pad_to=0), device)
    if device.type == "cuda":
        model.compile(dynamic=False)

    def step():
        documents = rng.integers(n_texts, size=BATCH_SIZE)
        batch = pretrain.draw_batch(corpus, documents, tokenizer, 0.15, int(documents[0]))
        training.training_step(model, [batch], batch.targets.numel(), setup, lr_factor=1.0)
        return batch.tokens.numel()
    return step


def take_turn(step, device):
    """Step for TURN seconds, at least once. -> tokens a second, with the device's work finished."""
    training.wait_for(device)
    start, n_tokens = time.perf_counter(), 0
    while not n_tokens or time.perf_counter() - start < TURN:
        n_tokens += step()
    training.wait_for(device)
    return n_tokens / (time.perf_counter() - start)


def main(argv=None):
    parser = new_parser("python -m experiments.bench", __doc__.split("\n\n")[0])
    flag = parser.add_argument
    flag("--n_layer", type=number(int, 1), nargs="+", default=[1, 6], help="depths")
    flag("--n_embd", type=training.COUNT, default=768, help="width, with a head for each 64")
    flag("--repeats", type=number(int, 1), default=5, help="turns of two seconds, or one step")
    args = parser.parse_args(argv)
    if args.n_embd % 64:
        raise SystemExit(f"--n_embd={args.n_embd}: must be a multiple of 64")
    device = training.pick_device("auto")
    print(f"{machine()}, {torch.get_num_threads()} threads, {training.fast_dtype(device)}")
    for args.n_layer in args.n_layer:
        steps = [make_step(model_class, device, args) for model_class in MODELS.values()]
        for step in steps:  # the first one takes long: on a GPU it compiles
            step()
        rates = np.array([[take_turn(step, device) for step in steps] for _ in range(args.repeats)])
        best, ratios = rates.max(0), rates / rates[:, :1]  # (models,), (repeats, models)
        print(f"\n| BERT-{args.n_layer}, {args.n_embd} wide, {BATCH_SIZE} texts of {T} | "
              "tokens/s | of transformers |\n| --- | --- | --- |")
        for i, kind in enumerate(MODELS):
            print(f"| {kind} | {best[i]:,.0f} | {best[i] / best[0]:.2f}x "
                  f"({ratios[:, i].min():.2f} to {ratios[:, i].max():.2f}) |", flush=True)


if __name__ == "__main__":
    run_script(main)
