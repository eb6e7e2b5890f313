"""From token files to batches: which documents form a batch, and their tokens as one tensor."""
import numpy as np
import torch


def make_batches(lengths, batch_size, seed, epoch):
    """The order of an epoch, a function of (seed, epoch) alone: a list of index arrays, every document in one of them.

    Documents of similar length share a batch, so that little is padded: the shuffled documents are sorted within pools
    of 64 batches, and the batches shuffled again. One batch may be smaller than the rest.
    """
    rng = np.random.default_rng([seed, epoch])
    order, batches = rng.permutation(len(lengths)), []
    for pool in np.split(order, range(64 * batch_size, len(order), 64 * batch_size)):
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.split(pool, range(batch_size, len(pool), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


class Corpus:
    """Documents cut to block_size, from their tokens (uint16) and offsets (int64, n_docs + 1) as open_split gives them.

    The tokens lie on the device; a CPU leaves them in the file, which is memory-mapped. `lengths` (numpy, n_docs)
    counts a document's tokens without [CLS] and [SEP]."""

    def __init__(self, tokens, offsets, block_size, device="cpu"):
        self.block_size = block_size
        self.starts, self.lengths = np.array(offsets[:-1]), np.minimum(np.diff(offsets), block_size - 2)
        self.tokens = torch.from_numpy(tokens.view(np.int16)).to(device)  # torch can do little with uint16

    def rows(self, documents, tokenizer, pad_to=1, n_rows=None):
        """documents (numpy, up to n_rows of them) -> tokens (n_rows, T), n (n_rows,), mask (n_rows, T) or None.

        A row is [CLS], the n tokens of its document, [SEP], padding. T fits the longest document and is a multiple of
        pad_to, unless block_size ends it. Rows beyond the documents are empty. The mask is True at real tokens; it is
        None where nothing is padded.
        """
        n = self.lengths[documents]
        T = min(-(-(n.max() + 2) // pad_to) * pad_to, self.block_size)
        missing = (n_rows or len(documents)) - len(documents)
        padded = missing > 0 or n.min() + 2 < T
        start, n = (torch.from_numpy(np.pad(x, (0, missing))).to(self.tokens.device)
                    for x in (self.starts[documents], n))  # (n_rows,) each
        column = torch.arange(T, device=n.device)  # (T,)
        x = self.tokens[(start[:, None] + column - 1).clamp(0, len(self.tokens) - 1)].long() & 0xFFFF  # (n_rows, T)
        x = torch.where(column <= n[:, None], x, tokenizer.pad)
        x = x.masked_fill(column == n[:, None] + 1, tokenizer.sep).masked_fill(column == 0, tokenizer.cls)
        return x, n, column < n[:, None] + 2 if padded else None
