"""How the page for labelling looks: on small screens, in both colour schemes, and how much of it an answer changes."""

import re

import pytest

from data_selection.annotation.pages import PARTS
from tests.support.pages import CLASSES, NAMES, make_page, press

SIZE = "(({ width, height }) => [width, height])(document.querySelector('#picture').getBoundingClientRect())"


def test_the_picture_is_seen_on_any_phone(visit, tmp_path):
    page = visit(make_page(tmp_path, NAMES, classes=[f"class number {i}" for i in range(10)], why="Because. " * 20))
    for width, height in ((844, 390), (667, 375), (568, 320), (390, 844), (320, 568)):
        page.set_viewport_size({"width": width, "height": height})
        shown = page.evaluate(SIZE)
        assert shown[1] >= 0.25 * height, (width, height)
        assert shown[0] / shown[1] == pytest.approx(4 / 3, rel=0.02)  # of the image, which fills the place for it
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#export").click(trial=True, timeout=3000)  # can be reached
        page.locator("#classes button").last.click(trial=True, timeout=3000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_transparent_lies_on_white(visit, plain, scheme):
    page = visit(plain, color_scheme=scheme)
    assert page.evaluate("getComputedStyle(document.querySelector('#picture')).backgroundColor") == "rgb(255, 255, 255)"
    width, height = page.evaluate(SIZE)
    assert width / height == pytest.approx(4 / 3, rel=0.02)  # and no white beside the image


def luminance(colour):
    """Relative luminance of a colour #rrggbb, as WCAG has it."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_and_borders_stand_out(scheme):
    style = (PARTS / "annotate.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    for ground in ("ground", "surface", "picked"):
        for word in ("ink", "faint", "done", "doubt"):
            assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert all(contrast(colours["edge"], colours[ground]) >= 3 for ground in ("ground", "surface"))
    assert re.search(r"button, select, input, textarea \{[^}]*border: 1px solid var\(--edge\)", style)


def test_an_answer_in_the_sheet_touches_the_cells_that_it_changes(visit, tmp_path):
    page = visit(make_page(tmp_path, [f"{i}.png" for i in range(300)], classes=CLASSES, thumbnail=True))
    press(page, "v 1")
    page.evaluate("""() => {
        window.touched = new Set();
        new MutationObserver((changes) => {
            for (const { target } of changes) touched.add(target.closest(".cell")); // a text is its element's child
        }).observe($("rows"), { attributes: true, childList: true, subtree: true });
    }""")
    press(page, "2 u 3 z")
    assert page.evaluate("touched.size") == 4  # with the cell to which the last answer led
    page.select_option("#filter", "unsure")
    assert page.locator(".cell:visible").count() == 1
    assert page.locator(".row:visible > div:first-child > span").text_content().endswith("(1)")
