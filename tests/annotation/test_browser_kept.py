"""What the page for labelling keeps in the browser: over a page made anew, and between tabs."""

import functools
import time

import pytest

from data_selection.annotation.pages import PARTS
from tests.support.pages import (
    CLASSES,
    NAMES,
    becomes,
    eventually,
    exported,
    given,
    labels,
    make_page,
    press,
    watched,
)


def reload(page):
    """Load a page anew, a moment after its last key: what is kept takes its way on a busy machine (see visit)."""
    time.sleep(0.3)
    held = page.evaluate("localStorage.length")
    with page.expect_navigation():
        page.evaluate("() => void location.reload()")
    if held and not becomes(lambda: page.evaluate("localStorage.length > 0"), True):
        assert page.opener().evaluate("localStorage.length"), "the page has emptied its store"
        pytest.skip("the browser has given a page that was loaded again another store than the page that opened it")


@pytest.fixture
def visit(browser):
    """Opens a file in the same fresh profile as before, and from one page that stays open.

    So all lie in one process. On a busy machine about one of twenty pages in processes of their own, as the address
    bar opens them, is told nothing of what others keep, at any time: Chromium's fault, and not what is tested here.
    """
    context, faults = browser.new_context(), []
    first = context.new_page()
    first.goto((PARTS / "annotate.css").as_uri())
    first.evaluate("localStorage.clear()")

    def go(path):
        with first.expect_popup() as opened:
            first.evaluate("(address) => void window.open(address)", path.as_uri())
        page = watched(opened.value, faults)
        page.wait_for_load_state()
        return page

    yield go
    context.close()
    assert not faults


def test_ten_labels_by_keys_are_there_after_a_reload_and_go_out_and_in(visit, plain, tmp_path):
    page = visit(plain)
    press(page, "1 2 3 c d f 1 1 2 2")
    assert page.inner_text("#told").startswith("10 of 24 labelled")
    first = given(page)
    assert [answer["label"] for answer in first.values()] == [
        "cat", "dog", "fox", "cat", "dog", "fox", "cat", "cat", "dog", "dog",
    ]  # fmt: skip
    reload(page)
    assert becomes(lambda: given(page), first) == first
    assert page.inner_text("#place") == "11 of 24"  # goes on where it was left
    rows = exported(page, tmp_path / "out.csv")
    assert rows[0] == ["file", "label"]
    assert sorted(file for file, _ in rows[1:]) == sorted(NAMES)
    assert {file: label for file, label in rows[1:] if label} == {file: one["label"] for file, one in first.items()}
    page.evaluate("localStorage.clear()")
    reload(page)
    assert given(page) == {}
    page.set_input_files("#file", tmp_path / "out.csv")
    page.wait_for_selector("#notice:has-text('10 labels taken')")
    assert given(page) == first


@pytest.fixture
def anew(visit, tmp_path):
    """An opened page, and what makes it anew in its tab by labels of annotate.csv; shows: {file: label} then."""
    page = visit(make_page(tmp_path / "page", NAMES, classes=CLASSES))

    def made(labels, shows):
        folder = tmp_path / f"anew {len(list(tmp_path.iterdir()))}"
        text = make_page(folder, NAMES, classes=CLASSES, labels=labels).read_text()
        (tmp_path / "page" / "annotate.html").write_text(text)
        reload(page)
        shown = becomes(lambda: {file: one.get("label", "unsure") for file, one in given(page).items()}, shows)
        assert shown == shows

    return page, made


def say(page, labels):
    """Answers {file: label, or None for none} given on the page."""
    for file, label in labels.items():
        answer = label and ({"unsure": True} if label == "unsure" else {"label": label})
        page.evaluate("([file, answer]) => answers.give([answers.places.get(file)], answer)", [file, answer])


def test_labels_that_another_program_filled_in_show_on_a_page_that_was_looked_at(anew):
    _, made = anew
    labels = {name: CLASSES[i % 3] for i, name in enumerate(NAMES[:9])}
    made(labels, shows=labels)
    made({NAMES[0]: "fox"}, shows={NAMES[0]: "fox"})
    made({}, shows={})


def test_an_answer_that_no_file_holds_is_not_replaced_and_one_that_was_saved_is(anew, tmp_path):
    page, made = anew
    one, two, three, four, *_ = NAMES
    say(page, {one: "cat"})
    made({one: "dog", two: "dog"}, shows={one: "cat", two: "dog"})
    exported(page, tmp_path / "out.csv")
    reload(page)
    kept = {one: {"label": "cat"}, two: {"label": "dog"}}
    assert becomes(lambda: given(page), kept) == kept  # whether or not the file was put there
    made({one: "fox", two: "dog"}, shows={one: "fox", two: "dog"})
    say(page, {two: "cat", three: "unsure", four: "cat"})
    exported(page, tmp_path / "out.csv")
    reload(page)
    say(page, {one: "dog"})  # which is no reason to keep what was saved
    made({one: "fox", two: "fox", four: "fox"}, shows={one: "dog", two: "fox", three: "unsure", four: "fox"})


def test_a_label_that_was_taken_back_stays_so(anew, tmp_path):
    page, made = anew
    one, two, *_ = NAMES
    made({one: "cat", two: "dog"}, shows={one: "cat", two: "dog"})
    say(page, {one: None})
    made({one: "cat", two: "dog"}, shows={two: "dog"})
    exported(page, tmp_path / "out.csv")
    made({two: "dog"}, shows={two: "dog"})
    say(page, {one: "fox", two: "unsure"})
    exported(page, tmp_path / "out.csv")
    made({one: "fox"}, shows={one: "fox", two: "unsure"})  # a doubt is in no file
    say(page, {one: "cat"})
    exported(page, tmp_path / "out.csv")
    press(page, "z")
    assert page.evaluate("answers.isUnsaved()")
    made({one: "cat"}, shows={one: "fox", two: "unsure"})


@pytest.fixture
def tabs(visit, plain):
    """Opens the same page in one more tab of the same browser."""
    return visit(plain), functools.partial(visit, plain)


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
    third = another()
    for page in (first, second, third):
        assert becomes(lambda page=page: labels(page), "cat,fox,dog,dog,fox,?") == "cat,fox,dog,dog,fox,?"
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
    third = another()
    assert labels(first) == becomes(lambda: labels(third), "dog,dog,,fox") == "dog,dog,,fox"
    eventually(second, "answers.done(3)")
    second.evaluate("answers.saved()")
    eventually(first, "answers.takeOver() || !answers.isUnsaved()")
    press(first, "3")
    eventually(second, "answers.isUnsaved()")


def test_classes_of_a_second_start_reach_a_page_that_was_looked_at(visit, tmp_path):
    page = visit(make_page(tmp_path / "page", NAMES, classes=["cat", "dog"]))
    page.evaluate("answers.setClasses(['dog', 'owl'])")  # the cat is taken out
    made = make_page(tmp_path / "anew", NAMES, classes=["cat", "dog", "bird"])
    (tmp_path / "page" / "annotate.html").write_text(made.read_text())
    visit(tmp_path / "page" / "annotate.html")
    eventually(page, "answers.classes().join() === 'dog,owl,bird'")  # also the tab that is open
    press(page, "1")
    for _ in range(2):
        reload(page)
        eventually(page, "answers.classes().sort().join() === 'bird,dog,owl'")  # in any order if it was found late
    page.evaluate("answers.setClasses(['dog'])")
    reload(page)
    eventually(page, "answers.classes().join() === 'dog'")


def test_answers_that_a_busy_browser_finds_a_moment_late_are_not_lost(visit, plain):
    """As Chromium does where a page is loaded again right after a key: the store looks empty at first."""
    page = visit(plain)
    press(page, "1 2")
    page.add_init_script(
        "const real = Storage.prototype.getItem; window.early = true;"
        "Storage.prototype.getItem = function (key) { return window.early ? null : real.call(this, key) }"
    )
    reload(page)
    assert given(page) == {}
    page.evaluate("window.early = false")
    eventually(page, "answers.counts().labelled === 2")
    assert page.inner_text("#place") == "3 of 24"
    press(page, "3")
    assert page.evaluate("answers.counts().labelled") == 3
    reload(page)
    press(page, "ArrowRight ArrowRight")  # who has gone elsewhere stays there
    page.evaluate("window.early = false")
    eventually(page, "answers.counts().labelled === 3")
    assert page.inner_text("#place") == "3 of 24"


def test_a_list_of_classes_is_that_of_both_tabs(tabs):
    first, another = tabs
    second = another()
    second.evaluate("answers.setClasses(['fox', 'dog', 'owl'])")
    eventually(first, "answers.classes().join() === 'dog,fox,owl'")  # its keys go on in their order
    press(first, "3")
    eventually(second, "answers.label(0) === 'owl'")
    assert second.evaluate("answers.classes()") == ["fox", "dog", "owl"]


def test_where_a_browser_keeps_nothing_that_is_told_beside_what_else_is(visit, plain, tmp_path):
    page = visit(plain)
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no'); } })")
    reload(page)
    assert page.is_visible("#unkept")
    (tmp_path / "x.csv").write_text(f"file,label\n{NAMES[0]},cat\n")
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('1 label taken')", timeout=5000)
    press(page, "2 3")
    assert page.is_visible("#unkept")
    assert "1 label taken" in page.inner_text("#notice")


def test_what_an_earlier_version_of_the_page_has_kept_is_taken(visit, plain):
    page = visit(plain)
    before = {
        "classes": ["cat", "owl"], "came": {}, "filed": {NAMES[1]: {"label": "owl"}}, "unsaved": True,
        "answers": {NAMES[0]: {"label": "cat"}, NAMES[1]: {"label": "owl"}, NAMES[2]: {"unsure": True}, NAMES[3]: None},
    }  # fmt: skip
    page.evaluate("(before) => localStorage.setItem(`annotate:${data.id}`, JSON.stringify(before))", before)
    for _ in range(2):
        reload(page)
        kept = {NAMES[0]: {"label": "cat"}, NAMES[1]: {"label": "owl"}, NAMES[2]: {"unsure": True}}
        assert becomes(lambda: given(page), kept) == kept
        assert page.evaluate("answers.isUnsaved()")
        assert set(page.evaluate("answers.classes()")) == {"cat", "owl", "dog", "fox"}
    press(page, "1")
    reload(page)
    eventually(page, "answers.counts().labelled === 3")
