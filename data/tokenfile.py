"""The token-file format that every corpus is prepared into and every script reads.

    data/bin/NAME/train.bin          uint16: the tokens of all documents, one after the other, without [CLS] and [SEP]
    data/bin/NAME/train.offsets.bin  int64, n_docs + 1: document i is train.bin[offsets[i]:offsets[i + 1]]
    data/bin/NAME/train.labels.bin   int64, n_docs: the class of each document, in classification sets only
    data/bin/NAME/val.bin ...        the same for each further split
    data/bin/NAME/meta.json          tokenizer, counts, names of the classes, where the text came from, the command

Documents are kept whole up to MAX_TOKENS and cut to block_size when batches are made, so one file serves all models.
"""
import contextlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

BIN_DIR = Path(__file__).parent / "bin"
MAX_TOKENS = 2048


def write_atomically(path, content):
    """Write bytes so that `path` holds either all of them or what it held before. Folders that are missing are made.
    One line on an OSError."""
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
    """list of str -> list of uint16 arrays, by all cores: tiktoken lets other threads run while it encodes.
    `allow`: the special tokens that are read as such."""
    def encode(some):
        # 16 characters a token is far beyond any text; the cut only keeps a giant document from being encoded in vain.
        return [np.array(tokenizer.encode(text[:16 * MAX_TOKENS], allow)[:MAX_TOKENS], dtype=np.uint16)
                for text in some]
    parts = [texts[i:i + 128] for i in range(0, len(texts), 128)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [tokens for part in pool.map(encode, parts) for tokens in part]


def write_dataset(name, items, tokenizer, source, bin_dir=BIN_DIR, labels=None, allow=()):
    """Encode `items`, an iterable of (split, text), into data/bin/NAME and return its meta data (dict).

    A classification set has `labels`, the names of its classes (list of str), and items (split, text, index of its
    class). `source` (dict of plain values) is recorded. `allow`: the special tokens that texts may contain. Everything
    is written to a temporary folder that takes its final name last: whatever happens, also in `items`, the dataset is
    whole or absent, and an older one stays as it was.
    """
    if name != Path(name).name or name.startswith("."):
        raise SystemExit(f"--name={name}: must be a plain folder name")
    folder, temporary, old = (Path(bin_dir) / n for n in (name, f".{name}.tmp", f".{name}.old"))
    start, n_bytes, splits, files = time.time(), 0, {}, {}
    items = iter(items)
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        while batch := list(islice(items, 8192)):
            texts = [text for _, text, *_ in batch]
            n_bytes += sum(len(text.encode("utf-8", "replace")) for text in texts)
            for (split, _, *label), tokens in zip(batch, encode_documents(texts, tokenizer, allow)):
                if split not in splits:
                    splits[split] = {"n_docs": 0, "n_tokens": 0}
                    ends = [".bin", ".offsets.bin", *([".labels.bin"] if labels else [])]
                    files[split] = [open(temporary / f"{split}{end}", "wb") for end in ends]
                    files[split][1].write(np.int64(0).tobytes())
                if len(tokens):
                    splits[split]["n_docs"] += 1
                    splits[split]["n_tokens"] += len(tokens)
                    files[split][0].write(tokens.tobytes())
                    files[split][1].write(np.int64(splits[split]["n_tokens"]).tobytes())
                    if labels:
                        files[split][2].write(np.int64(label[0]).tobytes())
        for file in sum(files.values(), []):
            file.close()
        if not all(split["n_docs"] for split in splits.values()) or "train" not in splits:
            raise SystemExit(f"dataset {name}: no text to write for {' and '.join(splits) or 'training'}")
        meta = {"name": name, "tokenizer": tokenizer.name, "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size, "splits": splits, **({"labels": labels} if labels else {}),
                "source": source, "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False))
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise SystemExit(f"cannot write dataset {name}: {error.strerror or error} ({temporary})") from None
    finally:
        for file in sum(files.values(), []):
            file.close()
        shutil.rmtree(temporary, ignore_errors=True)
    seconds = time.time() - start
    counts = ", ".join(f"{split} {n['n_docs']:,} documents, {n['n_tokens']:,} tokens" for split, n in splits.items())
    print(f"{folder}: {counts} ({n_bytes / 1e6:.1f} MB of text in {seconds:.1f} s, {n_bytes / 1e6 / seconds:.1f} MB/s)")
    return meta


def read_meta(name, bin_dir=BIN_DIR):
    """The meta data (dict) of a prepared dataset. One line if there is none, or if its tokenizer has changed since."""
    try:
        return json.loads((Path(bin_dir) / name / "meta.json").read_text())
    except FileNotFoundError:
        there = ", ".join(sorted(path.parent.name for path in Path(bin_dir).glob("[!.]*/meta.json"))) or "none yet"
        raise SystemExit(f"--dataset={name}: not prepared (prepared are: {there}); "
                         "make it with python -m data.NAME, one of the modules in data/") from None
    except (OSError, ValueError) as error:
        raise SystemExit(f"--dataset={name}: {Path(bin_dir) / name / 'meta.json'} is damaged ({error}); "
                         "prepare it again") from None


def open_split(name, split, bin_dir=BIN_DIR):
    """-> tokens (uint16), offsets (int64, n_docs + 1) as memory maps. Nothing is read before it is used.

    The maps are copy-on-write ("c"), never changing the file; torch refuses to wrap read-only arrays without a warning.
    """
    path = Path(bin_dir) / name / split
    try:
        tokens = np.memmap(f"{path}.bin", np.uint16, "c")
        offsets = np.memmap(f"{path}.offsets.bin", np.int64, "c")
    except (OSError, ValueError) as error:
        raise SystemExit(f"--dataset={name}: cannot open {path}.bin ({error}); prepare it again") from None
    if offsets[-1] != len(tokens):
        raise SystemExit(f"--dataset={name}: {path}.bin is damaged ({len(tokens):,} tokens, not {offsets[-1]:,}); "
                         "prepare it again")
    return tokens, offsets


def open_labels(name, split, bin_dir=BIN_DIR):
    """-> the class of each document of a split (int64, n_docs), as indices into meta["labels"]."""
    meta, path = read_meta(name, bin_dir), Path(bin_dir) / name / f"{split}.labels.bin"
    if "labels" not in meta:
        raise SystemExit(f"--dataset={name}: its documents have no labels; give a classification set, made for example "
                         "by python -m data.agnews")
    try:
        labels = np.fromfile(path, np.int64)
    except OSError as error:
        raise SystemExit(f"--dataset={name}: cannot open {path} ({error.strerror}); prepare it again") from None
    n, n_classes = meta["splits"][split]["n_docs"], len(meta["labels"])
    if len(labels) != n or not 0 <= labels.min() <= labels.max() < n_classes:
        raise SystemExit(f"--dataset={name}: {path} is damaged ({len(labels):,} labels for {n:,} documents); prepare "
                         "it again")
    return labels
