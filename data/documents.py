"""Text for pre-training: the documents of raw files, and which of them validate and which train."""
import numpy as np
from tqdm import tqdm

from data.files import checksum
from data.rows import ENDINGS, Skipped, find_files, is_missing, read_rows


def why_unusable(text, seen, min_words=0):
    """Why this is no text of min_words or more that comes for the first time, in words, or None if
    it is one: then the hash of its words, small whatever the text, is added to `seen` (set)."""
    if not isinstance(text, str):
        return 'without a string "text"'
    if is_missing(text):
        return "empty text"
    words = text.split()
    if len(words) < min_words:
        return f"shorter than {min_words} words"
    key = hash(" ".join(words))
    if key in seen:
        return "doubles"
    seen.add(key)
    return None


def read_documents(paths, skipped, min_words=0):
    """Yield the documents (str) of the files in order, each once.

    Broken rows, texts that why_unusable refuses, exact doubles and files without a document are
    counted in `skipped` (Skipped). SystemExit if a file cannot be read, or nothing is found.
    """
    seen = set()
    for path in paths:
        n_before = len(seen)
        for place, row in read_rows(path, skipped, wanted=["text"]):
            if problem := why_unusable(row["text"], seen, min_words):
                skipped.add(problem, place)
            else:
                yield row["text"]
        if len(seen) == n_before:
            skipped.add("file without text", path)
    if not seen:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise SystemExit(f"nothing to read in {paths[0]}{more}: {skipped}; files must be UTF-8, "
                         'and a .jsonl file has an object with a string "text" on each line')


def survey(patterns, min_words=0):
    """Read all files of `patterns` once -> their paths, and what meta.json tells about them (dict),
    such as n_docs, how many read_documents yields."""
    paths, skipped = find_files(patterns, ENDINGS), Skipped()
    documents = read_documents(paths, skipped, min_words)
    n_docs = sum(1 for _ in tqdm(documents, unit=" documents", disable=None))
    return paths, {"files": [str(path) for path in paths], "sha256": checksum(paths),
                   "n_docs": n_docs, "min_words": min_words, "skipped": skipped.report()}


def split_documents(paths, n_docs, n_val, n_train, seed, min_words=0):
    """Yield (split, text) for n_val random documents as "val" and n_train others as "train", in
    the files' order.

    One shuffle of the n_docs that read_documents yields ranks them: the first n_val validate, the
    next n_train train. So all sizes share the validation set, and smaller sets are part of larger.
    """
    ranks = np.random.default_rng(seed).permutation(n_docs)
    for rank, text in zip(ranks, read_documents(paths, Skipped(), min_words)):
        if rank < n_val:
            yield "val", text
        elif rank < n_val + n_train:
            yield "train", text
