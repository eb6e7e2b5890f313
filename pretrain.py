"""Pre-train a BERT encoder by masked-language modelling (Devlin et al. 2018, arXiv 1810.04805).

    python pretrain.py --n_layer=1                    # minutes on a laptop, without network
    python pretrain.py --n_layer=1 --fill="The capital of France is [MASK]."
    python pretrain.py --dataset=mytext --init_from=out/pocket-bert1  # a second stage on other text
    torchrun --standalone --nproc_per_node=4 pretrain.py  # four GPUs, four times the texts a step

Some tokens of every text are masked, and the model learns to predict them from the others. In the
order of this file: masking, the training loop, what it calls (data, evaluation, the model), what is
printed, --fill, the flags. How a step changes the weights, checkpoints and devices are in
training.py.
"""
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

import training
from data import pocket
from data.batches import Corpus, cut_into_blocks, make_batches, n_rows_to_evaluate
from data.flags import new_parser, number, parse_flags, refuse_other, run_script, user_path
from data.tokenfile import Dataset
from model import (
    IGNORE,
    BertConfig,
    BertForMaskedLM,
    flops_per_token,
    sample_candidates,
    sum_of_losses,
)

SAVE_EVERY = 120  # seconds at most between two checkpoints
# A train loss is the mean over so many steps at most. One tensor holds their losses: a small one
# for each step would lie between large ones, whose freed memory could then not be used again.
N_LOSSES = 100
LOG_EVERY = 20  # steps between two updates of the progress bar, each of which waits for the device
FEW_TEXTS = 29_000  # fewer, read once, mostly hurt or hardly help (experiments/results/laptop.md)


class Batch(NamedTuple):
    """One training batch: the arguments of BertForMaskedLM.forward."""
    tokens: Tensor  # (B, T) int64, some of them masked
    mask: Tensor | None  # (B, T) bool, False at padding; None where nothing is padded
    positions: Tensor  # (B, K) int64, where to predict
    targets: Tensor  # (B, K) int64, tokens before masking (or indices into candidates), or IGNORE
    candidates: Tensor | None = None  # (W,) int64, see sample_candidates in model.py
    logit_correction: Tensor | None = None  # (W,) what is added to their logits

    def split(self, n_rows):
        """-> micro-batches of n_rows rows each, which share the candidates (list of Batch)."""
        masks = [None] * len(self.tokens) if self.mask is None else self.mask.split(n_rows)
        rows = zip(self.tokens.split(n_rows), masks, self.positions.split(n_rows),
                   self.targets.split(n_rows))
        return [Batch(*part, self.candidates, self.logit_correction) for part in rows]


# ---- masking ------------------------------------------------------------------------------------

def mask_tokens(tokens, n, mask_prob, tokenizer, generator):
    """BERT's masking. tokens (B, T) with n (B,) of them in each row between [CLS] and [SEP]
    -> tokens (B, T), positions (B, K), targets (B, K).

    mask_prob of a row's tokens, rounded, at least one, are to be predicted: 80 % of them become
    [MASK], 10 % a random token, 10 % stay. K follows from T alone, so that shapes are static;
    targets beyond a row's number are IGNORE.
    """
    B, T = tokens.shape
    K = max(1, round(mask_prob * (T - 2)))
    column = torch.arange(T, device=tokens.device)
    special = (column == 0) | (column > n[:, None])  # (B, T) [CLS], [SEP] and padding
    score = torch.rand(B, T, generator=generator, device=tokens.device)
    score = score.masked_fill(special, 2.0)  # special tokens come last
    positions = score.argsort(dim=1)[:, :K]  # (B, K)
    n_wanted = (mask_prob * n).round().clamp(min=1, max=K) * (n > 0)  # (B,)
    chosen = column[:K] < n_wanted[:, None]  # (B, K)
    old = tokens.gather(1, positions)  # (B, K)
    dice = torch.rand(B, K, generator=generator, device=tokens.device)
    random = torch.randint(tokenizer.n_plain, (B, K), generator=generator, device=tokens.device)
    new = torch.where(dice < 0.8, tokenizer.mask, torch.where(dice < 0.9, random, old))
    tokens = tokens.scatter(1, positions, torch.where(chosen, new, old))
    return tokens, positions, torch.where(chosen, old, IGNORE)


def draw_batch(corpus, documents, tokenizer, mask_prob, seed, n_rows=None, pad_to=1,
               n_candidates=0):
    """-> the Batch of these documents (index array), masked as `seed` says. With n_candidates the
    softmax is a sampled one (see sample_candidates). n_rows and pad_to as in Corpus.rows."""
    tokens, n, mask = corpus.rows(documents, tokenizer, pad_to, n_rows)
    generator = torch.Generator(tokens.device).manual_seed(seed)
    tokens, positions, targets = mask_tokens(tokens, n, mask_prob, tokenizer, generator)
    if not n_candidates:
        return Batch(tokens, mask, positions, targets)
    candidates, logit_correction, targets = sample_candidates(
        targets, n_candidates, tokenizer.vocab_size, generator)
    return Batch(tokens, mask, positions, targets, candidates, logit_correction)


# ---- the loop -----------------------------------------------------------------------------------

def train(args, checkpoint=None):
    """Train as the flags say. checkpoint (dict): with --resume the run's own, with --init_from that
    of the other run. -> the last evaluation (dict), also the last line of out_dir/log.jsonl."""
    device, rank, n_processes = training.start_processes(args.device)
    log = tqdm.write if rank == 0 else lambda line: None
    dataset = open_dataset(args.dataset, rank)
    corpus, documents = choose_documents(dataset, args, device)
    lengths = corpus.lengths[documents]
    val = validation_batches(dataset, args.block_size, device)
    plateau = unigram_baseline(dataset, val)
    n_micro_batches = args.grad_accum * n_processes
    micro_batch_size = min(args.batch_size, math.ceil(len(documents) / n_micro_batches))
    batch_size = micro_batch_size * n_micro_batches  # of a step: not more than there are texts
    steps_per_epoch = math.ceil(len(documents) / batch_size)
    n_steps = math.ceil(args.epochs * steps_per_epoch)
    eval_interval = args.eval_interval or math.ceil(n_steps / 10)
    lr_interval = steps_per_epoch if args.lr_per_epoch else 1
    choose_learning_rates(args, batch_size)
    model, setup, totals, history, recent_losses = set_up_model(
        args, checkpoint, dataset, batch_size, device)
    log(f"{dataset.name}: {len(documents):,} texts, {corpus.describe_tokens(documents)}\n"
        f"{training.describe_model(model)}\n{n_steps:,} steps of {batch_size} texts on "
        f"{n_processes} x {device}, {setup.dtype}, compile {args.compile}\n"
        f"{expected_loss(args, dataset.tokenizer, args.epochs * len(documents), *plateau)}")

    first_step = totals["step"]
    # disable=None: there is a bar on a terminal, but not in a log file
    bar = tqdm(total=n_steps, initial=first_step, unit="step", disable=None if rank == 0 else True)
    with bar, training.Interruption() as interruption:
        clock = saved_at = time.monotonic()
        for step in range(first_step, n_steps + 1):
            # Log and evaluate.
            interrupted = interruption.asked
            evaluated = history[-1]["step"] if history else None  # the last step that was evaluated
            evaluating = step != evaluated and (step % eval_interval == 0 or step == n_steps)
            saving = evaluating or interrupted or time.monotonic() - saved_at > SAVE_EVERY
            train_loss, n_recent = None, step - (evaluated or 0)
            if n_recent and (saving or step % LOG_EVERY == 0):
                last = torch.arange(step - min(n_recent, N_LOSSES), step) % N_LOSSES
                train_loss = recent_losses[last].mean().item()  # waits for the device
                check_finite(train_loss, args, step)
                totals["seconds"] += time.monotonic() - clock
                speed = training.format_speed(totals, device, n_processes)
                bar.set_postfix_str(f"loss {train_loss:.3f}, {speed}")
                clock = time.monotonic()
                # Compiled, or on a GPU, the first steps are slow.
                if step == LOG_EVERY and device.type == "cpu" and not args.compile:
                    log(expected_time(totals["seconds"] / step * n_steps, args))
            if evaluating:
                val_loss, val_accuracy = evaluate(model, val, setup.autocast)
                check_finite(val_loss, args, step)
                history.append(totals | {
                    "epoch": step / steps_per_epoch, "dtype": setup.dtype, "train_loss": train_loss,
                    "val_loss": val_loss, "val_accuracy": val_accuracy})
                log(format_evaluation(history[-1]))

            # Save.
            if saving:
                weights = model.state_dict().values()
                check_finite(sum(tensor.sum() for tensor in weights).item(), args, step)
                if rank == 0:
                    save(args, model, setup, dataset, batch_size, totals, history, recent_losses)
                clock = saved_at = time.monotonic()
            if interrupted:
                raise SystemExit(f"interrupted: step {step:,} of {n_steps:,} is saved in "
                                 f"{args.out_dir}; pretrain.py --resume --out_dir={args.out_dir} "
                                 "goes on")
            if step == n_steps:
                break

            # Make a step. Every process draws the whole batch and takes its own rows, so that masks
            # and loss do not depend on how many processes and micro-batches share the work.
            epoch, i = divmod(step, steps_per_epoch)
            if i == 0 or step == first_step:
                batches = make_batches(lengths, batch_size, args.seed, epoch)
            chosen = batches[i]
            batch = draw_batch(corpus, documents[chosen], dataset.tokenizer, args.mask_prob,
                               training.draw_seed(args.seed, step), batch_size, setup.pad_to,
                               args.n_candidates)
            micro_batches = batch.split(micro_batch_size)[rank * args.grad_accum:][:args.grad_accum]
            n_targets = (batch.targets != IGNORE).sum()
            if args.compile and step == first_step:
                training.compile_model(model, micro_batches[0], setup.autocast)
                clock = time.monotonic()  # compiling is not training
            factor = training.lr_factor(step, n_steps, args.warmup, lr_interval)
            torch.manual_seed(training.draw_seed(args.seed, step, 1 + rank))  # of dropout
            loss = training.training_step(model, micro_batches, n_targets, setup, factor)
            recent_losses[step % N_LOSSES] = loss
            totals["step"] += 1
            training.count_work(totals, batch.tokens, lengths[chosen], forward_flops(model, batch))
            bar.update()
    if rank == 0:
        print(format_result(history[-1], plateau[1], device, n_processes))
        training.finish(args.out_dir, ["ckpt.pt", "log.jsonl"], history, {
            "ln V": math.log(dataset.tokenizer.vocab_size),
            "plateau: frequencies alone": plateau[0]})
    if n_processes > 1:  # not after an error: it would wait for the others
        dist.destroy_process_group()
    return history[-1]


# ---- what the loop calls: data ------------------------------------------------------------------

def open_dataset(name, rank):
    """-> the Dataset. The first process makes the corpus of the first run if it is missing; others
    wait."""
    if name == "pocket" and rank == 0:
        pocket.make_pocket()
    if dist.is_initialized():
        dist.barrier()
    return Dataset(name)


def validation_documents(dataset):
    """-> the split that holds the documents to validate on, and every how many documents one is
    used: all of "val", or, since a classification set has none, every twentieth training text."""
    return ("val", 1) if "val" in dataset.meta["splits"] else ("train", 20)


def choose_documents(dataset, args, device):
    """-> the training documents as a Corpus, by --blocks also what follows their first block as
    documents of their own, and which of these to train on (index array): all, or those of
    --subset, except the validation documents."""
    tokens, offsets = dataset.split("train")
    n = len(offsets) - 1
    chosen = np.random.default_rng(args.seed).permutation(n)[:max(1, round(args.subset * n))]
    split, every = validation_documents(dataset)
    if split == "train":  # a text that validates must not be trained on, nor another with its words
        texts = [tokens[start:end].tobytes() for start, end in zip(offsets, offsets[1:])]
        held_out = set(texts[::every])
        chosen = np.array([i for i in chosen if texts[i] not in held_out], int)
    if not len(chosen):
        raise SystemExit(f"--subset={args.subset:g}: leaves no text of {dataset.name} to train on")
    blocks = cut_into_blocks(offsets, args.block_size - 2) if args.blocks == "all" else offsets
    is_chosen = np.isin(np.arange(n), chosen)
    n_blocks = np.diff(np.searchsorted(blocks, offsets))  # of each document
    documents = np.flatnonzero(np.repeat(is_chosen, n_blocks)).astype(np.int32)
    return Corpus(tokens, blocks, args.block_size, device), documents


# ---- what the loop calls: evaluation ------------------------------------------------------------

def validation_batches(dataset, block_size, device):
    """The validation documents under fixed masks of 15 %, the same for every run, device and
    --mask_prob (list of Batch)."""
    split, every = validation_documents(dataset)
    corpus = Corpus(*dataset.split(split), block_size)
    documents = np.arange(0, len(corpus.lengths), every)
    by_length = documents[np.argsort(corpus.lengths[documents], kind="stable")]
    batches = []
    for seed, part in enumerate(np.array_split(by_length, math.ceil(len(by_length) / 64))):
        batch = draw_batch(corpus, part, dataset.tokenizer, 0.15, seed)
        batch = Batch(*(None if t is None else t.to(device) for t in batch))
        batches += batch.split(n_rows_to_evaluate(batch.tokens.size(1)))
    return batches


@torch.no_grad()
def evaluate(model, batches, autocast):
    """-> loss (nats a masked token) and masked accuracy (share of the masked tokens that are
    predicted right), both over the whole vocabulary."""
    model.eval()
    loss, right, n = 0.0, 0, 0
    for batch in batches:
        real = batch.targets != IGNORE
        with autocast:  # forward() avoids torch.compile, which would compile every length anew
            logits = model.forward(batch.tokens, batch.mask, batch.positions)
        logits, targets = logits[real].float(), batch.targets[real]  # (n, V), (n,)
        loss += sum_of_losses(logits, targets).item()
        right += (logits.argmax(-1) == targets).sum().item()
        n += len(targets)
    model.train()
    return loss / n, right / n


def unigram_baseline(dataset, batches):
    """Loss and accuracy on `batches` of guessing by the tokens' frequencies alone: the plateau
    that training must leave."""
    tokens, _ = dataset.split("train")
    counts = np.bincount(tokens[:10_000_000], minlength=dataset.tokenizer.vocab_size)
    counts = counts + 1.0  # no token is impossible
    targets = np.concatenate([b.targets[b.targets != IGNORE].cpu().numpy() for b in batches])
    loss = -np.log(counts[targets] / counts.sum()).mean()
    return float(loss), float((targets == counts.argmax()).mean())


def check_finite(value, args, step):
    if not math.isfinite(value):
        muon_lr = f" or --muon_lr={args.muon_lr:g}" if args.optimizer == "muon" else ""
        raise SystemExit(f"loss or weights are not finite at step {step}: lower --lr={args.lr:g}"
                         f"{muon_lr}, raise --warmup, or try --dtype=float32; {args.out_dir} keeps "
                         "the last good checkpoint")


# ---- what the loop calls: the model, from the start or from a checkpoint ------------------------

def choose_learning_rates(args, batch_size):
    """Fill in what the flags leave open. batch_size: the texts of a step. A step of more texts may
    be longer, by the square root of their number; deep models diverge at the rates of shallow ones;
    a second stage should not undo the first."""
    scale = (batch_size / 64) ** 0.5
    scale = scale / (1 if args.n_layer == 1 else 3) / (2 if args.init_from else 1)
    args.lr = 0.006 * scale if args.lr is None else args.lr
    args.muon_lr = 0.02 * scale if args.muon_lr is None else args.muon_lr


def set_up_model(args, checkpoint, dataset, batch_size, device):
    """-> the model, its Setup, and how far it is: totals (dict) of the work done, the evaluations
    (list of dict), the losses of the last steps (tensor: of a step at its number % N_LOSSES)."""
    torch.manual_seed(args.seed)
    model = BertForMaskedLM(training.make_config(args, dataset.tokenizer.vocab_size)).to(device)
    setup = training.set_up(model, args, device)
    args.dtype = setup.dtype  # a run that is resumed elsewhere keeps its number format
    if args.resume:
        check_same_steps(checkpoint, dataset, batch_size)
        model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(setup.optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
        setup.scaler.load_state_dict(checkpoint["scaler"])
        recent_losses = checkpoint["recent_losses"].to(device)
        return model, setup, checkpoint["totals"], checkpoint["history"], recent_losses
    if args.init_from:
        training.check_vocabulary(args.init_from, checkpoint["fingerprint"], dataset)
        model.load_state_dict(checkpoint["model"])
    totals = {"step": 0, "tokens": 0, "positions": 0, "flops": 0.0, "seconds": 0.0}
    return model, setup, totals, [], torch.zeros(N_LOSSES, device=device)


def check_same_steps(checkpoint, dataset, batch_size):
    """SystemExit if a resumed run would learn from other texts than it began with, or from another
    number of texts a step."""
    if checkpoint["checksums"] != dataset.meta["checksums"]:
        raise SystemExit(f"--resume: {dataset.name} is not the one that this run began with")
    if checkpoint["batch_size"] != batch_size:
        raise SystemExit(f"--resume: the run's steps are of {checkpoint['batch_size']} texts, here "
                         f"they would be of {batch_size}; start as many processes as it began with")


def save(args, model, setup, dataset, batch_size, totals, history, recent_losses):
    """Write the checkpoint, with what is needed to resume the run."""
    if totals["step"] == 0 and not args.resume:
        training.check_existing_run(args.out_dir)  # another may have begun meanwhile
    checkpoint = training.pack("pretrain", model, dataset.tokenizer, args, history)
    training.save_checkpoint(args.out_dir, checkpoint | {
        "optimizers": [optimizer.state_dict() for optimizer in setup.optimizers],
        "scaler": setup.scaler.state_dict(), "checksums": dataset.meta["checksums"],
        "batch_size": batch_size, "totals": totals, "recent_losses": recent_losses})


def forward_flops(model, batch):
    """-> floating-point operations a token of a forward pass."""
    T, K = batch.tokens.size(1), batch.positions.size(1)
    n_candidates = None if batch.candidates is None else len(batch.candidates)
    return flops_per_token(model.bert.config, T, K / T, n_candidates)


# ---- what is printed ----------------------------------------------------------------------------

def expected_loss(args, tokenizer, n_texts, plateau_loss, plateau_accuracy):
    """-> what to expect of the loss of a training on n_texts, in words."""
    if args.init_from:
        return (f"goes on from {args.init_from}; by the tokens' frequencies alone the loss would "
                f"be {plateau_loss:.2f}, masked accuracy {plateau_accuracy:.1%}")
    text = (f"expect a loss of {math.log(tokenizer.vocab_size):.2f} at first, {plateau_loss:.2f} "
            f"(masked accuracy {plateau_accuracy:.1%})\nwhile only the tokens' frequencies are "
            "known, then less")
    if n_texts < FEW_TEXTS:
        epochs = math.ceil(args.epochs * FEW_TEXTS / n_texts)
        text += ("\nso little training hardly makes a model that classifies better than random "
                 f"weights; --epochs={epochs} would train on {FEW_TEXTS:,} texts or more")
    return text


def expected_time(seconds, args):
    """-> how long the training will take, in words."""
    text = f"the training takes about {seconds / 60:,.1f} minutes, without evaluations"
    if args.n_layer > 1 and seconds > 300:
        text += "; one layer is several times faster: --n_layer=1"
    return text


def format_evaluation(row):
    """An evaluation (dict) in one line."""
    train_loss = "    --" if row["train_loss"] is None else f"{row['train_loss']:6.3f}"
    rate = row["tokens"] / max(row["seconds"], 1e-9)
    return (f"step {row['step']:6,}  epoch {row['epoch']:5.2f}  train loss {train_loss}  val loss "
            f"{row['val_loss']:6.3f}  masked accuracy {row['val_accuracy']:6.1%}  "
            f"{rate:9,.0f} tokens/s")


def format_result(row, unigram_accuracy, device, n_processes):
    """The last evaluation (dict) in words."""
    padding = 1 - row["tokens"] / row["positions"]
    speed = training.format_speed(row, device, n_processes)
    return (f"{row['tokens']:,} tokens in {row['seconds']:,.0f} s, {speed}; padding was "
            f"{padding:.1%} of what was computed\nmasked accuracy {row['val_accuracy']:.1%} "
            f"(guessing by frequency: {unigram_accuracy:.1%}), loss {row['val_loss']:.3f}")


# ---- a trained model ----------------------------------------------------------------------------

def load_model(out_dir, device="cpu"):
    """-> the BertForMaskedLM of a run in evaluation mode, its tokenizer. SystemExit as load_run."""
    checkpoint, tokenizer = training.load_run(out_dir, "pretrain")
    model = BertForMaskedLM(BertConfig(**checkpoint["config"]))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), tokenizer


def encode_with_mask(text, tokenizer):
    """A text, in which [MASK] is read as such, as the model reads it (list of int)."""
    return [tokenizer.cls, *tokenizer.encode(text, allow=["[MASK]"]), tokenizer.sep]


def check_length(tokens, model, what):
    """SystemExit if these tokens (list) are more than the model takes; `what` they are."""
    if len(tokens) > (longest := model.bert.config.block_size):
        raise SystemExit(f"{what}: {len(tokens)} tokens are more than the model's {longest}")


@torch.no_grad()
def fill(out_dir, text, device):
    """Print the five likeliest tokens with their probabilities for each [MASK] in text."""
    model, tokenizer = load_model(out_dir, device)
    tokens = encode_with_mask(text, tokenizer)
    positions = [i for i, token in enumerate(tokens) if token == tokenizer.mask]
    if not positions:
        raise SystemExit("--fill: the text has no [MASK], "
                         'for example --fill="The capital of France is [MASK]."')
    check_length(tokens, model, "--fill")
    tokens, positions = (torch.tensor([ids], device=device) for ids in (tokens, positions))
    for row in model(tokens, None, positions)[0].softmax(-1):  # (V,)
        likeliest = row[:tokenizer.n_plain].topk(5)
        words = [f"{tokenizer.decode([token])} {p:.1%}"
                 for p, token in zip(likeliest.values.tolist(), likeliest.indices.tolist())]
        print("[MASK] = " + "   ".join(words))


# ---- flags --------------------------------------------------------------------------------------

def get_parser():
    parser = new_parser("pretrain.py", __doc__.split("\n\n")[0])
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", type=user_path, default="pocket",
         help="a folder of data/bin; pocket is made on first use")
    flag("--subset", type=number(float, above=0, most=1), default=1.0,
         help="share of the training documents to use, drawn by --seed")
    flag("--blocks", choices=["all", "first"], default="all",
         help="train on all blocks that documents are cut into, or on the first block of each, as "
         "the paper does; evaluations use first blocks")
    flag("--init_from", type=user_path, metavar="RUN",
         help="begin with the weights and architecture of another pre-training: a second stage, on "
         "text that is closer to what the model is for")
    training.add_model_flags(parser)
    flag = parser.add_argument_group("training").add_argument
    flag("--dropout", type=training.SHARE, default=0.0, help="the paper's is 0.1")
    flag("--epochs", type=number(float, above=0, most=10**6), default=4.0,
         help="how often to train on each text")
    flag("--batch_size", type=training.COUNT, default=64, help="texts per forward pass")
    flag("--grad_accum", type=training.COUNT, default=1,
         help="forward passes per step, whose gradients are added up")
    flag("--lr", type=training.RATE,
         help="AdamW's highest learning rate; by default 0.006 for 64 texts per step, growing "
         "with the square root of their number; a third of that with several layers, half of it "
         "with --init_from; the paper's is 5e-5")
    flag("--muon_lr", type=training.RATE,
         help="Muon's highest learning rate; by default 0.02, changed in the same way")
    training.add_training_flags(flag, optimizer="muon", warmup=0.05, weight_decay=0.8)
    flag("--mask_prob", type=number(float, above=0, below=1), default=0.4,
         help="share of a document's tokens to mask and predict; the paper's is 0.15")
    flag("--n_candidates", type=number(int, 0, 10**6), default=2048,
         help="predict among so many sampled tokens (at least one for each masked position), which "
         "is faster; 0: among the whole vocabulary, as the paper and all evaluations do")
    flag("--seed", type=training.SEED, default=0,
         help="seed for initial weights, order of documents, and masks")
    training.add_system_flags(parser)
    flag = parser.add_argument_group("output").add_argument
    flag("--out_dir", type=user_path, help="run directory; by default out/DATASET-bertN_LAYER, or "
         "out/RUN-then-DATASET")
    flag("--eval_interval", type=number(int, 0, 10**9), default=0,
         help="steps between evaluations; 0: a tenth of all")
    flag("--resume", action="store_true",
         help="go on with the run in out_dir, exactly as if it had not stopped")
    flag("--fill", metavar="TEXT",
         help="don't train: print what the run in out_dir predicts at each [MASK] of TEXT")
    return parser


def main(argv=None):
    args, typed = parse_flags(get_parser(), argv)
    checkpoint = None
    if args.out_dir is None:
        name = f"{Path(args.dataset).name}-bert{args.n_layer}"
        if args.init_from:
            name = f"{Path(args.init_from).name}-then-{Path(args.dataset).name}"
        args.out_dir = f"out/{name}"
    if args.fill is not None:
        return fill(args.out_dir, args.fill, training.pick_device(args.device))
    if args.resume:
        checkpoint, _ = training.load_run(args.out_dir, "pretrain")
        if typed.get("dtype") == "auto":  # that of the run
            del typed["dtype"]
        # These may differ: the run's folder may have been moved or copied.
        free = {"device", "compile", "out_dir", "eval_interval", "resume"}
        fixed = {name: value for name, value in typed.items() if name not in free}
        refuse_other(fixed, checkpoint["args"], f"the run in {args.out_dir}",
                     "leave the flag out, or train it further in a new run, with "
                     f"--init_from={args.out_dir}")
        vars(args).update(checkpoint["args"] | typed | {"out_dir": args.out_dir})
    else:
        training.check_existing_run(args.out_dir)
        if args.init_from:
            checkpoint, _ = training.load_run(args.init_from, "pretrain")
            vars(args).update(training.architecture_of(args.init_from, checkpoint, typed))
        training.check_unused_flags(args, typed)
    with training.explain_out_of_memory(args):
        return train(args, checkpoint)


if __name__ == "__main__":
    run_script(main)
