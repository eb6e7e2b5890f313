"""The token-file format that every corpus is prepared into and every script reads.

    train.bin            uint16: the tokens of all documents in a row, without [CLS] and [SEP]
    train.offsets.bin    int64, n_docs + 1: document i is train.bin[offsets[i]:offsets[i + 1]]
    train.labels.bin     int64, n_docs: the class of each document, in classification sets only
    val.bin, test.bin    the same for the other splits
    vocabulary.tiktoken  the vocabulary, if it is one of the user's own
    meta.json            tokenizer, counts, names of the classes, where the text is from, the
                         command, and the checksum (CRC-32) of each file, its own included

All in the folder data/bin/NAME, which can be moved. Documents are kept whole up to MAX_TOKENS and
cut to block_size when batches are made, so one file serves all models. Every file's checksum is
compared when it is first opened: a damaged one is never read as data.
"""
import contextlib
import errno
import itertools
import json
import os
import shlex
import sys
import tempfile
import zlib
from array import array
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from data.files import crc_of, retry
from data.tokenizer import get_tokenizer

BIN_DIR = Path(__file__).parent / "bin"
META, VOCABULARY = "meta.json", "vocabulary.tiktoken"
FILES = {META, VOCABULARY, *(f"{split}{kind}.bin" for split in ("train", "val", "test")
                             for kind in ("", ".offsets", ".labels"))}
SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}  # of programs that show folders
MAX_TOKENS = 2048  # of a document
MAX_CHARACTERS = 16 * MAX_TOKENS  # white space aside, enough for MAX_TOKENS tokens


def dataset_folder(name):
    """The folder of a dataset: data/bin/NAME, or the path itself if `name` is an absolute one."""
    return BIN_DIR / name


def encode_documents(texts, tokenizer, allow=()):
    """list of str -> list of arrays (uint16, up to MAX_TOKENS tokens), by all cores: tiktoken lets
    other threads run. An array in `texts` stays as it is. `allow`: see Tokenizer.encode."""
    def encode(text):
        if isinstance(text, str):
            if len(text) > MAX_CHARACTERS:  # of a giant document only the beginning is encoded
                text = " ".join(text.split())[:MAX_CHARACTERS]
            text = tokenizer.encode(text, allow)
        return np.array(text[:MAX_TOKENS], np.uint16)

    chunks = [texts[i:i + 128] for i in range(0, len(texts), 128)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        encoded = pool.map(lambda chunk: list(map(encode, chunk)), chunks)
        return list(itertools.chain.from_iterable(encoded))


def count_lost(text, tokens, tokenizer):
    """About how many tokens of a text encode_documents has cut off (int), by its characters."""
    if len(tokens) < MAX_TOKENS or not isinstance(text, str):
        return 0
    n_kept, n = len(tokenizer.decode(tokens)), len(" ".join(text.split()))
    return max(0, round(MAX_TOKENS * (n - n_kept) / n_kept))


def write_splits(folder, items, tokenizer, allow):
    """Write the binary files of items as write_dataset gets them. -> split -> counts (dict)"""
    items, files, n_lost = iter(items), {}, Counter()
    lengths, labels = defaultdict(lambda: array("q")), defaultdict(lambda: array("q"))
    with contextlib.ExitStack() as stack:
        while batch := list(itertools.islice(items, 4096)):  # not too many: they may be books
            documents = encode_documents([text for _, text, *_ in batch], tokenizer, allow)
            for (split, text, *label), tokens in zip(batch, documents):
                if split not in files:
                    files[split] = stack.enter_context(open(folder / f"{split}.bin", "wb"))
                if len(tokens):
                    files[split].write(tokens)
                    lengths[split].append(len(tokens))
                    labels[split].extend(label)
                    n_lost[split] += count_lost(text, tokens, tokenizer)
    for split in files:
        offsets = np.append([0], np.cumsum(lengths[split], dtype=np.int64))
        offsets.tofile(folder / f"{split}.offsets.bin")
        if labels[split]:
            np.array(labels[split]).tofile(folder / f"{split}.labels.bin")
    return {split: {"n_docs": len(lengths[split]), "n_tokens": sum(lengths[split]),
                    "n_lost": n_lost[split]} for split in files}


def check_place(folder):
    """SystemExit if the folder of a new dataset holds anything but an older dataset, which it
    replaces: a typo in --name must not delete other files."""
    with contextlib.suppress(FileNotFoundError):
        names = {path.name for path in folder.iterdir()} - SYSTEM_FILES
        for name in sorted(names - FILES if META in names else names):
            raise SystemExit(f"{folder} holds {name}, which is no part of a dataset: choose "
                             "another --name, or move it away")


def move(new, folder):
    """Rename the folder `new` to `folder`. One that is there is moved beside `new`, and back if
    this fails. Of two processes that do this at the same moment, one wins, and its folder stays."""
    old = new.with_name("old")
    try:
        with contextlib.suppress(FileNotFoundError):
            retry(os.rename, folder, old)
        retry(os.rename, new, folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # those say that another one won
            raise
    finally:
        if new.exists():
            with contextlib.suppress(OSError):
                retry(os.rename, old, folder)


def crc_of_meta(meta):
    """The CRC-32 (int) of a dict that JSON can hold."""
    return zlib.crc32(json.dumps(meta).encode())


def report(splits):
    """-> the size of each split, and what to do where much text is lost (str, one or two lines).
    splits: split -> counts (dict)"""
    sizes = ", ".join(f"{split} {counts['n_docs']:,} documents, {counts['n_tokens']:,} tokens"
                      for split, counts in splits.items())
    n_lost = sum(counts["n_lost"] for counts in splits.values())
    share = n_lost / (n_lost + sum(counts["n_tokens"] for counts in splits.values()))
    if share < 0.01:
        return sizes
    return (f"{sizes}\n{'WARNING: ' if share > 0.3 else ''}{share:.1%} of the text is lost, since "
            f"documents are cut to {MAX_TOKENS:,} tokens; to keep it, put a blank line (.txt) or a "
            "new row (.jsonl, .csv) between documents, and between the pages of a book")


def write_dataset(name, items, tokenizer, source, labels=None, allow=()):
    """Encode `items`, an iterable of (split, text), into data/bin/NAME and return its meta data.

    name: a plain name (str), or an absolute path. A text (str) may be encoded already (uint16). A
    classification set has `labels`, the names of its classes (list of str), and items (split, text,
    index of its class). `source` (dict) is recorded. `allow`: see Tokenizer.encode. Empty texts are
    left out. Whatever happens, also in `items`, the dataset is whole, or an older one stays as it
    was. SystemExit if a split has no text, if the files cannot be written, or if they would replace
    a folder of anything else.
    """
    place = dataset_folder(name)
    if not Path(name).is_absolute() and (name != place.name or name.startswith(".")):
        raise SystemExit(f"--name={name}: must be a plain folder name")
    folder = Path(os.path.realpath(place))  # of a link, write to its target
    try:
        check_place(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent,
                                         ignore_cleanup_errors=True) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            splits = write_splits(new, items, tokenizer, allow)
            for split in ("train", *splits):
                if split not in splits or not splits[split]["n_docs"]:
                    raise SystemExit(f"dataset {name}: no text for {split}")
            if tokenizer.vocabulary:
                (new / VOCABULARY).write_bytes(tokenizer.vocabulary.encode())
            meta = {"name": place.name, "tokenizer": tokenizer.name,
                    "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
            meta |= {"labels": labels} if labels else {}
            meta |= {"source": source, "splits": splits,
                     "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                     "checksums": {path.name: crc_of(path) for path in sorted(new.iterdir())}}
            # ASCII: a file name can hold what has no UTF-8 form.
            content = json.dumps(meta | {"checksum": crc_of_meta(meta)}, indent=1)
            (new / META).write_text(content, "ascii")
            move(new, folder)
    except OSError as error:
        hint = "; does a training or notebook use it?" if os.name == "nt" else ""
        raise SystemExit(f"cannot write dataset {name} to {folder}: "
                         f"{error.strerror or error}{hint}") from None
    print(f"{place}: {report(splits)}")
    return meta


class Dataset:
    """A prepared dataset: .name, .folder, .meta (dict, the content of meta.json). SystemExit, here
    and in all methods, if a file is missing or damaged."""

    def __init__(self, name):
        self.name, self.folder, self.opened = name, dataset_folder(name), {}
        path = self.folder / META
        try:
            self.meta = json.loads(path.read_text("utf-8"))
            if self.meta.pop("checksum") != crc_of_meta(self.meta):
                raise ValueError("wrong checksum")
        except FileNotFoundError:
            names = sorted(path.parent.name for path in BIN_DIR.glob(f"[!.]*/{META}"))
            raise SystemExit(
                f"--dataset={name}: not prepared (prepared are: {', '.join(names) or 'none yet'}); "
                "make it with python -m data.NAME, one of the modules in data/") from None
        except (OSError, ValueError, KeyError, RecursionError, AttributeError, TypeError) as error:
            raise self.damaged(f"{path} is damaged ({error})") from None

    def damaged(self, problem):
        return SystemExit(f"--dataset={self.name}: {problem}; prepare it again")

    def open_file(self, file, dtype=np.uint8):
        """-> a file of the dataset (str) as a memory map (dtype)."""
        if file not in self.opened:
            path = self.folder / file
            try:
                # Copy-on-write ("c") never changes the file. Of a read-only array torch would warn.
                content = np.memmap(path, dtype, "c")
            except (OSError, ValueError) as error:
                raise self.damaged(f"cannot open {path} ({error})") from None
            if zlib.crc32(content) != self.meta["checksums"].get(file):
                raise self.damaged(f"{path} is damaged")
            self.opened[file] = content
        return self.opened[file]

    def split(self, split):
        """-> tokens (uint16), offsets (int64, n_docs + 1) of "train", "val" or "test"."""
        return (self.open_file(f"{split}.bin", np.uint16),
                self.open_file(f"{split}.offsets.bin", np.int64))

    def labels(self, split):
        """-> the class of each document of a split (int64, n_docs), as indices into label_names."""
        self.label_names  # SystemExit if there are none
        return np.array(self.open_file(f"{split}.labels.bin", np.int64))

    @property
    def label_names(self):
        """The names of the classes (list of str). SystemExit if the dataset has none."""
        if "labels" not in self.meta:
            raise SystemExit(f"--dataset={self.name}: its documents have no labels; give a "
                             "classification set, made for example by python -m data.agnews")
        return self.meta["labels"]

    @cached_property
    def tokenizer(self):
        """Its Tokenizer. SystemExit if that has changed since the dataset was prepared."""
        vocabulary = None
        if VOCABULARY in self.meta["checksums"]:
            vocabulary = self.open_file(VOCABULARY).tobytes().decode("ascii")
        tokenizer = get_tokenizer(self.meta["tokenizer"], vocabulary)
        if tokenizer.fingerprint != self.meta["fingerprint"]:
            raise self.damaged(f"encoded with another vocabulary than {tokenizer.name} is now")
        return tokenizer
