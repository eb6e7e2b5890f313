"""Fine-tune a pre-trained encoder, or the same one with random weights, into a text classifier, and test it.

    python finetune.py --n_layer=1                              # after python pretrain.py --n_layer=1
    python finetune.py --n_layer=1 --init_from=scratch          # the same without pre-training: what is the gap?
    python finetune.py --n_layer=1 --predict="We drove along the river Rhine."

The test examples are looked at once, after the last epoch. To choose hyper-parameters, --holdout=0.1 keeps a tenth of
the training examples back and reports on them instead.
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
from data.batches import Corpus, make_batches
from data.tokenfile import BIN_DIR, checksum, encode_documents, open_labels, open_split, read_meta, write_atomically
from data.tokenizer import MARKERS
from model import IGNORE, BertConfig, BertForClassification, count_parameters, flops_per_token


def get_parser():
    parser = pretrain.new_parser(__doc__.split("\n\n")[0])
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", default="pocket-places", help="a labelled folder of data/bin; pocket-places is made on first use")
    flag("--n_per_class", type=int, default=0, help="training examples to use of each class; 0: all")
    flag("--example_seed", type=int, help="of the choice of examples; by default the seed. Give the members of a "
         "committee the same one: together they would see more examples than a single model")
    flag("--holdout", type=float, default=0.0, help="share of the training examples to keep back and to report on "
         "instead of the test examples")
    flag = parser.add_argument_group("initial weights").add_argument
    flag("--init_from", metavar="RUN", help="a run directory of pretrain.py, or scratch for random weights; by default "
         "out/pocket-bertN_LAYER")
    flag("--like", metavar="RUN", help="with --init_from=scratch: the architecture of this run")
    pretrain.add_model_flags(parser, "model, with --init_from=scratch")
    flag = parser.add_argument_group("training").add_argument
    flag("--pooling", choices=["cls", "mean"], default="mean", help="classify by the [CLS] state, as in the paper, or "
         "by the mean over the tokens' states")
    flag("--dropout", type=float, default=0.1, help="the paper's is 0.1")
    flag("--epochs", type=int, default=10, help="passes over the training examples")
    flag("--batch_size", type=int, default=32, help="examples a step")
    flag("--optimizer", choices=["muon", "adamw"], default="adamw", help="of the layers' matrices; AdamW has the rest")
    flag("--lr", type=float, help="AdamW's peak learning rate; by default 0.001, of deeper models 0.0003; the paper's "
         "is 5e-5")
    flag("--muon_lr", type=float, default=1e-3, help="Muon's peak learning rate")
    flag("--warmup", type=float, default=0.1, help="share of the steps in which the learning rate rises")
    flag("--lr_per_epoch", action="store_true", help="change the learning rate only when an epoch begins, as the paper "
         "does; the first then runs at almost none, unless --warmup=0")
    flag("--weight_decay", type=float, default=0.01, help="of matrices, not of biases and norms")
    flag("--grad_clip", type=float, default=1.0, help="largest gradient norm; 0: no clipping")
    flag("--pad_to", type=int, default=0, help="pad batches to a multiple of so many tokens; 0: of 8, compiled of 32; "
         "the paper's is 128, the block")
    flag("--seed", type=int, default=0, help="of the new weights, the choice and the order of examples, and dropout")
    pretrain.add_system_flags(parser)
    flag = parser.add_argument_group("output").add_argument
    flag("--out_dir", help="run directory; by default out/DATASET-from-RUN, or out/DATASET-scratch-bertN_LAYER")
    flag("--predict", metavar="TEXT", help="don't train: print what the run in out_dir makes of TEXT; - reads a text "
         "from each line of standard input")
    return parser


def name_runs(args):
    """Fill in the default run directories."""
    args.init_from = args.init_from or f"out/pocket-bert{args.n_layer}"
    start = f"from-{Path(args.init_from).name}"
    if args.init_from == "scratch":
        start = f"scratch-{Path(args.like).name if args.like else f'bert{args.n_layer}'}"
    args.out_dir = args.out_dir or f"out/{Path(args.dataset).name}-{start}"


def pick_examples(labels, n_per_class, holdout, seed):
    """labels (numpy, N) -> the examples to train on, the examples held out (two index arrays).

    Of each class a share `holdout` is held out, at least one if the share is not 0, and n_per_class of the rest are
    trained on (0: all). With the same seed fewer are part of more, and those held out are the same.
    """
    order, some, held_out = np.random.default_rng(seed).permutation(len(labels)), [], []
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        n = math.ceil(holdout * len(mine))
        held_out.append(mine[:n])
        some.append(mine[n:][:n_per_class or None])
    return np.concatenate(some), np.concatenate(held_out)


def make_model(args, n_classes, tokenizer):
    """-> the classifier that the flags ask for: a run's encoder under a new head, or random weights throughout."""
    run, given = args.like if args.init_from == "scratch" else args.init_from, get_parser().parse_args([])
    if run is None:
        config = pretrain.make_config(args, tokenizer.vocab_size)
    else:
        checkpoint = pretrain.load_checkpoint(run)
        if "labels" in checkpoint:
            raise SystemExit(f"{run} is a classifier already; give a run of pretrain.py")
        if checkpoint["fingerprint"] != tokenizer.fingerprint:
            raise SystemExit(f"{run} was trained with the vocabulary {checkpoint['tokenizer']}, but --dataset="
                             f"{args.dataset} is encoded with {tokenizer.name}; prepare one of them again")
        config = BertConfig(**checkpoint["config"] | {"dropout": args.dropout})
        for name, value in vars(config).items():
            if name in vars(args) and getattr(args, name) not in (getattr(given, name), value):
                raise SystemExit(f"--{name}={getattr(args, name)}: {run} has {value}; leave the flag out, or use "
                                 "--init_from=scratch without --like")
    torch.manual_seed(args.seed)
    model = BertForClassification(config, n_classes, args.pooling)
    if args.init_from != "scratch":
        model.bert.load_state_dict({name.removeprefix("bert."): weights for name, weights in checkpoint["model"].items()
                                    if name.startswith("bert.")})
    return model


def load_classifier(out_dir, device="cpu"):
    """-> a fine-tuned model in evaluation mode, its tokenizer, the checkpoint's other contents ("labels", ...)."""
    checkpoint, tokenizer = pretrain.load_run(out_dir)
    if "labels" not in checkpoint:
        raise SystemExit(f"{out_dir} is not a classifier but a run of pretrain.py; fine-tune it first, or name the "
                         "fine-tuned run by --out_dir")
    model = BertForClassification(BertConfig(**checkpoint["config"]), len(checkpoint["labels"]), checkpoint["pooling"])
    model.load_state_dict(checkpoint.pop("model"))
    return model.to(device).eval(), tokenizer, checkpoint


@torch.no_grad()
def classify(model, corpus, tokenizer, autocast=contextlib.nullcontext(), documents=None, batch_size=64):
    """-> probabilities (numpy float32, N x n_classes) of the documents (index array; default all), in their order."""
    documents = np.arange(len(corpus.lengths)) if documents is None else documents
    by_length = np.argsort(corpus.lengths[documents], kind="stable")
    probabilities, was_training = [], model.training
    model.eval()
    for some in np.split(by_length, range(batch_size, len(by_length), batch_size)):
        x, _, mask = corpus.rows(documents[some], tokenizer)
        with autocast:
            logits = model.forward(x, mask)  # passes torch.compile by, which would compile anew for every length
        probabilities.append(logits.float().softmax(-1))
    model.train(was_training)
    result = np.empty((len(documents), probabilities[0].size(1)), np.float32)
    result[by_length] = torch.cat(probabilities).cpu().numpy()
    return result


def score(probabilities, labels, names):
    """probabilities (N, n_classes), labels (N,) -> accuracy, macro-F1 (mean over the classes that occur or are
    predicted), accuracy of each class, and the ten most frequent confusions [true, predicted, count] (dict)."""
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    right, n_true, n_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    seen = n_true + n_predicted > 0
    wrong = confusion - np.diag(right)
    pairs = np.dstack(np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:10], wrong.shape))[0]
    f1 = 2 * right / (n_true + n_predicted).clip(1)  # (n_classes,)
    return {"accuracy": float(right.sum() / len(labels)), "macro_f1": float(f1[seen].mean()),
            "class_accuracy": {name: float(r / n) for name, r, n in zip(names, right, n_true) if n},
            "confusions": [[names[a], names[b], int(wrong[a, b])] for a, b in pairs if wrong[a, b]]}


def report(result, largest):
    """Print a result of train(). `largest`: the share of the most frequent class."""
    weakest = sorted(result["class_accuracy"].items(), key=lambda item: item[1])
    rate, padding = result["examples"] / result["seconds"], 1 - result["tokens"] / result["positions"]
    print(f"{result['examples']:,} examples in {result['seconds']:,.0f} s ({rate:,.0f} a second); padding was "
          f"{padding:.1%} of what was computed")
    print(f"accuracy of each class{', the lowest ten' if len(weakest) > 10 else ''}: "
          + ", ".join(f"{name} {accuracy:.0%}" for name, accuracy in weakest[:10]))
    print("most confused (true > predicted): "
          + (", ".join(f"{a} > {b} {n}x" for a, b, n in result["confusions"][:5]) or "none"))
    print(f"{result['part']} accuracy {result['accuracy']:.1%} of {result['n']:,} (the most frequent class alone: "
          f"{largest:.1%}), macro-F1 {result['macro_f1']:.3f}")


def train(args):
    """Fine-tune as the flags say. -> the result (dict), which is also the last line of out_dir/log.jsonl."""
    pretrain.check(args)
    device, out_dir = pretrain.pick_device(args.device), Path(args.out_dir)
    if (out_dir / "ckpt.pt").exists():
        raise SystemExit(f"{out_dir} holds a run: name another --out_dir, or delete it")
    if args.dataset == "pocket-places":
        pocket.prepare()

    # data
    tokenizer, _ = pretrain.open_tokenizer(args.dataset)
    labels, names = open_labels(args.dataset, "train"), read_meta(args.dataset)["labels"]
    examples, held_out = pick_examples(labels, args.n_per_class, args.holdout,
                                       args.seed if args.example_seed is None else args.example_seed)
    if not len(examples):
        raise SystemExit(f"--holdout={args.holdout}: leaves nothing to train on")
    if args.holdout:
        part, truth = "held-out", labels[held_out]
    else:
        part, truth = "test", open_labels(args.dataset, "test")

    # model
    model = make_model(args, len(names), tokenizer).to(device)
    config = model.bert.config
    if args.lr is None:  # with 0.001, six layers fail with some seeds
        args.lr = 1e-3 if config.n_layer == 1 else 3e-4
    torch.set_float32_matmul_precision("high")
    args.dtype = pretrain.fast_dtype(device) if args.dtype == "auto" else args.dtype
    autocast = torch.autocast(device.type, getattr(torch, args.dtype), enabled=args.dtype != "float32")
    optimizers = pretrain.make_optimizers(model, args.optimizer, args.lr, args.muon_lr, args.weight_decay, device,
                                         args.dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=args.dtype == "float16")
    corpus = Corpus(*open_split(args.dataset, "train"), config.block_size, device)
    use_compile = device.type == "cuda" if args.compile is None else args.compile
    # Compiled code wants few distinct shapes: lengths in steps of 32, and batches filled up with empty rows.
    pad_to, n_rows = (args.pad_to or 32, args.batch_size) if use_compile else (args.pad_to or 8, None)
    targets = torch.from_numpy(np.append(labels, IGNORE)).to(device)  # (N + 1,), the last for empty rows

    def draw(documents):
        x, _, mask = corpus.rows(documents, tokenizer, pad_to, n_rows)
        rows = np.pad(documents, (0, len(x) - len(documents)), constant_values=len(labels))
        return x, mask, targets[torch.from_numpy(rows).to(device)]

    steps_per_epoch = math.ceil(len(examples) / args.batch_size)
    n_steps, step, history = args.epochs * steps_per_epoch, 0, []
    done = {"examples": 0, "tokens": 0, "positions": 0, "flops": 0.0, "seconds": 0.0}
    print(f"{args.dataset}: {len(names)} classes, {len(examples):,} training examples")
    print(f"BERT-{config.n_layer} from {args.init_from}: {count_parameters(model):,} parameters, {vars(config)}")
    print(f"{n_steps:,} steps of {args.batch_size} examples on {device}, {args.dtype}, compile {use_compile}")
    if use_compile:
        pretrain.compile_model(model, draw(examples[:args.batch_size]), autocast, tqdm.write)
    torch.manual_seed(pretrain.draw_seed(args.seed, 1))  # of dropout, the same whatever the model drew before

    pretrain.write_log(out_dir, [])  # a folder that cannot be written to is known now, not after training
    bar = tqdm(total=n_steps, unit="step", disable=None)
    for epoch in range(args.epochs):
        start, loss_sum = time.time(), 0.0
        for batch in make_batches(corpus.lengths[examples], args.batch_size, args.seed, epoch):
            documents = examples[batch]
            x, mask, y = draw(documents)
            with autocast:
                loss = model(x, mask, y) / len(documents)
            scaler.scale(loss).backward()
            loss_sum += loss.detach() * len(documents)  # stays on the device: no waiting for it
            factor = pretrain.lr_factor(epoch * steps_per_epoch if args.lr_per_epoch else step, n_steps, args.warmup)
            pretrain.update(model, optimizers, scaler, factor, args.grad_clip)
            n_tokens, T = int(corpus.lengths[documents].sum()) + 2 * len(documents), x.size(1)
            share = 1 / T if args.pooling == "cls" else 1.0
            done["examples"] += len(documents)
            done["tokens"] += n_tokens
            done["positions"] += x.numel()
            done["flops"] += 3 * n_tokens * flops_per_token(config, T, share, n_words=0)
            step += 1
            bar.update()
        train_loss = float(loss_sum) / len(examples)
        done["seconds"] += time.time() - start
        if not math.isfinite(train_loss):
            raise SystemExit(f"the loss is not finite in epoch {epoch + 1}: lower --lr={args.lr}, or raise --warmup")
        history.append({"epoch": epoch + 1, "dtype": args.dtype, "train_loss": train_loss, **done})
        line = f"epoch {epoch + 1:3}  train loss {train_loss:6.3f}"
        if args.holdout:
            accuracy = (classify(model, corpus, tokenizer, autocast, held_out).argmax(1) == labels[held_out]).mean()
            history[-1]["holdout_accuracy"] = float(accuracy)
            line += f"  held-out accuracy {accuracy:6.1%}"
        pretrain.write_log(out_dir, history)
        tqdm.write(f"{line}  {done['examples'] / done['seconds']:7,.0f} examples/s")
    bar.close()

    # the result of the last epoch, never of the best
    if args.holdout:
        probabilities = classify(model, corpus, tokenizer, autocast, held_out)
    else:
        test = Corpus(*open_split(args.dataset, "test"), config.block_size, device)
        probabilities = classify(model, test, tokenizer, autocast)
    if not np.isfinite(probabilities).all():
        raise SystemExit("the outputs are not finite: lower --lr, or raise --warmup; nothing was saved")
    result = history[-1] | {"part": part, "n": len(truth)} | score(probabilities, truth, names)
    history[-1] = result
    if not args.holdout:  # what committee.py needs
        test_files, content = [BIN_DIR / args.dataset / f"test{end}" for end in (".bin", ".labels.bin")], io.BytesIO()
        np.savez(content, probabilities=probabilities, labels=truth, test_set=checksum(test_files))
        write_atomically(out_dir / "test.npz", content.getvalue())
    pretrain.save_checkpoint(out_dir, {
        "model": model.state_dict(), "config": vars(config), "pooling": args.pooling, "labels": names,
        "history": history, "args": vars(args), "tokenizer": tokenizer.name, "fingerprint": tokenizer.fingerprint})

    report(result, np.bincount(truth).max() / len(truth))
    print(f"wrote {out_dir}/ckpt.pt, log.jsonl" + ("" if args.holdout else ", test.npz"))
    return result


def encode(texts, tokenizer, block_size, device):
    """list of str -> a Corpus of them. The entity markers [E1] ... [/E2] are read as such."""
    tokens = encode_documents(texts, tokenizer, MARKERS)
    offsets = np.cumsum([0, *map(len, tokens)])
    tokens = np.concatenate([*tokens, [tokenizer.pad]]).astype(np.uint16)  # never empty, even if all texts are
    return Corpus(tokens, offsets, block_size, device)


def predict(out_dir, texts, device):
    """Print the likeliest labels of each text with their probabilities, a line for each of `texts` (iterable)."""
    model, tokenizer, checkpoint = load_classifier(out_dir, device)
    names, texts = checkpoint["labels"], iter(texts)
    while some := list(islice(texts, 1024)):
        for row in classify(model, encode(some, tokenizer, model.bert.config.block_size, device), tokenizer):
            print("   ".join(f"{names[i]} {row[i]:.1%}" for i in np.argsort(-row)[:5]))


def main(argv=None):
    args = get_parser().parse_args(argv)
    name_runs(args)
    if args.predict is not None:
        texts = (line.rstrip("\n") for line in sys.stdin) if args.predict == "-" else [args.predict]
        try:
            return predict(args.out_dir, texts, pretrain.pick_device(args.device))
        except UnicodeDecodeError:
            raise SystemExit("--predict=-: standard input is not UTF-8") from None
    try:
        return train(args)
    except torch.OutOfMemoryError:
        raise SystemExit(f"out of memory on the GPU: lower --batch_size={args.batch_size}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; nothing was saved") from None


if __name__ == "__main__":
    main()
