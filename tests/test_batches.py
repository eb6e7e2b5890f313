"""Batches and masks: every document once, special tokens never masked, the shares that BERT prescribes."""
import numpy as np
import pytest
import torch

from data.batches import Corpus, make_batches
from data.tokenfile import open_split, write_dataset
from data.tokenizer import get_tokenizer
from model import IGNORE
from pretrain import draw_batch, mask_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("bin")
    texts = ["one", "one two three", "word " * 50, "a b c d e f g"] * 5
    write_dataset("tiny", [("train", text) for text in texts], tokenizer, {}, folder)
    return Corpus(*open_split(folder / "tiny", "train"), block_size=16)


@pytest.mark.parametrize("n_docs, batch_size", [(1, 4), (7, 8), (64, 8), (5003, 16)])
def test_an_epoch_holds_every_document_once(n_docs, batch_size):
    lengths = np.random.default_rng(0).integers(1, 127, n_docs)
    batches = make_batches(lengths, batch_size, seed=1, epoch=2)
    assert sorted(np.concatenate(batches)) == list(range(n_docs))
    assert len(batches) == -(-n_docs // batch_size) and max(map(len, batches)) <= batch_size


def test_the_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 127, 1000)
    np.random.seed(5)  # what other code draws must not matter
    first = np.concatenate(make_batches(lengths, 8, 1, 2))
    assert (first == np.concatenate(make_batches(lengths, 8, 1, 2))).all()
    for other in ((1, 3), (2, 2), (2, 1)):
        assert (first != np.concatenate(make_batches(lengths, 8, *other))).any()


def test_batches_are_of_similar_length_but_not_in_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 127, 20_000)
    batches = make_batches(lengths, 32, 0, 0)
    longest = np.array([lengths[batch].max() for batch in batches])
    padded = sum(m * len(batch) for m, batch in zip(longest, batches))
    assert lengths.sum() / padded > 0.97
    assert abs(np.corrcoef(longest, np.arange(len(batches)))[0, 1]) < 0.1


def test_rows(corpus, tokenizer):
    cls, sep, pad = tokenizer.cls, tokenizer.sep, tokenizer.pad
    x, n, mask = corpus.rows(np.array([1, 0]), tokenizer, pad_to=4, n_rows=3)
    assert x.tolist() == [[cls, *tokenizer.encode("one two three"), sep, pad, pad, pad],
                          [cls, *tokenizer.encode("one"), sep] + [pad] * 5, [cls, sep] + [pad] * 6]
    assert n.tolist() == [3, 1, 0] and mask.tolist() == (x != pad).tolist()
    x, _, mask = corpus.rows(np.array([2, 6]), tokenizer, pad_to=5)
    assert x.tolist() == [[cls, *tokenizer.encode("word " * 14), sep]] * 2  # cut to block_size
    assert mask is None  # nothing is padded
    assert corpus.rows(np.array([1]), tokenizer)[0].shape == (1, 5)


def test_masks_follow_bert(tokenizer):
    B, T, p = 4000, 64, 0.15
    n = torch.arange(B) % (T - 1)  # rows of 0 to T - 2 tokens
    column = torch.arange(T)
    x = torch.where(column == 0, tokenizer.cls, torch.where(column <= n[:, None], 7, tokenizer.pad))
    x = torch.where(column == n[:, None] + 1, tokenizer.sep, x)
    masked, at, targets = mask_tokens(x, n, p, tokenizer, torch.Generator().manual_seed(0))
    real = targets != IGNORE
    # the number of targets a row is fixed, and so is the shape
    assert at.shape == targets.shape == (B, round(p * (T - 2)))
    expected = torch.where(n > 0, (p * n).round().clamp(min=1), 0)
    assert (real.sum(1) == expected).all()
    # no special token is masked or predicted, nothing else has changed
    assert (targets[real] == 7).all()
    changed = torch.zeros_like(x, dtype=torch.bool).scatter(1, at, real)
    assert (masked[~changed] == x[~changed]).all()
    assert ((at >= 1) & (at <= n[:, None]))[real].all()
    assert all(len(set(row[r].tolist())) == r.sum() for row, r in zip(at[:200], real[:200]))
    # 80 % [MASK], 10 % random, 10 % kept: within five standard deviations of the binomial
    new = masked.gather(1, at)[real]
    N = len(new)
    for share, count in ((0.8, (new == tokenizer.mask).sum()), (0.1, (new == 7).sum())):
        assert abs(count - share * N) < 5 * (N * share * (1 - share)) ** 0.5
    random = new[(new != tokenizer.mask) & (new != 7)]
    assert (random < tokenizer.n_words).all() and len(random.unique()) > 0.8 * len(random)
    # every position is equally likely
    full = n == T - 2
    places = torch.bincount(at[full].flatten(), minlength=T)[1:T - 1].float()
    assert places.min() > 0 and abs(places.std() / places.mean()) < 0.6


def test_masks_are_a_function_of_their_seed(corpus, tokenizer):
    documents = np.arange(12)
    first = draw_batch(corpus, documents, 12, 8, tokenizer, 0.3, seed=3, n_words=300)
    torch.manual_seed(9)
    again, other = (draw_batch(corpus, documents, 12, 8, tokenizer, 0.3, seed=seed, n_words=300)
                    for seed in (3, 4))
    assert all((a == b).all() for a, b in zip(first, again)) and (first[0] != other[0]).any()


def test_batches_are_filled_up_with_empty_rows(corpus, tokenizer):
    tokens, mask, at, targets, *_ = draw_batch(corpus, np.array([0, 1]), 4, 8, tokenizer, 0.15, seed=0)
    assert tokens.shape == mask.shape == (4, 8) and at.shape == (4, 1)
    assert (targets[2:] == IGNORE).all() and (targets[:2] != IGNORE).all()
