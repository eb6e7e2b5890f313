"""Masks: no special token, the shares that BERT prescribes, the same for the same seed."""
import numpy as np
import pytest
import torch

from data.batches import Corpus
from data.tokenfile import open_split, write_dataset
from data.tokenizer import get_tokenizer
from model import IGNORE
from pretrain import draw_batch, mask_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("bin") / "tiny"
    texts = ["one", "one two three", "word " * 50, "a b c d e f g"] * 5
    write_dataset(path, [("train", text) for text in texts], tokenizer, {})
    return Corpus(*open_split(path, "train"), block_size=16)


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
    first = draw_batch(corpus, documents, tokenizer, 0.3, 3, 12, 8, n_words=300)
    torch.manual_seed(9)
    again = draw_batch(corpus, documents, tokenizer, 0.3, 3, 12, 8, n_words=300)
    other = draw_batch(corpus, documents, tokenizer, 0.3, 4, 12, 8, n_words=300)
    assert all((a == b).all() for a, b in zip(first, again)) and (first[0] != other[0]).any()


def test_batches_are_filled_up_with_empty_rows(corpus, tokenizer):
    tokens, mask, at, targets, *_ = draw_batch(corpus, np.array([0, 1]), tokenizer, 0.15, 0, 4, 8)
    assert tokens.shape == mask.shape == (4, 8) and at.shape == (4, 1)
    assert (targets[2:] == IGNORE).all() and (targets[:2] != IGNORE).all()
