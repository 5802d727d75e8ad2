"""Networks of other libraries, unmodified: text encoders, timm, recurrent layers."""

import pytest
import torch
from torch import Tensor, nn

import bilrp
from tests import frozen, nets, zoo

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 20,
}


class Encoder(nn.Module):
    """A text encoder's features: the mean of its last states, from tokens or from embeddings."""

    def __init__(self, inner: nn.Module, key: str = "input_ids") -> None:
        super().__init__()
        self.inner, self.key = inner, key

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(**{self.key: x}).last_hidden_state.mean(1)


def encoder(kind: str, key: str = "input_ids", **options) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**options)
    torch.manual_seed(0)
    inner = getattr(transformers, f"{kind}Model")(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    for p in inner.parameters():
        if p.dim() == 1:
            p.data.normal_(0.5, 0.3, generator=generator)
    return Encoder(inner, key)


def tokens(count: int = 7) -> Tensor:
    return torch.randint(3, 60, (count,), generator=torch.Generator().manual_seed(count))


def check(model: nn.Module, x: Tensor, rules=None, **options) -> bilrp.Factor:
    """Parts are exact and complete, and pushing agrees with pulling back."""
    rules = bilrp.default_rules(model) if rules is None else rules
    f = bilrp.factor(model, x, rules, **options)
    with torch.no_grad():
        plain = model(x[None]).flatten()
    tolerance = 1e-10 if plain.dtype == torch.float64 else 1e-5
    size = float(torch.cat([f.values, f.absorbed]).abs().sum(0).max())
    assert float((f.values.sum(0) + f.absorbed.sum(0) - plain).abs().max()) < tolerance * size
    assert float(f.values.abs().sum()) > 1e-4 * size, "the input owns nothing: nothing was tested"
    trace = bilrp.Trace(model, x[None], rules)
    c = torch.randn(3, len(plain), generator=torch.Generator().manual_seed(0)).to(f.values)
    pulled = trace.pull_rows(c.view(3, *trace.features.shape))[0].flatten(1).sum(1)
    torch.testing.assert_close(pulled, (f.values @ c.T).sum(0), rtol=0, atol=tolerance * size)
    return f


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("key", ["input_ids", "inputs_embeds"])
def test_bert(attention, key):
    model = encoder("Bert", key, attn_implementation=attention, **SMALL)
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(7, 32, generator=generator, dtype=torch.float64)
    f = check(model, tokens() if key == "input_ids" else embedded)
    assert f.grid == (7,)
    assert any("position" in name for name in f.owners)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tokens_at_gamma_zero_have_the_gradient_with_frozen_parts(attention):
    model = encoder("Bert", "inputs_embeds", attn_implementation=attention, **SMALL)
    generator = torch.Generator().manual_seed(0)
    x, weights = (
        torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 32), (3, 32))
    )
    f = bilrp.factor(model, x, bilrp.LRP0())
    features, found = frozen.relevance(model, x[None], weights)
    torch.testing.assert_close(f.features, features)
    torch.testing.assert_close(f.values @ weights.T, found.sum(2).T)


def test_both_ways_of_attention_give_the_same():
    eager, fused = (encoder("Bert", attn_implementation=a, **SMALL) for a in ("eager", "sdpa"))
    found = [bilrp.factor(m, tokens()).values for m in (eager, fused)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["Roberta", "Electra", "GPT2", "DistilBert"])
def test_relatives(kind):
    options = {
        "Roberta": {**SMALL, "pad_token_id": 0},
        "Electra": SMALL,
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "n_positions": 20}
        | {"bos_token_id": 1, "eos_token_id": 2},
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        | {"vocab_size": 60, "max_position_embeddings": 20},
    }[kind]
    check(encoder(kind, **options), tokens())


def test_two_sentences():
    model = encoder("Bert", **SMALL)
    e = bilrp.explain(model, tokens(7), tokens(5))
    assert e.relevance.shape == (7, 5)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-10)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma2", "ModernBert"])
def test_gated_units(kind):
    options = {"head_dim": 8} if kind in ("Qwen3", "Gemma2") else {}
    options |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    options |= dict.fromkeys(("cls_token_id", "sep_token_id"), 1) if kind == "ModernBert" else {}
    heads = {} if kind == "ModernBert" else {"num_key_value_heads": 2}
    model = encoder(kind, **{**SMALL, **heads, **options}).float()  # some norms are in float32
    f = check(model, tokens())
    e = bilrp.explain(model, tokens(7), tokens(5))
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-4)
    signal = {"*": bilrp.Gamma(0.0), "inner.layers.*.mlp": bilrp.CPLRP(take=2)}
    torch.testing.assert_close(bilrp.factor(model, tokens(), signal).values, f.values)


SOUND = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Wav2Vec2", "WavLM"])
def test_raw_sound(kind):
    model = encoder(kind, "input_values", **SOUND)
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert check(model, x, groups=50).grid == (4,)


def test_spectrogram():
    options = {k: v for k, v in SOUND.items() if "conv" not in k}
    shape = {"patch_size": 8, "max_length": 32, "num_mel_bins": 16}
    steps = {"frequency_stride": 8, "time_stride": 8}
    model = encoder("AST", "input_values", **options, **shape, **steps)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert check(model, x).grid == (32,)


def test_response_norm():
    """A length over places, divided by its mean, multiplies the maps: a number, as in norms."""
    options = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    model = encoder("ConvNextV2", "pixel_values", **options)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if ".grn." in name:
            p.data.normal_(0.5, 0.3, generator=generator)
    check(model, nets.image(0, 32, 32), patch=8)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "ghostnet_050"])
def test_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=10, **options).double().eval()
    x = torch.stack([nets.image(seed, 32, 32) for seed in range(8)])
    check(zoo.randomise(model, x), x[0], groups=zoo.quadrants(32))


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = kind(5, 8, batch_first=True, **options).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0][:, -1]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent(kind, options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    f = check(Last(kind, **options), x)
    assert f.grid == (6,)
