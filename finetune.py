"""Fine-tune a pre-trained encoder, or the same one with random weights, into a text classifier.

    python finetune.py --n_layer=1                        # after python pretrain.py --n_layer=1
    python finetune.py --n_layer=1 --init_from=scratch    # without pre-training: what is the gap?
    python finetune.py --n_layer=1 --predict="We drove along the river Rhine."

The test examples are looked at once, after the last epoch. To choose hyper-parameters,
--holdout=0.1 keeps a tenth of the training examples back and reports on them instead. First comes
the loop, train(), then what it calls, then --predict and the flags.
"""
import contextlib
import io
import math
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import pretrain
from data import pocket
from data.batches import Corpus, make_batches, to_device
from data.flags import ABOVE_0, BELOW_1, new_parser, parse, refuse, run_script
from data.tokenfile import (
    checksum,
    encode_documents,
    folder_of,
    open_labels,
    open_split,
    read_meta,
    write_atomically,
)
from data.tokenizer import MARKERS, open_tokenizer
from model import IGNORE, BertConfig, BertForClassification, flops_per_token


def pick_examples(labels, n_per_class, holdout, seed):
    """labels (numpy, N) -> the examples to train on, the examples held out (two index arrays).

    Of each class a share `holdout` is held out, at least one if the share is not 0, and n_per_class
    of the rest are trained on (0: all). With the same seed fewer are part of more, and those held
    out are the same.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    trained, held_out = [], []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        n = math.ceil(holdout * len(members))
        held_out.append(members[:n])
        trained.append(members[n:][:n_per_class or None])
    return np.concatenate(trained), np.concatenate(held_out)


class Examples:
    """A corpus with a class for each text, to draw batches from."""

    def __init__(self, corpus, labels, tokenizer, pad_to, n_rows=None):
        self.corpus, self.tokenizer, self.pad_to, self.n_rows = corpus, tokenizer, pad_to, n_rows
        labels = np.append(labels, IGNORE)  # the last is that of empty rows
        self.targets = torch.from_numpy(labels).to(corpus.tokens.device)

    def batch(self, documents):
        """-> tokens (B, T), mask (B, T) or None, targets (B,), filled up to n_rows if given."""
        tokens, _, mask = self.corpus.rows(documents, self.tokenizer, self.pad_to, self.n_rows)
        n_missing = len(tokens) - len(documents)
        rows = np.pad(documents, (0, n_missing), constant_values=len(self.targets) - 1)
        return tokens, mask, self.targets[to_device(rows, tokens.device)]


# ---- the loop -----------------------------------------------------------------------------------

def train(args, typed=()):
    """Fine-tune as the flags say. -> the result (dict), also the last line of out_dir/log.jsonl.
    typed (set): the flags that are not there by default."""
    device = pretrain.pick_device(args.device)

    # data
    if args.dataset == "pocket-places":
        pocket.prepare()
    tokenizer, _ = open_tokenizer(args.dataset)
    labels, names = open_labels(args.dataset, "train"), read_meta(args.dataset)["labels"]
    example_seed = args.seed if args.example_seed is None else args.example_seed
    chosen, held_out = pick_examples(labels, args.n_per_class, args.holdout, example_seed)
    if not len(chosen):
        raise SystemExit(f"--holdout={args.holdout}: leaves nothing to train on")

    # model
    model = make_model(args, len(names), tokenizer, typed).to(device)
    model.label_smoothing = args.label_smoothing
    model.bert.noise = args.embedding_noise
    config = model.bert.config
    if args.lr is None:  # with 0.001, six layers of random weights fail with some seeds
        args.lr = 3e-4 if args.init_from == "scratch" and config.n_layer > 1 else 1e-3
    setup = pretrain.set_up(model, args, device, lambda name: rate_of(name, config, args))
    corpus = Corpus(*open_split(args.dataset, "train"), config.block_size, device)
    # Compiled code wants few distinct shapes: batches are filled up with empty rows.
    n_rows = min(args.batch_size, len(chosen)) if setup.compile else None
    examples = Examples(corpus, labels, tokenizer, setup.pad_to, n_rows)
    if model.markers:
        check_markers(corpus, model.markers, args.dataset)
    lengths = corpus.lengths[chosen]
    steps_per_epoch = math.ceil(len(chosen) / args.batch_size)
    n_steps = args.epochs * steps_per_epoch
    lr_interval = steps_per_epoch if args.lr_per_epoch else 1
    done = {"examples": 0, "tokens": 0, "positions": 0, "flops": 0.0, "seconds": 0.0}
    history = []
    print(f"{args.dataset}: {len(names)} classes, {len(chosen):,} training examples, "
          f"{corpus.describe(chosen)}")
    print(f"from {args.init_from}: {pretrain.introduce(model)}")
    print(f"{n_steps:,} steps of {args.batch_size} examples on {device}, {args.dtype}, compile "
          f"{setup.compile}")
    if setup.compile:
        pretrain.compile_model(model, examples.batch(chosen[:args.batch_size]), setup.autocast)
    torch.manual_seed(pretrain.draw_seed(args.seed, 1))  # of dropout, whatever was drawn before
    pretrain.write_log(args.out_dir, [])  # a folder that can't be written to is known now

    step, bar = 0, pretrain.new_bar(n_steps)
    for epoch in range(args.epochs):
        start, loss_sum = time.perf_counter(), 0.0
        for places in make_batches(lengths, args.batch_size, args.seed, epoch):
            batch = examples.batch(chosen[places])
            factor = pretrain.lr_factor(step, n_steps, args.warmup, lr_interval)
            loss = pretrain.training_step(model, [batch], len(places), setup, factor)
            loss_sum += loss * len(places)  # stays on the device: no waiting for it
            count_work(done, batch[0], lengths[places], model)
            step += 1
            bar.update()
        train_loss = float(loss_sum) / len(chosen)
        done["seconds"] += max(time.perf_counter() - start, 1e-9)  # a clock may be coarse
        if not math.isfinite(train_loss):
            raise SystemExit(f"the loss is not finite in epoch {epoch + 1}: lower --lr={args.lr:g},"
                             " raise --warmup, or try --dtype=float32")
        row = {"epoch": epoch + 1, "dtype": args.dtype, "train_loss": train_loss, **done}
        line = f"epoch {epoch + 1:3}  train loss {train_loss:6.3f}"
        if args.holdout:
            probabilities = classify(model, corpus, tokenizer, setup.autocast, held_out)
            row["holdout_accuracy"] = float((probabilities.argmax(1) == labels[held_out]).mean())
            line += f"  held-out accuracy {row['holdout_accuracy']:6.1%}"
        history.append(row)
        pretrain.write_log(args.out_dir, history)
        tqdm.write(f"{line}  {done['examples'] / done['seconds']:7,.0f} examples/s")
    bar.close()

    # the result of the last epoch, never of the best
    if args.holdout:
        part, truth = "held-out", labels[held_out]
    else:
        part, truth = "test", open_labels(args.dataset, "test")
        test = Corpus(*open_split(args.dataset, "test"), config.block_size, device)
        probabilities = classify(model, test, tokenizer, setup.autocast)
    if not np.isfinite(probabilities).all():
        raise SystemExit("the outputs are not finite: lower --lr, or raise --warmup; nothing was "
                         "saved")
    result = history[-1] | {"part": part, "n": len(truth)} | score(probabilities, truth, names)
    history[-1] = result
    if not args.holdout:
        save_outputs(args, probabilities, truth)
    pretrain.save_checkpoint(args.out_dir, pretrain.pack(model, tokenizer, args, history) | {
        "pooling": args.pooling, "labels": names})
    report(result, np.bincount(truth).max() / len(truth))
    drawn = pretrain.draw_curves(history, Path(args.out_dir) / "loss.png", {})
    print(f"wrote {args.out_dir}/ckpt.pt, log.jsonl{drawn}" + ", test.npz" * (not args.holdout))
    return result


# ---- what the loop calls ------------------------------------------------------------------------

def make_model(args, n_classes, tokenizer, typed=()):
    """-> the classifier that the flags ask for: a run's encoder under a new head, or random weights
    throughout."""
    run = args.like if args.init_from == "scratch" else args.init_from
    if run is None:
        config = pretrain.make_config(args, tokenizer.vocab_size)
    else:
        checkpoint = pretrain.load_pretraining(run, tokenizer, args.dataset)
        config = BertConfig(**checkpoint["config"] | {"dropout": args.dropout})
        pretrain.refuse_other_shape(args, typed, config, run)
    torch.manual_seed(args.seed)
    model = BertForClassification(config, n_classes, args.pooling, opening_markers(tokenizer))
    if args.init_from != "scratch":
        encoder = {name.removeprefix("bert."): weights
                   for name, weights in checkpoint["model"].items() if name.startswith("bert.")}
        model.bert.load_state_dict(encoder)
    return model


def rate_of(name, config, args):
    """The share of the learning rate at which a parameter is trained: all of it in the new head,
    args.embedding_rate of it at the pre-trained embeddings, and between them geometrically, layer
    by layer (Howard and Ruder 2018, "discriminative fine-tuning"). Adam moves the vector of a rare
    word as far as that of a frequent one: at the full rate the few texts are learned by heart."""
    if args.init_from == "scratch" or not name.startswith("bert."):
        return 1.0
    _, part, number, *_ = name.split(".")
    n_layers_above = config.n_layer - 1 - int(number) if part == "blocks" else config.n_layer
    return args.embedding_rate ** ((n_layers_above + 1) / (config.n_layer + 1))


def opening_markers(tokenizer):
    """The ids of [E1] and [E2]."""
    return [tokenizer.special[marker] for marker in MARKERS[::2]]


def lack_markers(corpus, markers):
    """-> which documents lack one of the markers (ids) in what block_size leaves of them (bool
    array)."""
    tokens, lack = corpus.tokens.cpu().numpy().view(np.uint16), False
    for marker in markers:
        places = np.flatnonzero(tokens == marker)
        first, end = np.searchsorted(places, [corpus.starts, corpus.starts + corpus.lengths])
        lack = lack | (first == end)
    return lack


def check_markers(corpus, markers, dataset):
    """Say how many texts lack markers. One line if all do."""
    n, n_texts = lack_markers(corpus, markers).sum(), len(corpus.lengths)
    if n == n_texts:
        raise SystemExit(f"--pooling=entities: no text of {dataset} has the markers [E1] and [E2] "
                         f"within --block_size={corpus.block_size}; python -m data.fewrel "
                         "--markers sets them")
    if n:
        print(f"{n:,} of {n_texts:,} texts have lost a marker by the cut; [CLS] stands in for it")


def count_work(done, tokens, lengths, model):
    """Add a step to `done`: examples, tokens, positions with padding, floating-point operations."""
    n_tokens, T = int(lengths.sum()) + 2 * len(lengths), tokens.size(1)
    done["examples"] += len(lengths)
    done["tokens"] += n_tokens
    done["positions"] += tokens.numel()
    flops = flops_per_token(model.bert.config, T, model.share(T), n_words=0)
    done["flops"] += 3 * n_tokens * flops


@torch.no_grad()
def classify(model, corpus, tokenizer, autocast=contextlib.nullcontext(), documents=None):
    """-> probabilities (numpy float32, N x n_classes) of the documents (index array; default all),
    in their order."""
    if documents is None:
        documents = np.arange(len(corpus.lengths))
    by_length = np.argsort(corpus.lengths[documents], kind="stable")
    probabilities, was_training = [], model.training
    model.eval()
    for part in np.split(by_length, range(64, len(by_length), 64)):
        tokens, _, mask = corpus.rows(documents[part], tokenizer)
        with autocast:  # forward() passes torch.compile by, which would compile every length anew
            logits = model.forward(tokens, mask)
        probabilities.append(logits.float().softmax(-1))
    model.train(was_training)
    result = np.empty((len(documents), probabilities[0].size(1)), np.float32)
    result[by_length] = torch.cat(probabilities).cpu().numpy()
    return result


def score(probabilities, labels, names):
    """probabilities (N, n_classes), labels (N,) -> accuracy, macro-F1 (mean over the classes that
    occur or are predicted), accuracy of each class, and the ten most frequent confusions
    [true, predicted, count] (dict)."""
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    right, n_true, n_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    seen = n_true + n_predicted > 0
    f1 = 2 * right / (n_true + n_predicted).clip(1)  # (n_classes,)
    wrong = confusion - np.diag(right)
    most = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = zip(*np.unravel_index(most, wrong.shape))
    return {"accuracy": float(right.sum() / len(labels)), "macro_f1": float(f1[seen].mean()),
            "class_accuracy": {name: float(r / n) for name, r, n in zip(names, right, n_true) if n},
            "confusions": [[names[a], names[b], int(wrong[a, b])] for a, b in pairs if wrong[a, b]]}


def report(result, largest):
    """Print a result of train(). `largest`: the share of the most frequent class."""
    rate = result["examples"] / result["seconds"]
    padding = 1 - result["tokens"] / result["positions"]
    print(f"{result['examples']:,} examples in {result['seconds']:,.0f} s ({rate:,.0f} a second); "
          f"padding was {padding:.1%} of what was computed")
    weakest = sorted(result["class_accuracy"].items(), key=lambda item: item[1])
    classes = ", ".join(f"{name} {accuracy:.0%}" for name, accuracy in weakest[:10])
    print(f"accuracy of each class{', the lowest ten' if len(weakest) > 10 else ''}: {classes}")
    confusions = ", ".join(f"{a} > {b} {n}x" for a, b, n in result["confusions"][:5])
    print(f"most confused (true > predicted): {confusions or 'none'}")
    print(f"{result['part']} accuracy {result['accuracy']:.1%} of {result['n']:,} (the most "
          f"frequent class alone: {largest:.1%}), macro-F1 {result['macro_f1']:.3f}")


def save_outputs(args, probabilities, labels):
    """Write out_dir/test.npz, which committee.py reads."""
    folder, content = folder_of(args.dataset), io.BytesIO()
    test_set = checksum([folder / "test.bin", folder / "test.labels.bin"])
    np.savez(content, probabilities=probabilities, labels=labels, test_set=test_set)
    write_atomically(Path(args.out_dir) / "test.npz", content.getvalue())


# ---- a classifier at work -----------------------------------------------------------------------

def load_classifier(out_dir, device="cpu"):
    """-> a fine-tuned model in evaluation mode, its tokenizer, the checkpoint's other contents
    ("labels", ...)."""
    checkpoint, tokenizer = pretrain.load_run(out_dir)
    if "labels" not in checkpoint:
        raise SystemExit(f"{out_dir} is not a classifier but a run of pretrain.py; fine-tune it "
                         "first, or name the fine-tuned run by --out_dir")
    config, n_classes = BertConfig(**checkpoint["config"]), len(checkpoint["labels"])
    model = BertForClassification(config, n_classes, checkpoint["pooling"],
                                  opening_markers(tokenizer))
    model.load_state_dict(checkpoint.pop("model"))
    return model.to(device).eval(), tokenizer, checkpoint


def encode(texts, model, tokenizer, device):
    """list of str -> a Corpus of them for this model. The entity markers [E1] ... [/E2] are read as
    such; one line for a text that lacks them if the model looks there."""
    tokens = encode_documents(texts, tokenizer, MARKERS)
    offsets = np.cumsum([0, *map(len, tokens)])
    tokens = np.concatenate([*tokens, [tokenizer.pad]]).astype(np.uint16)  # never empty
    corpus = Corpus(tokens, offsets, model.bert.config.block_size, device)
    if model.markers and (lack := lack_markers(corpus, model.markers)).any():
        raise SystemExit(f"--predict: {texts[lack.argmax()][:60]!r} has no markers around its two "
                         f"entities in its first {corpus.block_size - 2} tokens; "
                         'write "[E1] Mozart [/E1] was born in [E2] Salzburg [/E2]."')
    return corpus


def predict(out_dir, texts, device):
    """Print the likeliest labels of each text, a line for each. texts: iterable of list of str."""
    model, tokenizer, checkpoint = load_classifier(out_dir, device)
    names = checkpoint["labels"]
    for batch in texts:
        corpus = encode(batch, model, tokenizer, device)
        for row in classify(model, corpus, tokenizer):
            print("   ".join(f"{names[i]} {row[i]:.1%}" for i in np.argsort(-row)[:5]))
        sys.stdout.flush()


# ---- flags --------------------------------------------------------------------------------------

LIMITS = pretrain.LIMITS | {"epochs": (1, pretrain.MANY), "n_per_class": (0, pretrain.MANY),
                            "example_seed": pretrain.LIMITS["seed"], "holdout": (0, BELOW_1),
                            "embedding_rate": (ABOVE_0, 1), "embedding_noise": (0, 100),
                            "label_smoothing": (0, BELOW_1)}


def get_parser():
    parser = new_parser("finetune.py", __doc__.split("\n\n")[0])
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", default="pocket-places",
         help="a labelled folder of data/bin; pocket-places is made on first use")
    flag("--n_per_class", type=int, default=0,
         help="training examples to use of each class; 0: all")
    flag("--example_seed", type=int,
         help="of the choice of examples; by default the seed. Give the members of a committee the "
         "same one: together they would see more examples than a single model")
    flag("--holdout", type=float, default=0.0,
         help="share of the training examples to keep back and to report on instead of the test "
         "examples")
    flag = parser.add_argument_group("initial weights").add_argument
    flag("--init_from", metavar="RUN",
         help="a run directory of pretrain.py, or scratch for random weights; by default "
         "out/pocket-bertN_LAYER")
    flag("--like", metavar="RUN", help="with --init_from=scratch: the architecture of this run")
    pretrain.add_model_flags(parser, "model, with --init_from=scratch")
    flag = parser.add_argument_group("training").add_argument
    flag("--pooling", choices=["cls", "mean", "entities"], default="mean",
         help="classify by the [CLS] state, as in the paper, by the mean of all tokens' states, or "
         "by those at [E1] and [E2] (python -m data.fewrel --markers)")
    flag("--dropout", type=float, default=0.1, help="the paper's is 0.1")
    flag("--epochs", type=int, default=10, help="passes over the training examples")
    flag("--batch_size", type=int, default=32, help="examples a step")
    flag("--lr", type=float,
         help="AdamW's peak learning rate; by default 0.001, of several layers of random weights "
         "0.0003; the paper's is 5e-5")
    flag("--muon_lr", type=float, default=1e-3, help="Muon's peak learning rate")
    flag("--embedding_rate", type=float, default=0.1,
         help="share of the learning rate for pre-trained embeddings; from them to the new head it "
         "rises layer by layer; the paper's is 1, as is that of random weights")
    flag("--embedding_noise", type=float, default=0.0,
         help="standard deviation of normal noise on the embedded tokens in training, whose own is "
         "1: try 0.5 where some tens of examples a class are learned by heart")
    flag("--label_smoothing", type=float, default=0.1,
         help="share of each target that is spread over all classes; the paper's is 0")
    pretrain.add_training_flags(flag)
    parser.set_defaults(optimizer="adamw", warmup=0.1, compile=False)  # too slow to begin
    flag("--weight_decay", type=float, default=0.01, help="of matrices, not of biases and norms")
    flag("--seed", type=int, default=0,
         help="of the new weights, the choice and the order of examples, and dropout")
    pretrain.add_system_flags(parser)
    flag = parser.add_argument_group("output").add_argument
    flag("--out_dir",
         help="run directory; by default out/DATASET-from-RUN, or out/DATASET-scratch-bertN_LAYER "
         "(with --like -scratch-RUN)")
    flag("--predict", metavar="TEXT",
         help="don't train: print what the run in out_dir makes of TEXT; - reads a text from each "
         "line of standard input")
    return parser


def name_runs(args):
    """Fill in the default run directories."""
    args.init_from = args.init_from or f"out/pocket-bert{args.n_layer}"
    start = f"from-{Path(args.init_from).name}"
    if args.init_from == "scratch":
        start = f"scratch-{Path(args.like).name if args.like else f'bert{args.n_layer}'}"
    args.out_dir = args.out_dir or f"out/{Path(args.dataset).name}-{start}"


def read_texts():
    """Yield lists of the lines of standard input: of one line from a person, who waits for an
    answer, of many from a file."""
    lines = (line.rstrip("\r\n") for line in io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig"))
    n_lines = 1 if sys.stdin.isatty() else 1024
    try:
        while texts := list(islice(lines, n_lines)):
            yield texts
    except UnicodeDecodeError:
        raise SystemExit("--predict=-: standard input is not UTF-8") from None


def main(argv=None):
    args, typed = parse(get_parser(), argv, LIMITS)
    name_runs(args)
    if args.predict is not None:
        texts = read_texts() if args.predict == "-" else [[args.predict]]
        return predict(args.out_dir, texts, pretrain.pick_device(args.device))
    pretrain.refuse_existing_run(args.out_dir)
    pretrain.refuse_idle_flags(args, typed)
    if args.init_from == "scratch":
        refuse(typed & {"embedding_rate"}, "goes with a pre-trained run")
    else:
        refuse(typed & {"like"}, "goes with --init_from=scratch")
    try:
        return pretrain.train_or_say_why_not(train, args, typed)
    except KeyboardInterrupt:
        if (Path(args.out_dir) / "ckpt.pt").exists():
            raise SystemExit(f"interrupted at the end; {args.out_dir} is saved") from None
        raise SystemExit("interrupted; nothing was saved, the same command starts again") from None


if __name__ == "__main__":
    run_script(main)
