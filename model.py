"""BERT in one file (Devlin et al. 2018, arXiv 1810.04805): the encoder, its head for
masked-language modelling, its classifier.

Read it from the bottom up (what goes in and out) or from the top down (what it is made of). Shapes
in the comments: B sequences in the batch, T tokens in a sequence, C = n_embd features of a token,
nh heads of hs = C / nh features, K positions of a sequence whose final states are wanted,
V = vocab_size.

Tokens are int64 (B, T). `mask` is bool (B, T), True at real tokens and False at padding, or None
where nothing is padded: attention is faster without it. Padding never changes the result at a real
token.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

IGNORE = -1  # the target of a position that is not to be predicted


@dataclass
class BertConfig:
    """The architecture. The defaults are a small laptop model; the paper's is n_embd=768,
    n_head=12, pos="learned"."""
    vocab_size: int = 16384
    block_size: int = 128  # the longest sequence, [CLS] and [SEP] included
    n_layer: int = 6
    n_head: int = 4
    n_embd: int = 256
    dropout: float = 0.0
    pos: str = "rotary"  # how a position enters: "rotary" (RoPE), or "learned" as in BERT
    n_conv: int = 0  # convolution layers in front of the transformer layers
    conv_kernel: tuple = (3,)  # their kernel sizes; one alone stands for all of them
    conv_channels: int = 64

    def __post_init__(self):
        if self.n_embd % self.n_head or (self.pos == "rotary" and self.n_embd // self.n_head % 2):
            raise ValueError(f"n_embd={self.n_embd} must be n_head={self.n_head} times a whole"
                             f"{' even' if self.pos == 'rotary' else ''} number")
        if self.pos not in ("rotary", "learned"):
            raise ValueError(f"pos={self.pos} must be rotary or learned")
        self.conv_kernel = tuple(self.conv_kernel)
        if len(self.conv_kernel) == 1:
            self.conv_kernel *= self.n_conv
        if len(self.conv_kernel) != self.n_conv:
            raise ValueError(f"conv_kernel={self.conv_kernel} must name one size, or one for each "
                             f"of n_conv={self.n_conv} layers")


def take(x, positions):
    """x (B, T, C), positions (B, K) -> the rows of x at these positions, (B, K, C)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.size(-1)))


def rotary_turns(block_size, head_size):
    """-> cosine and sine (2, block_size, hs / 2) of the angle by which RoPE turns each pair of
    features at each position (Su et al. 2021)."""
    frequencies = 10000.0 ** -(torch.arange(0, head_size, 2) / head_size)  # (hs / 2,)
    angles = torch.arange(block_size)[:, None] * frequencies  # (block_size, hs / 2)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x, turns):
    """Turn the feature pairs (i, i + hs / 2) of x (B, nh, T, hs) by turns (2, ..., T, hs / 2).

    Queries and keys so turned meet in a dot product that depends on their distance, not on where
    they stand.
    """
    cos, sin = turns.to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # (B, nh, T, hs / 2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.query = nn.Linear(config.n_embd, config.n_embd)
        self.key = nn.Linear(config.n_embd, config.n_embd)
        self.value = nn.Linear(config.n_embd, config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, asking, mask, turns, at):
        """x (B, T, C), and of these the states that ask, at the positions `at` (B, K) or all
        -> what they learn from all of x, (B, K, C)."""
        heads = (x.size(0), -1, self.n_head, x.size(2) // self.n_head)
        q = self.query(asking).view(heads).transpose(1, 2)  # (B, nh, K, hs)
        k = self.key(x).view(heads).transpose(1, 2)  # (B, nh, T, hs)
        v = self.value(x).view(heads).transpose(1, 2)  # (B, nh, T, hs)
        if turns is not None:
            q = rotate(q, turns if at is None else turns[:, at][:, :, None])
            k = rotate(k, turns)
        if mask is not None:
            mask = mask[:, None, None, :]  # for all heads and queries: no one looks at padding
        dropout = self.dropout if self.training else 0.0
        if x.is_cuda:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)  # (B, nh, K, hs)
        else:  # written out: a CPU's fused kernel has a slow backward pass at our lengths
            scores = q @ (k / k.size(-1) ** 0.5).mT  # (B, nh, K, T)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            y = F.dropout(scores.softmax(-1), dropout) @ v  # (B, nh, K, hs)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, K, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.proj(F.gelu(self.fc(x)))


class Block(nn.Module):
    """A transformer layer with the norms after the residual additions ("post-norm"), as in BERT."""

    def __init__(self, config):
        super().__init__()
        self.attn = SelfAttention(config)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-12)
        self.mlp = MLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-12)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, mask, turns, at=None):
        """x (B, T, C) -> (B, T, C), or (B, K, C) if only the positions `at` (B, K) are wanted."""
        asking = x if at is None else take(x, at)  # (B, K, C)
        y = self.attn(x, asking, mask, turns, at)
        x = self.ln_1(asking + self.drop(y))
        return self.ln_2(x + self.drop(self.mlp(x)))


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d of x (B, channels, T, C) whose statistics leave padding out, mask (B, T)."""

    def forward(self, x, mask):
        if mask is None or not self.training:
            return super().forward(x)
        x, real = x.float(), mask[:, None, :, None]  # (B, 1, T, 1)
        n = mask.sum() * x.size(3)
        mean = (x * real).sum((0, 2, 3)) / n  # (channels,)
        var = ((x - mean[:, None, None]).square() * real).sum((0, 2, 3)) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


class ConvFrontEnd(nn.Module):
    """The embedded text as a one-channel image, positions x features, through n_conv convolutions
    and back to one channel by a 1x1 convolution, each followed by batch norm and GELU ("Tiny
    language models", arXiv 2507.14871)."""

    def __init__(self, config):
        super().__init__()
        kernels = [*config.conv_kernel, 1]
        channels = [1] + [config.conv_channels] * config.n_conv + [1]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, kernel, padding="same")
                                   for a, b, kernel in zip(channels, channels[1:], kernels))
        self.norms = nn.ModuleList(MaskedBatchNorm2d(b) for b in channels[1:])
        # Channels side by side are several times faster on a CPU.
        self.to(memory_format=torch.channels_last)

    def forward(self, x, mask):
        x = x[:, None]  # (B, 1, T, C)
        for conv, norm in zip(self.convs, self.norms):
            if mask is not None:  # padding is made to look like the zeros beyond the image's edge
                x = x * mask[:, None, :, None]  # unlike masked_fill this keeps the memory's layout
            x = F.gelu(norm(conv(x), mask))  # (B, channels, T, C)
        return x[:, 0]  # (B, T, C)


def init_weights(module):
    """BERT's initialisation: normal with deviation 0.02, biases 0; norms and convolutions keep
    PyTorch's."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class Bert(nn.Module):
    """The encoder: tokens -> one state of C features a token."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = turns = None
        if config.pos == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            turns = rotary_turns(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("turns", turns, persistent=False)
        self.ln = nn.LayerNorm(config.n_embd, eps=1e-12)
        self.drop = nn.Dropout(config.dropout)
        self.noise = 0.0  # standard deviation of what is added to the embedded tokens in training
        self.conv = ConvFrontEnd(config) if config.n_conv else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.apply(init_weights)

    def forward(self, tokens, mask=None, at=None, embedded=None):
        """tokens (B, T), mask (B, T) or None -> final states (B, T, C).

        With `at` (B, K), positions, only their states (B, K, C): of the others the last layer then
        computes keys and values alone, since their outputs are never read. The result is the same;
        with 40 % masked a one-layer model does half of the work. embedded (B, T, C): wte(tokens),
        if it is known.
        """
        T = tokens.size(1)
        x = self.wte(tokens) if embedded is None else embedded  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe.weight[:T]
        x = self.drop(self.ln(x))
        if self.noise and self.training:  # NEFTune (Jain et al. 2023), but normal noise
            x = x + self.noise * torch.randn_like(x)
        if self.conv is not None:
            x = self.conv(x, mask)
        turns = None if self.turns is None else self.turns[:, :T]
        for block in self.blocks[:-1]:
            x = block(x, mask, turns)
        return self.blocks[-1](x, mask, turns, at)


def sum_of_losses(logits, targets, label_smoothing=0.0):
    """logits (N, n), targets (N,) -> the sum of the cross-entropies where the target isn't IGNORE.
    Not the mean: the parts of a batch may hold unequal numbers of targets, and must add up."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum",
                           label_smoothing=label_smoothing)


def sample_words(targets, n_words, vocab_size, generator):
    """The words that compete in a sampled softmax: the targets (B, K) and others, drawn evenly
    without replacement until there are n_words, or as many as there are targets if that is more.

    -> words (W,), shift (W,), and the targets as indices into `words`. Each word drawn stands for
    several that were not: shift, the logarithm of how many, is added to its logit, so that on
    average the softmax's sum is that of the whole vocabulary (Bengio and Senecal 2003; Jean et al.
    2015). Shapes are static, and nothing waits for the device.
    """
    n_words = min(vocab_size, max(n_words, targets.numel()))
    real = targets != IGNORE
    score = torch.rand(vocab_size, generator=generator, device=targets.device)
    is_target = torch.zeros_like(score)
    is_target.index_fill_(0, torch.where(real, targets, targets.max()).flatten(), 1.0)
    words = (score + is_target).topk(n_words, sorted=False).indices  # (W,) the targets among them
    n_targets = is_target.sum()
    stands_for = (vocab_size - n_targets) / (n_words - n_targets).clamp(min=1)
    shift = torch.where(is_target[words] > 0, 0.0, stands_for.log())  # (W,)
    place = torch.zeros(vocab_size, dtype=torch.long, device=targets.device)
    place[words] = torch.arange(n_words, device=targets.device)
    return words, shift, torch.where(real, place[targets.clamp(min=0)], IGNORE)


class BertForMaskedLM(nn.Module):
    """The encoder and BERT's pre-training head, which names the token at a position from its final
    state."""

    def __init__(self, config):
        super().__init__()
        self.bert = Bert(config)
        self.dense = nn.Linear(config.n_embd, config.n_embd)
        self.ln = nn.LayerNorm(config.n_embd, eps=1e-12)
        self.decoder = nn.Linear(config.n_embd, config.vocab_size)
        self.apply(init_weights)
        self.decoder.weight = self.bert.wte.weight  # tied: named by the vector that represents it

    def forward(self, tokens, mask=None, at=None, targets=None, words=None, shift=None):
        """-> logits (B, K, V) at the positions `at` (B, K), all T if None; with targets (B, K)
        instead the sum of the cross-entropies, but where IGNORE.

        With words (W,), ids of the vocabulary, only these compete: targets are then indices into
        `words`, and shift (W,) is added to their logits (a sampled softmax; see sample_words).
        """
        embedded = named = None
        if words is not None:  # looked up at once: each look-up has a gradient as large as (V, C)
            vectors = self.bert.wte(torch.cat([tokens.flatten(), words]))
            embedded, named = vectors.split([tokens.numel(), len(words)])  # (B T, C), (W, C)
            embedded = embedded.unflatten(0, tokens.shape)  # (B, T, C)
        x = self.bert(tokens, mask, at, embedded)  # (B, K, C)
        x = self.ln(F.gelu(self.dense(x)))
        if words is None:
            logits = self.decoder(x)  # (B, K, V)
        else:
            logits = F.linear(x, named, self.decoder.bias[words] + shift)  # (B, K, W)
        return logits if targets is None else sum_of_losses(logits.flatten(0, 1), targets.flatten())


class BertForClassification(nn.Module):
    """The encoder and BERT's classifier: a state of the text, a tanh layer, dropout, a linear one.

    pooling: that state is the first token's ("cls", as in BERT); the mean over the real tokens'
    states ("mean"), which masked-language modelling has trained, while it never looks at [CLS]; or
    those of the `markers`, two token ids, side by side ("entities": what a relation holds between,
    Baldini Soares et al. 2019). A marker that a text lacks is replaced by [CLS].
    """

    def __init__(self, config, n_classes, pooling="cls", markers=()):
        super().__init__()
        self.bert, self.pooling = Bert(config), pooling
        self.markers = list(markers) if pooling == "entities" else []
        self.label_smoothing = 0.0  # the share of a target's weight that goes to all classes alike
        self.pooler = nn.Linear(config.n_embd * (len(self.markers) or 1), config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.n_embd, n_classes)
        self.apply(init_weights)

    def forward(self, tokens, mask=None, targets=None):
        """-> logits (B, n_classes); with targets (B,) instead the sum of the cross-entropies, but
        where IGNORE."""
        if self.pooling == "mean":
            x = self.bert(tokens, mask)  # (B, T, C)
            real = torch.ones_like(tokens) if mask is None else mask  # (B, T)
            x = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)  # (B, C)
        else:
            at = [torch.zeros_like(tokens[:, 0])]  # of [CLS]
            if self.markers:
                at = [(tokens == marker).long().argmax(1) for marker in self.markers]
            x = self.bert(tokens, mask, torch.stack(at, dim=1)).flatten(1)  # (B, C) or (B, 2 C)
        logits = self.classifier(self.drop(torch.tanh(self.pooler(x))))
        return logits if targets is None else sum_of_losses(logits, targets, self.label_smoothing)

    def share(self, T):
        """The share of T positions whose final states are read."""
        return 1.0 if self.pooling == "mean" else (len(self.markers) or 1) / T


def count_parameters(model):
    """Number of parameters; the tied embedding counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(config, T, share=1.0, n_words=None):
    """Floating-point operations a token of one forward pass of BertForMaskedLM, in sequences of T.

    Counted are the matrix products and convolutions: 2 for each weight that a token meets, and
    4 T C a layer in the attention itself. `share` is the share of positions that are wanted (`at`),
    for the last layer and the head, which tells n_words apart (None: the whole vocabulary; 0: there
    is no such head). A training step costs three times as much (the backward pass is twice the
    forward).
    """
    C, L = config.n_embd, config.n_layer
    layer = 2 * 12 * C * C + 4 * T * C
    # The last layer computes the keys and values of all positions, the rest of some.
    last = 2 * 2 * C * C + share * (2 * 10 * C * C + 4 * T * C)
    n_words = config.vocab_size if n_words is None else n_words
    flops = (L - 1) * layer + last + share * 2 * C * n_words
    if n_words:
        flops += share * 2 * C * C
    channels = [1] + [config.conv_channels] * config.n_conv
    for k, inputs, outputs in zip(config.conv_kernel, channels, channels[1:]):
        flops += 2 * C * k * k * inputs * outputs
    if config.n_conv:
        flops += 2 * C * config.conv_channels  # the 1x1 convolution
    return flops

