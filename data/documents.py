"""Text for pre-training: the documents of raw files, and which of them validate and which train."""
import re

import numpy as np
from tqdm import tqdm

from data.files import checksum
from data.rows import ENDINGS, Skipped, cell_text, find_files, has_row_per_line, read_rows

# Letters of Thai, Burmese, Khmer, Japanese and Chinese, which put no spaces between words.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"


def reason_to_skip(text, seen, min_words=0):
    """Why a text (str or None) is not used (str): it is missing, too short, or a duplicate. None if
    it is used; then the hash of its words is added to `seen` (set), which stays small."""
    if text is None:
        return "without a text"
    words = text.split()
    # In a script without spaces a word has about two letters.
    if len(words) < min_words and len(re.findall(f"[{UNSPACED}]", text)) // 2 < min_words:
        return f"shorter than {min_words} words"
    key = hash(" ".join(words))
    if key in seen:
        return "duplicates"
    seen.add(key)
    return None


def read_documents(paths, skipped, min_words=0, column="text"):
    """Yield the documents (str) of the files in order, each once: a column of a table. Texts with a
    reason_to_skip are counted in `skipped` (Skipped). SystemExit as read_rows, and if there is no
    document at all."""
    seen = set()
    for path in paths:
        for _, row in read_rows(path, wanted=[column]):
            text = cell_text(row.get(column))
            if reason := reason_to_skip(text, seen, min_words):
                skipped[reason] += 1
            else:
                yield text
    if not seen:
        more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
        raise SystemExit(f"no text in {paths[0]}{more}; skipped: {skipped}")


def scan_files(patterns, min_words=0, column="text"):
    """Read all files of `patterns` (list of str) once -> their paths, and what meta.json says of
    them (dict), such as n_docs, how many documents read_documents yields."""
    paths, skipped = find_files(patterns, ENDINGS), Skipped()
    if by_line := [path for path in paths if has_row_per_line(path)]:
        print(f"{len(by_line):,} .txt files without blank lines, such as {by_line[0]}: each line "
              "is a document")
    documents = read_documents(paths, skipped, min_words, column)
    n_docs = sum(1 for _ in tqdm(documents, unit=" documents", disable=None))
    return paths, {"files": [str(path) for path in paths], "sha256": checksum(paths),
                   "n_docs": n_docs, "min_words": min_words, "skipped": skipped.report()}


def split_documents(paths, n_docs, n_val, n_train, seed, min_words=0, column="text"):
    """Yield (split, text) for n_val random documents as "val" and n_train others as "train", in
    the files' order.

    One shuffle of the n_docs that read_documents yields ranks them: the first n_val validate, the
    next n_train train. So all sizes share the validation set, and smaller sets are part of larger.
    """
    ranks = np.random.default_rng(seed).permutation(n_docs)
    for rank, text in zip(ranks, read_documents(paths, Skipped(), min_words, column)):
        if rank < n_val:
            yield "val", text
        elif rank < n_val + n_train:
            yield "train", text
