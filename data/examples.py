"""What classification sets share: drawing the examples to train and to test on."""
import hashlib
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from tqdm import tqdm

from data.files import checksum
from data.flags import add_dataset_flags, new_parser, number
from data.rows import Skipped
from data.tokenfile import write_dataset
from data.tokenizer import get_tokenizer, normalise


class Example(NamedTuple):
    key: str  # hash of the seed and the text by which examples are compared: the random order
    number: int  # the order in which they were read
    label: str
    allowed_split: str  # what it may be used for: "train", "test" or "either"
    text: str  # what is written


def read_examples(files, seed, tokenizer, skipped):
    """-> list of Example. files: (allowed split, path, rows) each; a row is (label, text by which
    examples are compared, text to write), all str or None where one is missing. Rows without a
    label or text are counted in `skipped` (Skipped). SystemExit if a split has no others."""
    examples = []
    for allowed_split, _, rows in files:
        for label, compared, text in tqdm(rows, unit=" rows", disable=None):
            compared = normalise(compared or "", tokenizer.lowercase)
            if label and compared:
                key = hashlib.blake2b(f"{seed} {compared}".encode(), digest_size=8).hexdigest()
                examples.append(Example(key, len(examples), label, allowed_split, text))
            else:
                skipped["without a text" if label else "without a label"] += 1
    found = {example.allowed_split for example in examples}
    for allowed_split, path, _ in files:
        if allowed_split not in found:
            raise SystemExit(f"{path}: no row with a label and a text; skipped: {skipped}")
    return examples


def group_by_text(examples):
    """-> lists of the examples that share a text, in the order of the texts' keys."""
    return [list(group) for _, group in groupby(sorted(examples), lambda example: example.key)]


def drop_duplicates(examples, skipped):
    """-> one example of each text, none if their labels differ; a text to test on is not one to
    train on. The others are counted in `skipped` (Skipped)."""
    kept = []
    for group in group_by_text(examples):
        to_test = [example for example in group if example.allowed_split == "test"]
        if to_test:
            skipped["training texts that are also test texts"] += len(group) - len(to_test)
            group = to_test
        if len({example.label for example in group}) > 1:
            skipped["texts under two labels"] += len(group)
        else:
            skipped["duplicates"] += len(group) - 1
            kept.append(group[0])
    return kept


def choose_sizes(counts, n_train=None, n_test=None):
    """How many examples of a label are drawn. -> dict: "train", "test", and how many are "missing".
    counts (Counter): how many there are by allowed split. n_train, n_test: how many are wanted;
    None: all there are, at least one to train, and one in ten of "either" to test."""
    train, test, either = counts["train"], counts["test"], counts["either"]
    if either:  # if there is not enough for both, each gets its share; a single example trains
        to_test = n_test or max(1, either // 10)
        to_train = n_train or max(1, either - to_test)
        share = max(1, round(either * to_test / (to_train + to_test)))
        test = min(share, to_test, either - 1)
        train = either - test
    n_train, n_test = n_train or max(1, train), n_test or test
    train, test = min(train, n_train), min(test, n_test)
    return {"train": train, "test": test, "missing": n_train + n_test - train - test}


def choose_labels(sizes, fewer):
    """sizes: label -> choose_sizes -> those of the labels that are kept. SystemExit if examples are
    missing, unless `fewer` is "keep" or "drop", or if fewer than two labels are left."""
    short = [label for label in sizes if sizes[label]["missing"]]
    if short and not fewer:
        label = max(short, key=lambda label: sizes[label]["missing"])
        train, test, missing = sizes[label].values()
        choice = "lower --n_train or --n_test, or choose --fewer=keep or" if train else "or choose"
        raise SystemExit(
            f'{len(short)} of {len(sizes)} labels have too few examples, such as "{label}": '
            f"{train:,} to train and {test:,} to test on, {missing:,} too few; add some, {choice} "
            "--fewer=drop")
    if short and fewer == "drop":
        print(f"dropped, too few examples: {len(short)} labels, such as {short[0]}")
        sizes = {label: sizes[label] for label in sizes if label not in short}
    if len(sizes) < 2:
        raise SystemExit(f"labels left: {len(sizes)}, but two are needed")
    return sizes


def draw(examples, sizes):
    """Draw as many examples of each label as `sizes` says, text by text in the order of the keys.
    All examples of a text go to one split: to test, or if that needs no more of them, to train.
    -> list of (split, Example), in the order in which they were read"""
    needed = {split: Counter({label: sizes[label][split] for label in sizes})
              for split in ("test", "train")}
    drawn = []
    for group in group_by_text(example for example in examples if example.label in sizes):
        labels = Counter(example.label for example in group)
        for split in needed:
            if labels <= needed[split] and group[0].allowed_split in (split, "either"):
                needed[split] -= labels
                drawn += [(split, example) for example in group]
                break
    return sorted(drawn, key=lambda item: item[1].number)


def format_range(counts):
    """Such as `20 to 40`, of a list of int."""
    return " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))


def report_draw(name, labels, drawn):
    """Print how many examples are drawn of each label. SystemExit if a label has none to train on,
    or none has any to test on."""
    counts = Counter((example.label, split) for split, example in drawn)
    n_train, n_test = ([counts[label, split] for label in labels] for split in ("train", "test"))
    if 0 in n_train:
        raise SystemExit(f'label "{labels[n_train.index(0)]}": no example is left to train on; add '
                         "some, or drop labels that have too few: --fewer=drop")
    if not any(n_test):
        raise SystemExit("no example is left to test on; add some")
    print(f"{name}: {len(labels)} labels, {format_range(n_train)} training and "
          f"{format_range(n_test)} test examples each")
    if untested := [label for label, n in zip(labels, n_test) if not n]:
        print(f"trained on, but without test examples: {len(untested)} labels, such as "
              f"{untested[0]}")


def make_labelled_set(args, files, source, labels=None, keep_duplicates=False, allow=()):
    """Draw examples of the files (see read_examples) and write them as a dataset.

    The random order is that of hashes of the seed and the text: it does not depend on the order of
    the rows, and a smaller draw is part of a larger one (from one pool: with the same --n_test).
    source (dict) goes into the meta data; labels (list of str) are in their order, by default
    sorted. keep_duplicates: rows that share a text are all used, in one split (a sentence of FewRel
    may express several relations). SystemExit if there are too few examples.
    """
    skipped = Skipped()
    examples = read_examples(files, args.seed, args.tokenizer, skipped)
    labels = labels or sorted({example.label for example in examples})
    if not keep_duplicates:
        examples = drop_duplicates(examples, skipped)
    left_out = skipped.report()

    counts = {label: Counter() for label in labels}
    for example in examples:
        counts[example.label][example.allowed_split] += 1
    sizes = choose_labels({label: choose_sizes(counts[label], args.n_train, args.n_test)
                           for label in labels}, args.fewer)
    labels, drawn = list(sizes), draw(examples, sizes)
    report_draw(args.name, labels, drawn)

    paths = list(dict.fromkeys(path for _, path, _ in files))  # an archive holds both splits
    source = source | {
        "files": [str(path) for path in paths], "sha256": checksum(paths), "seed": args.seed,
        "n_train": args.n_train, "n_test": args.n_test, "fewer": args.fewer, "skipped": left_out}
    items = [(split, example.text, labels.index(example.label)) for split, example in drawn]
    write_dataset(args.name, items, args.tokenizer, source, labels, allow)


def add_draw_flags(flag, n_train=None, n_test=None, otherwise=""):
    """Give a parser the flags of a draw, by its add_argument; `otherwise` explains a None."""
    flag("--n_train", type=number(int, 1), default=n_train,
         help=f"training examples per label{otherwise}")
    flag("--n_test", type=number(int, 1), default=n_test,
         help=f"test examples per label{otherwise}")
    flag("--fewer", choices=["keep", "drop"],
         help="where labels have fewer: keep them with what there is, or drop them; default: stop")


def new_public_parser(name, description, source, n_train, n_test):
    """The parser of a public set: `source` says which files it reads, the numbers are defaults."""
    parser = new_parser(f"python -m data.{name}", description)
    add_dataset_flags(parser, "the examples", default=name)
    parser.add_argument("--source", nargs="+", metavar="FILES",
                        help=f"read local files instead of the network: {source}")
    add_draw_flags(parser.add_argument, n_train, n_test)
    return parser


def resolve_flags(parser, argv):
    """-> args (Namespace), with the tokenizer in place of its name."""
    args = parser.parse_args(argv)
    args.tokenizer = get_tokenizer(args.tokenizer)
    return args
