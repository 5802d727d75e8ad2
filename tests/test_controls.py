"""Controls on cases whose answer is known: nulls, displacements, intervals, altered models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import bilrp
from bilrp.compare import altered, controls, metrics
from bilrp.compare.intervals import student
from tests import nets

seeds = st.integers(0, 10_000)


def scores(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shifted(n, rows, cols):
    """Pairs of an n x n grid with one displacement, bool (n, n, n, n)."""
    pairs = torch.zeros(n, n, n, n, dtype=torch.bool)
    for r in range(n):
        for c in range(n):
            if 0 <= r + rows < n and 0 <= c + cols < n:
                pairs[r, c, r + rows, c + cols] = True
    return pairs


def displacement_totals(table):
    """A slow sum of (h, w, h', w') by displacement."""
    totals = {}
    for r, c, r2, c2 in torch.cartesian_prod(*map(torch.arange, table.shape)).tolist():
        totals.setdefault((r2 - r, c2 - c), []).append(float(table[r, c, r2, c2]))
    return {k: sum(v) for k, v in totals.items()}


# --- nulls -----------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=seeds, shape=st.sampled_from([(2, 3, 2, 3), (3, 2, 2, 4), (1, 5, 3, 1)]))
def test_the_locality_null_keeps_all_three_totals(seed, shape):
    r = scores(seed, *shape) + 1.5
    r[0, 0, 0, 0] = 1
    null, positive = bilrp.locality_null(r, tolerance=1e-3), r.clamp(min=0).double()
    total = float(positive.sum())
    for dims in ((0, 1), (2, 3)):
        torch.testing.assert_close(null.sum(dims), positive.sum(dims), atol=2e-3 * total, rtol=0)
    wanted, found = displacement_totals(positive), displacement_totals(null)
    assert all(found[k] == pytest.approx(v, abs=2e-3 * total) for k, v in wanted.items())
    assert (null >= 0).all()


def test_the_null_is_the_table_of_maximal_entropy():
    """All tables with these totals that are near the null have less entropy than it."""
    r = scores(1, 2, 3, 2, 3).abs() + 0.1
    null = bilrp.locality_null(r, tolerance=1e-10).flatten()
    constraints = []
    for table in torch.eye(36).view(36, 2, 3, 2, 3):
        sums = (table.sum((0, 1)), table.sum((2, 3)))
        moves = displacement_totals(table).values()
        constraints.append(torch.cat([*(s.flatten() for s in sums), torch.tensor([*moves])]))
    free = torch.linalg.svd(torch.stack(constraints, 1).double())[2][
        torch.linalg.matrix_rank(torch.stack(constraints, 1).double()) :
    ]
    assert len(free) > 0
    # In every direction that keeps the totals, the entropy's derivative is zero.
    assert float((free @ null.log()).abs().max()) < 1e-6


def test_a_table_of_the_null_s_form_is_its_own_null():
    """a_p b_p' c(p' - p) is what the null is made of, and is given back."""
    a, b = scores(1, 12).exp(), scores(2, 12).exp()
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0))
    near = torch.exp(-torch.cdist(places, places))
    r = (a[:, None] * b * near).view(3, 4, 3, 4).double()
    for keep in ("displacement", "distance"):
        null = bilrp.locality_null(r, keep, tolerance=1e-8)
        torch.testing.assert_close(null, r, rtol=1e-5, atol=1e-6)
    product = (a[:, None] * b).view(3, 4, 3, 4).double()
    torch.testing.assert_close(bilrp.marginal_null(product), product)


def test_a_pan_is_known_by_its_displacement():
    pairs = shifted(6, 0, 2)
    r = pairs.float() + 0.1
    known, near = (bilrp.controlled_share(r, pairs, keep) for keep in ("displacement", "distance"))
    assert known.locality == pytest.approx(known.share, abs=0.01)
    assert near.locality < 0.8 * near.share
    # Without anything beside the pan, its empty margins tell the direction: nothing is above.
    alone = bilrp.controlled_share(pairs.float(), pairs, keep="distance")
    assert alone.above == pytest.approx(0, abs=1e-3)


def test_matches_at_unrelated_places_are_above_every_null():
    """A scrambled picture: marginals and displacements say nothing, the pairs are all known."""
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    pairs = torch.eye(36, dtype=torch.bool)[order].view(6, 6, 6, 6)
    found = bilrp.controlled_share(pairs.float() - 0.5, pairs)
    assert found.share == 1
    assert (found.area, found.marginals) == pytest.approx((1 / 36, 1 / 36))
    assert 1 / 36 < found.locality < 0.2
    assert found.above == pytest.approx(1 - found.locality)


def test_a_row_beside_its_nulls():
    header, found = bilrp.ControlledShare.header("layer"), bilrp.ControlledShare(0.5, 0.1, 0.2, 0.4)
    assert header.split() == ["layer", "share", "locality", "marginals", "area"]
    assert found.row("17").split() == ["17", "50.0%", "40.0%", "20.0%", "10.0%"]
    assert len(header) == len(found.row("17"))


def test_groups_in_a_row_are_a_grid_of_height_one():
    r = scores(3, 4, 5)
    flat, grid = bilrp.locality_null(r), bilrp.locality_null(r.view(1, 4, 1, 5))
    torch.testing.assert_close(flat, grid.view(4, 5))


@pytest.mark.parametrize("null", [bilrp.marginal_null, bilrp.locality_null])
def test_nulls_refuse(null):
    for r, match in (
        (torch.ones(3), r"\(G, G'\) or \(h, w, h', w'\), got \(3,\)"),
        ([[1.0]], "got list"),
        (torch.full((2, 2), torch.nan), "NaN"),
        (-torch.ones(2, 2), "no relevance is positive"),
    ):
        with pytest.raises(ValueError, match=match):
            null(r)


def test_the_locality_null_refuses():
    r = torch.ones(2, 2)
    with pytest.raises(ValueError, match='"displacement" or "distance", got \'near\''):
        bilrp.locality_null(r, "near")
    for options in ({"tolerance": 0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
            bilrp.locality_null(r, **options)
    with pytest.raises(RuntimeError, match=r"still deviate by .* after 1 rounds"):
        bilrp.locality_null(scores(0, 5, 5).abs(), tolerance=1e-9, iterations=1)
    for pairs, match in ((torch.ones(2, 2), "bool"), (torch.ones(3, 2) > 0, "differ in shape")):
        with pytest.raises(ValueError, match=match):
            bilrp.controlled_share(r, pairs)


# --- displacements ---------------------------------------------------------------------------


def test_nearness_alone_gives_both_directions_the_same():
    places = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))
    near = torch.exp(-torch.cdist(places, places)).view(6, 6, 6, 6)
    assert bilrp.opposite_displacement(near, shifted(6, 1, 2)).ratio == pytest.approx(1)


def test_only_pairs_whose_opposite_is_on_the_grid_count():
    pairs = shifted(5, 0, 1)
    r = pairs.double() + 0.25 * shifted(5, 0, -1)
    found = bilrp.opposite_displacement(r, pairs)
    # In each of 5 rows, 4 pairs point right and 4 left; of the first column nothing is opposite.
    assert found.true == pytest.approx(15 / (20 + 5))
    assert found.ratio == pytest.approx(4)
    assert bilrp.opposite_displacement(pairs.double(), pairs).ratio == float("inf")


def test_opposite_displacement_refuses():
    r = torch.ones(4, 4)
    with pytest.raises(ValueError, match=r"of 4 true pairs none has moved"):
        bilrp.opposite_displacement(r, torch.eye(4) > 0)
    with pytest.raises(ValueError, match="both grids must be alike"):
        bilrp.opposite_displacement(torch.ones(4, 5), torch.ones(4, 5) > 0)
    with pytest.raises(ValueError, match="bool"):
        bilrp.opposite_displacement(r, r)


# --- intervals -------------------------------------------------------------------------------


def test_the_bootstrap_of_a_mean_is_about_two_standard_errors():
    values = scores(0, 400).double()
    found = bilrp.bootstrap(values, seed=1)
    error = float(values.std() / 20)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.25 * error)
    assert found == bilrp.bootstrap(values, seed=1) != bilrp.bootstrap(values, seed=2)
    assert str(bilrp.Interval(0.25, 0.1, 0.5)) == "0.25 [0.1, 0.5]"


def test_any_statistic_of_rows_that_stay_together():
    both = torch.stack([scores(0, 50), scores(0, 50) + 1], 1)
    found = bilrp.bootstrap(both, lambda rows: (rows[:, 1] - rows[:, 0]).mean(), seed=0)
    assert found == pytest.approx((1, 1, 1))


def test_copies_of_a_pair_are_no_new_evidence():
    values, groups = scores(0, 8).repeat_interleave(50), torch.arange(8).repeat_interleave(50)
    alone = bilrp.bootstrap(scores(0, 8), seed=3)
    assert bilrp.bootstrap(values, seed=3, groups=groups) == pytest.approx(alone, abs=1e-6)
    naive = bilrp.bootstrap(values, seed=3)
    assert alone.high - alone.low > 3 * (naive.high - naive.low)


def test_bootstrap_refuses():
    two = torch.ones(2)
    for values, options, match in (
        (torch.ones(1), {}, "has no spread"),
        (two, {"groups": torch.zeros(2)}, "has no spread"),
        (two, {"groups": torch.zeros(3)}, "one group for each"),
        (two * torch.inf, {}, "NaN or infinity"),
        (two, {"level": 1.5}, "level=1.5"),
        (two, {"samples": 0}, "samples must be"),
    ):
        with pytest.raises(ValueError, match=match):
            bilrp.bootstrap(values, seed=0, **options)


def test_pairs_without_a_common_photo_are_independent():
    values = scores(0, 40).double()
    found = bilrp.sharing_interval(values, [(2 * k, 2 * k + 1) for k in range(40)])
    error = float(values.std()) / 40**0.5
    reach = stats.t.ppf(0.975, 39) * error
    assert found.high - found.value == pytest.approx(reach)
    assert found.value - found.low == pytest.approx(reach)


def test_pairs_of_few_photos_are_as_sure_as_the_photos():
    effects = scores(3, 30).double()
    pairs = [(i, j) for i in range(30) for j in range(i)]
    values = torch.stack([effects[i] + effects[j] for i, j in pairs])
    found = bilrp.sharing_interval(values, pairs)
    assert found.value == pytest.approx(2 * float(effects.mean()))
    # the mean over all pairs is twice the mean over photos, whose error is known
    error = 2 * float(effects.std()) / 30**0.5
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 29) * error, rel=0.05)
    naive = bilrp.bootstrap(values, seed=0)
    assert found.high - found.low > 2 * (naive.high - naive.low)


@pytest.mark.parametrize("several", [2, 3])
@pytest.mark.parametrize("effect", [0.0, 0.5, 2.0])
def test_the_interval_of_shared_photos_holds_the_truth_as_often_as_it_says(several, effect):
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        pairs = [torch.randperm(25, generator=generator)[:several].tolist() for _ in range(50)]
        effects = effect * torch.randn(25, generator=generator)
        noise = torch.randn(50, generator=generator)
        values = torch.stack([effects[p].sum() for p in pairs]) + noise
        found = bilrp.sharing_interval(values, pairs)
        held += found.low <= 0 <= found.high
    assert 0.9 <= held / 200 <= 0.99


@pytest.mark.parametrize(("count", "least"), [(4, 0.84), (5, 0.88), (8, 0.9), (25, 0.92)])
def test_bootstrap_intervals_of_few_hold_the_truth_as_often_as_they_say(count, least):
    generator = torch.Generator().manual_seed(0)
    held = 0
    for seed in range(300):
        values = torch.randn(count, generator=generator)
        found = bilrp.bootstrap(values, seed=seed, samples=500)
        held += found.low <= 0 <= found.high
    assert least <= held / 300 <= 0.98


def test_student():
    for level in (0.5, 0.9, 0.95, 0.99):
        for freedom in (1, 2, 3, 5, 10, 100):
            right = stats.t.ppf((1 + level) / 2, freedom)
            assert student(level, freedom) == pytest.approx(right, rel=0.04)
    for freedom in (3, 4, 10, 100):
        right = stats.t.ppf(0.975, freedom)
        assert student(0.95, freedom) == pytest.approx(right, rel=2e-3)
    for level, freedom in ((0.95, 0), (1.0, 3)):
        with pytest.raises(ValueError, match=r"freedom|level"):
            student(level, freedom)


def test_intervals_of_shared_photos_refuse():
    for values, members, options, match in (
        (torch.ones(1), [(0, 1)], {}, "two pairs or more"),
        (torch.ones(3), [(0, 1)] * 2, {}, "2 members"),
        (torch.tensor([1, torch.nan]), [(0, 1)] * 2, {}, "NaN"),
        (torch.ones(2), [(0, 1)] * 2, {"level": 0.0}, "level=0.0"),
        (torch.rand(3), [(0, 1), (0, 2), (3, 0)], {}, "in 3 of the 3 pairs"),
        (torch.rand(30), [(0, k) for k in range(1, 29)] + [(29, 30)] * 2, {}, "in 28 of the 30"),
        (torch.rand(3), [0, 1, 2], {}, "numbers of each pair"),
        (torch.rand(3), [(0, 1), (2, 3), ()], {}, "or a pair has none"),
    ):
        with pytest.raises(ValueError, match=match):
            bilrp.sharing_interval(values, members, **options)


# --- altered models --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["shuffle", "redraw"])
def test_random_weights_from_the_top(how):
    model = nets.mlp(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    changed = []
    for layers in (1, 2, 3, None):
        copy = bilrp.randomized(model, layers, seed=5, how=how).state_dict()
        changed.append([k for k in before if not torch.equal(copy[k], before[k])])
    assert changed[0] == ["4.weight", "4.bias"]
    assert changed[1] == ["2.weight", "2.bias", *changed[0]]
    assert changed[2] == changed[3] == [*before]
    # Nothing else has changed: not the model, not torch's own random numbers.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    again = bilrp.randomized(model, seed=5, how=how).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in copy.items())


def test_shuffled_weights_keep_their_distribution():
    model = nets.cnn(1).requires_grad_(False)
    copy = bilrp.randomized(model, seed=0)
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(a.flatten().sort().values, b.flatten().sort().values)
        assert not b.requires_grad
    assert not copy.training


def test_randomized_refuses():
    with pytest.raises(ValueError, match="between 1 and 3"):
        bilrp.randomized(nets.mlp(), 4, seed=0)
    with pytest.raises(ValueError, match="between 1 and 0"):
        bilrp.randomized(torch.nn.ReLU(), seed=0)
    with pytest.raises(ValueError, match=r"must be an nn\.Module, got function"):
        bilrp.randomized(lambda x: x, seed=0)
    with pytest.raises(ValueError, match='"shuffle" or "redraw"'):
        bilrp.randomized(nets.mlp(), seed=0, how="noise")

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match="Own has no reset_parameters"):
        bilrp.randomized(Own(), seed=0, how="redraw")


# --- altered images --------------------------------------------------------------------------


def smooth(size):
    """A picture whose value is known at every place, also between pixels: (1, size, size)."""
    row, col = torch.meshgrid(*[torch.arange(float(size))] * 2, indexing="ij")
    return value(row, col, size)[None]


def value(row, col, size):
    return torch.sin(2 * row / size) + torch.cos(3 * col / size)


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        ({"mirror": True}, lambda x: x.flip(-1)),
        ({"rotate": 90}, lambda x: torch.rot90(x, 1, (-2, -1))),
        ({"rotate": 180}, lambda x: x.flip(-1, -2)),
        ({"mirror": True, "rotate": 90}, lambda x: torch.rot90(x.flip(-1), 1, (-2, -1))),
        ({"shift": (0, 3)}, None),
        ({"scale": 1.3, "rotate": 20, "tilt": (0.1, -0.2), "shift": (2, -3)}, None),
    ],
)
def test_a_pixel_is_found_where_the_map_says(change, exact):
    image = smooth(32)
    found = bilrp.warped(image, **change)
    if exact is not None:
        torch.testing.assert_close(found.image, exact(image), atol=1e-4, rtol=0)
    row, col = found.row.round().long(), found.col.round().long()
    inside = (row > 0) & (row < 31) & (col > 0) & (col < 31)
    assert float(inside.float().mean()) > 0.4
    gap = (found.image[0, row[inside], col[inside]] - image[0][inside]).abs()
    assert float(gap.max()) < (0.01 if exact is not None else 0.12)
    assert found.image.shape == image.shape


def test_identity_and_the_correspondence_of_a_mirror():
    found = bilrp.warped(torch.rand(1, 3, 16, 16), mirror=True)
    pairs = metrics.correspondence(found.row, found.col, 4, (16, 16))
    mirrored = torch.eye(4)[:, None, :, None] * torch.eye(4).flip(1)[None, :, None]
    torch.testing.assert_close(pairs, mirrored)


def test_warped_refuses():
    image = torch.rand(3, 8, 8)
    for given_image, change, match in (
        (torch.rand(2, 3, 8, 8), {}, "one image"),
        (image.long(), {}, "floating-point"),
        (image, {"scale": 0}, "scale > 0"),
        (image, {"tilt": (0.6, 0.6)}, "below 1|< 1"),
        (image, {"tilt": (0.45, 0.45), "scale": 3}, "behind the viewer"),
        (image, {"rotate": float("nan")}, "finite"),
    ):
        with pytest.raises(ValueError, match=match):
            bilrp.warped(given_image, **change)


def test_public_names():
    assert bilrp.controls is controls
    assert bilrp.altered is altered
