"""Fine-tune a pre-trained encoder, or the same one with random weights, into a text classifier.

    python finetune.py --n_layer=1                        # after python pretrain.py --n_layer=1
    python finetune.py --n_layer=1 --init_from=scratch    # without pre-training: what is the gap?
    python finetune.py --n_layer=1 --predict="He has never been to Japan."

The test examples are looked at once, after the last epoch. To choose hyper-parameters,
--holdout=0.1 keeps a tenth of the training examples back and reports on them instead. First come
the examples and the loop, train(), then what it calls, --predict and the flags.
"""
import contextlib
import csv
import io
import math
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import training
from data import pocket
from data.batches import Corpus, make_batches, n_rows_to_evaluate, to_device
from data.files import checksum, write_atomically
from data.flags import new_parser, number, parse_flags, refuse, run_script, user_path
from data.tokenfile import Dataset, encode_documents
from data.tokenizer import MARKERS
from model import IGNORE, BertConfig, BertForClassification


def pick_examples(labels, n_per_class, holdout, seed):
    """labels (numpy, N) -> the examples to train on, the examples held out (two index arrays).

    Of each class a share `holdout` is held out, at least one if the share is not 0, and n_per_class
    of the rest are trained on (0: all). With the same seed a smaller selection is
    part of a larger one, and those held out are the same.
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

def train(args, typed):
    """Fine-tune as the flags say. typed (dict): the flags that were typed. -> the result (dict),
    also the last line of out_dir/log.jsonl."""
    device = training.pick_device(args.device)
    dataset = open_dataset(args.dataset)
    labels, names = dataset.labels("train"), dataset.label_names
    if not args.holdout:
        dataset.labels("test"), dataset.split("test")  # SystemExit now, not after the training
    example_seed = args.seed if args.example_seed is None else args.example_seed
    chosen, held_out = pick_examples(labels, args.n_per_class, args.holdout, example_seed)
    if not len(chosen):
        raise SystemExit(f"--holdout={args.holdout}: leaves nothing to train on")
    model = make_model(args, typed, dataset).to(device)
    if args.lr is None:  # with 0.001, six layers of random weights fail with some seeds
        is_deep = model.bert.config.n_layer > 1
        args.lr = 3e-4 if args.init_from == "scratch" and is_deep else 1e-3
    setup = training.set_up(model, args, device, lambda name: rate_of(name, model, args))
    args.dtype = setup.dtype
    corpus = Corpus(*dataset.split("train"), model.bert.config.block_size, device)
    if model.markers:
        check_markers(corpus, model.markers, args.dataset)
    # Compiled code wants few distinct shapes: batches are filled up with empty rows.
    n_rows = min(args.batch_size, len(chosen)) if args.compile else None
    examples = Examples(corpus, labels, dataset.tokenizer, setup.pad_to, n_rows)
    lengths = corpus.lengths[chosen]
    steps_per_epoch = math.ceil(len(chosen) / args.batch_size)
    n_steps = args.epochs * steps_per_epoch
    print(f"{args.dataset}: {len(names)} classes, {len(chosen):,} training examples, "
          f"{corpus.describe_tokens(chosen)}\n"
          f"from {args.init_from}: {training.describe_model(model)}\n"
          f"{n_steps:,} steps of {args.batch_size} examples on {device}, {setup.dtype}, compile "
          f"{args.compile}")
    if args.compile:
        training.compile_model(model, examples.batch(chosen[:args.batch_size]), setup.autocast)
    torch.manual_seed(training.draw_seed(args.seed, 1))  # of dropout, whatever was drawn before
    training.write_log(args.out_dir, [])  # SystemExit now if the folder cannot be written

    totals = {"examples": 0, "tokens": 0, "positions": 0, "flops": 0.0, "seconds": 0.0}
    history, step = [], 0
    with tqdm(total=n_steps, unit="step", disable=None) as bar:  # no bar in a log file
        for epoch in range(args.epochs):
            # The steps of an epoch.
            start, loss_sum = time.perf_counter(), 0.0
            for batch in make_batches(lengths, args.batch_size, args.seed, epoch):
                inputs = examples.batch(chosen[batch])
                factor = training.lr_factor(step, n_steps, args.warmup,
                                            steps_per_epoch if args.lr_per_epoch else 1)
                loss = training.training_step(model, [inputs], len(batch), setup, factor)
                loss_sum += loss * len(batch)  # stays on the device: no waiting for it
                totals["examples"] += len(batch)
                flops = model.flops(inputs[0].size(1))
                training.count_work(totals, inputs[0], lengths[batch], flops)
                step += 1
                bar.update()
            train_loss = float(loss_sum) / len(chosen)
            totals["seconds"] += max(time.perf_counter() - start, 1e-9)  # a clock may be coarse

            # Log and evaluate.
            if not math.isfinite(train_loss):
                raise SystemExit(f"the loss is not finite in epoch {epoch + 1}: lower "
                                 f"--lr={args.lr:g}, raise --warmup, or try --dtype=float32")
            history.append({"epoch": epoch + 1, "dtype": setup.dtype, "train_loss": train_loss,
                            **totals})
            line = f"epoch {epoch + 1:3}  train loss {train_loss:6.3f}"
            if args.holdout:
                probabilities = classify(model, corpus, dataset.tokenizer, setup.autocast, held_out)
                accuracy = float((probabilities.argmax(1) == labels[held_out]).mean())
                history[-1]["holdout_accuracy"] = accuracy
                line += f"  held-out accuracy {accuracy:6.1%}"
            training.check_existing_run(args.out_dir)  # another may have ended meanwhile
            training.write_log(args.out_dir, history)
            tqdm.write(f"{line}  {totals['examples'] / totals['seconds']:7,.0f} examples/s")

    # Test the model of the last epoch, never of the best, and save it.
    files = ["ckpt.pt", "log.jsonl"]
    if args.holdout:
        part, truth = "held-out", labels[held_out]
        result = score(probabilities, truth, names)
    else:
        part = "test"
        result, probabilities, truth = test_model(
            model, names, dataset, f"{args.out_dir}/predictions.csv", setup.autocast)
        save_outputs(args.out_dir, dataset, probabilities, truth)
        files += ["test.npz", "predictions.csv"]
    history[-1] |= {"part": part, "n": len(truth), **result}
    state = training.pack("finetune", model, dataset.tokenizer, args, history)
    training.save_checkpoint(args.out_dir, state | {"pooling": args.pooling, "labels": names})
    report(history[-1], truth)
    training.finish(args.out_dir, files, history, {})
    return history[-1]


# ---- what the loop calls ------------------------------------------------------------------------

def open_dataset(name):
    """-> the Dataset. The task of the first run is made if it is missing."""
    if name == "pocket-places":
        pocket.make_pocket()
    return Dataset(name)


def make_model(args, typed, dataset):
    """-> the classifier that the flags ask for: a run's encoder under a new head, or random weights
    throughout."""
    run = args.like if args.init_from == "scratch" else args.init_from
    if run:
        checkpoint, tokenizer = training.load_run(run, "pretrain")
        training.check_vocabulary(run, tokenizer.fingerprint, dataset)
        training.architecture_of(run, checkpoint, typed)  # SystemExit if a flag asks for another
        config = BertConfig(**checkpoint["config"] | {"dropout": args.dropout})
    else:
        config = training.make_config(args, dataset.tokenizer.vocab_size)
    torch.manual_seed(args.seed)
    model = BertForClassification(config, len(dataset.label_names), args.pooling,
                                  opening_markers(dataset.tokenizer))
    if args.init_from != "scratch":
        encoder = {name.removeprefix("bert."): weights
                   for name, weights in checkpoint["model"].items() if name.startswith("bert.")}
        model.bert.load_state_dict(encoder)
    model.label_smoothing = args.label_smoothing
    model.bert.noise = args.embedding_noise
    return model


def rate_of(name, model, args):
    """The share of the learning rate at which a parameter is trained: all of it in the new head,
    args.embedding_rate of it at the pre-trained embeddings, and between them geometrically, layer
    by layer (Howard and Ruder 2018, "discriminative fine-tuning"). Adam moves the vector of a rare
    token as far as that of a frequent one: at the full rate the few texts are memorised."""
    if args.init_from == "scratch" or not name.startswith("bert."):
        return 1.0
    _, part, number, *_ = name.split(".")
    n_layer = model.bert.config.n_layer
    n_layers_above = n_layer - 1 - int(number) if part == "blocks" else n_layer
    return args.embedding_rate ** ((n_layers_above + 1) / (n_layer + 1))


def opening_markers(tokenizer):
    """The ids of [E1] and [E2]."""
    return [tokenizer.special[marker] for marker in MARKERS[::2]]


def find_missing_markers(corpus, markers):
    """-> which documents lack one of the markers (ids) in their first block (bool array)."""
    tokens, is_missing = corpus.tokens.cpu().numpy().view(np.uint16), False
    for marker in markers:
        found = np.flatnonzero(tokens == marker)
        first, end = np.searchsorted(found, [corpus.starts, corpus.starts + corpus.lengths])
        is_missing = is_missing | (first == end)
    return is_missing


def check_markers(corpus, markers, dataset):
    """Print how many texts lack markers. SystemExit if all do."""
    n, n_texts = find_missing_markers(corpus, markers).sum(), len(corpus.lengths)
    if n == n_texts:
        raise SystemExit(f"--pooling=entities: no text of {dataset} has the markers [E1] and [E2] "
                         f"within --block_size={corpus.block_size}; python -m data.fewrel "
                         "--markers sets them")
    if n:
        print(f"{n:,} of {n_texts:,} texts have lost a marker by the cut; [CLS] replaces it")


@torch.no_grad()
def classify(model, corpus, tokenizer, autocast=contextlib.nullcontext(), documents=None):
    """-> probabilities (numpy float32, N x n_classes) of the documents (index array; default all),
    in their order."""
    if documents is None:
        documents = np.arange(len(corpus.lengths))
    by_length = np.argsort(corpus.lengths[documents], kind="stable")
    probabilities, was_training = [], model.training
    model.eval()
    n_rows = n_rows_to_evaluate(corpus.block_size)
    for part in np.split(by_length, range(n_rows, len(by_length), n_rows)):
        tokens, _, mask = corpus.rows(documents[part], tokenizer)
        with autocast:  # forward() avoids torch.compile, which would compile every length anew
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


def report(result, labels):
    """Print a result of train(), tested on these labels (N,)."""
    rate = result["examples"] / result["seconds"]
    padding = 1 - result["tokens"] / result["positions"]
    print(f"{result['examples']:,} examples in {result['seconds']:,.0f} s ({rate:,.0f} a second); "
          f"padding was {padding:.1%} of what was computed")
    report_score(result, labels, result["part"])


def report_score(result, labels, part="test"):
    """Print a result of score() on these labels (N,)."""
    weakest = sorted(result["class_accuracy"].items(), key=lambda item: item[1])
    classes = ", ".join(f"{name} {accuracy:.0%}" for name, accuracy in weakest[:10])
    print(f"accuracy of each class{', the lowest ten' if len(weakest) > 10 else ''}: {classes}")
    confusions = ", ".join(f"{a} > {b} {n}x" for a, b, n in result["confusions"][:5])
    print(f"most confused (true > predicted): {confusions or 'none'}")
    print(f"{part} accuracy {result['accuracy']:.1%} of {len(labels):,} (the most frequent class "
          f"alone: {np.bincount(labels).max() / len(labels):.1%}), macro-F1 "
          f"{result['macro_f1']:.3f}")


def save_outputs(out_dir, dataset, probabilities, labels):
    """Write out_dir/test.npz, which committee.py reads."""
    files = [dataset.folder / "test.bin", dataset.folder / "test.labels.bin"]
    content = io.BytesIO()
    np.savez(content, probabilities=probabilities, labels=labels, test_set=checksum(files))
    write_atomically(Path(out_dir) / "test.npz", content.getvalue())


def test_model(model, names, dataset, path, autocast=contextlib.nullcontext()):
    """Classify the test examples of a Dataset and write a table of the predictions to `path`. ->
    the result of score(), probabilities (N, n_classes), labels (N,). names: the model's classes
    (list of str); texts of other classes count as mistakes. SystemExit if it has none of them."""
    unknown = [name for name in dataset.label_names if name not in names]
    if unknown == dataset.label_names:
        raise SystemExit(f"{dataset.name} has none of the classes {', '.join(names[:9])}")
    if unknown:
        print(f"texts of {', '.join(unknown)} count as mistakes: the model does not know them")
    names = names + unknown
    labels = np.array([names.index(name) for name in dataset.label_names])[dataset.labels("test")]
    tokens, offsets = dataset.split("test")
    corpus = Corpus(tokens, offsets, model.bert.config.block_size, next(model.parameters()).device)
    probabilities = classify(model, corpus, dataset.tokenizer, autocast)
    if not np.isfinite(probabilities).all():
        raise SystemExit("the outputs are not finite: lower --lr, or raise --warmup; nothing was "
                         "saved")
    probabilities = np.pad(probabilities, ((0, 0), (0, len(unknown))))
    texts = [dataset.tokenizer.decode(tokens[start:end])
             for start, end in zip(offsets, offsets[1:])]
    write_table(path, texts, labels, probabilities, names)
    return score(probabilities, labels, names), probabilities, labels


def write_table(path, texts, labels, probabilities, names):
    """Write a CSV file of texts (list of str) with their true and predicted labels, the most
    confident mistakes first, for a person to read."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(["text", "true label", "predicted label", "probability"])
    for i in np.lexsort((-confidence, predicted == labels)):
        writer.writerow([texts[i], names[labels[i]], names[predicted[i]], f"{confidence[i]:.3f}"])
    write_atomically(path, content.getvalue().encode())


# ---- a trained classifier -----------------------------------------------------------------------

def load_classifier(out_dir, device="cpu"):
    """-> a fine-tuned model in evaluation mode, its tokenizer, the names of its labels. SystemExit
    as load_run."""
    checkpoint, tokenizer = training.load_run(out_dir, "finetune")
    config, names = BertConfig(**checkpoint["config"]), checkpoint["labels"]
    model = BertForClassification(config, len(names), checkpoint["pooling"],
                                  opening_markers(tokenizer))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), tokenizer, names


def encode_texts(texts, model, tokenizer, device):
    """list of str -> a Corpus of them for this model. [MASK] and the entity markers [E1] ... [/E2]
    are read as such; SystemExit for a text that lacks markers if the model needs them."""
    tokens = encode_documents(texts, tokenizer, ["[MASK]", *MARKERS])
    offsets = np.cumsum([0, *map(len, tokens)])
    tokens = np.concatenate([*tokens, [tokenizer.pad]]).astype(np.uint16)  # never empty
    corpus = Corpus(tokens, offsets, model.bert.config.block_size, device)
    if model.markers and (is_missing := find_missing_markers(corpus, model.markers)).any():
        raise SystemExit(f"{texts[is_missing.argmax()][:60]!r} has no markers around its two "
                         f"entities in its first {corpus.block_size - 2} tokens; "
                         'write "[E1] Mozart [/E1] was born in [E2] Salzburg [/E2]."')
    return corpus


def test_run(out_dir, name, device):
    """Test the classifier in out_dir on the test examples of another dataset, print its score."""
    model, tokenizer, names = load_classifier(out_dir, device)
    dataset = Dataset(name)
    training.check_vocabulary(out_dir, tokenizer.fingerprint, dataset)
    path = f"{out_dir}/predictions-{dataset.folder.name}.csv"
    result, _, labels = test_model(model, names, dataset, path)
    report_score(result, labels)
    print(f"wrote {path}")
    return result


def format_labels(row, names, n=5):
    """row (n_classes,), probabilities -> the likeliest labels in words."""
    return "   ".join(f"{names[i]} {row[i]:.1%}" for i in np.argsort(-row)[:n])


def predict(out_dir, texts, device):
    """Print the likeliest labels of each text, a line for each. texts: iterable of list of str."""
    model, tokenizer, names = load_classifier(out_dir, device)
    for batch in texts:
        corpus = encode_texts(batch, model, tokenizer, device)
        for row in classify(model, corpus, tokenizer):
            print(format_labels(row, names))


def read_texts(text):
    """Yield lists of texts (str): the one that is given, or for - the lines of standard input, one
    at a time from a person, who waits for an answer, many at a time from a file."""
    if text != "-":
        yield [text]
        return
    lines = (line.rstrip("\r\n") for line in io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig"))
    n_lines = 1 if sys.stdin.isatty() else 1024
    try:
        while texts := list(islice(lines, n_lines)):
            yield texts
    except UnicodeDecodeError:
        raise SystemExit("--predict=-: standard input is not UTF-8") from None


# ---- flags --------------------------------------------------------------------------------------

def get_parser():
    parser = new_parser("finetune.py", __doc__.split("\n\n")[0])
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", type=user_path, default="pocket-places",
         help="a labelled folder of data/bin; pocket-places is made on first use")
    flag("--n_per_class", type=number(int, 0), default=0,
         help="training examples per class; 0: all")
    flag("--example_seed", type=training.SEED,
         help="seed for the choice of examples; by default --seed. Members of a committee share "
         "it, or together they would see more examples than one model")
    flag("--holdout", type=training.SHARE, default=0.0,
         help="set aside this share of the training examples, and test on it instead")
    flag = parser.add_argument_group("initial weights").add_argument
    flag("--init_from", type=user_path, metavar="RUN",
         help="a run of pretrain.py, or scratch: random weights; by default out/pocket-bertN_LAYER")
    flag("--like", type=user_path, metavar="RUN",
         help="with --init_from=scratch: the architecture of this run")
    training.add_model_flags(parser, "model, with --init_from=scratch")
    flag = parser.add_argument_group("training").add_argument
    flag("--pooling", choices=["cls", "mean", "entities"], default="mean",
         help="classify by the [CLS] state, as in the paper, by the mean of all tokens' states, or "
         "by those at [E1] and [E2] (python -m data.fewrel --markers)")
    flag("--dropout", type=training.SHARE, default=0.1, help="the paper's is 0.1")
    flag("--epochs", type=training.COUNT, default=10, help="how often to train on each example")
    flag("--batch_size", type=training.COUNT, default=32, help="examples per step")
    flag("--lr", type=training.RATE, help="AdamW's highest learning rate; by default 0.001, "
         "with several layers of random weights 0.0003; the paper's is 5e-5")
    flag("--muon_lr", type=training.RATE, default=1e-3, help="Muon's highest learning rate")
    flag("--embedding_rate", type=number(float, above=0, most=1), default=0.1,
         help="pre-trained embeddings learn at this share of the learning rate; it rises layer by "
         "layer up to 1 in the new head; the paper's is 1, as is that of random weights")
    flag("--embedding_noise", type=number(float, 0), default=0.0,
         help="standard deviation of random noise that training adds to the embedded tokens, whose "
         "own is 1; try 0.5 where few examples are learned by heart")
    flag("--label_smoothing", type=training.SHARE, default=0.1,
         help="share of each target that is spread evenly over the classes; the paper's is 0")
    training.add_training_flags(flag, optimizer="adamw", warmup=0.1, weight_decay=0.01)
    flag("--seed", type=training.SEED, default=0,
         help="seed for new weights, choice and order of examples, and dropout")
    training.add_system_flags(parser)
    flag = parser.add_argument_group("output").add_argument
    flag("--out_dir", type=user_path, help="run directory; by default out/DATASET-from-RUN, or "
         "out/DATASET-scratch-bertN_LAYER (with --like -scratch-RUN)")
    flag("--predict", metavar="TEXT", help="don't train: print the likeliest labels of TEXT by the "
         "run in out_dir; - reads a text from each line of standard input")
    flag("--test", type=user_path, metavar="DATASET",
         help="don't train: test the run in out_dir on another dataset with the same classes")
    return parser


def main(argv=None):
    args, typed = parse_flags(get_parser(), argv)
    args.init_from = args.init_from or f"out/pocket-bert{args.n_layer}"
    start = f"from-{Path(args.init_from).name}"
    if args.init_from == "scratch":
        start = f"scratch-{Path(args.like).name if args.like else f'bert{args.n_layer}'}"
    args.out_dir = args.out_dir or f"out/{Path(args.dataset).name}-{start}"
    if args.predict is not None:
        return predict(args.out_dir, read_texts(args.predict), training.pick_device(args.device))
    if args.test is not None:
        return test_run(args.out_dir, args.test, training.pick_device(args.device))
    training.check_existing_run(args.out_dir)
    training.check_unused_flags(args, typed)
    if args.init_from == "scratch":
        refuse(typed, {"embedding_rate"}, "goes with a pre-trained run")
    else:
        refuse(typed, {"like"}, "goes with --init_from=scratch")
    try:
        with training.explain_out_of_memory(args):
            return train(args, typed)
    except KeyboardInterrupt:
        if (Path(args.out_dir) / "ckpt.pt").exists():
            raise SystemExit(f"interrupted at the end; {args.out_dir} is saved") from None
        raise SystemExit("interrupted; no model was saved, the same command starts again") from None


if __name__ == "__main__":
    run_script(main)
