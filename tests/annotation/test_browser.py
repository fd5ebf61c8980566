"""The page for labelling, in a real browser: by keys, by mouse, kept over a reload, out as CSV and in again."""

import time

import numpy as np
import pytest

from data_selection.annotation.arrangement import Beliefs
from tests.support.pages import CLASSES, NAMES, PHONE, given, labels, make_page, press


def test_back_skip_unsure_undo_and_filter(visit, plain):
    page = visit(plain)
    press(page, "1 u ArrowRight 2")
    assert list(given(page).values()) == [{"label": "cat"}, {"unsure": True}, {"label": "dog"}]
    assert page.inner_text("#told").startswith("2 of 24 labelled, 1 unsure")
    press(page, "z")
    assert len(given(page)) == 2
    assert page.inner_text("#place") == "4 of 24"
    press(page, "ArrowLeft ArrowLeft x")  # takes the doubt back
    assert list(given(page).values()) == [{"label": "cat"}]
    press(page, "ArrowLeft 3 z")
    assert list(given(page).values()) == [{"label": "cat"}]  # the label before, not none
    page.select_option("#filter", "=cat")
    assert page.inner_text("#place") == "1 of 1"
    page.select_option("#filter", "todo")
    assert page.inner_text("#place") == "1 of 23"
    assert "image" in page.inner_text("#live") or page.inner_text("#live")


@pytest.mark.parametrize("view", ["single", "sheet"])
def test_where_a_filter_leaves_no_image_none_is_seen_and_keys_do_nothing(visit, plain, view):
    page = visit(plain)
    page.evaluate("answers.give(images.map((_, i) => i).slice(1), {label: 'cat'})")
    page.click(f"#to-{view}")
    page.select_option("#filter", "todo")
    page.evaluate("document.activeElement.blur()")
    press(page, "1")
    assert labels(page) == ",".join(["cat"] * 24)
    assert page.is_visible("#empty")
    assert not page.is_visible(f"#{view}")
    press(page, "2 x u")
    page.fill("#other", "owl")
    page.press("#other", "Enter")
    assert labels(page) == ",".join(["cat"] * 24)
    assert page.evaluate("answers.classes()") == CLASSES
    assert page.inner_text("#live") == page.inner_text("#empty")
    press(page, "z")  # the image is shown again
    assert page.is_visible(f"#{view}")
    assert not page.is_visible("#empty")
    press(page, "3")
    assert labels(page).startswith("fox,cat")


def test_a_new_class_is_typed_once_and_has_keys(visit, tmp_path):
    page = visit(make_page(tmp_path, NAMES))
    page.fill("#class-words", "red\nblue\n\nred\n")  # the page asks for names where it knows none
    page.click("text=Use these")
    press(page, "1 b")  # red's r means something else
    press(page, "/")
    page.keyboard.type("green")
    press(page, "Enter g")
    assert [answer["label"] for answer in given(page).values()] == ["red", "blue", "green", "green"]


@pytest.mark.parametrize("known", [[], ["bee"]])
def test_a_key_means_the_same_class_all_the_time(visit, tmp_path, known):
    page = visit(make_page(tmp_path / "page", NAMES, classes=known))
    press(page, "Escape")
    (tmp_path / "in.csv").write_text(f"file,label\n{NAMES[5]},ant\n{NAMES[6]},bee\n")
    page.set_input_files("#file", tmp_path / "in.csv")
    page.wait_for_selector("#notice:has-text('2 labels taken')")
    keys = page.inner_text("#classes")
    press(page, "2 2 2")
    second = "ant" if known else "bee"
    assert labels(page).split(",")[:3] == [second] * 3
    page.evaluate("answers.give([0, 1, 2, 5, 6], null)")
    assert page.inner_text("#classes") == keys


KEYS = """(presses) => presses.map((press) => {
    const { to = "body", ...init } = press;
    const event = new KeyboardEvent("keydown", { ...init, bubbles: true, cancelable: true });
    return !document.querySelector(to).dispatchEvent(event);
})"""


def test_keys_of_other_languages_and_with_capitals_locked(visit, tmp_path):
    page = visit(make_page(tmp_path, NAMES, classes=["кот", "пёс"]))
    own = {
        "\u0433": "KeyU",
        "ф": "KeyA",
        "&": "Digit1",
        "é": "Digit2",
        "\u0661": "Digit1",
        "'": "KeyA",
        "ö": "KeyB",
        "!": "Digit1",
    }
    presses = [{"key": key, "code": code, "shiftKey": key == "!"} for key, code in own.items()]
    assert page.evaluate(KEYS, presses) == [True] * 5 + [False] * 3
    assert labels(page) == "?,кот,кот,пёс,кот"
    control = [
        {"key": key, "code": code, "ctrlKey": True} for key, code in (("я", "KeyZ"), ("Z", "KeyZ"), ("q", "KeyQ"))
    ]
    control.append({"key": "Z", "code": "KeyZ", "ctrlKey": True, "shiftKey": True})  # redo, in other programs
    assert page.evaluate(KEYS, control) == [True, True, False, False]
    assert labels(page) == "?,кот,кот"
    assert page.evaluate(KEYS, [{"key": "V"}, {"key": "R"}]) == [True, True]
    assert page.locator("[aria-selected=true]").count() > 1
    with page.expect_download():
        page.evaluate(KEYS, [{"key": "S", "ctrlKey": True}])


def test_the_enter_that_ends_a_composition_gives_no_class(visit, plain):
    page = visit(plain)
    page.fill("#other", "ね")
    for sign in ({"isComposing": True}, {"keyCode": 229}):
        page.evaluate(KEYS, [{"key": "Enter", "to": "#other", **sign}])
        assert page.input_value("#other") == "ね"
    assert page.evaluate("answers.classes()") == CLASSES
    page.evaluate(KEYS, [{"key": "Enter", "to": "#other"}])
    assert labels(page) == "ね"


def test_many_at_once_by_range_row_frame_and_keyboard(visit, plain):
    page = visit(plain)
    press(page, "v")
    cells = page.locator(".cell")
    cells.nth(2).click()
    cells.nth(5).click(modifiers=["Shift"])
    press(page, "2")
    assert len(given(page)) == 4
    row = page.locator(".row").nth(2)
    members = row.locator(".cell").count()
    row.locator("button").click()
    page.keyboard.press("3")
    assert list(one["label"] for one in given(page).values()).count("fox") == members
    press(page, "Control+z Control+z")
    assert given(page) == {}
    one, other = (cells.nth(i).bounding_box() for i in (0, 2))
    page.mouse.move(one["x"] - 4, one["y"] + 4)
    page.mouse.down()
    page.mouse.move(other["x"] + 20, other["y"] + 30, steps=4)
    page.mouse.up()
    assert page.locator("[aria-selected=true]").count() == 3
    press(page, "Escape")
    cells.nth(0).focus()
    page.evaluate("sheet.focus(0)")
    press(page, "Shift+ArrowRight Shift+ArrowRight 1")
    assert list(given(page).values()) == [{"label": "cat"}] * 3
    press(page, "Control+a 2")
    assert list(given(page).values()) == [{"label": "dog"}] * 24
    assert page.inner_text("#told").startswith("24 of 24 labelled")


def test_a_belief_is_confirmed_by_one_key_alone_or_for_a_row(visit, tmp_path):
    rows = np.array([[0.7, 0.3, 0.0]] * 12 + [[0.0, 0.4, 0.6]] * 12)
    page = visit(make_page(tmp_path, NAMES, beliefs=Beliefs(rows, CLASSES), classes=CLASSES, why="Because."))
    assert page.inner_text("#why") == "Because."
    assert "model: cat, 70 %" in page.inner_text("figcaption")
    press(page, "Enter 2")
    assert list(given(page).values()) == [{"label": "cat"}, {"label": "dog"}]
    press(page, "v")
    assert [one.split(" (")[0] for one in page.locator(".row > div:first-child > span").all_text_contents()] == [
        "The model believes: cat", "The model believes: fox",
    ]  # fmt: skip
    page.locator(".row button").nth(1).click()
    page.evaluate("document.activeElement.blur()")
    press(page, "Enter")
    assert list(given(page).values()).count({"label": "fox"}) == 12


def test_nothing_is_asked_for_outside(visit, plain):
    page = visit(plain)
    assert page.evaluate("fetch('https://example.com').then(() => 'reached', () => 'refused')") == "refused"
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == 32  # the original, not the thumbnail


def test_everything_has_a_name_and_phones_need_no_sideways_scrolling(visit, plain):
    page = visit(plain, viewport=PHONE, has_touch=True)
    for view in ("single", "sheet"):
        page.click(f"#to-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        named = "[...document.querySelectorAll('button, input, select, [role=option], [role=group], [role=listbox]')]"
        bare = f"{named}.filter(e => e.checkVisibility() && !(e.ariaLabel || e.innerText || e.labels?.length)).length"
        assert page.evaluate(bare) == 0
    page.locator(".cell").nth(1).tap()
    page.locator(".cell").nth(3).tap()
    page.locator("#classes button").nth(0).tap()
    assert len(given(page)) == 2
    assert "2 images: cat" in page.inner_text("#live")


def test_two_thousand_images_open_in_seconds(visit, tmp_path):
    path = make_page(tmp_path, [f"{i}.png" for i in range(2000)], classes=CLASSES, thumbnail=True)
    text = path.read_text().replace(
        '"thumb": "data:image/webp;base64,', '"thumb": "data:image/webp;base64,' + "A" * 6000
    )
    path.write_text(text)  # as large as thumbnails of photographs make it
    began = time.monotonic()
    page = visit(path)
    press(page, "1 2 v")
    assert page.locator(".cell").count() == 2000
    press(page, "Control+a 3")
    assert page.inner_text("#told").startswith("2000 of 2000")
    assert time.monotonic() - began < 15  # alone on a machine it takes about one
