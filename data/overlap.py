"""Token overlap: how much of a classification set's tokens does a pre-training set hold? And articles chosen by it.

    python -m data.overlap --dataset=wikipedia-20000 --with=fewrel
    python -m data.wikipedia --n_articles=5000 --overlap_with=fewrel --overlap=high     # or random, or low

Documents are cut to a block, as in training: what lies behind it is never seen. Both sets are counted in their training
split. The markers of FewRel's entities and other special tokens are not counted: no text holds them.
"""
import argparse
import tempfile
from itertools import islice

import numpy as np

from data.tokenfile import BIN_DIR, encode_documents, open_split, read_meta
from data.tokenizer import SPECIAL_TOKENS

BLOCK_SIZE = 128
MIN_COUNTS = (1, 10, 100, 1000)


def blocks(tokens, offsets, n):
    """Read tokens (uint16) and offsets (n_docs + 1), as open_split gives them, 512 documents at a time. Yields which
    documents (slice), the first n tokens of each, in a row (int64), and to which of them each token belongs (0 .. 511).
    """
    for start in range(0, len(offsets) - 1, 512):
        ends = np.array(offsets[start:start + 513])
        lengths = np.minimum(np.diff(ends), n)
        document = np.repeat(np.arange(len(lengths)), lengths)
        column = np.arange(len(document)) - (np.cumsum(lengths) - lengths)[document]
        yield slice(start, start + len(lengths)), tokens[ends[document] + column].astype(np.int64), document


def count_tokens(tokens, offsets, n, n_words, keep=None):
    """How often each plain token occurs in the first n tokens of the documents, or of those to `keep` (bool, n_docs).
    -> int64 (n_words,)"""
    counts = np.zeros(2**16, np.int64)
    for part, ids, document in blocks(tokens, offsets, n):
        counts += np.bincount(ids if keep is None else ids[keep[part][document]], minlength=2**16)
    return counts[:n_words]  # the special tokens come after the plain ones


def count_dataset(name, block_size, bin_dir):
    """-> the token counts (int64, one for each plain token) of a prepared set's training split, and its meta data"""
    meta = read_meta(name, bin_dir)
    n_words = meta["vocab_size"] - len(SPECIAL_TOKENS)
    counts = count_tokens(*open_split(name, "train", bin_dir), block_size - 2, n_words)
    if not counts.any():
        raise SystemExit(f"--block_size={block_size}: cuts the documents of {name} to markers alone; give a larger one")
    return counts, meta


def overlap(dataset, other, block_size=BLOCK_SIZE, min_counts=MIN_COUNTS, bin_dir=BIN_DIR):
    """The overlap of a pre-training set with a classification set, `other`, both prepared (str). -> dict of

    documents, tokens: of the pre-training set, within the blocks; other_documents, other_tokens, other_distinct: of the
    other, and how many different tokens it has; for each k of min_counts distinct_k and occurrences_k: the share of its
    different tokens, and of all its tokens, that occur at least k times in the pre-training set; unigram_overlap: the
    sum over all tokens of the smaller of its two frequencies, which is 1 for equal distributions (that is, 1 minus the
    total variation distance). SystemExit if a set is missing or damaged, or if their tokenizers differ.
    """
    (counts, meta), (others, other_meta) = (count_dataset(name, block_size, bin_dir) for name in (dataset, other))
    if meta["fingerprint"] != other_meta["fingerprint"]:
        raise SystemExit(f"{dataset} was prepared with the tokenizer {meta['tokenizer']} and {other} with "
                         f"{other_meta['tokenizer']}, or with another version of it: prepare one of them again")
    there, n = others > 0, others.sum()
    result = {"documents": meta["splits"]["train"]["n_docs"], "tokens": int(counts.sum()),
              "other_documents": other_meta["splits"]["train"]["n_docs"], "other_tokens": int(n),
              "other_distinct": int(there.sum())}
    for k in min_counts:
        result[f"distinct_{k}"] = float((counts[there] >= k).mean())
        result[f"occurrences_{k}"] = float(others[counts >= k].sum() / n)
    return result | {"unigram_overlap": float(np.minimum(counts / counts.sum(), others / n).sum())}


def print_overlap(dataset, other, block_size=BLOCK_SIZE, min_counts=MIN_COUNTS, bin_dir=BIN_DIR):
    """Print what overlap() finds."""
    found = overlap(dataset, other, block_size, min_counts, bin_dir)
    print(f"{dataset}: {found['documents']:,} documents, {found['tokens']:,} tokens within {block_size - 2}\n{other}: "
          f"{found['other_documents']:,} documents, {found['other_tokens']:,} tokens, {found['other_distinct']:,} "
          f"different\nof {other}, so much occurs in {dataset}")
    for k in min_counts:
        print(f"  at least {k:>5,} times: {found[f'distinct_{k}']:6.1%} of the different tokens, "
              f"{found[f'occurrences_{k}']:6.1%} of all its tokens")
    print(f"overlap of the two distributions of tokens: {found['unigram_overlap']:.1%}")


def take_best(scores, lengths, n):
    """The n documents of the best scores (float) among those of equal length (int). -> bool, n_docs

    Each length gets its share of the n. So whatever the scores, the same number of documents of each length are taken.
    """
    per_length = np.bincount(lengths)
    quotas, rest = np.divmod(per_length * n, len(lengths))
    quotas[np.argsort(-rest, kind="stable")[:n - quotas.sum()]] += 1  # largest remainder
    order = np.lexsort((-scores, lengths))  # by length, then the best first
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order)) - (np.cumsum(per_length) - per_length)[lengths[order]]
    return ranks < quotas[lengths]


def choose(tokens, offsets, other_counts, n, which, seed=0):
    """Choose n documents, no longer than a block, by their overlap with a set of these counts (int64, n_words).

    which: "high", "low", or "random", drawn by `seed`. -> bool, n_docs

    An article's score is the mean over its tokens of log(q / p), where p is the token's frequency in the pool and q in
    the other set: the cross-entropy difference of Moore and Lewis (2010). q is smoothed by p, half and half, so that a
    token that the other set lacks costs no more than log 2. Smoothing by a tenth does about as well. The mean of log q
    alone, or the share of tokens that the other set has at all, hardly raises the overlap.

    The best articles by themselves are too much of the same: the 5,000 best of 58,581 for FewRel raise the overlap of
    the distributions from 75 % to 79 %, but with 88 % of FewRel's different tokens instead of 96 %. Hence two more
    rounds, which add half of log(q / p) with p taken of the articles chosen so far: overlap 83 %, 95 % of the tokens.
    """
    lengths, keep = np.diff(offsets), None
    if which == "random":
        return take_best(np.random.default_rng([seed, 1]).random(len(lengths)), lengths, n)
    counts = count_tokens(tokens, offsets, BLOCK_SIZE, len(other_counts)) + 1  # so that no frequency is 0
    pool, q = counts / counts.sum(), other_counts / other_counts.sum()
    weights, scores = np.zeros(len(q)), np.empty(len(lengths))
    for step in (1, 0.5, 0.5) if which == "high" else (1,):
        p = pool if keep is None else count_tokens(tokens, offsets, BLOCK_SIZE, len(q), keep) / lengths[keep].sum()
        weights += step * np.log((q + pool) / (p + pool))
        for part, ids, document in blocks(tokens, offsets, BLOCK_SIZE):
            scores[part] = np.bincount(document, weights[ids], len(scores[part])) / np.maximum(1, lengths[part])
        keep = take_best(scores if which == "high" else -scores, lengths, n)
    return keep


def choose_articles(read, n, which, other, seed, tokenizer, bin_dir=BIN_DIR):
    """Of the articles to train on that read() yields, as (split, text), choose n (see choose). -> an iterator over
    these and all of the other splits, and what there is to tell about the choice (dict, for meta.json).

    read() is called twice and must give the same both times. Between, an article takes some ten numbers of memory; its
    block lies in a temporary file. SystemExit if that cannot be written, or if the tokenizer is not the other set's.
    """
    other_counts, meta = count_dataset(other, BLOCK_SIZE, bin_dir)
    if meta["fingerprint"] != tokenizer.fingerprint:
        raise SystemExit(f"--overlap_with={other}: was prepared with the tokenizer {meta['tokenizer']}, not with "
                         f"{tokenizer.name}, or with another version of it: prepare it again, or change --tokenizer")
    # 16 characters a token are beyond any text (see encode_documents); more of a long article need not be encoded.
    texts, lengths = (text[:16 * BLOCK_SIZE] for split, text in read() if split == "train"), []
    try:
        with tempfile.TemporaryFile() as file:
            while batch := list(islice(texts, 8192)):
                first = [tokens[:BLOCK_SIZE - 2] for tokens in encode_documents(batch, tokenizer)]
                lengths += map(len, first)
                file.write(np.concatenate(first).tobytes())
            file.flush()
            offsets = np.cumsum([0, *lengths])
            keep = iter(choose(np.memmap(file, np.uint16, "r"), offsets, other_counts, n, which, seed))
    except OSError as error:
        raise SystemExit(f"cannot write a temporary file in {tempfile.gettempdir()} ({error.strerror or error}); set "
                         "TMPDIR to a folder with more room") from None
    chosen = {"choice": which, "with": other, "with_train": meta["splits"]["train"], "pool": len(lengths),
              "block_size": BLOCK_SIZE}
    return ((split, text) for split, text in read() if split != "train" or next(keep)), chosen


def main(argv=None, bin_dir=BIN_DIR):
    parser = argparse.ArgumentParser(prog="python -m data.overlap", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--dataset", required=True, help="the pre-training set, a folder in data/bin")
    flag("--with", required=True, dest="other", metavar="DATASET", help="the classification set")
    flag("--block_size", type=int, default=BLOCK_SIZE, help=f"tokens a document is cut to, [CLS] and [SEP] included "
         f"(default: {BLOCK_SIZE})")
    flag("--min_count", type=int, nargs="+", default=MIN_COUNTS, metavar="K", help="count the tokens that the "
         f"pre-training set holds at least K times (default: {' '.join(map(str, MIN_COUNTS))})")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}; see --help\n")  # one line, not the usage
    args = parser.parse_args(argv)
    for name, value, least in [("block_size", args.block_size, 3), ("min_count", min(args.min_count), 1)]:
        if value < least:
            raise SystemExit(f"--{name}={value}: must be at least {least}")
    print_overlap(args.dataset, args.other, args.block_size, args.min_count, bin_dir)


if __name__ == "__main__":
    main()
