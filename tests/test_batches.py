"""Batches: every document once, and the rows that they become."""
import math

import numpy as np
import pytest

from data.batches import Corpus, cut_into_blocks, make_batches
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import get_tokenizer


@pytest.mark.parametrize("n_docs, batch_size", [(1, 4), (7, 8), (64, 8), (5003, 16)])
def test_an_epoch_holds_every_document_once(n_docs, batch_size):
    lengths = np.random.default_rng(0).integers(1, 127, n_docs)
    batches = make_batches(lengths, batch_size, seed=1, epoch=2)
    np.random.seed(5)  # what other code draws must not matter
    assert all(map(np.array_equal, batches, make_batches(lengths, batch_size, 1, 2))), \
        "the same seed and epoch must give the same batches"
    for other in ((1, 3), (2, 2), (2, 1)) if n_docs > 64 else ():
        assert not np.array_equal(batches[0], make_batches(lengths, batch_size, *other)[0]), \
            f"seed and epoch {other} give the same batch as (1, 2)"
    assert sorted(np.concatenate(batches)) == list(range(n_docs)), "not every document once"
    assert max(map(len, batches)) <= batch_size, "a batch is larger than batch_size"
    assert len(batches) == math.ceil(n_docs / batch_size), "more than one batch is not full"


def test_batches_are_of_similar_length_but_not_in_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 127, 20_000)
    batches = make_batches(lengths, 32, 0, 0)
    longest = np.array([lengths[batch].max() for batch in batches])
    padded = sum(m * len(batch) for m, batch in zip(longest, batches))
    assert lengths.sum() / padded > 0.97, "more than 3 % padding: lengths in a batch differ"
    assert abs(np.corrcoef(longest, np.arange(len(batches)))[0, 1]) < 0.1, \
        "the lengths of the batches have a trend: shuffle the batches too"


def test_rows(tmp_path):
    tokenizer, texts = get_tokenizer(), ["one", "one two three", "word " * 50, "and " * 50]
    write_dataset(tmp_path / "tiny", [("train", text) for text in texts], tokenizer, {})
    corpus = Corpus(*Dataset(tmp_path / "tiny").split("train"), block_size=16)
    cls, sep, pad = tokenizer.cls, tokenizer.sep, tokenizer.pad
    x, n, mask = corpus.rows(np.array([1, 0]), tokenizer, pad_to=4, n_rows=3)
    assert x.tolist() == [[cls, *tokenizer.encode("one two three"), sep] + [pad] * 3,
                          [cls, *tokenizer.encode("one"), sep] + [pad] * 5,
                          [cls, sep] + [pad] * 6]
    assert n.tolist() == [3, 1, 0] and mask.tolist() == (x != pad).tolist()
    x, _, mask = corpus.rows(np.array([2, 3]), tokenizer, pad_to=5)
    assert x.tolist() == [[cls, *tokenizer.encode(word * 14), sep] for word in ("word ", "and ")]
    assert mask is None  # nothing is padded
    assert corpus.rows(np.array([1]), tokenizer)[0].shape == (1, 5)


def test_documents_become_blocks():
    lengths = np.array([0, 1, 10, 11, 35, 20, 30])
    offsets = np.cumsum([0, *lengths])
    blocks = cut_into_blocks(offsets, 10)
    assert np.diff(blocks).tolist() == [0, 1, 10, 5, 6, 8, 9, 9, 9, 10, 10, 10, 10, 10]
    assert set(offsets) <= set(blocks)
    assert (cut_into_blocks(offsets, 35) == offsets).all()


def test_what_a_block_cuts_off_is_described():
    corpus = Corpus(np.arange(30, dtype=np.uint16), np.array([0, 4, 20, 30]), 10)
    assert corpus.describe_tokens(np.array([0])) == "4 tokens"
    assert corpus.describe_tokens(np.arange(3)) == (
        "20 tokens; 66.7% of the texts are cut to --block_size=10, which loses 33.3% of all tokens")
