"""The root search to drag: refused where nothing is shared out, and right in the browser."""

from __future__ import annotations

import re

import pytest
import torch

from bilrp.roots import RootSearch
from tests.test_browser import PHONE, WIDE, Visit

A, W = torch.tensor([3.0, 1.0]), torch.tensor([1.0, -1.0])
A2 = torch.tensor([3.0, 1.5])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((A, W[:1], A2, W, 3.4), "one weight for each activation"),
        ((A, W, A2[None], W, 3.4), "one weight for each activation"),
        ((-A, W, A2, W, 3.4), "both neurons must be active"),
        ((A, W, A2, -W, 3.4), "both neurons must be active"),
        ((A, W, A2, W, 0.0), "relevance must be positive, got 0.0"),
        ((A, W, A2, W, float("nan")), "relevance must be positive, got nan"),
    ],
)
def test_what_is_not_shared_out_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        RootSearch(*arguments)


def numbers(page):
    """What the line below the pictures says: the point, and the terms with their sum."""
    point, terms = page.locator("p").inner_text().split("Expanded at")[1].rsplit(". ", 1)
    return [[float(v) for v in re.findall(r"\d+(?:\.\d+)?", text)] for text in (point, terms)]


@pytest.mark.browser
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_terms_add_up_wherever_it_is_expanded(browser, tmp_path, size):
    context = browser.new_context(viewport=size, offline=True)
    visit = Visit(context)
    file = tmp_path / "page.html"
    file.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Page</title>{RootSearch(A, W, A2, W, 3.4)._repr_html_()}",
        encoding="utf-8",
    )
    page = visit.open(file)
    assert numbers(page) == [[3, 1, 3, 1.5], [3.4, 0, 0, 0, 3.4]]  # all is of zero order
    page.get_by_role("button").press("Enter")
    assert numbers(page) == [[0.6, 0.6, 1, 1], [0, 0, 0, 3.4, 3.4]]  # gamma 1, by hand
    assert "5.44" in page.locator("svg").nth(1).text_content()  # 6/5 * 4/3 * 3.4
    gamma = page.get_by_label("γ")
    gamma.press("Home")  # gamma 0: the root is the origin, and the point stays at it
    assert gamma.get_attribute("aria-valuetext") == "0"
    assert numbers(page) == [[0, 0, 0, 0], [0, 0, 0, 3.4, 3.4]]
    page.get_by_label("t", exact=True).press("Home")
    assert numbers(page)[1] == [0, 0, 3.4, 0, 3.4]  # on the second hinge alone
    plane = page.locator("svg.plane")
    box = plane.bounding_box()
    spot = (0.13 + 0.83 * 0.5 / 1.2, 0.04 + 0.83 * (1 - 0.5 / 1.2))  # near t = t' = 0.5
    plane.click(position={"x": box["width"] * spot[0], "y": box["height"] * spot[1]})
    point, terms = numbers(page)
    assert point == pytest.approx([1.5, 0.5, 1.5, 0.75], abs=0.1)
    assert sum(terms[:4]) == pytest.approx(3.4, abs=0.021)
    assert terms[:4] == pytest.approx([0.85] * 4, abs=0.2)
    page.get_by_label("t", exact=True).press("End")
    assert "Beyond a hinge" in page.locator("p").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"] + 1
    context.close()
    assert not visit.wrong, "\n".join(visit.wrong)
