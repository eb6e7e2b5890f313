"""The numbers behind the pictures of a run, and that the pictures are drawn."""
import pytest
import torch

from data.tokenizer import get_tokenizer
from experiments import look
from model import BertConfig, BertForMaskedLM

TOKENIZER = get_tokenizer()


def small_model(**changes):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=16384, block_size=24, n_embd=32, n_head=2,
                        **{"n_layer": 2} | changes)
    model = BertForMaskedLM(config).eval()
    for p in model.bert.blocks.parameters():  # so that attention is far from even
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_nearest_neighbours():
    points = torch.tensor([[1.0, 0.1], [9.0, 1.0], [0.1, 1.0], [0.0, 5.0], [-1.0, -1.0]])
    # 0 and 1 have nearly one direction, and so have 2 and 3; the last is alone, next to 2 or 3
    assert look.neighbour_accuracy(points, list("aabbc")) == 0.8
    assert look.neighbour_accuracy(points, list("abbba")) == 0.4
    assert look.neighbour_accuracy(points, list("aabbb")) == 1.0


def test_the_plane_keeps_what_lies_in_a_plane():
    torch.manual_seed(0)
    flat = torch.randn(20, 2) @ torch.randn(2, 7) + 3
    assert torch.allclose(torch.cdist(look.plane(flat), look.plane(flat)), torch.cdist(flat, flat),
                          atol=1e-4)


@pytest.mark.parametrize("name, n_tokens", [("France", 1), ("the United States", 2)])
def test_the_state_of_a_country_is_that_of_its_name(name, n_tokens):
    model = small_model()
    tokens = [TOKENIZER.cls, *TOKENIZER.encode(f"I live in {name}."), TOKENIZER.sep]
    inside = range(len(tokens) - 2 - n_tokens, len(tokens) - 2)
    assert TOKENIZER.decode([tokens[i] for i in inside]) == name.removeprefix("the ").lower()
    with torch.no_grad():
        states = model.bert(torch.tensor([tokens]))[0]
    expected = sum(states[i] for i in inside) / n_tokens
    torch.testing.assert_close(look.country_states(model, TOKENIZER, [name, name])[1], expected)
    model.bert.config.block_size = 6
    with pytest.raises(SystemExit, match=f"sentence of {name}: . tokens are more than the .* 6$"):
        look.country_states(model, TOKENIZER, [name])


@pytest.mark.parametrize("variant", [{}, {"pos": "learned"}, {"n_layer": 1}])
def test_attention_is_the_models_own(variant):
    """Its weights make of the values what the layer makes of its input."""
    model = small_model(**variant)
    last = model.bert.config.n_layer
    tokens = torch.randint(300, (1, 11))
    weights = look.attention(model, tokens, last)
    assert weights.shape == (2, 11, 11)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 11))
    seen = []
    attn = model.bert.blocks[-1].attn
    attn.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    with torch.no_grad():
        model.bert(tokens)
        values = attn.value(seen[0][0])  # (T, C)
        heads = [weights[head] @ values[:, 16 * head:16 * head + 16] for head in range(2)]
        expected = attn.proj(torch.cat(heads, dim=1))
    torch.testing.assert_close(seen[1][0], expected, rtol=1e-4, atol=1e-5)
    if last == 2:
        assert not torch.allclose(weights, look.attention(model, tokens, 1), atol=1e-2)


def test_pictures(runs, capsys):
    pytest.importorskip("matplotlib")
    run = runs / "run"
    look.main([f"--run={run}"])
    output = capsys.readouterr().out
    assert (run / "look-map.png").stat().st_size > 10_000
    assert f"wrote {run / 'look-map.png'}" in output
    assert "190 countries: two drawn at random are on one continent in 20.6%" in output
    assert "after pre-training: the nearest neighbour" in output
