"""Roman and Arabic numerals: spelling, the truth, the encoders, what is refused."""

from __future__ import annotations

import re

import pytest
import torch

import bilrp
from bilrp.models import numerals


def test_all_numerals_read_back_as_their_numbers():
    """Values by the subtraction rule, written out independently of how they were spelled."""
    worth = dict(I=1, V=5, X=10, L=50, C=100, D=500, M=1000)
    seen = set()
    for number in range(1, 4000):
        text = numerals.roman(number)
        total = 0
        for letter, after in zip(text, [*text[1:], "I"], strict=True):
            total += -worth[letter] if worth[letter] < worth[after] else worth[letter]
        assert total == number
        assert not re.search(r"(.)\1\1\1|VV|LL|DD", text)
        seen.add(text)
    assert len(seen) == 3999
    assert numerals.roman(1616) == "MDCXVI"
    assert numerals.roman(3888) == "MMMDCCCLXXXVIII"


def test_letters_know_their_place_and_their_sign():
    assert numerals.letters("MCMIX") == [
        ("M", 3, 1000), ("C", 2, -100), ("M", 2, 1000), ("I", 0, -1), ("X", 0, 10)
    ]  # fmt: skip
    for number in range(1, 4000, 7):
        spelled = numerals.letters(numerals.roman(number))
        for place in range(4):
            value = sum(v for _, p, v in spelled if p == place)
            assert value == number // 10**place % 10 * 10**place


def test_the_truth_gives_each_agreeing_place_one():
    made = numerals.truth("MDCXIX", "1609")
    assert float(made.sum()) == pytest.approx(3)
    assert made[0, 0] == 1
    assert made[1:3, 1].tolist() == pytest.approx([5 / 6, 1 / 6])
    assert float(made[3].abs().sum()) == 0  # X: the tens are 1 here, 0 there
    assert made[4:, 3].tolist() == pytest.approx([-1 / 9, 10 / 9])  # IX: I speaks against
    equal = numerals.truth("MDCXIX", "1609", by="equal")
    assert equal[4:, 3].tolist() == [0.5, 0.5]
    assert float(numerals.truth("MX", "1").abs().sum()) == 0
    a, b = torch.stack([numerals.places(n) for n in (1016, 1609, 16)]), numerals.places(1616)
    assert numerals.agreement(a, b[None]).flatten().tolist() == [3, 2, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give a Roman numeral"),
        (7, "give a Roman numeral"),
        ("mdcxvi", "capital letters"),
        ("MDCXVJ", r"\['J'\]"),
        ("M" * 16, "16 letters"),
        ("IIII", "4 is IV"),
        ("IC", "99 is XCIX"),
        ("MMMM", "not a Roman numeral from I"),
    ],
)
def test_bad_roman_numerals(text, said):
    for read in (numerals.letters, numerals.roman_tokens):
        with pytest.raises(ValueError, match=said):
            read(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give an Arabic numeral"),
        (1616, "give an Arabic numeral"),
        ("16l6", r"\['l'\]"),
        ("0616", "leading zeros"),
        ("16160", "1 to 3999"),
        ("4000", "1 to 3999"),
        ("１６", "made of 0123456789"),
    ],
)
def test_bad_arabic_numerals(text, said):
    with pytest.raises(ValueError, match=said):
        numerals.arabic_tokens(text)


@pytest.mark.parametrize("number", [0, 4000, -1, 2.0, True])
def test_numbers_without_a_numeral(number):
    with pytest.raises(ValueError, match="whole number from 1 to 3999"):
        numerals.roman(number)


def test_a_padded_batch_gives_what_each_numeral_gives_alone():
    torch.manual_seed(0)
    f, h = numerals.Letters().eval(), numerals.Digits().eval()
    numbers = [1, 3888, 16, 1616, 903]
    first, lengths, second, pad = numerals.padded(numbers)
    with torch.no_grad():
        both = f(first, lengths), h(second, pad)
        for k, number in enumerate(numbers):
            alone = (
                f(numerals.roman_tokens(numerals.roman(number))[None]),
                h(numerals.arabic_tokens(str(number))[None]),
            )
            for batch, one in zip(both, alone, strict=True):
                torch.testing.assert_close(batch[k], one[0], rtol=1e-4, atol=1e-5)


def test_held_out_numbers_are_a_fifth_and_always_the_same():
    kept = numerals.held_out()
    assert len(kept) == len(kept.unique()) == 799
    assert 1 <= int(kept.min()) <= int(kept.max()) <= 3999
    assert int((kept == 1616).sum()) + int((numerals.held_out() != kept).sum()) <= 1


def test_training_learns_and_repeats():
    before = numerals.error((numerals.Letters(), numerals.Digits()), torch.arange(1, 200))[0]
    pairs = [numerals.train(0, steps=12, side=32) for _ in range(2)]
    assert numerals.error(pairs[0], torch.arange(1, 200))[0] < before
    for a, b in zip(*(p[0].state_dict().values() for p in pairs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("seed", numerals.SEEDS)
def test_the_books_encoders_count_places_that_agree(seed):
    pair = numerals.numeral_encoders(seed)
    mse, wrong = numerals.error(pair, numerals.held_out()[::3])
    assert mse < 0.03
    assert wrong < 0.01
    e = bilrp.explain(pair, numerals.roman_tokens("MDCXVI"), numerals.arabic_tokens("1616"))
    assert e.relevance.shape == (6, 4)
    assert e.similarity == pytest.approx(4, abs=0.5)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-4)
    assert not any(w.requires_grad for m in pair for w in m.parameters())


def test_weights_that_are_missing_or_of_another_seed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m bilrp\.models\.numerals"):
        numerals.numeral_encoders(path=tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"one of \[0, 1, 2\]"):
        numerals.numeral_encoders(3)


def test_saved_encoders_are_read_back(tmp_path):
    pair = numerals.Letters(), numerals.Digits()
    numerals.save({5: pair}, tmp_path / "x.pt")
    again = numerals.numeral_encoders(5, tmp_path / "x.pt")
    for a, b in zip(pair, again, strict=True):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
