"""The page for labelling, in a real browser: by keys, by mouse, kept over a reload, out as CSV and in again."""

import time

import numpy as np
import pytest

from data_selection.annotation.arrangement import Beliefs
from tests.support.pages import HOSTILE, PHONE, exported, make_page, press

NAMES = [f"{'ab'[i % 2]}/{i:02}.png" for i in range(24)]
CLASSES = ["cat", "dog", "fox"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("plain"), NAMES, classes=CLASSES)


def given(page):
    """{file: answer} as the page holds it."""
    return page.evaluate("Object.fromEntries(images.map((x, i) => [x.file, answers.given[i]]).filter(([, a]) => a))")


def test_ten_labels_by_keys_are_there_after_a_reload_and_go_out_and_in(visit, plain, tmp_path):
    page = visit(plain)
    press(page, "1 2 3 c d f 1 1 2 2")
    assert page.inner_text("#told").startswith("10 of 24 labelled")
    first = given(page)
    assert [answer["label"] for answer in first.values()] == [
        "cat", "dog", "fox", "cat", "dog", "fox", "cat", "cat", "dog", "dog",
    ]  # fmt: skip
    page.reload()
    assert given(page) == first
    assert page.inner_text("#place") == "11 of 24"  # goes on where it was left
    rows = exported(page, tmp_path / "out.csv")
    assert rows[0] == ["file", "label"]
    assert sorted(file for file, _ in rows[1:]) == sorted(NAMES)
    assert {file: label for file, label in rows[1:] if label} == {file: one["label"] for file, one in first.items()}
    other = visit(plain)
    assert given(other) == {}
    other.set_input_files("#file", tmp_path / "out.csv")
    other.wait_for_selector("#notice:has-text('10 labels taken')")
    assert given(other) == first


@pytest.fixture
def anew(visit, tmp_path):
    """An opened page, and what makes it anew in its tab with labels of annotate.csv; {file: label} that it shows."""
    page = visit(make_page(tmp_path / "page", NAMES, classes=CLASSES))

    def made(labels):
        folder = tmp_path / f"anew {len(list(tmp_path.iterdir()))}"
        text = make_page(folder, NAMES, classes=CLASSES, labels=labels).read_text()
        (tmp_path / "page" / "annotate.html").write_text(text)
        page.reload()
        return {file: answer.get("label", "unsure") for file, answer in given(page).items()}

    return page, made


def say(page, labels):
    """Answers {file: label, or None for none} given on the page."""
    for file, label in labels.items():
        answer = label and ({"unsure": True} if label == "unsure" else {"label": label})
        page.evaluate("([file, answer]) => answers.give([answers.places.get(file)], answer)", [file, answer])


def test_labels_that_another_program_filled_in_show_on_a_page_that_was_looked_at(anew):
    _, made = anew
    labels = {name: CLASSES[i % 3] for i, name in enumerate(NAMES[:9])}
    assert made(labels) == labels
    assert made({NAMES[0]: "fox"}) == {NAMES[0]: "fox"}
    assert made({}) == {}


def test_an_answer_that_no_file_holds_is_not_replaced_and_one_that_was_saved_is(anew, tmp_path):
    page, made = anew
    one, two, three, four, *_ = NAMES
    say(page, {one: "cat"})
    assert made({one: "dog", two: "dog"}) == {one: "cat", two: "dog"}
    exported(page, tmp_path / "out.csv")
    page.reload()
    assert given(page) == {one: {"label": "cat"}, two: {"label": "dog"}}  # whether or not the file was put there
    assert made({one: "fox", two: "dog"}) == {one: "fox", two: "dog"}
    say(page, {two: "cat", three: "unsure", four: "cat"})
    exported(page, tmp_path / "out.csv")
    page.reload()
    say(page, {one: "dog"})  # which is no reason to keep what was saved
    assert made({one: "fox", two: "fox", four: "fox"}) == {one: "dog", two: "fox", three: "unsure", four: "fox"}


def test_a_label_that_was_taken_back_stays_so(anew, tmp_path):
    page, made = anew
    one, two, *_ = NAMES
    made({one: "cat", two: "dog"})
    say(page, {one: None})
    assert made({one: "cat", two: "dog"}) == {two: "dog"}
    exported(page, tmp_path / "out.csv")
    assert made({two: "dog"}) == {two: "dog"}
    say(page, {one: "fox", two: "unsure"})
    exported(page, tmp_path / "out.csv")
    assert made({one: "fox"}) == {one: "fox", two: "unsure"}  # a doubt is in no file
    say(page, {one: "cat"})
    exported(page, tmp_path / "out.csv")
    press(page, "z")
    assert page.evaluate("answers.isUnsaved()")
    assert made({one: "cat"}) == {one: "fox", two: "unsure"}


@pytest.fixture
def tabs(visit, plain):
    """Opens the same page in one more tab of the same browser."""
    first = visit(plain)

    def another():
        page = first.context.new_page()
        page.goto(first.url)
        return page

    return first, another


def labels(page):
    return page.evaluate("images.map((_, i) => answers.given[i]?.unsure ? '?' : answers.label(i)).join(',').replace(/,*$/, '')")


def eventually(page, script):
    """Waits until an expression holds; the page's policy does not let Playwright wait within it."""
    for _ in range(200):
        if page.evaluate(script):
            return
        time.sleep(0.02)
    raise AssertionError(script)


def test_two_tabs_of_a_page_keep_the_answers_of_both(tabs):
    first, another = tabs
    press(first, "1")
    second = another()
    press(second, "2 2 2")
    eventually(first, "answers.done(3)")
    press(first, "3 3")  # the first of an image that the second tab has labelled: the last word counts
    eventually(second, "answers.label(1) === 'fox' && answers.label(4) === 'fox'")
    press(second, "ArrowRight u")
    eventually(first, "answers.given[5]?.unsure")
    assert labels(first) == labels(second) == labels(another()) == "cat,fox,dog,dog,fox,?"
    press(second, "z z z z z")  # its own steps alone
    assert labels(second) == "cat,fox,,,fox"
    eventually(first, "answers.counts().labelled === 3")


def test_a_tab_that_was_told_nothing_writes_over_no_other(tabs):
    first, another = tabs
    second = another()
    first.evaluate("window.addEventListener('storage', (event) => event.stopImmediatePropagation(), true)")
    press(second, "2 2")
    first.evaluate("single.show(3)")
    eventually(first, "localStorage.getItem(Object.keys(localStorage)[0]).split('dog').length > 3")
    press(first, "3")
    assert labels(first) == labels(another()) == "dog,dog,,fox"
    eventually(second, "answers.done(3)")
    second.evaluate("answers.saved()")
    eventually(first, "answers.takeOver() || !answers.isUnsaved()")
    press(first, "3")
    eventually(second, "answers.isUnsaved()")


def test_a_table_of_a_spreadsheet_is_taken_and_strange_rows_are_told(visit, plain, tmp_path):
    page = visit(plain)
    (tmp_path / "x.csv").write_bytes("file;label\r\na/00.png;Käse\r\nb/01.png;dog\r\nnone.png;dog\r\n".encode("cp1252"))
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('2 labels taken. 1 rows')")
    assert given(page) == {"a/00.png": {"label": "Käse"}, "b/01.png": {"label": "dog"}}
    assert "Käse" in page.inner_text("#classes")


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


def test_classes_of_a_second_start_reach_a_page_that_was_looked_at(visit, tmp_path):
    page = visit(make_page(tmp_path / "page", NAMES, classes=["cat", "dog"]))
    page.evaluate("answers.setClasses(['dog', 'owl'])")  # the cat is taken out
    made = make_page(tmp_path / "anew", NAMES, classes=["cat", "dog", "bird"])
    (tmp_path / "page" / "annotate.html").write_text(made.read_text())
    page.context.new_page().goto(page.url)
    eventually(page, "answers.classes().join() === 'dog,owl,bird'")  # also the tab that is open
    press(page, "1")
    for _ in range(2):
        page.reload()
        assert page.evaluate("answers.classes()") == ["dog", "owl", "bird"]
    page.evaluate("answers.setClasses(['dog'])")
    page.reload()
    assert page.evaluate("answers.classes()") == ["dog"]


def test_a_list_of_classes_is_that_of_both_tabs(tabs):
    first, another = tabs
    second = another()
    second.evaluate("answers.setClasses(['fox', 'dog', 'owl'])")
    eventually(first, "answers.classes().join() === 'dog,fox,owl'")  # its keys go on in their order
    press(first, "3")
    eventually(second, "answers.label(0) === 'owl'")
    assert second.evaluate("answers.classes()") == ["fox", "dog", "owl"]


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
    assert [one.split(" (")[0] for one in page.locator(".row > div:first-child > span").all_inner_texts()] == [
        "The model believes: cat", "The model believes: fox",
    ]  # fmt: skip
    page.locator(".row button").nth(1).click()
    page.evaluate("document.activeElement.blur()")
    press(page, "Enter")
    assert list(given(page).values()).count({"label": "fox"}) == 12


def test_hostile_names_do_no_harm_and_come_back_as_they_were(visit, tmp_path):
    page = visit(make_page(tmp_path, HOSTILE, classes=["</script><script>window.hacked=1</script>", "ok"]))
    press(page, "v v " + "2 " * len(HOSTILE))
    assert page.evaluate("window.hacked") is None
    assert page.title() == "A <b>title</b>"
    rows = exported(page, tmp_path / "out.csv")[1:]
    assert sorted(rows) == sorted([name, "ok"] for name in HOSTILE)
    other = visit(tmp_path / "annotate.html")
    other.set_input_files("#file", tmp_path / "out.csv")
    other.wait_for_selector(f"#notice:has-text('{len(HOSTILE)} labels taken')")


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
