"""What classification sets share: their rows, and drawing the examples to train and to test on."""
import hashlib
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from tqdm import tqdm

from data.flags import AT_LEAST_0, AT_LEAST_1, add_dataset_flags, check_limits, new_parser
from data.tokenfile import checksum, write_dataset
from data.tokenizer import get_tokenizer, normalise


class Example(NamedTuple):
    key: str  # hash of the seed and the text by which rows are compared: the random order
    number: int  # the order in which they were read
    label: str
    side: str  # what it may be used for: "train", "test", or "either"
    text: str  # what is written


class Quota(NamedTuple):
    """How many examples of a label are drawn, and how many are missing of what is wanted."""
    train: int
    test: int
    missing: int


def read_examples(path, rows, parse, form, skipped, lowercase=True):
    """Yield (label, text to compare, text to write) of the rows, (place, row), of a file.

    parse(row) gives these three, or a ValueError that says what is wrong. To be compared, texts are
    normalised as the tokenizer does it, with capitals or in `lowercase`. `skipped` (Skipped) counts
    broken rows, as the reader of `rows` does. SystemExit if they are more than one and more than
    1 %, or all; it tells the user `form`, what the file must be.
    """
    n_good, n_before = 0, skipped.counts.total()
    for place, row in rows:
        try:
            label, compared, text = parse(row)
            compared = normalise(compared, lowercase)
            if not compared:
                raise ValueError("empty text")
        except ValueError as error:
            skipped.add(str(error), place)
        else:
            n_good += 1
            yield label, compared, text
    n_broken = skipped.counts.total() - n_before
    n_rows = n_good + n_broken
    if n_rows == 0:
        raise SystemExit(f"{path}: no rows; it must be {form}")
    if n_good == 0 or n_broken > max(1, n_rows / 100):
        raise SystemExit(f"{path}: {n_broken:,} of {n_rows:,} rows are broken: {skipped}; "
                         f"it must be {form}")


def group_by_text(examples):
    """-> lists of the examples that share a text, in the order of the texts' keys."""
    return [list(group) for _, group in groupby(sorted(examples), lambda example: example.key)]


def drop_doubles(examples):
    """Keep one example of each text, none if their labels differ; a text to test on is not one to
    train on. -> those kept, counts of those dropped (Counter)"""
    kept, dropped = [], Counter()
    for group in group_by_text(examples):
        to_test = [example for example in group if example.side == "test"]
        if to_test:
            dropped["training texts that are also test texts"] += len(group) - len(to_test)
            group = to_test
        if len({example.label for example in group}) > 1:
            dropped["texts under two labels"] += len(group)
        else:
            dropped["doubles"] += len(group) - 1
            kept.append(group[0])
    return kept, +dropped  # without zeros


def set_quota(counts, n_train, n_test):
    """-> Quota of a label, of which there are `counts` (side -> int) examples. n_train and n_test:
    how many are wanted, None for all there are; of a single pool then one in ten is for testing."""
    n = counts["either"]
    if n:
        n_test = n_test or max(1, n // 10)
        n_train = n_train or max(1, n - n_test)
        # Where there is not enough for both, each gets its share.
        test = min(n_test, max(1, round(n * n_test / (n_train + n_test))))
        train = min(n_train, n - test)
    else:
        n_train, n_test = n_train or max(1, counts["train"]), n_test or max(1, counts["test"])
        train, test = min(n_train, counts["train"]), min(n_test, counts["test"])
    return Quota(train, test, n_train + n_test - train - test)


def choose_labels(quotas, fewer):
    """quotas (label -> Quota) -> those of the labels that are kept. SystemExit if examples are
    missing and `fewer` is "stop", or if fewer than two labels are left."""
    short = {label: quota for label, quota in quotas.items() if quota.missing}
    if short and fewer == "stop":
        label, quota = max(short.items(), key=lambda item: item[1].missing)
        raise SystemExit(
            f'{len(short)} of {len(quotas)} labels have too few examples, such as "{label}": '
            f"{quota.train:,} to train and {quota.test:,} to test on, {quota.missing:,} too few; "
            "lower --n_train or --n_test, or keep or drop such labels: --fewer=keep, --fewer=drop")
    dropped = [label for label, quota in short.items()
               if fewer == "drop" or not (quota.train and quota.test)]
    if dropped:
        few = dropped[:5] + ["..."] * (len(dropped) > 5)
        print(f"dropped for want of examples: {len(dropped)} labels, {', '.join(few)}")
    if len(short) > len(dropped):
        print(f"kept with fewer examples: {len(short) - len(dropped)} labels")
    if len(quotas) - len(dropped) < 2:
        raise SystemExit(f"labels left to tell apart: {len(quotas) - len(dropped)}, but two are "
                         "needed; lower --n_train or --n_test")
    return {label: quota for label, quota in quotas.items() if label not in dropped}


def draw(examples, quotas):
    """Draw as many examples of each label as quotas (label -> Quota) says, text by text in the
    order of the keys: all of a text go to the same split, the test split if there is room for them.
    -> list of (split, Example), in the order in which they were read"""
    room = {split: Counter({label: getattr(quotas[label], split) for label in quotas})
            for split in ("test", "train")}
    drawn = []
    for group in group_by_text(example for example in examples if example.label in quotas):
        needed = Counter(example.label for example in group)
        for split in room:
            if needed <= room[split] and group[0].side in (split, "either"):
                room[split] -= needed
                drawn += [(split, example) for example in group]
                break
    if missing := room["test"].total() + room["train"].total():
        print(f"{missing} examples fewer, as all rows of a text go to one side")
    return sorted(drawn, key=lambda item: item[1].number)


def describe(counts):
    """Such as `20 to 40`, of Counter.values()."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def prepare(args, files, parse, form, skipped, source, names=None, keep_doubles=False, allow=()):
    """Draw examples of the files, a list of (side, path, rows), and write them as a dataset.

    parse, form, skipped: see read_examples. The random order is that of hashes of the seed and the
    text: it does not depend on the order of the rows, and a smaller draw is part of a larger one
    (with --n_test the same, where both are drawn from one pool). Rows that share their text are
    dropped but one, or if keep_doubles (a sentence of FewRel may tell of several relations) all go
    to one split. `names` (list of str): the labels in their order, by default sorted. `source`
    (dict) goes into the meta data.
    """
    examples = []
    for side, path, rows in files:
        rows = read_examples(path, rows, parse, form, skipped, args.tokenizer.lowercase)
        for label, compared, text in tqdm(rows, unit=" rows", disable=None):
            key = hashlib.blake2b(f"{args.seed} {compared}".encode(), digest_size=8).hexdigest()
            examples.append(Example(key, len(examples), label, side, text))
    counts = {label: Counter() for label in names or sorted({row.label for row in examples})}
    spellings = Counter(label.casefold() for label in counts)
    if alike := [label for label in counts if spellings[label.casefold()] > 1]:
        print("classes of their own, though only capitals differ: " + ", ".join(alike[:6]))
    skipped = skipped.report()
    if not keep_doubles:
        examples, dropped = drop_doubles(examples)
        if dropped:
            print("dropped: " + ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()))
        skipped |= dropped
    for example in examples:
        counts[example.label][example.side] += 1
    quotas = {label: set_quota(counts[label], args.n_train, args.n_test) for label in counts}
    quotas = choose_labels(quotas, args.fewer)
    labels, drawn = list(quotas), draw(examples, quotas)
    train, test = (Counter(example.label for split, example in drawn if split == wanted)
                   for wanted in ("train", "test"))
    if not len(train) == len(test) == len(labels):
        raise SystemExit("a label is left without examples to train or to test on: "
                         "it has too few different texts")
    print(f"{args.name}: {len(labels)} labels, {describe(train.values())} training and "
          f"{describe(test.values())} test examples each")
    items = [(split, example.text, labels.index(example.label)) for split, example in drawn]
    paths = list(dict.fromkeys(path for _, path, _ in files))  # an archive holds both sides
    source = source | {
        "files": [str(path) for path in paths], "sha256": checksum(paths), "seed": args.seed,
        "n_train": args.n_train, "n_test": args.n_test, "fewer": args.fewer, "skipped": skipped}
    write_dataset(args.name, items, args.tokenizer, source, labels, allow)


def add_draw_flags(flag, n_train=None, n_test=None, otherwise=""):
    """Give a parser the flags of a draw, by its add_argument; `otherwise` explains a None."""
    flag("--n_train", type=int, default=n_train, help=f"training examples per label{otherwise}")
    flag("--n_test", type=int, default=n_test, help=f"test examples per label{otherwise}")
    flag("--fewer", choices=["stop", "keep", "drop"], default="stop",
         help="where labels have fewer: stop, keep them with what there is, or drop them")


def new_public_parser(name, description, source, n_train, n_test):
    """The parser of a public set: `source` tells which files it reads, the numbers are defaults."""
    parser = new_parser(f"python -m data.{name}", description)
    add_dataset_flags(parser, "the examples", default=name)
    parser.add_argument("--source", nargs="+", metavar="FILES",
                        help=f"read local files instead of the network: {source}")
    add_draw_flags(parser.add_argument, n_train, n_test)
    return parser


def parse_flags(parser, argv):
    """-> args, with the flags of a draw checked and the tokenizer in place of its name."""
    args = parser.parse_args(argv)
    check_limits(args, {"n_train": AT_LEAST_1, "n_test": AT_LEAST_1, "seed": AT_LEAST_0})
    args.tokenizer = get_tokenizer(args.tokenizer)
    return args
