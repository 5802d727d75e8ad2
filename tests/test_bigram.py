"""The bigram network: what it computes, how it is explained, what it refuses."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bilrp
from bilrp.book import tables
from bilrp.engine.modules import Step
from bilrp.engine.registered import registered_modules
from bilrp.engine.trace import Trace
from bilrp.models import bigram
from bilrp.models.bigram import And, BigramNetwork, Ink, Or, SumPool, digit_convolutions
from tests import nets

seeds = st.integers(0, 10_000)


def random(shape, seed, alive=0.6):
    """Maps in float64, some of them exactly zero, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64, generator=generator)
    return x * (torch.rand(shape, generator=generator) < alive)


def tiny(seed, bias=False, shifts=(1, 2)):
    """A bigram network of few weights in float64, without `Ink`."""
    digits = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 10, 1), nn.ReLU())
    net = BigramNetwork(nets.randomise(digits, seed, bias), shifts)
    return net.eval().requires_grad_(False)


# --- what it computes


def by_loops(a, shifts):
    """The head of Section 6.2.1 as the paper writes it, place by place."""
    n, m, height, width = a.shape
    phi = torch.zeros(n, m * m, dtype=a.dtype)
    for i in range(n):
        for j in range(m):
            for k in range(m):
                for y in range(height):
                    for x in range(width):
                        phi[i, m * j + k] += max(
                            min(a[i, j, y, x], a[i, k, y, x + s] if x + s < width else 0)
                            for s in shifts
                        )
    return phi


@settings(max_examples=10)
@given(seed=seeds, shifts=st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_the_head_is_min_max_and_sum(seed, shifts):
    a = random((2, 3, 3, 5), seed)
    head = nn.Sequential(And(shifts), Or(len(shifts)), SumPool())
    torch.testing.assert_close(head(a), by_loops(a, shifts))


def test_channels_of_the_and_are_shift_first_digit_second_digit():
    a = torch.zeros(1, 10, 1, 8)
    a[0, 4, 0, 1], a[0, 7, 0, 4] = 0.5, 0.8
    out = And((2, 3))(a)
    assert out.nonzero().tolist() == [[0, 100 + 47, 0, 1]]
    assert float(out.max()) == 0.5
    phi = BigramNetwork(nn.Identity(), (2, 3))(a)
    assert phi.nonzero().tolist() == [[0, 47]]


def test_a_slice_is_a_plain_sequence_of_its_parts():
    net, a = BigramNetwork(nn.ReLU()), random((1, 10, 4, 30), 0)
    assert type(net[:-1]) is nn.Sequential
    torch.testing.assert_close(net[:-1](a).sum((2, 3)), net(a))
    assert net[0] is net.digits


def test_a_page_moved_has_the_same_counts():
    a = torch.zeros(1, 10, 20, 60, dtype=torch.float64)
    a[..., 3:8, 5:40] = random((1, 10, 5, 35), 0)
    net = BigramNetwork(nn.Identity())
    torch.testing.assert_close(net(a), net(a.roll((9, 6), (2, 3))))


# --- how it is explained


def map_of(module, x):
    return registered_modules()[type(module)](Step("0", 1, module), x, None, None)


def maps_of(seed, batch):
    a = random((batch, 3, 4, 7), seed)
    both = And((2, 3))(a)
    any_shift = Or(2)(both)
    cases = [(And((2, 3)), a), (Or(2), both), (SumPool(), any_shift)]
    cases += [(Ink(), random((batch, c, 8, 9), seed)) for c in (1, 3)]
    for module, x in cases:
        yield module, x, map_of(module, x)


@settings(max_examples=25)
@given(seed=seeds, several=st.booleans(), pruned=st.booleans())
def test_pull_and_push_are_adjoint(seed, several, pruned):
    """<u, pull R> = <push u, R>: for many relevances of one page, and for a batch of pages."""
    for module, x, m in maps_of(seed, 3 if several else 1):
        torch.testing.assert_close(m.output, module(x))
        k = 3 if several else 4
        r = random((k, *m.output.shape[1:]), seed + 1) - 0.3
        u = random((k, *x.shape[1:]), seed + 2) - 0.3
        if pruned:
            live = random(m.output.shape, seed + 3, alive=0.3) > 0
            reached = m.prune(live)
            assert reached.shape == x.shape
            if not isinstance(module, Ink):  # which stops nothing: the layers above do
                assert not bool((m.pull(r * 0 + 1) * ~reached).any())
        pulled, pushed = m.pull(r), m.push(u)
        assert pulled.shape == u.shape
        assert pushed.shape == r.shape
        torch.testing.assert_close((u * pulled).sum(), (pushed * r).sum())


@settings(max_examples=20)
@given(seed=seeds)
def test_relevance_of_living_outputs_is_conserved_and_dead_ones_have_none(seed):
    for module, _, m in maps_of(seed, 1):
        r = random((2, *m.output.shape[1:]), seed + 1)
        expected = r if isinstance(module, Ink) else r * (m.output != 0)
        torch.testing.assert_close(m.pull(r).sum(), expected.sum())


def test_all_relevance_goes_to_the_smaller_then_the_larger_and_ties_to_the_first():
    a = torch.tensor([[[[0.5, 0.0, 0.2]], [[0.5, 0.5, 0.9]]]])
    m = map_of(And((2,)), a)
    # min(a_0(0), a_1(2)) = 0.5 of the first, min(a_0(0), a_0(2)) = 0.2 of the second, and so on.
    one = torch.zeros(4, 4, 1, 3)
    one[range(4), range(4), 0, 0] = 1
    got = [tuple(i.tolist()) for i in m.pull(one).nonzero()]
    assert got == [(0, 0, 0, 2), (1, 0, 0, 0), (2, 0, 0, 2), (3, 1, 0, 0)]
    tie = torch.full((1, 1, 1, 4), 0.5)
    m = map_of(And((2,)), tie)
    assert m.pull(torch.ones(1, 1, 1, 4)).tolist() == [[[[1, 1, 0, 0]]]]
    m = map_of(Or(2), torch.full((1, 2, 1, 1), 0.5))
    assert m.pull(torch.ones(1, 1, 1, 1)).flatten().tolist() == [1, 0]


def test_sum_pooling_shares_in_proportion_and_survives_a_sum_of_zero():
    m = map_of(SumPool(), torch.tensor([[[[3.0, 1.0]], [[2.0, -2.0]]]]))
    assert m.pull(torch.tensor([[8.0, 5.0]])).tolist() == [[[[6, 2]], [[0, 0]]]]


@settings(max_examples=8)
@given(seed=seeds)
def test_lrp0_is_hessian_times_product(seed):
    """Proposition 2, against torch.func's mixed second derivative."""
    net = tiny(seed)
    x, x2 = random((1, 4, 6), seed, 1.0), random((1, 4, 6), seed + 1, 1.0)

    def y(a, b):
        return (net(a[None]) * net(b[None])).sum()

    hessian = torch.func.jacrev(torch.func.grad(y, argnums=0), argnums=1)(x, x2)
    expected = x[..., None, None, None] * hessian * x2
    e = bilrp.explain(net, x, x2, bilrp.LRP0(), patch=1)
    torch.testing.assert_close(e.relevance, expected[0, :, :, 0].detach())


@settings(max_examples=6)
@given(seed=seeds, bias=st.booleans())
def test_the_ledger_accounts_for_all_of_the_similarity(seed, bias):
    net = tiny(seed, bias)
    x, x2 = random((1, 8, 16), seed, 1.0), random((1, 16, 8), seed + 1, 1.0)
    e = bilrp.explain(net, x, x2, bilrp.Gamma(0.5), patch=4)
    y = float(net(x[None])[0] @ net(x2[None])[0])
    assert math.isclose(e.similarity, y, rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(float(e.ledger.sum()), y, rel_tol=1e-9, abs_tol=1e-12)
    carried = float(e.relevance.sum())
    assert math.isclose(carried, float(e.ledger[0, 0]), rel_tol=1e-9, abs_tol=1e-12)
    if not bias:
        assert math.isclose(carried, y, rel_tol=1e-9, abs_tol=1e-12)  # Proposition 1


@pytest.mark.slow
@settings(max_examples=4)
@given(seed=seeds, bias=st.booleans())
def test_pushing_patches_and_groups_and_pulling_features_agree(seed, bias):
    net = tiny(seed, bias)
    x = random((1, 24, 32), seed, 1.0)
    pulled = bilrp.factor(net, x, bilrp.Gamma(0.5), patch=2)  # 192 patches, more than features
    rows, cols = torch.meshgrid(torch.arange(24) // 8, torch.arange(32) // 8, indexing="ij")
    grouped = bilrp.factor(net, x, bilrp.Gamma(0.5), groups=rows * 4 + cols)
    pushed = bilrp.factor(net, x, bilrp.Gamma(0.5), patch=8)  # 12 patches
    torch.testing.assert_close(pushed.dense(), grouped.dense())
    fine = pulled.dense().view(3, 4, 4, 4, 100).sum((1, 3)).flatten(0, 1)
    torch.testing.assert_close(pushed.dense(), fine)
    torch.testing.assert_close(pushed.absorbed, pulled.absorbed)


def test_lrp_of_a_batch_is_that_of_each_page():
    net, x = tiny(3), random((3, 1, 6, 8), 0, 1.0)
    together = bilrp.lrp(net, list(x), bilrp.Gamma(0.5))
    for page, relevance in zip(x, together, strict=True):
        torch.testing.assert_close(bilrp.lrp(net, page, bilrp.Gamma(0.5)), relevance)


def test_the_explanation_moves_with_the_page():
    net = tiny(1)
    x = torch.zeros(1, 24, 48, dtype=torch.float64)
    x[:, 4:12, 8:24] = random((1, 8, 16), 0, 1.0)
    e = bilrp.explain(net, x, x, bilrp.Gamma(0.5), patch=4)
    moved = bilrp.explain(net, x, x.roll((4, 8), (1, 2)), bilrp.Gamma(0.5), patch=4)
    assert math.isclose(e.similarity, moved.similarity, rel_tol=1e-9)
    torch.testing.assert_close(moved.relevance, e.relevance.roll((1, 2), (2, 3)))


# --- ink


@pytest.fixture(scope="module")
def page():
    return tables.table([[12, 345], [67, 89]], tables.Style(pitch=10.0), seed=1)


def test_ink_is_the_same_on_dark_paper_and_in_colour(page):
    ink, x = Ink(), page.image
    expected = ink(x)
    assert expected.shape == x.shape
    assert 0 <= float(expected.min()) <= float(expected.max()) == 1
    torch.testing.assert_close(ink(1 - x), expected)
    torch.testing.assert_close(ink(x.repeat(1, 3, 1, 1)), expected)
    torch.testing.assert_close(ink(0.2 + 0.5 * x), expected, atol=1e-4, rtol=0)


def test_ink_forgets_shade_and_finds_the_type(page):
    shade = torch.linspace(0.75, 1, page.image.shape[3])
    ink, shaded = Ink()(page.image), Ink()(page.image * shade)
    assert float((ink - shaded).abs().mean()) < 0.01
    for d in page.digits:
        top, left, bottom, right = (round(v) for v in d.box)
        assert float(ink[0, 0, top:bottom, left:right].max()) > 0.6
    assert float((ink[0, 0, :6] > 0).float().mean()) < 0.02


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_blank_pages_have_no_ink(value):
    blank = torch.full((1, 1, 40, 50), value)
    grain = 0.02 * torch.randn(blank.shape, generator=torch.Generator().manual_seed(0))
    assert not Ink()(blank).any()
    assert not Ink()((blank + grain).clamp(0, 1)).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (7, 9)])
def test_pages_of_any_size(size):
    net = BigramNetwork(nn.Sequential(Ink(), *digit_convolutions())).eval()
    phi = net(torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)))
    assert phi.shape == (2, 100)
    assert bool(phi.isfinite().all())


# --- the trained network


@pytest.fixture(scope="module")
def trained():
    return BigramNetwork.load()


def test_the_trained_network_counts_bigrams(trained):
    """On a page that it has not seen, the largest counts are the true bigrams."""
    content = [[12, 345, 60], [98, 701, 27], [54, 836, 19]]
    page = tables.table(content, tables.Style(uneven=0.2), seed=900_001)
    phi = trained(page.image)[0]
    true = page.bigrams > 0
    cosine = torch.nn.functional.cosine_similarity(phi, page.bigrams, dim=0)
    assert float(cosine) > 0.8
    assert set(phi.topk(8).indices.tolist()) <= set(true.nonzero()[:, 0].tolist())


def test_light_on_dark_and_colour_give_the_same_counts(trained):
    page = tables.table([[12, 34], [56, 78]], seed=900_002).image
    expected = trained(page)
    torch.testing.assert_close(trained(1 - page), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(trained(page.repeat(1, 3, 1, 1)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_colour_page_is_explained_as_its_grey_one(trained):
    page = tables.table([[12], [34]], seed=900_003).image[0]
    rules = bilrp.Gamma(0.5)
    grey = bilrp.explain(trained, page, page, rules, patch=16)
    colour = bilrp.explain(trained, page.repeat(3, 1, 1), page, rules, patch=16)
    torch.testing.assert_close(colour.relevance, grey.relevance, rtol=1e-3, atol=1e-3)
    by_channel = bilrp.lrp(trained, page.repeat(3, 1, 1), rules)
    torch.testing.assert_close(by_channel[0], by_channel[2])


@pytest.mark.slow
def test_a_page_without_digits_has_no_similarity_and_no_explanation(trained):
    blank = torch.full((1, 32, 48), 0.8)
    page = tables.table([[12], [34]], size=(64, 64)).image[0]
    for other in (blank, page):
        e = bilrp.explain(trained, blank, other, bilrp.Gamma(0.5), patch=16)
        assert e.similarity == 0
        assert not e.relevance.any()
        assert bool(e.relevance.isfinite().all())
    assert not trained(blank[None]).any()


@pytest.mark.slow
def test_no_bias_so_the_ink_carries_everything(trained):
    page = tables.table([[12, 21], [34, 12]], seed=3, size=(64, 96)).image[0]
    e = bilrp.explain(trained, page, page, bilrp.Gamma(0.5), patch=16)
    assert e.owners == ("input",)
    assert math.isclose(float(e.relevance.sum()), e.similarity, rel_tol=1e-4)


@pytest.mark.parametrize(("factor", "advice"), [(2.0, r"0\.(4[5-9]|5)"), (0.5, r"(1\.[89]|2\.)")])
def test_a_page_of_another_scale_is_warned_of(trained, factor, advice):
    style = tables.Style(height=13.5 * factor, pitch=10 * factor, leading=20 * factor)
    page = tables.table(tables.numbers(4, 3, 0), style, seed=4).image
    with pytest.warns(UserWarning, match=rf"pixels tall.*Resize the page by the factor {advice}"):
        trained(page)


def test_a_page_of_the_right_scale_is_not_warned_of(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):
            trained(tables.table(tables.numbers(4, 3, 0), tables.Style.random(seed)).image)
        trained(torch.full((1, 1, 40, 40), 0.5))


def test_weights_are_small_and_load_as_plain_data(trained, tmp_path):
    path = next(p for p in bigram.PLACES if p.is_file())
    assert path.stat().st_size < 300_000
    trained.save(tmp_path / "copy.pt")
    again = BigramNetwork.load(tmp_path / "copy.pt")
    for name, value in trained.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BigramNetwork.load(tmp_path / "nowhere.pt")


def test_missing_weights_say_where_they_were_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(bigram, "PLACES", (tmp_path / "a.pt", tmp_path / "b.pt"))
    with pytest.raises(FileNotFoundError, match=r"a\.pt or .*b\.pt"):
        BigramNetwork.load()


# --- what it refuses


@pytest.mark.parametrize("shifts", [(), (0, 8), (-1,), (8.0,), 8, "8", (True,), None])
def test_bad_shifts(shifts):
    with pytest.raises(ValueError, match="shifts must be"):
        BigramNetwork(nn.Identity(), shifts)


def test_networks_that_do_not_give_ten_maps():
    with pytest.raises(ValueError, match="9 output channels"):
        BigramNetwork(nn.Conv2d(1, 9, 3))
    with pytest.raises(ValueError, match=r"nn\.Module"):
        BigramNetwork("digits")
    net, x = BigramNetwork(nn.ReLU()), torch.rand(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"10 maps.*\(1, 4, 8, 8\)"):
        net(x)
    with pytest.raises(ValueError, match="10 maps"):
        bilrp.explain(net, x[0], x[0], bilrp.Gamma(0.5))
    with pytest.raises(ValueError, match="10 maps"):
        Trace(net, x, bilrp.Gamma(0.5))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(1, 2, 8, 8), "in grey"),
        (torch.rand(3, 8, 8), "in grey"),
        (torch.rand(1, 1, 0, 8), "in grey"),
        (torch.full((1, 1, 8, 8), 255.0), r"255.*divide"),
        (torch.full((1, 1, 8, 8), torch.nan), "in \\[0, 1\\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "uint8"),
    ],
)
def test_what_is_no_page(x, message):
    with pytest.raises(ValueError, match=message):
        Ink()(x)


@pytest.mark.parametrize("bad", [dict(paper=4), dict(least_contrast=0), dict(digit_height=-1.0)])
def test_bad_parameters_of_ink(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Ink(**bad)


def test_or_needs_whole_groups_of_maps():
    with pytest.raises(ValueError, match="count=3"):
        Or(3)(torch.rand(1, 4, 2, 2))
    with pytest.raises(ValueError, match="count"):
        Or(0)
    for layer in (And(), Or(1), SumPool()):
        with pytest.raises(ValueError, match="needs maps"):
            layer(torch.rand(4, 4))
