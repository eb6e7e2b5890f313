"""What the labelled sets share: reading their files' rows, and drawing the examples to train and to test on.

A set is a function read(skipped) that yields its rows: (what the row may be used for, label, the text by which rows are
compared, the text to write). It is gone through twice, first for keys and labels only, then for the texts drawn.
"""
import argparse
import contextlib
import csv
import gzip
import hashlib
import io
import tarfile
import zlib
from array import array
from collections import Counter
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from data.files import checksum, describe_skipped, parse_document, report_skipped, skip
from data.tokenfile import write_dataset
from data.tokenizer import SHIPPED, get_tokenizer, normalise

LARGEST_MEMBER = 2**30  # bytes; what claims to be larger is not one of our sets
TRAIN, TEST, EITHER = 1, 2, 3  # what a row may be used for: bits; 0: nothing


def csv_rows(file, columns=None):
    """A binary file -> (line number, n, row) of each row that is not blank: a dict by the names of the columns, which
    are in the first row if not given, and n = 1, or a ValueError that says why there is none, and its n lines."""
    # Strict: what follows a closing quote is an error, after which the next line is read anew, so that a quote too many
    # or too few costs only the rows around it (or at most 131,072 characters, csv's limit for a field).
    reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""), strict=True)
    columns = columns or next(reader, None)
    while True:
        start = reader.line_num
        try:
            cells = next(reader)
            parse_document("".join(cells).encode("utf-8", "surrogateescape"), is_json=False)  # complains if not UTF-8
            if not cells:
                continue
            if len(cells) != len(columns):
                raise ValueError(f"not of {len(columns)} columns")
            row = dict(zip(columns, cells))
        except StopIteration:
            return
        except ValueError as error:
            row = error
        except csv.Error as error:
            row = ValueError(f"not CSV ({error})")
        yield start + 1, reader.line_num - start if isinstance(row, ValueError) else 1, row


def read_file(path, rows_of, parse, form, skipped, member=None):
    """Yield (label, normalised text, text to write) of each row of a file, a .gz file or a member of a .tgz file.

    rows_of(file) is such as csv_rows; parse(row) -> label, text to compare, text to write, or a ValueError. Broken rows
    are counted in `skipped` (Counter). SystemExit if they are more than one and more than 1 %, or all, or if the file
    cannot be read; it then tells the user `form`, what the file must be.
    """
    n_rows, n_broken, place = 0, 0, f"{path}:{member}" if member else path
    try:
        with contextlib.ExitStack() as stack:
            if member:
                archive = stack.enter_context(tarfile.open(path, "r:gz"))
                entry = next((entry for entry in archive if entry.name == member and entry.isreg()), None)
                if entry is None or entry.size > LARGEST_MEMBER:
                    raise SystemExit(f"{path}: holds no {member} of a plausible size, or is damaged; get it again")
                file = archive.extractfile(entry)
            else:
                file = stack.enter_context(gzip.open(path) if str(path).endswith(".gz") else open(path, "rb"))
            for where, n, row in rows_of(file):
                n_rows += n
                try:
                    if isinstance(row, ValueError):
                        raise row
                    label, text, to_write = parse(row)
                    if not (text := normalise(text)):
                        raise ValueError("empty text")
                except ValueError as error:
                    n_broken += n
                    for _ in range(n):
                        skip(skipped, str(error), f"{place}:{where}")
                else:
                    yield label, text, to_write
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SystemExit(f"{path}: damaged or incomplete archive ({error}); get it again") from None
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, csv.Error) as error:
        raise SystemExit(f"{path}: {error}; it must be {form}") from None
    if n_broken > max(1, n_rows / 100) or n_broken == n_rows:
        problem = f"{n_broken:,} of {n_rows:,} rows are broken: {describe_skipped(skipped)}" if n_rows else "no rows"
        raise SystemExit(f"{place}: {problem}; it must be {form}")


def by_text(keys, rows):
    """The rows (int array of row numbers) that share a text, a group for each text, in the order of the texts' keys."""
    rows = rows[np.argsort(keys[rows], kind="stable")]
    ends = np.flatnonzero(np.diff(keys[rows])) + 1
    return (rows[a:b] for a, b in pairwise([0, *ends, len(rows)]))


def drop_doubles(keys, labels, uses):
    """Set uses to 0 for all rows but one of each text, and for all of them if their labels differ. A text that is
    among those only to test on is not one to train on. -> how many rows were dropped for which reason (Counter)"""
    dropped = Counter()
    for rows in by_text(keys, np.arange(len(keys))):
        if len(rows) > 1:
            kept = rows[uses[rows] == uses[rows].max()]  # TEST is more than TRAIN
            dropped["training texts that are also test texts"] += len(rows) - len(kept)
            n = 1 if (labels[kept] == labels[kept[0]]).all() else 0
            dropped["doubles" if n else "texts under two labels"] += len(kept) - n
            uses[np.setdiff1d(rows, kept[:n])] = 0
    return +dropped  # without zeros


def plan(labels, uses, names, args):
    """How many examples of each label to train and to test on: int array (2, n_labels), 0 for labels left out."""
    have = np.stack([np.bincount(labels[uses & use > 0], minlength=len(names)) for use in (TRAIN, TEST)])
    want, pooled = np.zeros_like(have), EITHER in uses
    want[1] = np.maximum(1, have[1] // 10 if pooled else have[1]) if args.n_test is None else args.n_test
    want[0] = np.maximum(1, have[0] - want[1] * pooled) if args.n_train is None else args.n_train
    if pooled:  # where there is not enough for both, each gets its share
        have[1] = np.rint(have[1] * want[1] / want.sum(0)).clip(1, np.minimum(want, have)[1])
        have[0] -= have[1]
    some = np.minimum(want, have)
    missing = (want - some).sum(0)
    if missing.any() and args.fewer == "stop":
        i = missing.argmax()
        raise SystemExit(f"{(missing > 0).sum()} of {len(names)} labels have too few examples, such as "
                         f"\"{names[i]}\" with {some[0, i]:,} + {some[1, i]:,} instead of {want[0, i]:,} + "
                         f"{want[1, i]:,}: lower --n_train or --n_test, or keep these labels with what there is "
                         "(--fewer=keep), or drop them (--fewer=drop)")
    kept = (some > 0).all(0) if args.fewer == "keep" else missing == 0
    out = [name for name, keep in zip(names, kept) if not keep]
    if out:
        print(f"dropped for want of examples: {len(out)} labels, {', '.join(out[:5])}{', ...' * (len(out) > 5)}")
    if n := (kept & (missing > 0)).sum():
        print(f"kept with fewer examples: {n} labels")
    if kept.sum() < 2:
        raise SystemExit(f"labels left to tell apart: {kept.sum()}, but two are needed; lower --n_train or --n_test")
    return some * kept


def take(keys, labels, rows, room):
    """Draw from the rows (int array): text by text in the order of the keys, each with all its rows or not at all, as
    far as there is room (int array) for their labels. -> row numbers"""
    room, taken = room.copy(), []
    for group in by_text(keys, rows[room[labels[rows]] > 0]):
        n = np.bincount(labels[group], minlength=len(room))
        if (n <= room).all():
            room -= n
            taken.extend(group)
    return np.array(taken, int)


def prepare(name, read, args, paths, source, bin_dir, names=(), keep_doubles=False, allow=()):
    """Draw examples from the rows read(skipped) and write them as the dataset --name, or `name`.

    The random order is that of the keys, which are hashes of the seed and the text to compare. So it does not depend on
    the order of the rows, a smaller draw is part of a larger one (with --n_test the same, where both are drawn from one
    pool), and rows of one key share their text. Of these all are dropped but one, or if keep_doubles (a sentence of
    FewRel may tell of several relations) all go to one side.
    `names` (list of str): the labels in their order, by default sorted. Into the meta data go `source` (dict), the
    draw, and the files (list of Path) and their checksum.
    """
    ids, skipped = {label: i for i, label in enumerate(names)}, Counter()
    keys, labels, uses = array("Q"), array("q"), array("b")
    for use, label, text, _ in tqdm(read(skipped), unit=" rows", disable=None):
        keys.append(int.from_bytes(hashlib.blake2b(f"{args.seed} {text}".encode(), digest_size=8).digest(), "big"))
        labels.append(ids.setdefault(label, len(ids)))
        uses.append(use)
    names = list(names) or sorted(ids)
    ranks = {label: i for i, label in enumerate(names)}
    keys, uses, labels = np.array(keys), np.array(uses), np.array([ranks[label] for label in ids], int)[labels]
    skipped = report_skipped(skipped)
    if not keep_doubles and (dropped := drop_doubles(keys, labels, uses)):
        print("dropped: " + ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()))
        skipped |= dropped
    room = plan(labels, uses, names, args)
    kept = np.flatnonzero(room[0])
    test = take(keys, labels, np.flatnonzero(uses & TEST), room[1])
    train = take(keys, labels, np.flatnonzero((uses & TRAIN > 0) & ~np.isin(keys, keys[test])), room[0])
    drawn = np.stack([np.bincount(labels[rows], minlength=len(names)) for rows in (train, test)])
    if missing := (room - drawn).sum():
        print(f"{missing} examples fewer, as all rows of a text go to one side")
    if not drawn[:, kept].all():
        raise SystemExit("a label is left without examples to train or to test on: it has too few different texts")
    numbers = [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in zip(drawn[:, kept].min(1), drawn[:, kept].max(1))]
    print(f"{args.name or name}: {len(kept)} labels, {numbers[0]} training and {numbers[1]} test examples each")
    uses[:] = 0
    uses[train], uses[test] = TRAIN, TEST
    items = (("train" if use == TRAIN else "test", text, np.searchsorted(kept, label))
             for use, label, (*_, text) in zip(uses, labels, read(Counter())) if use)
    source = source | {"files": [str(path) for path in paths], "sha256": checksum(paths), "seed": args.seed,
                       "n_train": args.n_train, "n_test": args.n_test, "fewer": args.fewer, "skipped": skipped}
    write_dataset(args.name or name, items, args.tokenizer, source, bin_dir, [names[i] for i in kept], allow)


def add_draw_flags(flag, n_train, n_test, default=""):
    """Give a parser, by its add_argument, the flags by which examples are drawn. `default`: what None stands for."""
    flag("--n_train", type=int, default=n_train, help=f"training examples per label (default: {n_train or default})")
    flag("--n_test", type=int, default=n_test, help=f"test examples per label (default: {n_test or default})")
    flag("--fewer", choices=["stop", "keep", "drop"], default="stop", help="if labels have fewer: stop (default), keep "
         "them with what there is, or drop them")


def new_parser(module, description, source, n_train, n_test):
    """The parser of a public set: `source` tells which files it reads, the numbers are its defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m data.{module}", description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    add_draw_flags(flag, n_train, n_test)
    flag("--seed", type=int, default=0, help="draws the examples (default: 0)")
    flag("--source", nargs="+", metavar="FILES", help=f"read local files instead of the network: {source}")
    flag("--name", help=f"the dataset's folder in data/bin (default: {module})")
    flag("--tokenizer", default=SHIPPED.stem, help=f"{SHIPPED.stem} (default), gpt2 or a .tiktoken file")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}; see --help\n")  # one line, not the usage
    return parser


def check_flags(args, **least):
    """Check that the flags are at least so large, and put the tokenizer in place of its name."""
    for name, n in least.items():
        if (value := getattr(args, name)) is not None and value < n:
            raise SystemExit(f"--{name}={value}: must be at least {n}")
    args.tokenizer = get_tokenizer(args.tokenizer)
    return args
