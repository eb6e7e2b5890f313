"""Reading raw text: which files are meant, the documents in them, and which documents validate and which train.

    .jsonl, .jsonl.gz   a document per line: a JSON object whose "text" is the document; other columns are ignored
    .txt, .txt.gz       documents separated by blank lines

All of them in UTF-8. What cannot be read is skipped, counted, and reported with the place where it first occurred.
Files of any size will do: apart from a permutation of the documents' numbers only one document is in memory at a time.
"""
import glob
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

ENDINGS = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")


def find_files(patterns):
    """Names and globs (list of str; ** goes through subfolders, ~ is the home folder) -> sorted list of Path.

    A file that several patterns match comes once. SystemExit if a pattern matches nothing or is a folder.
    """
    found = set()
    for pattern in patterns:
        name = os.path.expanduser(pattern)
        if os.path.isdir(name):
            raise SystemExit(f"{pattern} is a folder; name its files, for example '{os.path.join(name, '*.jsonl')}'")
        # A name that exists is that file, even if its brackets would make it a glob.
        matches = [name] if os.path.isfile(name) else [m for m in glob.glob(name, recursive=True) if os.path.isfile(m)]
        if not matches:
            raise SystemExit(f"no file matches {pattern} (looked from {os.getcwd()})")
        found.update(map(Path, matches))
    return sorted(found)


def checksum(paths):
    """The SHA-256 (hex) of the files' bytes, one file after the other as given."""
    sha256 = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def skip(skipped, reason, where):
    """Count a skipped document. The keys of `skipped` (Counter) are (reason, where it first occurred)."""
    key = next((key for key in skipped if key[0] == reason), (reason, str(where)))
    skipped[key] += 1


def describe_skipped(skipped):
    return ", ".join(f"{n:,} {reason} (first: {where})" for (reason, where), n in skipped.items())


def report_skipped(skipped):
    """Print one line such as `skipped: 3 not JSON (first: x.jsonl:17)`, if there is anything to report.

    Returns the counts alone (dict, reason -> int), for meta.json.
    """
    if skipped:
        print(f"skipped: {describe_skipped(skipped)}")
    return {reason: n for (reason, _), n in skipped.items()}


def is_usable(text, where, skipped, min_words):
    """Whether a text (str) has at least min_words words, and any at all; if not, it is counted in `skipped`."""
    if text.strip() and len(text.split(maxsplit=min_words)) >= min_words:
        return True
    skip(skipped, f"shorter than {min_words} words" if text.strip() else "empty text", where)
    return False


def cut_lines(file, per_line):
    """A binary file -> (line number, bytes) of each line that is not blank, or if not per_line of each such block."""
    block, start = [], 1
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark that Windows programs write
        if line.strip():
            start = start if block else number
            block.append(line)
        if block and (per_line or not line.strip()):
            yield start, b"".join(block)
            block = []
    if block:
        yield start, b"".join(block)


def parse_document(raw, is_json):
    """bytes -> str. ValueError says in words why not."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if "\0" in text:  # so UTF-16 shows where its bytes happen to be valid
        raise ValueError("not UTF-8")
    if not is_json:
        return text.replace("\r\n", "\n").strip()
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(row, dict) or "text" not in row:
        raise ValueError('without "text"')
    if not isinstance(row["text"], str):
        raise ValueError('whose "text" is not a string')
    return row["text"]


def read_documents(paths, skipped, min_words=0):
    """Yield the documents (str) of the files in order.

    Left out are: lines that are not UTF-8, not JSON, without a string "text", empty texts and those of fewer than
    min_words words (separated by white space). They are counted in `skipped` (Counter) for report_skipped, as are
    files without any document. SystemExit if an ending is unknown, a file cannot be read, or nothing at all is found.
    """
    paths, n_all = list(paths), 0
    for path in paths:
        if not str(path).endswith(ENDINGS):
            raise SystemExit(f"{path}: unknown ending; can read {', '.join(ENDINGS)}")
    for path in paths:
        n, is_json = 0, str(path).removesuffix(".gz").endswith(".jsonl")
        try:
            with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
                for number, raw in cut_lines(file, per_line=is_json):
                    where = f"{path}:{number}"
                    try:
                        text = parse_document(raw, is_json)
                    except ValueError as error:
                        skip(skipped, str(error), where)
                        continue
                    if is_usable(text, where, skipped, min_words):
                        n += 1
                        yield text
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SystemExit(f"{path}: damaged or incomplete gzip file ({error}); get it again") from None
        except OSError as error:
            raise SystemExit(f"{path}: cannot be read ({error.strerror or error})") from None
        if n == 0:
            skip(skipped, "file without text", path)
        n_all += n
    if n_all == 0:
        files = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        raise SystemExit(f"nothing to read in {files}: {describe_skipped(skipped)}; files must be UTF-8, "
                         'and a .jsonl file has an object with a string "text" on each line')


def survey(patterns, min_words=0):
    """Read all files of `patterns` once -> their paths, and what there is to tell about them (dict, for meta.json):
    files, sha256, n_docs (how many documents read_documents yields), min_words, skipped. Raises as the above do."""
    paths, skipped = find_files(patterns), Counter()
    n_docs = sum(1 for _ in tqdm(read_documents(paths, skipped, min_words), unit=" documents", disable=None))
    return paths, {"files": [str(path) for path in paths], "sha256": checksum(paths), "n_docs": n_docs,
                   "min_words": min_words, "skipped": report_skipped(skipped)}


def split_documents(paths, n_docs, n_val, n_train, seed, min_words=0):
    """Yield (split, text) for n_val random documents as "val" and n_train others as "train", in the files' order.

    n_docs is how many documents read_documents yields. They are ranked by one shuffle, drawn by `seed`: the first n_val
    validate, the following n_train train. So all sizes share the validation set, and a smaller training set is part
    of a larger one.
    """
    ranks = np.random.default_rng(seed).permutation(n_docs)
    for rank, text in zip(ranks, read_documents(paths, Counter(), min_words)):
        if rank < n_val + n_train:
            yield "val" if rank < n_val else "train", text
