"""What classification sets share: their rows, and drawing the examples to train and to test on."""
import hashlib
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from tqdm import tqdm

from data.flags import AT_LEAST_0, AT_LEAST_1, check_limits, new_parser
from data.tokenfile import checksum, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer, normalise


class Example(NamedTuple):
    key: int  # hash of the seed and the text by which rows are compared: the random order
    number: int  # the order in which they were read
    label: str
    side: str  # what it may be used for: "train", "test", or "either"
    text: str  # what is written


class Quota(NamedTuple):
    """How many examples of a label are drawn, and how many are wanted."""
    train: int
    test: int
    train_wanted: int
    test_wanted: int

    def missing(self):
        return self.train_wanted - self.train + self.test_wanted - self.test


def read_examples(rows, parse, side, path, form, skipped):
    """Yield (side, label, text to compare, text to write) of the rows, (place, row), of a file.

    parse(row) -> label, text to compare, text to write, or a ValueError that says what is wrong.
    Broken rows are counted in `skipped` (Skipped), as the reader of `rows` counts its own.
    SystemExit if they are more than one and more than 1 %, or all; it then tells the user `form`,
    what the file must be.
    """
    n_good, n_before = 0, skipped.counts.total()
    for place, row in rows:
        try:
            label, compared, text = parse(row)
            compared = normalise(compared)
            if not compared:
                raise ValueError("empty text")
        except ValueError as error:
            skipped.add(str(error), place)
        else:
            n_good += 1
            yield side, label, compared, text
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
    """Keep one of the examples of each text, and none if their labels differ. A text that is among
    those to test on is not one to train on. -> those kept, counts of those dropped (Counter)"""
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
    how many are wanted, None for all there are; of a single pool then one in ten is for testing.
    """
    n = counts["either"]
    if n == 0:
        n_train, n_test = n_train or max(1, counts["train"]), n_test or max(1, counts["test"])
        return Quota(min(n_train, counts["train"]), min(n_test, counts["test"]), n_train, n_test)
    n_test = n_test or max(1, n // 10)
    n_train = n_train or max(1, n - n_test)
    # Where there is not enough for both, each gets its share.
    share = max(1, round(n * n_test / (n_train + n_test)))
    test = min(share, n_test, n)
    return Quota(min(n_train, n - test), test, n_train, n_test)


def choose_labels(quotas, fewer):
    """quotas: label -> Quota. -> those of the labels that are kept. SystemExit if examples are
    missing and `fewer` is "stop", or if fewer than two labels are left."""
    short = {label: quota for label, quota in quotas.items() if quota.missing()}
    if short and fewer == "stop":
        label, quota = max(short.items(), key=lambda item: item[1].missing())
        raise SystemExit(
            f'{len(short)} of {len(quotas)} labels have too few examples, such as "{label}" with '
            f"{quota.train:,} + {quota.test:,} instead of {quota.train_wanted:,} + "
            f"{quota.test_wanted:,}: lower --n_train or --n_test, or keep these labels with what "
            "there is (--fewer=keep), or drop them (--fewer=drop)")
    dropped = [label for label, quota in short.items()
               if fewer == "drop" or not (quota.train and quota.test)]
    if dropped:
        few = dropped[:5] + ["..."] * (len(dropped) > 5)
        print(f"dropped for want of examples: {len(dropped)} labels, {', '.join(few)}")
    if len(short) > len(dropped):
        print(f"kept with fewer examples: {len(short) - len(dropped)} labels")
    kept = {label: quota for label, quota in quotas.items() if label not in dropped}
    if len(kept) < 2:
        raise SystemExit(f"labels left to tell apart: {len(kept)}, but two are needed; "
                         "lower --n_train or --n_test")
    return kept


def draw(examples, quotas):
    """Draw as many examples of each label as quotas (label -> Quota) says. -> list of (split,
    Example), in the order in which they were read

    Text by text in the order of the keys: all examples of a text go to the same split, the test
    split if there is room for them.
    """
    room = {split: Counter({label: getattr(quotas[label], split) for label in quotas})
            for split in ("test", "train")}
    drawn = []
    for group in group_by_text(example for example in examples if example.label in quotas):
        needed = Counter(example.label for example in group)
        for split in room:
            fits = all(n <= room[split][label] for label, n in needed.items())
            if fits and group[0].side in (split, "either"):
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


def prepare(args, rows, skipped, paths, source, names=None, keep_doubles=False, allow=()):
    """Draw examples of the rows, as read_examples yields them, and write them as a dataset.

    The random order is that of hashes of the seed and the text to compare. So it does not depend
    on the order of the rows, and a smaller draw is part of a larger one (with --n_test the same,
    where both are drawn from one pool). Of rows that share their text all are dropped but one, or
    if keep_doubles (a sentence of FewRel may tell of several relations) all go to one split.
    `names` (list of str): the labels in their order, by default sorted. The meta data gets the
    draw, `source` (dict), and the files (list of Path) and their checksum.
    """
    examples = []
    for side, label, compared, text in tqdm(rows, unit=" rows", disable=None):
        hashed = hashlib.blake2b(f"{args.seed} {compared}".encode(), digest_size=8)
        key = int.from_bytes(hashed.digest(), "big")
        examples.append(Example(key, len(examples), label, side, text))
    counts = {label: Counter() for label in names or sorted({row.label for row in examples})}
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
    labels = list(quotas)
    drawn = draw(examples, quotas)
    train = Counter(example.label for split, example in drawn if split == "train")
    test = Counter(example.label for split, example in drawn if split == "test")
    if not len(train) == len(test) == len(labels):
        raise SystemExit("a label is left without examples to train or to test on: "
                         "it has too few different texts")
    print(f"{args.name}: {len(labels)} labels, {describe(train.values())} training and "
          f"{describe(test.values())} test examples each")
    items = [(split, example.text, labels.index(example.label)) for split, example in drawn]
    source = source | {
        "files": [str(path) for path in paths], "sha256": checksum(paths), "seed": args.seed,
        "n_train": args.n_train, "n_test": args.n_test, "fewer": args.fewer, "skipped": skipped}
    write_dataset(args.name, items, args.tokenizer, source, labels, allow)


def add_draw_flags(flag, n_train=None, n_test=None, otherwise=""):
    """Give a parser, by its add_argument, the flags by which examples are drawn, with their
    defaults; `otherwise` says what None stands for."""
    flag("--n_train", type=int, default=n_train, help=f"training examples per label{otherwise}")
    flag("--n_test", type=int, default=n_test, help=f"test examples per label{otherwise}")
    flag("--fewer", choices=["stop", "keep", "drop"], default="stop",
         help="where labels have fewer: stop, keep them with what there is, or drop them")


def new_public_parser(name, description, source, n_train, n_test):
    """The parser of a public set: `source` tells which files it reads, the numbers are defaults."""
    parser = new_parser(f"python -m data.{name}", description)
    flag = parser.add_argument
    add_draw_flags(flag, n_train, n_test)
    flag("--seed", type=int, default=0, help="draws the examples")
    flag("--source", nargs="+", metavar="FILES",
         help=f"read local files instead of the network: {source}")
    flag("--name", default=name, help="the dataset's folder in data/bin")
    flag("--tokenizer", default=SHIPPED.stem, help=f"{SHIPPED.stem}, gpt2 or a .tiktoken file")
    return parser


def check_flags(args):
    """Check the flags by which examples are drawn, and put the tokenizer in place of its name."""
    check_limits(args, {"n_train": AT_LEAST_1, "n_test": AT_LEAST_1, "seed": AT_LEAST_0})
    args.tokenizer = get_tokenizer(args.tokenizer)
