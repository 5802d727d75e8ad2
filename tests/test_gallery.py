"""The gallery's arithmetic: short rows of whole numbers stand for factors, and errors are true."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bilrp.show import gallery
from bilrp.show.gallery import basis
from tests.test_explorer import drawing

SIDE, FEATURES = 8, 36  # patches of an input, along each side; 9 channels at 4 places


def made_up(inputs: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Factors (patches, features) and what two sinks own (2, features), of some inputs.

    No patch of the upper half reaches the last place, and none of the lower half the first.
    """
    generator = torch.Generator().manual_seed(seed)
    fade = torch.linspace(1, 0.05, FEATURES // 4).repeat_interleave(4)
    reach = torch.ones(SIDE * SIDE, FEATURES // 4, 4)
    reach[: SIDE * SIDE // 2, :, 2:] = 0
    reach[SIDE * SIDE // 2 :, :, :2] = 0
    return [
        (
            (torch.rand(SIDE * SIDE, FEATURES, generator=generator) - 0.3)
            * fade
            * reach.flatten(1),
            torch.rand(2, FEATURES, generator=generator),
        )
        for _ in range(inputs)
    ]


def stored(factors: list[tuple[Tensor, Tensor]], width=30, most=0.03) -> gallery.Stored:
    rows = [gallery.rows_by_place(a, b, FEATURES // 4) for a, b in factors]
    counts = [len(a) + 1 for a, _ in factors]
    return gallery.store(gallery.gram(rows, counts), counts, width, most)


def collection(factors: list[tuple[Tensor, Tensor]], name="photos", **options):
    """A collection with one setting for layer 31 and two for layer 17."""
    made = [
        gallery.Setting(layer, gamma, (str(layer), str(gamma)), stored(factors, **options))
        for layer, gamma in ((31, "paper"), (17, "paper"), (17, 0.02))
    ]
    return gallery.Collection(
        name=name,
        title=name.capitalize(),
        names=[f"Drawing {k}" for k in range(len(factors))],
        pictures=[drawing(8 * SIDE, k) for k in range(len(factors))],
        grids=[(SIDE, SIDE)] * len(factors),
        start=(0, 1),
        settings=made,
    )


def test_the_gram_matrix_is_that_of_the_factors() -> None:
    factors = made_up()
    whole = torch.cat([torch.cat([a, b.sum(0, keepdim=True)]) for a, b in factors])
    rows = [gallery.rows_by_place(a, b, FEATURES // 4) for a, b in factors]
    counts = [len(a) + 1 for a, _ in factors]
    torch.testing.assert_close(gallery.gram(rows, counts), whole @ whole.T)


def test_the_errors_are_those_of_what_the_browser_computes() -> None:
    factors = made_up()
    s = stored(factors)
    for i, (a, _) in enumerate(factors):
        for j, (b, _) in enumerate(factors):
            exact = a @ b.T
            near = s.rows(i)[:-1] @ s.rows(j)[:-1].T * torch.from_numpy(s.met)
            error = float((near - exact).norm() / exact.norm())
            assert error == pytest.approx(s.errors[i, j], rel=1e-3, abs=1e-6)
    assert 0.001 < s.errors.max() <= 0.03


def test_the_error_is_as_small_as_is_asked_for() -> None:
    factors = made_up()
    coarse, fine = stored(factors, most=0.2), stored(factors, most=0.01)
    assert fine.errors.max() <= 0.01 < coarse.errors.max() <= 0.2
    few = stored(factors, width=3, most=0.01)  # which do not suffice
    assert few.errors.max() <= 0.01
    assert few.width > 3
    lengths = [
        sum(len(gallery.rice(c, row, directions)) for c, row in zip(s.codes, rows, strict=True))
        for s in (coarse, fine)
        for directions, rows in [gallery.expected(s.codes)]
    ]
    assert lengths[0] < lengths[1]


def test_inputs_without_scores_are_refused() -> None:
    factors = made_up()
    factors[1] = torch.zeros_like(factors[1][0]), factors[1][1]
    with pytest.raises(ValueError, match="all zero"):
        stored(factors)


def test_the_owners_are_exact() -> None:
    factors = made_up()
    s, n = stored(factors, most=0.2), len(factors)
    sums = torch.stack([a.sum(0) for a, _ in factors] + [b.sum(0) for _, b in factors]).double()
    np.testing.assert_allclose(s.owners, (sums @ sums.T).numpy(), rtol=1e-4, atol=1e-3)
    y = [float((a.sum(0) + b.sum(0)).square().sum()) for a, b in factors]
    found = [s.owners[k::n, k::n].sum() for k in range(n)]
    assert found == pytest.approx(y, rel=1e-4)


def test_pairs_that_no_feature_sees_both_of_are_known() -> None:
    half = SIDE * SIDE // 2
    s = stored(made_up())
    want = np.zeros((2 * half, 2 * half), bool)
    want[:half, :half] = want[half:, half:] = True
    np.testing.assert_array_equal(s.met, want)


def read_slowly(bits: np.ndarray, rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Rice's code read one bit after the other."""
    stream = iter(bits.tolist())
    found = []
    for row in rows.tolist():
        for direction in directions.tolist():
            quotient = 0
            while not next(stream):
                quotient += 1
            escaped = quotient == gallery.ESCAPE
            k = 16 if escaped else max(0, (row + direction + 4) >> 3)
            low = sum(next(stream) << b for b in range(k))
            u = low if escaped else (quotient << k) | low
            found.append((u + 1) // 2 if u % 2 else -u // 2)
    assert next(stream, None) is None
    return np.array(found).reshape(len(rows), len(directions))


def test_codes_survive_being_written_as_bits() -> None:
    rng = np.random.default_rng(0)
    size = np.geomspace(300, 0.02, 50)
    codes = [np.rint(rng.laplace(size=(20, 50)) * size * f).astype(np.int16) for f in (0.2, 1, 3)]
    codes[1][3, 49], codes[1][4, 49] = 32767, -32767  # nothing like what is expected there
    directions, rows = gallery.expected(codes)
    assert directions.dtype == rows[0].dtype == np.int8
    for c, row in zip(codes, rows, strict=True):
        bits = gallery.rice(c, row, directions)
        np.testing.assert_array_equal(read_slowly(bits, row, directions), c)
    # near the entropy of what was drawn: log2(2 e b) bits for a Laplace variable of scale b >> 1
    large = codes[2][:, :25], rows[2], directions[:25]
    assert len(gallery.rice(*large)) < 1.1 * 20 * np.log2(2 * np.e * 3 * size[:25]).sum()


def test_bits_survive_being_written_as_text() -> None:
    bits = np.random.default_rng(0).integers(0, 2, 13 * 40 + 5).astype(np.uint8)
    text = gallery.text_of(bits)
    assert json.loads(json.dumps(text)) == text
    assert '"' not in text
    assert "\\" not in text
    digits = [ord(c) - (36 if ord(c) > 92 else 35) for c in text]
    words = [91 * a + b for a, b in zip(digits[::2], digits[1::2], strict=True)]
    found = [(word >> b) & 1 for word in words for b in range(13)]
    assert found[: len(bits)] == bits.tolist()
    assert not any(found[len(bits) :])


def test_a_collection_is_written_as_scripts_and_pictures(tmp_path: Path) -> None:
    one = collection(made_up())
    one.write(tmp_path, "v1")
    gallery.write_code(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"gallery.js", "gallery.css", "photos.js", "photos-00.jpg"} <= names
    assert {f"photos-17-0.02-{k:02}.js" for k in range(4)} <= names
    text = (tmp_path / "photos.js").read_text("utf-8")
    about = json.loads(text.removeprefix('bilrpGallery.receive("photos",').removesuffix(");\n"))
    assert about["version"] == "v1"
    setting = about["settings"][0]
    assert setting["pairs"] == 10
    assert setting["worst"] == pytest.approx(float(one.settings[0].stored.errors.max()))
    owners = np.frombuffer(base64.b64decode(setting["owners"]), "<f8")
    np.testing.assert_array_equal(owners, one.settings[0].stored.owners.ravel())


LINES = (["AB", "CDE", "F"], ["12", "3"])  # with no feature of F that the digits have, too


def lines(seed: int = 0) -> gallery.Lines:
    """Made-up factors of two encoders, of letters and of digits, under two gammas."""
    generator = torch.Generator().manual_seed(seed)

    def factor(name: str) -> Tensor:
        rows = torch.randn(len(name) + 1, 6, generator=generator)
        rows[:, 4 if name == "F" else 5] = 0  # the dead are left out
        rows[:, : 5 if name == "F" else 1] = 0
        return rows

    settings = [
        gallery.Whole(
            "numerals",
            gamma,
            ("numerals", str(gamma)),
            ([factor(n) for n in LINES[0]], [factor(n) for n in LINES[1]]),
        )
        for gamma in (0, 0.1)
    ]
    return gallery.Lines(
        name="numerals",
        title="Numerals",
        names=LINES,
        tokens=([list(name) for name in LINES[0]], [list(name) for name in LINES[1]]),
        shelves=("Roman numeral", "Arabic numeral"),
        parts=(("letter", "letters"), ("digit", "digits")),
        whole="numeral",
        rest="biases",
        start=(0, 0),
        settings=settings,
    )


def test_factors_of_lines_are_written_as_they_are(tmp_path: Path) -> None:
    one = lines()
    one.write(tmp_path, "v1")
    text = (tmp_path / "numerals.js").read_text("utf-8")
    about = json.loads(text.removeprefix('bilrpGallery.receive("numerals",').removesuffix(");\n"))
    for setting, written in zip(one.settings, about["settings"], strict=True):
        for side in (0, 1):
            for rows, found in zip(setting.rows[side], written["factors"][side], strict=True):
                alive = np.frombuffer(base64.b64decode(found["values"]), "<f4")
                whole = np.zeros(rows.shape, "f4")
                whole[:, found["columns"]] = alive.reshape(len(rows), -1)
                np.testing.assert_array_equal(whole, rows.numpy())
        assert setting.pairs().shape == (6,)
        assert setting.pairs().max() < 1e-6
    assert [token["text"] for token in about["tokens"][0][1]] == ["C", "D", "E"]


def test_a_factor_gets_one_row_for_all_that_is_no_token() -> None:
    values, absorbed = torch.ones(3, 2), torch.tensor([[1.0, 2], [3, 4]])
    rows = gallery.factor_as_rows(values, absorbed)
    assert rows.tolist() == [[1, 1], [1, 1], [1, 1], [4, 6]]


def test_few_directions_of_many_are_found_without_decomposing_all() -> None:
    """Rows with six strong directions, more than a random start would need all of."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 6, generator=generator)
    near = basis._coordinates(rows @ rows.T, 6)
    assert near.shape == (600, 6)
    torch.testing.assert_close(near @ near.T, rows @ rows.T, rtol=1e-3, atol=1e-3)
