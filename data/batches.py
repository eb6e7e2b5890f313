"""From token files to batches: which documents form one, and their tokens as one tensor."""
import math

import numpy as np
import torch


def cut_into_blocks(offsets, max_tokens):
    """The offsets of documents (numpy, n_docs + 1) -> those of their consecutive blocks: each
    document in as few of at most max_tokens as it takes, of about equal length."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    n = np.maximum(1, -(-lengths // max_tokens))  # blocks of each document
    first = np.cumsum(n) - n  # the number of its first block
    blocks, left = np.full(n.sum() + 1, offsets[-1]), np.arange(len(n))
    for i in range(n.max(initial=0)):
        left = left[n[left] > i]  # documents with more than i blocks
        blocks[first[left] + i] = starts[left] + i * lengths[left] // n[left]
    return blocks


def make_batches(lengths, batch_size, seed, epoch):
    """The batches of an epoch, a function of the arguments alone: list of index arrays, each
    document in one of them. One batch may be smaller.

    Documents of similar length share a batch, so that there is little padding: the shuffled
    documents are sorted by length within pools of 64 batches, and the batches shuffled again.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(np.arange(len(lengths), dtype=np.int32))
    for start in range(0, len(order), 64 * batch_size):
        pool = order[start:start + 64 * batch_size]  # a view: order itself is sorted
        pool[:] = pool[np.argsort(lengths[pool], kind="stable")]
    starts = rng.permutation(range(0, len(order), batch_size))
    return [order[start:start + batch_size] for start in starts]


def n_rows_to_evaluate(T):
    """How many rows of T tokens are evaluated at once (int): long ones need more memory."""
    return max(1, min(64, 2**13 // T))


def to_device(array, device):
    """numpy -> tensor on the device. The host does not wait for the copy, except on Apple's GPUs,
    where the array could be gone before it is copied."""
    return torch.from_numpy(array).to(device, non_blocking=device.type != "mps")


class Corpus:
    """Documents cut to block_size, of tokens and offsets as Dataset.split gives them.

    The tokens are on the device; a CPU leaves them in the file, which is memory-mapped. `lengths`
    (int16, n_docs: the whole of Wikipedia has tens of millions of blocks) counts the tokens of each
    cut document without [CLS] and [SEP].
    """

    def __init__(self, tokens, offsets, block_size, device="cpu"):
        self.block_size = block_size
        self.starts = np.asarray(offsets)[:-1]
        self.whole_lengths = np.diff(offsets).astype(np.int16)  # up to MAX_TOKENS
        self.lengths = np.minimum(self.whole_lengths, block_size - 2)
        # torch can do little with uint16
        self.tokens = torch.from_numpy(tokens.view(np.int16)).to(device)

    def describe_tokens(self, documents):
        """-> how many tokens these documents (index array) have and block_size cuts off (str)."""
        whole, kept = self.whole_lengths[documents], self.lengths[documents]
        if (kept == whole).all():
            return f"{kept.sum():,} tokens"
        return (f"{kept.sum():,} tokens; {(kept < whole).mean():.1%} of the texts are cut to "
                f"--block_size={self.block_size}, which loses {1 - kept.sum() / whole.sum():.1%} "
                "of all tokens")

    def rows(self, documents, tokenizer, pad_to=1, n_rows=None):
        """documents (numpy, up to n_rows) -> tokens (n_rows, T), n (n_rows,), mask (n_rows, T).

        A row is [CLS], the n tokens of its document, [SEP], padding. T fits the longest document
        and is a multiple of pad_to, unless block_size is smaller. Rows beyond the documents are
        empty. The mask is True at real tokens; it is None if nothing is padded.
        """
        n = self.lengths[documents].astype(np.int64)
        T = min(math.ceil((n.max() + 2) / pad_to) * pad_to, self.block_size)
        n_empty = (n_rows or len(documents)) - len(documents)
        is_padded = n_empty > 0 or n.min() + 2 < T
        device = self.tokens.device
        start = to_device(np.pad(self.starts[documents], (0, n_empty)), device)
        n = to_device(np.pad(n, (0, n_empty)), device)
        column = torch.arange(T, device=device)
        index = (start[:, None] + column - 1).clamp(0, len(self.tokens) - 1)  # (n_rows, T)
        x = self.tokens[index].long() & 0xFFFF  # undoes the view as int16
        x = torch.where(column <= n[:, None], x, tokenizer.pad)
        x = x.masked_fill(column == n[:, None] + 1, tokenizer.sep)
        x = x.masked_fill(column == 0, tokenizer.cls)
        return x, n, column < n[:, None] + 2 if is_padded else None
