"""What the page for labelling keeps in the browser: over a page made anew, and between tabs."""

import pytest

from tests.support.pages import CLASSES, NAMES, eventually, exported, given, labels, make_page, press


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


def test_where_a_browser_keeps_nothing_that_is_told_beside_what_else_is(visit, plain, tmp_path):
    page = visit(plain)
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no'); } })")
    page.reload()
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
    page.evaluate("(before) => localStorage.setItem(Object.keys(localStorage)[0], JSON.stringify(before))", before)
    for _ in range(2):
        page.reload()
        assert {name: one.get("label", "?") for name, one in given(page).items()} == dict(
            zip(NAMES, ["cat", "owl", "?"], strict=False)
        )
        assert page.evaluate("answers.isUnsaved()")
        assert page.evaluate("answers.classes()") == ["cat", "owl", "dog", "fox"]
    press(page, "1")
    page.reload()
    assert page.evaluate("answers.counts().labelled") == 3
