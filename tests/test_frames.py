"""Figures with sliders: as HTML without a kernel, and as widgets that draw anew."""

from __future__ import annotations

import base64
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import bilrp
from bilrp.show.explorer import WIDGET
from tests.test_browser import PHONE, WIDE, Visit

CONTROLS = {"part": ["left", "right"], "grey_level": [0, 0.5, 1]}


def draw(part, grey_level):
    """A square, left or right, in one grey."""
    fig = plt.figure(figsize=(2, 1), dpi=50, facecolor="white")
    fig.add_axes((0 if part == "left" else 0.5, 0, 0.5, 1), facecolor=str(grey_level))
    fig.axes[0].set_xticks([])
    fig.axes[0].set_yticks([])
    return fig


def made(**options):
    return bilrp.interact_frames(draw, "A square, {part}, {grey_level}", **(CONTROLS | options))


def pixels(url):
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("L")
    return np.asarray(image) / 255


def data(frames):
    return json.loads(re.search(r'application/json">(.*?)</script>', frames.html())[1])


def test_there_is_a_frame_for_every_choice_in_order():
    plt.close("all")
    frames = data(made())["frames"]
    assert not plt.get_fignums(), "the notebook would show the figures, too"
    assert [f["alt"] for f in frames] == [
        f"A square, {part}, {level}"
        for part in CONTROLS["part"]
        for level in CONTROLS["grey_level"]
    ]
    for frame, (part, level) in zip(
        frames, [(p, v) for p in (0, 1) for v in (0, 0.5, 1)], strict=True
    ):
        half = pixels(frame["url"])[10:40, 50 * part + 10 : 50 * part + 40]
        assert half.mean() == pytest.approx(level, abs=0.05)


def test_start_is_what_is_seen_without_scripts():
    html = made(start={"part": "right", "grey_level": 0.5}).html()
    assert 'alt="A square, right, 0.5"' in html.split("<script")[0]
    assert [c["start"] for c in data(made(start={"part": "right"}))["controls"]] == [1, 0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"part": []}, "at least one control with values"),
        ({"start": {"part": "middle"}}, "not among the controls' values"),
        ({"start": {"colour": 1}}, "not among the controls' values"),
        ({"grey_level": list(range(200))}, "400 combinations are too many.*200"),
    ],
)
def test_bad_choices(options, match):
    with pytest.raises(ValueError, match=match):
        made(**options)


def test_draw_must_return_a_figure():
    with pytest.raises(TypeError, match="must return a matplotlib Figure, got NoneType"):
        bilrp.interact_frames(lambda k: None, "nothing {k}", k=[1]).html()


def test_the_live_widget_draws_anew():
    calls = []

    def noted(**values):
        calls.append(values)
        return draw(**values)

    frames = bilrp.interact_frames(noted, "{part} {grey_level}", **CONTROLS)
    assert WIDGET in frames._repr_mimebundle_()
    before = len(calls)
    box = frames.widget()
    menu, slider = box.children[0].children
    first = box.children[1].value
    menu.value, slider.value = "right", 1
    assert calls[before:] == [
        {"part": "left", "grey_level": 0},
        {"part": "right", "grey_level": 0},
        {"part": "right", "grey_level": 1},
    ]
    assert 'alt="right 1"' in box.children[1].value
    assert box.children[1].value != first
    assert slider.description == "grey level"


@pytest.mark.browser
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_moving_a_control_changes_the_figure(browser, tmp_path, size):
    context = browser.new_context(viewport=size, offline=True)
    visit = Visit(context)
    file = tmp_path / "page.html"
    other = bilrp.interact_frames(draw, "Other, {part}, {grey_level}", **CONTROLS)
    file.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Page</title>{made().html()}{other.html()}",
        encoding="utf-8",
    )
    page = visit.open(file)
    image, slider = page.locator("img").first, page.get_by_label("grey level").first
    assert image.get_attribute("alt") == "A square, left, 0"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert image.get_attribute("alt") == "A square, left, 0.5"
    assert slider.get_attribute("aria-valuetext") == "0.5"
    assert page.locator("output").first.inner_text() == "0.5"
    page.get_by_label("part").first.select_option("right")
    assert image.get_attribute("alt") == "A square, right, 0.5"
    url = image.get_attribute("src")
    assert pixels(url)[10:40, 60:90].mean() == pytest.approx(0.5, abs=0.05)
    assert page.locator("img").nth(1).get_attribute("alt") == "Other, left, 0"
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"] + 1
    context.close()
    assert not visit.wrong, "\n".join(visit.wrong)


@pytest.mark.browser
def test_without_scripts_there_is_a_picture(browser, tmp_path):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    (tmp_path / "page.html").write_text(made().html(), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("img").bounding_box()["width"] == 100
    assert page.locator("input, select").count() == 0
    context.close()
