"""BERT in one file (Devlin et al. 2018, arXiv 1810.04805): the encoder, its head for
masked-language modelling, its classifier.

Read it from the bottom up (what goes in and out) or from the top down (what it is made of). Shapes
in the comments: B sequences in the batch, T tokens in a sequence, C = n_embd features of a token
(its state), nh heads of hs = C / nh features, K positions of a sequence whose states after the last
layer are wanted, V = vocab_size, W candidate tokens of a sampled softmax.

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
    n_head: int | None = None  # attention heads; None: as many as give each 64 features
    n_embd: int = 256
    dropout: float = 0.0
    pos: str = "rotary"  # position embedding: "rotary" (RoPE), or "learned" as in BERT
    n_conv: int = 0  # convolution layers in front of the transformer layers
    conv_kernel: tuple = (3,)  # their kernel sizes; one alone stands for all of them
    conv_channels: int = 64

    def __post_init__(self):
        if self.n_head is None:
            self.n_head = max(1, self.n_embd // 64)
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


def gather_positions(x, positions):
    """x (B, T, C), positions (B, K) -> the states at these positions, (B, K, C)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.size(-1)))


def rotary_cos_sin(block_size, head_size):
    """-> cosine and sine (2, block_size, hs / 2) of the angle by which RoPE rotates each pair of
    features at each position (Su et al. 2021)."""
    frequencies = 10000.0 ** -(torch.arange(0, head_size, 2) / head_size)  # (hs / 2,)
    angles = torch.arange(block_size)[:, None] * frequencies  # (block_size, hs / 2)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x, cos_sin):
    """Rotate the feature pairs (i, i + hs / 2) of x (B, nh, T, hs) by the angles whose cosine and
    sine are cos_sin (2, ..., T, hs / 2).

    The dot product of a query and a key that are rotated like this depends on the distance between
    their positions, not on the positions themselves.
    """
    cos, sin = cos_sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # (B, nh, T, hs / 2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SelfAttention(nn.Module):
    """Every token takes something of every other. The product of its query with the other's key,
    after a softmax over all of them, says how much of the other's value."""

    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.query = nn.Linear(config.n_embd, config.n_embd)
        self.key = nn.Linear(config.n_embd, config.n_embd)
        self.value = nn.Linear(config.n_embd, config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, query_states, mask, cos_sin, positions):
        """x (B, T, C); query_states (B, K, C): x, or its states at `positions` (B, K)
        -> what these gather from all of x, (B, K, C). Without `positions`, K is T."""
        heads = (x.size(0), -1, self.n_head, x.size(2) // self.n_head)
        q = self.query(query_states).view(heads).transpose(1, 2)  # (B, nh, K, hs)
        k = self.key(x).view(heads).transpose(1, 2)  # (B, nh, T, hs)
        v = self.value(x).view(heads).transpose(1, 2)  # (B, nh, T, hs)
        if cos_sin is not None:
            at_queries = cos_sin  # (2, T, hs / 2)
            if positions is not None:
                at_queries = cos_sin[:, positions][:, :, None]  # (2, B, 1, K, hs / 2)
            q, k = rotate(q, at_queries), rotate(k, cos_sin)
        if mask is not None:
            mask = mask[:, None, None, :]  # the same for all heads and queries
        dropout = self.dropout if self.training else 0.0
        if x.is_cuda:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)  # (B, nh, K, hs)
        else:  # written out: the fused kernel of CPUs has a slow backward pass at our lengths
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

    def forward(self, x, mask, cos_sin, positions=None):
        """x (B, T, C) -> (B, T, C), or (B, K, C) if only the states at `positions` (B, K) are
        wanted."""
        query_states = x if positions is None else gather_positions(x, positions)  # (B, K, C)
        y = self.attn(x, query_states, mask, cos_sin, positions)
        x = self.ln_1(query_states + self.drop(y))
        return self.ln_2(x + self.drop(self.mlp(x)))


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d of x (B, channels, T, C) whose statistics leave out padding, mask (B, T), and
    rows of [CLS] and [SEP] alone, which fill up a batch."""

    def forward(self, x, mask):
        if mask is None or not self.training:
            return super().forward(x)
        mask = mask & (mask.sum(1, keepdim=True) > 2)  # (B, T)
        x, real = x.float(), mask[:, None, :, None]  # (B, 1, T, 1)
        n = mask.sum() * x.size(3)
        momentum = self.momentum * (n > 0)  # a micro-batch may be of rows that fill up alone
        n = n.clamp(min=2)
        mean = (x * real).sum((0, 2, 3)) / n  # (channels,)
        var = ((x - mean[:, None, None]).square() * real).sum((0, 2, 3)) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1), momentum)
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
            if mask is not None:  # padding becomes zeros, like those beyond the image's edge
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
        self.wpe = cos_sin = None
        if config.pos == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            cos_sin = rotary_cos_sin(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self.ln = nn.LayerNorm(config.n_embd, eps=1e-12)
        self.drop = nn.Dropout(config.dropout)
        self.noise = 0.0  # standard deviation of the noise on the embedded tokens in training
        self.conv = ConvFrontEnd(config) if config.n_conv else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.apply(init_weights)

    def forward(self, tokens, mask=None, positions=None, embedded=None):
        """tokens (B, T), mask (B, T) or None -> final states (B, T, C).

        With positions (B, K) only the states there, (B, K, C): at the others the last layer then
        computes only keys and values, since nothing reads their outputs. The result is the same;
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
        cos_sin = None if self.cos_sin is None else self.cos_sin[:, :T]
        for block in self.blocks[:-1]:
            x = block(x, mask, cos_sin)
        return self.blocks[-1](x, mask, cos_sin, positions)


def sum_of_losses(logits, targets, label_smoothing=0.0):
    """logits (N, n), targets (N,) -> the sum of the cross-entropies, except where the target is
    IGNORE. Not the mean: micro-batches may hold unequal numbers of targets, and must add up."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum",
                           label_smoothing=label_smoothing)


def sample_candidates(targets, n_candidates, vocab_size, generator):
    """The candidate tokens of a sampled softmax: the targets (B, K), and others drawn uniformly
    without replacement until there are n_candidates, or targets.numel() if that is more.

    -> candidates (W,), logit_correction (W,), and the targets as indices into `candidates`. Each
    token drawn has a weight, the number of tokens that it represents. Its logarithm is added to
    the logit, so that on average the softmax's sum is that of the whole vocabulary (Bengio and
    Senecal 2003; Jean et al. 2015). Shapes are static, and nothing waits for the device.
    """
    n_candidates = min(vocab_size, max(n_candidates, targets.numel()))
    real = targets != IGNORE
    score = torch.rand(vocab_size, generator=generator, device=targets.device)
    is_target = torch.zeros_like(score)
    is_target.index_fill_(0, torch.where(real, targets, targets.max()).flatten(), 1.0)
    # A target's score is above 1, so all targets are among the best.
    candidates = (score + is_target).topk(n_candidates, sorted=False).indices  # (W,)
    n_targets = is_target.sum()
    weight = (vocab_size - n_targets) / (n_candidates - n_targets).clamp(min=1)
    logit_correction = torch.where(is_target[candidates] > 0, 0.0, weight.log())  # (W,)
    index_of = torch.zeros(vocab_size, dtype=torch.long, device=targets.device)
    index_of[candidates] = torch.arange(n_candidates, device=targets.device)
    return candidates, logit_correction, torch.where(real, index_of[targets.clamp(min=0)], IGNORE)


class BertForMaskedLM(nn.Module):
    """The encoder and BERT's pre-training head, which predicts the token at a position from its
    final state."""

    def __init__(self, config):
        super().__init__()
        self.bert = Bert(config)
        self.dense = nn.Linear(config.n_embd, config.n_embd)
        self.ln = nn.LayerNorm(config.n_embd, eps=1e-12)
        self.decoder = nn.Linear(config.n_embd, config.vocab_size)
        self.apply(init_weights)
        self.decoder.weight = self.bert.wte.weight  # tied: a token is read and predicted by one row

    def forward(self, tokens, mask=None, positions=None, targets=None, candidates=None,
                logit_correction=None):
        """-> logits (B, K, V) at `positions` (B, K), all T if None; with targets (B, K) instead the
        sum of the cross-entropies, except where IGNORE.

        With candidates (W,), token ids, the softmax is over these alone: targets are then indices
        into `candidates`, and logit_correction (W,) is added to the logits (see sample_candidates).
        """
        embedded = candidate_embeddings = None
        if candidates is not None:  # two look-ups would make two gradients of (V, C)
            embeddings = self.bert.wte(torch.cat([tokens.flatten(), candidates]))
            embedded, candidate_embeddings = embeddings.split([tokens.numel(), len(candidates)])
            embedded = embedded.unflatten(0, tokens.shape)  # (B, T, C)
        x = self.bert(tokens, mask, positions, embedded)  # (B, K, C)
        x = self.ln(F.gelu(self.dense(x)))
        if candidates is None:
            logits = self.decoder(x)  # (B, K, V)
        else:
            bias = self.decoder.bias[candidates] + logit_correction  # (W,)
            logits = F.linear(x, candidate_embeddings, bias)  # (B, K, W)
        return logits if targets is None else sum_of_losses(logits.flatten(0, 1), targets.flatten())


class BertForClassification(nn.Module):
    """The encoder and BERT's classifier: one state for the text, a tanh layer, dropout, a linear
    layer.

    pooling: that state is the first token's ("cls", as in BERT); the mean of the real tokens'
    states ("mean"), which masked-language modelling has trained, while it never uses [CLS]; or
    those of the `markers`, two token ids, concatenated ("entities": the two between which a
    relation holds, Baldini Soares et al. 2019). [CLS] replaces a marker that a text lacks.
    """

    def __init__(self, config, n_classes, pooling="cls", markers=()):
        super().__init__()
        self.bert, self.pooling = Bert(config), pooling
        self.markers = list(markers) if pooling == "entities" else []
        self.label_smoothing = 0.0  # share of a target that is spread evenly over the classes
        self.pooler = nn.Linear(config.n_embd * (len(self.markers) or 1), config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.n_embd, n_classes)
        self.apply(init_weights)

    def forward(self, tokens, mask=None, targets=None):
        """-> logits (B, n_classes); with targets (B,) instead the sum of the cross-entropies,
        except where IGNORE."""
        if self.pooling == "mean":
            x = self.bert(tokens, mask)  # (B, T, C)
            real = torch.ones_like(tokens) if mask is None else mask  # (B, T)
            x = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)  # (B, C)
        else:
            positions = [torch.zeros_like(tokens[:, 0])]  # of [CLS]
            if self.markers:
                positions = [(tokens == marker).long().argmax(1) for marker in self.markers]
            x = self.bert(tokens, mask, torch.stack(positions, dim=1))  # (B, 1, C) or (B, 2, C)
            x = x.flatten(1)  # (B, C) or (B, 2 C)
        logits = self.classifier(self.drop(torch.tanh(self.pooler(x))))
        return logits if targets is None else sum_of_losses(logits, targets, self.label_smoothing)

    def flops(self, T):
        """Floating-point operations a token of a forward pass, in sequences of T."""
        share = 1.0 if self.pooling == "mean" else (len(self.markers) or 1) / T  # of states read
        return flops_per_token(self.bert.config, T, share, n_candidates=0)


def count_parameters(model):
    """Number of parameters; the tied embedding counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(config, T, share=1.0, n_candidates=None):
    """Floating-point operations a token of one forward pass of BertForMaskedLM, in sequences of T.

    Counted are the matrix products and convolutions: 2 for each weight that a token meets, and
    4 T C a layer in the attention itself. `share` is the share of positions whose final states are
    wanted, for the last layer and the head. n_candidates: the tokens among which the head chooses
    (None: the whole vocabulary; 0: there is no such head). A training step costs three times as
    much: the backward pass is twice the forward.
    """
    C, L = config.n_embd, config.n_layer
    layer = 2 * 12 * C * C + 4 * T * C
    # The last layer computes the keys and values of all positions, the rest of some.
    last = 2 * 2 * C * C + share * (2 * 10 * C * C + 4 * T * C)
    n_candidates = config.vocab_size if n_candidates is None else n_candidates
    flops = (L - 1) * layer + last + share * 2 * C * n_candidates
    if n_candidates:
        flops += share * 2 * C * C
    if config.n_conv:
        channels = [1] + [config.conv_channels] * config.n_conv + [1]
        for k, inputs, outputs in zip([*config.conv_kernel, 1], channels, channels[1:]):
            flops += 2 * C * k * k * inputs * outputs
    return flops
