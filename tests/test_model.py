"""The encoder against an independent BERT, and the invariants that small BERT repositories are
known to break."""

import pytest
import torch

from model import (
    IGNORE,
    BertConfig,
    BertForClassification,
    BertForMaskedLM,
    count_parameters,
    flops_per_token,
)

VARIANTS = {"learned": {"pos": "learned"}, "rotary": {}, "one layer": {"n_layer": 1},
            "conv": {"n_conv": 2, "conv_kernel": (4, 3), "conv_channels": 5}}


def small_config(**changes):
    small = {"vocab_size": 97, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
    return BertConfig(**small | changes)


def random_batch(config, B=3, T=20):
    """tokens (B, T), mask (B, T) with rows of T, T - 5 and T - 11 real tokens."""
    torch.manual_seed(1)
    mask = torch.arange(T) < torch.tensor([T, T - 5, T - 11])[:B, None]
    return torch.randint(config.vocab_size, (B, T)), mask


def strengthen(model):
    """Fresh weights of 0.02 hide errors under their smallness: make every parameter count."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "ln" in name
            p.normal_(1.0 if norm and "weight" in name else 0.0, 0.1 if norm else 0.3)
    return model.eval()


def copy_from_transformers(ours, theirs):
    """The weights of a transformers BertForMaskedLM into our own."""
    renamed = {"bert.wte": "bert.embeddings.word_embeddings",
               "bert.wpe": "bert.embeddings.position_embeddings",
               "bert.ln": "bert.embeddings.LayerNorm", "attn.query": "attention.self.query",
               "attn.key": "attention.self.key", "attn.value": "attention.self.value",
               "attn.proj": "attention.output.dense", "ln_1": "attention.output.LayerNorm",
               "mlp.fc": "intermediate.dense", "mlp.proj": "output.dense",
               "ln_2": "output.LayerNorm", "dense": "cls.predictions.transform.dense",
               "ln": "cls.predictions.transform.LayerNorm", "decoder": "cls.predictions.decoder"}
    state = theirs.state_dict()

    def theirs_of(name):
        module, kind = name.rsplit(".", 1)  # "bert.blocks.0.mlp.fc", "weight"
        if not module.startswith("bert.blocks."):
            return state[f"{renamed[module]}.{kind}"]
        _, _, layer, module = module.split(".", 3)
        return state[f"bert.encoder.layer.{layer}.{renamed[module]}.{kind}"]
    weights = {name: theirs_of(name) for name in ours.state_dict()}
    # We have no segments: their first segment's vector is part of every position's.
    segment = state["bert.embeddings.token_type_embeddings.weight"][0]
    weights["bert.wpe.weight"] = weights["bert.wpe.weight"] + segment
    ours.load_state_dict(weights)


@pytest.mark.parametrize("padded", [False, True])
def test_masked_lm_agrees_with_transformers(padded):
    transformers = pytest.importorskip("transformers")
    theirs = strengthen(transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=24, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0)))
    config = small_config(pos="learned")
    ours = BertForMaskedLM(config).eval()
    copy_from_transformers(ours, theirs)
    tokens, mask = random_batch(config)
    if not padded:
        mask = torch.ones_like(mask)
    wanted = (torch.rand(tokens.shape) < 0.3) & mask
    labels, targets = (torch.where(wanted, tokens, other) for other in (-100, IGNORE))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask.long(), labels=labels,
                          output_hidden_states=True)
        states = ours.bert(tokens, mask if padded else None)
        loss = ours(tokens, mask if padded else None, targets=targets) / wanted.sum()
    torch.testing.assert_close(states[mask], expected.hidden_states[-1][mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant):
    """Neither the amount of padding nor the tokens that lie under it."""
    model = strengthen(BertForMaskedLM(small_config(**VARIANTS[variant])))
    tokens, mask = random_batch(model.bert.config)
    with torch.no_grad():
        padded = model.bert(tokens, mask)
        other = model.bert(tokens.masked_fill(~mask, 5), mask)
        for row, n in enumerate(mask.sum(1)):
            alone = model.bert(tokens[row:row + 1, :n])[0]
            torch.testing.assert_close(padded[row, :n], alone, rtol=1e-5, atol=1e-5, msg="a text "
                                       "has other states alone than in a batch with padding")
    torch.testing.assert_close(padded[mask], other[mask], rtol=1e-5, atol=1e-5,
                               msg="the states depend on the tokens that lie under padding")


def test_batch_norm_statistics_ignore_padding_and_empty_rows():
    """In training mode too, where batch norm looks at the whole batch."""
    torch.manual_seed(0)
    short, long = (BertForMaskedLM(small_config(**VARIANTS["conv"])) for _ in range(2))
    long.load_state_dict(short.state_dict())
    tokens = torch.randint(97, (4, 19))
    mask = torch.arange(19) < torch.tensor([12, 12, 12, 2])[:, None]  # the last row fills up
    padded, alone = long.bert(tokens, mask)[:3, :12], short.bert(tokens[:3, :12])
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)
    assert long.bert(tokens[3:], mask[3:]).isfinite().all()  # a micro-batch of such rows alone
    for a, b in zip(long.bert.conv.norms, short.bert.conv.norms):  # of the first pass alone
        torch.testing.assert_close(a.running_mean, b.running_mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.running_var, b.running_var, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_at_positions_equal_those_of_the_full_pass(variant):
    model = strengthen(BertForMaskedLM(small_config(**VARIANTS[variant])))
    tokens, mask = random_batch(model.bert.config)
    positions = torch.tensor([[3, 0, 8], [1, 1, 2], [7, 4, 0]])
    with torch.no_grad():
        full = model(tokens, mask).gather(1, positions[..., None].expand(-1, -1, 97))
        torch.testing.assert_close(
            model(tokens, mask, positions), full, rtol=1e-5, atol=1e-5,
            msg="at `positions` a query must have its own position's angle and all keys")


@pytest.mark.parametrize("pooling", ["cls", "mean", "entities"])
def test_classifier_does_not_see_padding(pooling):
    """A padded row has the logits of the row alone; the losses of the targets that count are added
    up."""
    model = strengthen(BertForClassification(small_config(), 4, pooling, markers=[95, 96]))
    tokens, mask = random_batch(model.bert.config)
    tokens[tokens > 94] = 0
    tokens[0, 2], tokens[0, 5], tokens[0, 7], tokens[1, 3] = 96, 95, 96, 95  # the first one counts
    places = torch.tensor([[5, 2], [3, 0], [0, 0]])  # where none is, [CLS]
    with torch.no_grad():
        logits = model(tokens, mask)
        for row, n in enumerate(mask.sum(1)):
            alone = model(tokens[row:row + 1, :n])[0]
            torch.testing.assert_close(logits[row], alone, rtol=1e-5, atol=1e-5)
        loss = model(tokens, mask, torch.tensor([2, IGNORE, 0]))
        states = model.bert(tokens, mask)
        first, mean = states[:, 0], torch.stack([s[real].mean(0) for s, real in zip(states, mask)])
        pairs = torch.stack([s[positions].flatten() for s, positions in zip(states, places)])
        pooled = model.pooler({"cls": first, "mean": mean, "entities": pairs}[pooling])
        expected = model.classifier(torch.tanh(pooled))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[[0, 2], [2, 0]].sum())


@pytest.mark.parametrize("pos, same", [("rotary", True), ("learned", False)])
def test_rotary_attention_sees_distances_only(pos, same):
    """Padding put in front shifts a text: rotary positions keep its states, learned ones don't."""
    model = strengthen(BertForMaskedLM(small_config(pos=pos)))
    tokens = torch.randint(97, (1, 10))
    shifted = torch.cat([tokens[:, :6], tokens], dim=1)
    mask = torch.arange(16)[None] >= 6
    with torch.no_grad():
        a, b = model.bert(tokens), model.bert(shifted, mask)[:, 6:]
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-4) == same, \
        f"with {pos} positions a shifted text must {'keep' if same else 'change'} its states"


def test_parameters_and_flops():
    config = BertConfig(vocab_size=30522, block_size=512, n_layer=12, n_head=12, n_embd=768,
                        pos="learned")
    with torch.device("meta"):
        model = BertForMaskedLM(config)
    # BERT-base has 109,514,298 with its masked-LM head; we have no embeddings of its two segments.
    assert count_parameters(model) == 109_514_298 - 2 * 768
    layers, head = 12 * 12 * 768 ** 2, 768 ** 2 + 768 * 30522
    attention = 4 * 128 * 768  # of one layer
    flops = flops_per_token(config, 128)
    assert flops == 2 * (layers + head) + 12 * attention
    last_layer_and_head = 2 * (10 * 768 ** 2 + head) + attention
    assert flops - flops_per_token(config, 128, share=0) == last_layer_and_head
    assert flops_per_token(config, 128, n_candidates=0) == 2 * layers + 12 * attention


@pytest.mark.parametrize("wrong", [{"n_head": 5}, {"n_head": 32}, {"pos": "x"},
                                   {"n_conv": 3, "conv_kernel": (3, 5)}])
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError):
        small_config(**wrong)
