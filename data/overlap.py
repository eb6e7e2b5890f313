"""Token overlap: how much of a classification set's tokens does a pre-training set hold?

    python -m data.overlap --dataset=wikipedia-20000 --with=fewrel
    python -m data.overlap --dataset=wikipedia-40000 --with=fewrel --choose=high --n_articles=10000

The second command makes the dataset wikipedia-10000-high-fewrel of those articles of a prepared set
that share most with the other. The articles are first sorted into topics by their words, and all
three choices (high, random, low) take as many of each topic and, up to 16 tokens, of each length:
else "high" would mean articles about what the other set is about, and not articles with its words.

Documents are cut to a block, which is what a pre-training with --blocks=first, as the paper's, and
every fine-tuning read. Both sets are counted in their training split. Special tokens, such as
FewRel's markers, are not counted.
"""
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.flags import AT_LEAST_0, AT_LEAST_1, new_parser, parse, refuse, run_script
from data.tokenfile import MAX_TOKENS, open_split, read_meta, write_dataset
from data.tokenizer import SPECIAL_TOKENS, open_tokenizer

BLOCK_SIZE = 128
MIN_COUNTS = (1, 10, 100, 1000)


class Blocks(NamedTuple):
    """The plain tokens of a training split, each document cut to a block."""
    tokens: np.ndarray  # uint16, of all documents in a row
    document: np.ndarray  # int64: which document a token belongs to
    lengths: np.ndarray  # int64, n_docs: how long each is, with its special tokens
    counts: np.ndarray  # int64, n_words: how often each plain token occurs


def read_blocks(name, block_size):
    """-> Blocks of a prepared set. SystemExit if they hold nothing."""
    tokens, offsets = open_split(name, "train")
    n_words = read_meta(name)["vocab_size"] - len(SPECIAL_TOKENS)  # the special ones come last
    lengths = np.minimum(np.diff(offsets), block_size - 2)
    document = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.concatenate([tokens[start:start + n] for start, n in zip(offsets, lengths)])
    is_plain = tokens < n_words
    if not is_plain.any():
        raise SystemExit(f"--block_size={block_size}: cuts the documents of {name} to markers "
                         "alone; give a larger one")
    tokens = tokens[is_plain]
    return Blocks(tokens, document[is_plain], lengths, np.bincount(tokens, minlength=n_words))


def check_tokenizers(dataset, other):
    """SystemExit if the two prepared sets are not of the same tokenizer."""
    meta, other_meta = read_meta(dataset), read_meta(other)
    if meta["fingerprint"] != other_meta["fingerprint"]:
        raise SystemExit(
            f"{dataset} was prepared with the tokenizer {meta['tokenizer']} and {other} with "
            f"{other_meta['tokenizer']}, or with another version of it: prepare one of them again")


def overlap(dataset, other, block_size=BLOCK_SIZE, min_counts=MIN_COUNTS):
    """The overlap of a pre-training set with a classification set, `other`, both prepared. -> dict:

    documents, tokens, other_documents, other_tokens, other_distinct: sizes, and how many different
    tokens. distinct_k and occurrences_k for each k of min_counts: the share of the other's
    different tokens, and of all its tokens, that occur at least k times in the pre-training set.
    unigram_overlap: the sum over all tokens of the smaller of the two frequencies (1 minus the
    total variation distance). SystemExit if a set is missing or their tokenizers differ.
    """
    check_tokenizers(dataset, other)
    blocks, others = read_blocks(dataset, block_size), read_blocks(other, block_size)
    p, q = blocks.counts / len(blocks.tokens), others.counts / len(others.tokens)
    result = {"documents": len(blocks.lengths), "tokens": len(blocks.tokens),
              "other_documents": len(others.lengths), "other_tokens": len(others.tokens),
              "other_distinct": int((q > 0).sum()),
              "unigram_overlap": float(np.minimum(p, q).sum())}
    for k in min_counts:
        often = blocks.counts >= k
        result[f"distinct_{k}"] = float(often[q > 0].mean())
        result[f"occurrences_{k}"] = float(others.counts[often].sum() / len(others.tokens))
    return result


def print_overlap(dataset, other, block_size, min_counts):
    result = overlap(dataset, other, block_size, min_counts)
    n = {key: f"{value:,}" for key, value in result.items()}
    print(f"{dataset}: {n['documents']} documents, {n['tokens']} tokens within {block_size - 2}")
    print(f"{other}: {n['other_documents']} documents, {n['other_tokens']} tokens, "
          f"{n['other_distinct']} different\nof {other}, so much occurs in {dataset}")
    for k in min_counts:
        print(f"  at least {k:>5,} times: {result[f'distinct_{k}']:6.1%} of the different tokens, "
              f"{result[f'occurrences_{k}']:6.1%} of all its tokens")
    print(f"overlap of the two distributions of tokens: {result['unigram_overlap']:.1%}")


def word_directions(blocks, n_words=1024):
    """-> a vector of length 1 for each document (float32, n_docs x n_words): how often it has each
    of the n_words most frequent tokens. The root of a count is weighted by how few documents have
    the token."""
    n_docs = len(blocks.lengths)
    words = np.argsort(-blocks.counts, kind="stable")[:n_words]
    column = np.full(len(blocks.counts), -1)
    column[words] = np.arange(len(words))
    is_counted = column[blocks.tokens] >= 0
    x = np.zeros((n_docs, n_words), np.float32)
    np.add.at(x, (blocks.document[is_counted], column[blocks.tokens[is_counted]]), 1)
    np.sqrt(x, out=x)
    x *= np.log((1 + n_docs) / (1 + (x > 0).sum(0, dtype=np.float32)))
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-6)
    return x


def find_topics(directions, n_topics, seed=0, n_rounds=10):
    """-> the topic of each document (int64, n_docs, below n_topics), by k-means of the documents'
    directions (Dhillon and Modha 2001, "concept decompositions")."""
    n_docs = len(directions)
    n_topics = min(n_topics, n_docs)
    first = np.random.default_rng([seed, 2]).choice(n_docs, n_topics, replace=False)
    centres = directions[first]
    for _ in range(n_rounds):
        topics = (directions @ centres.T).argmax(1)
        centres = np.stack([directions[topics == topic].sum(0) for topic in range(n_topics)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-6)
    return topics


def topics_apart(directions, chosen, n_topics=64, seed=1):
    """The share of the chosen documents (bool, n_docs) that would have to be of another topic for
    the topics to be mixed as in all documents. The topics are found anew, fewer and others than
    those that choose() holds fixed."""
    topics = find_topics(directions, n_topics, seed)
    mix, chosen_mix = (np.bincount(group, minlength=n_topics) / len(group)
                       for group in (topics, topics[chosen]))
    return float(1 - np.minimum(mix, chosen_mix).sum())


def best_of_each_kind(scores, kinds, n):
    """Choose n documents, the best scores (float) among those of equal kind (int): whatever the
    scores, as many of each kind. -> bool array"""
    quotas, rest = np.divmod(np.bincount(kinds) * n, len(kinds))
    quotas[np.argsort(-rest, kind="stable")[:n - quotas.sum()]] += 1  # largest remainder
    chosen = np.zeros(len(kinds), bool)
    for kind in np.flatnonzero(quotas):
        same = np.flatnonzero(kinds == kind)
        best_first = same[np.argsort(-scores[same], kind="stable")]
        chosen[best_first[:quotas[kind]]] = True
    return chosen


def choose(blocks, other_counts, n, choice, kinds, seed=0):
    """Choose n documents of Blocks by their overlap with a set of these counts (int64, n_words):
    "high", "low", or "random", drawn by `seed`, as many of each kind (int, n_docs). -> bool, n_docs

    A document's score is the mean over its block of log(q / p), where p is the token's frequency
    in all documents and q in the other set: the cross-entropy difference of Moore and Lewis (2010).
    q is smoothed by p, so that a token that the other set lacks costs no more than log 2.
    """
    if choice == "random":
        scores = np.random.default_rng([seed, 1]).random(len(blocks.lengths))
        return best_of_each_kind(scores, kinds, n)
    counts = blocks.counts + 1  # so that no frequency is 0
    p, q = counts / counts.sum(), other_counts / other_counts.sum()

    def best(weights):
        sums = np.bincount(blocks.document, weights[blocks.tokens], len(blocks.lengths))
        scores = sums / np.maximum(1, blocks.lengths)
        return best_of_each_kind(scores if choice == "high" else -scores, kinds, n)

    weights = np.log((q + p) / (p + p))
    chosen = best(weights)
    # The best by themselves are too much of the same. Hence two more rounds, which look for what
    # the articles chosen so far lack.
    for _ in range(2 if choice == "high" else 0):
        tokens = blocks.tokens[chosen[blocks.document]]
        p_chosen = np.bincount(tokens, minlength=len(p)) / len(tokens)
        weights += 0.5 * np.log((q + p) / (p_chosen + p))
        chosen = best(weights)
    return chosen


def write_choice(name, dataset, other, choice, n, n_topics, seed):
    """Write n training documents of a prepared set, chosen by their overlap with another, and its
    further splits as they are."""
    check_tokenizers(dataset, other)
    meta, other_meta = read_meta(dataset), read_meta(other)
    n_docs = meta["splits"]["train"]["n_docs"]
    if n >= n_docs:
        raise SystemExit(f"--n_articles={n}: must be fewer than the {n_docs:,} documents of "
                         f"{dataset}, to have a choice")
    n_topics = min(n_topics, n_docs) or max(1, n_docs // 200)
    blocks = read_blocks(dataset, BLOCK_SIZE)
    directions = word_directions(blocks)
    # A kind: one topic, and one length up to 16 tokens. Finer ones would leave no choice in them.
    kinds = find_topics(directions, n_topics) * BLOCK_SIZE + blocks.lengths // 16 * 16
    chosen = choose(blocks, read_blocks(other, BLOCK_SIZE).counts, n, choice, kinds, seed)
    apart = topics_apart(directions, chosen)
    print(f"{n_topics} topics held fixed; of others, found anew, {apart:.1%} of the articles would "
          f"have to change theirs for the mix of {dataset}")

    def items():
        for split in meta["splits"]:
            tokens, offsets = open_split(dataset, split)
            for i in np.flatnonzero(chosen) if split == "train" else range(len(offsets) - 1):
                yield split, tokens[offsets[i]:offsets[i + 1]]
    tokenizer, _ = open_tokenizer(dataset)
    choice = {"choice": choice, "with": other, "with_train": other_meta["splits"]["train"],
              "from": dataset, "pool": n_docs, "block_size": BLOCK_SIZE, "seed": seed,
              "topics": n_topics, "topics_apart": apart}
    write_dataset(name, items(), tokenizer, meta["source"] | {"overlap": choice})


def main(argv=None):
    parser = new_parser("python -m data.overlap", __doc__)
    flag = parser.add_argument
    flag("--dataset", required=True, help="the pre-training set, a folder in data/bin")
    flag("--with", required=True, dest="other", metavar="DATASET", help="the classification set")
    flag("--block_size", type=int, default=BLOCK_SIZE,
         help="tokens a document is cut to when overlap is measured, [CLS] and [SEP] included")
    flag("--min_count", type=int, nargs="+", default=MIN_COUNTS, metavar="K",
         help="count the tokens that the pre-training set holds at least K times")
    flag = parser.add_argument_group("choice of articles").add_argument
    flag("--choose", choices=["high", "random", "low"],
         help="make a dataset of the articles of --dataset that overlap most or least, or of any")
    flag("--n_articles", type=int, help="how many training articles")
    flag("--topics", type=int, default=0,
         help="of how many topics all choices have as many articles; 0: one for each 200 articles "
         "of --dataset; 1: let topics differ")
    flag("--seed", type=int, default=0, help="draws a random choice")
    flag("--name", help="the new dataset's folder in data/bin; by default like "
         "wikipedia-10000-high-fewrel for 10,000 articles of wikipedia-40000")
    args, typed = parse(parser, argv, {
        "block_size": (3, MAX_TOKENS + 2), "min_count": AT_LEAST_1, "n_articles": AT_LEAST_1,
        "topics": AT_LEAST_0, "seed": AT_LEAST_0})
    dataset, other = args.dataset, args.other
    if bool(args.choose) != bool(args.n_articles):
        raise SystemExit("--choose and --n_articles: only together")
    if args.choose:
        stem = re.sub(r"-\d+$", "", Path(dataset).name)
        name = args.name or f"{stem}-{args.n_articles}-{args.choose}-{Path(other).name}"
        write_choice(name, dataset, other, args.choose, args.n_articles, args.topics, args.seed)
        dataset = name
    else:
        refuse(typed & {"topics", "seed", "name"}, "goes with --choose")
    print_overlap(dataset, other, args.block_size, args.min_count)


if __name__ == "__main__":
    run_script(main)
