"""The token-file format that every corpus is prepared into and every script reads.

    train.bin          uint16: the tokens of all documents in a row, without [CLS] and [SEP]
    train.offsets.bin  int64, n_docs + 1: document i is train.bin[offsets[i]:offsets[i + 1]]
    train.labels.bin   int64, n_docs: the class of each document, in classification sets only
    val.bin ...        the same for each further split
    meta.json          tokenizer, counts, names of the classes, where the text is from, the command

All in the folder data/bin/NAME. Documents are kept whole up to MAX_TOKENS and cut to block_size
when batches are made, so one file serves all models.
"""
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

BIN_DIR = Path(__file__).parent / "bin"
MAX_TOKENS = 2048


def folder_of(name):
    """The folder of a dataset: data/bin/NAME, or the path itself if `name` is an absolute one."""
    return BIN_DIR / name


def checksum(paths):
    """The SHA-256 (hex) of the files' bytes, one file after the other as given."""
    sha256 = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def write_atomically(path, content):
    """Write bytes so that `path` holds either all of them or what it held before. Missing folders
    are made. SystemExit if the file cannot be written."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise SystemExit(f"cannot write {path}: {error.strerror}") from None


def encode_documents(texts, tokenizer, allow=()):
    """list of str -> list of uint16 arrays, by all cores: tiktoken lets other threads run.
    `allow`: the special tokens that are read as such."""
    def encode(texts):
        # 16 characters a token is far beyond any text: only of a giant document the rest is cut.
        ids = [tokenizer.encode(text[:16 * MAX_TOKENS], allow) for text in texts]
        return [np.array(tokens[:MAX_TOKENS], np.uint16) for tokens in ids]

    parts = [texts[i:i + 128] for i in range(0, len(texts), 128)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [tokens for part in pool.map(encode, parts) for tokens in part]


def write_splits(folder, documents, with_labels):
    """Write the binary files of documents as write_tokens gets them. -> split -> counts (dict)"""
    files, lengths, labels = {}, defaultdict(list), defaultdict(list)
    with contextlib.ExitStack() as stack:
        for split, tokens, *label in documents:
            if split not in files:
                files[split] = stack.enter_context(open(folder / f"{split}.bin", "wb"))
            if len(tokens):
                files[split].write(tokens.tobytes())
                lengths[split].append(len(tokens))
                labels[split] += label
    for split in files:
        np.cumsum([0, *lengths[split]], dtype=np.int64).tofile(folder / f"{split}.offsets.bin")
        if with_labels:
            np.array(labels[split], np.int64).tofile(folder / f"{split}.labels.bin")
    return {split: {"n_docs": len(lengths[split]), "n_tokens": sum(lengths[split])}
            for split in files}


def write_tokens(name, documents, about, source, labels=None):
    """write_dataset of documents that are encoded: (split, tokens) or (split, tokens, index of the
    class), tokens as uint16 array. about (dict): the tokenizer's name, fingerprint and size."""
    folder, start = folder_of(name), time.time()
    if not Path(name).is_absolute() and (name != folder.name or name.startswith(".")):
        raise SystemExit(f"--name={name}: must be a plain folder name")
    meta = {"name": folder.name, **about} | ({"labels": labels} if labels else {})
    meta |= {"source": source, "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent,
                                         ignore_cleanup_errors=True) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            splits = write_splits(new, documents, bool(labels))
            if "train" not in splits or not all(count["n_docs"] for count in splits.values()):
                raise SystemExit(f"dataset {name}: no text for {' and '.join(splits) or 'train'}")
            meta["splits"] = splits
            text = json.dumps(meta, indent=1, ensure_ascii=False)
            (new / "meta.json").write_text(text, "utf-8")
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            new.rename(folder)
    except OSError as error:
        raise SystemExit(f"cannot write dataset {name}: {error.strerror or error}") from None
    sizes = ", ".join(f"{split} {count['n_docs']:,} documents, {count['n_tokens']:,} tokens"
                      for split, count in splits.items())
    print(f"{folder}: {sizes} ({time.time() - start:.1f} s)")
    return meta


def write_dataset(name, items, tokenizer, source, labels=None, allow=()):
    """Encode `items`, an iterable of (split, text), into data/bin/NAME and return its meta data.

    name: a plain name (str), or an absolute path. A classification set has `labels`, the names of
    its classes (list of str), and items (split, text, index of its class). `source` (dict) is
    recorded. `allow`: the special tokens that texts may contain. Empty texts are left out. Whatever
    happens, also in `items`, the dataset is whole or absent, and an older one stays as it was.
    SystemExit if a split has no text or if the files cannot be written.
    """
    def documents():
        remaining = iter(items)
        while batch := list(islice(remaining, 8192)):
            encoded = encode_documents([text for _, text, *_ in batch], tokenizer, allow)
            for (split, _, *label), tokens in zip(batch, encoded):
                yield split, tokens, *label
    about = {"tokenizer": tokenizer.name, "fingerprint": tokenizer.fingerprint,
             "vocab_size": tokenizer.vocab_size}
    return write_tokens(name, documents(), about, source, labels)


def read_meta(name):
    """The meta data (dict) of a prepared dataset. SystemExit if there is none or it is damaged."""
    path = folder_of(name) / "meta.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        names = sorted(path.parent.name for path in BIN_DIR.glob("[!.]*/meta.json"))
        raise SystemExit(
            f"--dataset={name}: not prepared (prepared are: {', '.join(names) or 'none yet'}); "
            "make it with python -m data.NAME, one of the modules in data/") from None
    except (OSError, ValueError) as error:
        raise damaged(name, f"{path} is damaged ({error})") from None


def damaged(name, problem):
    return SystemExit(f"--dataset={name}: {problem}; prepare it again")


def open_split(name, split):
    """-> tokens (uint16), offsets (int64, n_docs + 1) as memory maps: nothing is read before it is
    used. SystemExit if they are missing or damaged."""
    path = folder_of(name) / f"{split}.bin"
    try:
        # Copy-on-write ("c") never changes the file. Of a read-only array torch would warn.
        tokens = np.memmap(path, np.uint16, "c")
        offsets = np.memmap(path.with_suffix(".offsets.bin"), np.int64, "c")
    except (OSError, ValueError) as error:
        raise damaged(name, f"cannot open {path} ({error})") from None
    if offsets[-1] != len(tokens):
        raise damaged(name, f"{path} is damaged ({len(tokens):,} tokens, not {offsets[-1]:,})")
    return tokens, offsets


def open_labels(name, split):
    """-> the class of each document of a split (int64, n_docs), as indices into meta["labels"].
    SystemExit if there are none, or damaged ones."""
    meta, path = read_meta(name), folder_of(name) / f"{split}.labels.bin"
    if "labels" not in meta:
        raise SystemExit(f"--dataset={name}: its documents have no labels; give a classification "
                         "set, made for example by python -m data.agnews")
    try:
        labels = np.fromfile(path, np.int64)
    except OSError as error:
        raise damaged(name, f"cannot open {path} ({error.strerror})") from None
    n, n_classes = meta["splits"][split]["n_docs"], len(meta["labels"])
    if len(labels) != n or not 0 <= labels.min() <= labels.max() < n_classes:
        raise damaged(name, f"{path} is damaged ({len(labels):,} labels for {n:,} documents)")
    return labels
