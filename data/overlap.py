"""Token overlap: how much of a classification set's tokens does a pre-training set hold?

    python -m data.overlap --dataset=wikipedia-20000 --with=fewrel
    python -m data.overlap --dataset=wikipedia-40000 --with=fewrel --choose=high --n_articles=10000

The second command makes the dataset wikipedia-10000-high-fewrel of the 10,000 articles that share
most with FewRel. The choices (high, random, low) take equally many articles of each topic and
length: else "high" would mean articles on the other set's topics, not articles with its tokens.

Both sets are counted in their training split, with documents cut to a block: that is what every
fine-tuning reads, and a pre-training with --blocks=first, as the paper's. Special tokens, such as
FewRel's markers, are not counted.
"""
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.flags import new_parser, number, run_script, user_path
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import SPECIAL_TOKENS

BLOCK_SIZE = 128
MIN_COUNTS = (1, 10, 100, 1000)
ARTICLES_PER_TOPIC = 200


class Blocks(NamedTuple):
    """The plain tokens of a training split, each document cut to a block."""
    tokens: np.ndarray  # uint16, of all documents in a row
    document: np.ndarray  # int64: which document a token belongs to
    lengths: np.ndarray  # int64, n_docs: tokens of each document, its special tokens included
    counts: np.ndarray  # int64, n_plain: how often each plain token occurs


def read_blocks(dataset, other):
    """-> the Blocks of two Datasets. SystemExit if their tokenizers differ."""
    if dataset.meta["fingerprint"] != other.meta["fingerprint"]:
        raise SystemExit(f"{dataset.name} and {other.name} have different tokenizers, or versions "
                         "of one: prepare one of them again, with the other's --tokenizer")
    n_plain = dataset.meta["vocab_size"] - len(SPECIAL_TOKENS)  # the special tokens come last

    def read(dataset):
        tokens, offsets = dataset.split("train")
        lengths = np.minimum(np.diff(offsets), BLOCK_SIZE - 2)
        document = np.repeat(np.arange(len(lengths)), lengths)
        tokens = np.concatenate([tokens[start:start + n] for start, n in zip(offsets, lengths)])
        is_plain = tokens < n_plain
        tokens = tokens[is_plain]
        return Blocks(tokens, document[is_plain], lengths, np.bincount(tokens, minlength=n_plain))
    return read(dataset), read(other)


def overlap(dataset, other):
    """The overlap of a pre-training set with a classification set, `other` (Datasets). -> dict:

    distinct_k and occurrences_k for each k of MIN_COUNTS: the share of the other's different
    tokens, and of all its tokens, that occur at least k times in the pre-training set.
    unigram_overlap: the sum over all tokens of the smaller of the two frequencies (1 minus the
    total variation distance). SystemExit if their tokenizers differ.
    """
    ours, theirs = (blocks.counts for blocks in read_blocks(dataset, other))
    result = {}
    for k in MIN_COUNTS:
        often = ours >= k
        result[f"distinct_{k}"] = float(often[theirs > 0].mean())
        result[f"occurrences_{k}"] = float(theirs[often].sum() / theirs.sum())
    smaller = np.minimum(ours / ours.sum(), theirs / theirs.sum())
    return result | {"unigram_overlap": float(smaller.sum())}


def tfidf_vectors(blocks, n_tokens=1024):
    """-> a vector of length 1 for each document (float32, n_docs x n_tokens): the root of how often
    it has each of the most frequent tokens, weighted by how few documents have that token."""
    n_docs = len(blocks.lengths)
    ranks = np.argsort(np.argsort(-blocks.counts, kind="stable"))  # 0: the most frequent token
    columns = ranks[blocks.tokens]
    is_counted = columns < n_tokens
    x = np.zeros((n_docs, n_tokens), np.float32)
    np.add.at(x, (blocks.document[is_counted], columns[is_counted]), 1)
    np.sqrt(x, out=x)
    x *= np.log((1 + n_docs) / (1 + (x > 0).sum(0, dtype=np.float32)))
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-6)
    return x


def find_topics(vectors, n_topics, seed=0, n_rounds=10):
    """-> the topic of each document (int64, n_docs, below n_topics), by k-means of the cosines
    between tfidf_vectors (Dhillon and Modha 2001, "concept decompositions")."""
    n_docs = len(vectors)
    n_topics = min(n_topics, n_docs)
    first = np.random.default_rng([seed, 2]).choice(n_docs, n_topics, replace=False)
    centres = vectors[first]
    for _ in range(n_rounds):
        topics = (vectors @ centres.T).argmax(1)
        centres = np.stack([vectors[topics == topic].sum(0) for topic in range(n_topics)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-6)
    return topics


def topic_shift(vectors, chosen, n_topics=64, seed=1):
    """The share of the chosen documents (bool, n_docs) that would have to be of another topic for
    the topics to be mixed as in all documents. By another seed, these topics are others than those
    that a choice takes equally many documents from."""
    topics = find_topics(vectors, n_topics, seed)
    mix = np.bincount(topics, minlength=n_topics) / len(topics)
    chosen_mix = np.bincount(topics[chosen], minlength=n_topics) / chosen.sum()
    return float(1 - np.minimum(mix, chosen_mix).sum())


def best_of_each_group(scores, groups, n):
    """Choose n documents (bool, n_docs): of each group (int, n_docs) those of the best scores
    (float, n_docs), as many as its share of all documents."""
    quotas, rest = np.divmod(np.bincount(groups) * n, len(groups))
    quotas[np.argsort(-rest, kind="stable")[:n - quotas.sum()]] += 1  # largest remainder
    chosen = np.zeros(len(groups), bool)
    for group in np.flatnonzero(quotas):
        members = np.flatnonzero(groups == group)
        best_first = members[np.argsort(-scores[members], kind="stable")]
        chosen[best_first[:quotas[group]]] = True
    return chosen


def choose(blocks, other_counts, n, choice, groups, seed=0):
    """Choose n documents of Blocks (bool, n_docs) by their overlap with a set of these counts
    (int64, n_plain), "high", "low", or "random", drawn by `seed`, equally from all groups.

    A document's score is the mean over its block of log((q + p) / (p + p)), where p is the token's
    frequency in all documents and q in the other set: the cross-entropy difference of Moore and
    Lewis (2010), with q smoothed so that a token that the other set lacks costs only log 2.
    """
    def best(weights):
        sums = np.bincount(blocks.document, weights[blocks.tokens], len(blocks.lengths))
        return best_of_each_group(sums / np.maximum(1, blocks.lengths), groups, n)

    if choice == "random":
        scores = np.random.default_rng([seed, 1]).random(len(blocks.lengths))
        return best_of_each_group(scores, groups, n)
    counts = blocks.counts + 1  # so that no frequency is 0
    p, q = counts / counts.sum(), other_counts / other_counts.sum()
    weights = np.log((q + p) / (p + p))
    if choice == "low":
        return best(-weights)
    chosen = best(weights)
    for _ in range(2):  # the best alone are too alike: prefer tokens that those chosen so far lack
        tokens = blocks.tokens[chosen[blocks.document]]
        p_chosen = np.bincount(tokens, minlength=len(p)) / len(tokens)
        weights += 0.5 * np.log((q + p) / (p_chosen + p))
        chosen = best(weights)
    return chosen


def write_choice(name, dataset, other, choice, n, seed):
    """Write n training documents of a Dataset, chosen by their overlap with another, and its other
    splits whole."""
    n_docs = dataset.meta["splits"]["train"]["n_docs"]
    if n >= n_docs:
        raise SystemExit(f"--n_articles={n}: must be fewer than the {n_docs:,} documents of "
                         f"{dataset.name}, to have a choice")
    blocks, others = read_blocks(dataset, other)
    vectors, n_topics = tfidf_vectors(blocks), max(1, n_docs // ARTICLES_PER_TOPIC)
    # A group is of one topic, and of lengths that differ by less than 16.
    groups = find_topics(vectors, n_topics) * BLOCK_SIZE + blocks.lengths // 16 * 16
    chosen = choose(blocks, others.counts, n, choice, groups, seed)
    shift = topic_shift(vectors, chosen)
    print(f"equally many articles of each of {n_topics} topics; sorted into other topics, "
          f"{shift:.1%} would have to be of another one to be mixed as in {dataset.name}")

    def items():
        for split in dataset.meta["splits"]:
            tokens, offsets = dataset.split(split)
            for i in np.flatnonzero(chosen) if split == "train" else range(len(offsets) - 1):
                yield split, tokens[offsets[i]:offsets[i + 1]]
    record = {"choice": choice, "with": other.name, "with_train": other.meta["splits"]["train"],
              "from": dataset.name, "pool": n_docs, "block_size": BLOCK_SIZE, "seed": seed,
              "topics": n_topics, "topic_shift": shift}
    write_dataset(name, items(), dataset.tokenizer, dataset.meta["source"] | {"overlap": record})


def main(argv=None):
    parser = new_parser("python -m data.overlap", __doc__)
    flag = parser.add_argument
    flag("--dataset", type=user_path, required=True,
         help="the pre-training set, a folder in data/bin")
    flag("--with", type=user_path, required=True, dest="other", metavar="DATASET",
         help="the classification set")
    flag = parser.add_argument_group("choice of articles").add_argument
    flag("--choose", choices=["high", "random", "low"],
         help="make a dataset of the articles of --dataset that overlap most or least, or of any")
    flag("--n_articles", type=number(int, 1), help="how many training articles")
    flag("--seed", type=number(int, 0), default=0, help="seed of a random choice")
    flag("--name", type=user_path, help="the new dataset's folder in data/bin; by default like "
         "wikipedia-10000-high-fewrel for 10,000 articles of wikipedia-40000")
    args = parser.parse_args(argv)
    if bool(args.choose) != bool(args.n_articles):
        raise SystemExit("--choose and --n_articles: only together")
    dataset, other = Dataset(args.dataset), Dataset(args.other)
    if args.choose:
        stem = re.sub(r"-\d+$", "", Path(args.dataset).name)
        name = args.name or f"{stem}-{args.n_articles}-{args.choose}-{Path(args.other).name}"
        write_choice(name, dataset, other, args.choose, args.n_articles, args.seed)
        dataset = Dataset(name)
    result = overlap(dataset, other)
    print(f"of the tokens of {other.name}, so much occurs in {dataset.name}")
    for k in MIN_COUNTS:
        print(f"  at least {k:>5,} times: {result[f'distinct_{k}']:6.1%} of the different tokens, "
              f"{result[f'occurrences_{k}']:6.1%} of all tokens")
    print(f"overlap of the two distributions of tokens: {result['unigram_overlap']:.1%}")


if __name__ == "__main__":
    run_script(main)
