"""Tables that the page for labelling reads and writes."""

from data_selection.common.listed_names import unquoted
from data_selection.images.answers import DOUBTS, MISSING, is_missing, read_answers
from tests.support.pages import HOSTILE, NAMES, exported, given, labels, make_page, press

NAMED = {"a/00.png": "cat", "b/01.png": "Käse"}
TABLES = [
    "file,label\ra/00.png,cat\rb/01.png,Käse\r",  # as Excel writes for a Macintosh
    "sep=;\r\nlabel;who;file\r\ncat;me;a/00.png\r\nKäse;;b/01.png\r\n",
    "file,who,class\n./a/00.png,me,cat\n.\\b\\01.png,you,Käse\n",
    "label,category\na/00.png,cat\nb/01.png,Käse\n",  # of which one is the file
    "cat\ta/00.png\t\t\nKa\u0308se\tb/01.png\t\t\n",
    'file,label\na/00.png,"""cat"""\n"""b/01.png"""," Käse "\n',
]
WORDS = ['"7" inch', '"foo"', "=1+1", "@home", "-a", "-1.5", "+2", "a,b", 'say "no"', "two  spaces"]


def test_a_table_of_a_spreadsheet_is_taken_and_strange_rows_are_told(visit, plain, tmp_path):
    page = visit(plain)
    (tmp_path / "x.csv").write_bytes("file;label\r\na/00.png;Käse\r\nb/01.png;dog\r\nnone.png;dog\r\n".encode("cp1252"))
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('2 labels taken. 1 row of')")
    assert given(page) == {"a/00.png": {"label": "Käse"}, "b/01.png": {"label": "dog"}}
    assert "Käse" in page.inner_text("#classes")


def test_tables_are_read_as_training_reads_them(visit, plain, tmp_path):
    page = visit(plain)
    offered = page.get_attribute("#file", "accept").split(",")
    assert {".csv", ".tsv", ".txt"} <= {*offered}  # else the browser's dialog hides them
    read = """(bytes) => {
        const { found, unknown } = table.read(table.decode(Uint8Array.from(bytes).buffer), answers.places);
        return [unknown, [...found].map(([i, words]) => [images[i].file, ...words])];
    }"""
    for text in TABLES:
        for encoding in ("utf-8", "utf-8-sig", "utf-16-le", "utf-16"):
            (tmp_path / "x.csv").write_bytes(text.encode(encoding))
            assert read_answers([tmp_path / "x.csv"], NAMES).labels == NAMED
            rows = page.evaluate(read, list(text.encode(encoding)))
            assert rows == [0, [list(row) for row in NAMED.items()]], (text, encoding)


def test_an_opened_table_tells_what_it_replaces_and_leaves_images_of_two_labels(visit, plain, tmp_path):
    page = visit(plain)
    press(page, "1 1 1 u")
    one, two, three, four, five, *_ = page.evaluate("images.map((image) => image.file)")
    rows = [(one, "cat"), (two, "dog"), (three, "fox"), (three, "dog"), (four, "dog"), (five, "fox"), (five, "fox")]
    (tmp_path / "x.csv").write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in rows))
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('4 labels taken')")
    assert page.inner_text("#notice") == (
        f"x.csv: 4 labels taken, 2 of them in place of another answer, which Undo brings back: {two} (cat → dog), "
        f"{four} (unsure → dog). 1 image with two labels left as before: {three} (fox and dog)."
    )
    assert labels(page) == "cat,dog,cat,dog,fox"
    page.click("#undo")
    assert labels(page) == "cat,cat,cat,?"
    (tmp_path / "x.csv").write_text(f"file,who,sure\n{one},me,yes\n")
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('call the column')")
    assert labels(page) == "cat,cat,cat,?"


def test_rows_that_say_that_there_is_no_label_give_none(visit, plain, tmp_path):
    page = visit(plain)
    files = page.evaluate("images.map((image) => image.file)")
    words = ["n/a", "Not sure.", "don't know", "??", "-1", "N_A", "cat", "unknown"]
    (tmp_path / "x.csv").write_text(
        "file,label\n" + "".join(f"{file},{word}\n" for file, word in zip(files, words, strict=False))
    )
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('2 labels taken')")
    assert given(page) == {files[5]: {"label": "N_A"}, files[6]: {"label": "cat"}}
    assert page.inner_text("#notice") == (
        "x.csv: 2 labels taken. Taken for no label: n/a, Not sure., don't know, ??, -1 and 1 more; if it is a class, "
        "put it into the list of classes first."
    )
    page.evaluate("answers.setClasses([...answers.classes(), 'unknown'])")
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('3 labels taken')")
    assert given(page)[files[7]] == {"label": "unknown"}


def test_the_page_knows_the_words_for_no_label_that_training_knows(visit, plain):
    page = visit(plain)
    words = [
        *MISSING,
        *DOUBTS,
        "Unsure",
        "to-do",
        "can\u2019t tell!",
        "n/a.",
        "cat",
        "no",
        "-2",
        "nano",
        "skipper",
        "not",
    ]
    read = "(word) => table.read(`file,label\\na/00.png,${word}\\n`, answers.places).empty.length"
    assert [bool(page.evaluate(read, word)) for word in words] == [is_missing(word) for word in words]


def test_a_table_may_name_images_from_another_root_or_without_folders(visit, tmp_path):
    page = visit(make_page(tmp_path, ["a/one.png", "b/one.png", "b/two.png", "c/d/two.png", "three.png"]))
    rows = {
        "/data/pool/a/one.png": "cat", r"C:\pool\b\one.png": "dog", "d/two.png": "fox", "x/three.png": "cat",
        "one.png": "no", "/else/two.png": "no", "four.png": "no",
    }  # fmt: skip
    (tmp_path / "x.csv").write_text("file,label\n" + "".join(f"{file},{word}\n" for file, word in rows.items()))
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('4 labels taken. 3 rows of images that are not on this page')")
    told = {file: answer["label"] for file, answer in given(page).items()}
    assert told == {"a/one.png": "cat", "b/one.png": "dog", "c/d/two.png": "fox", "three.png": "cat"}


def test_undo_of_a_table_takes_its_classes_back(visit, plain, tmp_path):
    page = visit(plain)
    before = page.evaluate("answers.classes()")
    (tmp_path / "x.csv").write_text("file,label\na/00.png,wrong\nb/01.png,worse\n")
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#notice:has-text('2 labels taken')")
    page.click("#undo")
    assert page.evaluate("answers.classes()") == before
    assert "wrong" not in page.inner_text("#classes")
    page.set_input_files("#file", tmp_path / "x.csv")
    page.wait_for_selector("#classes:has-text('worse')")
    page.evaluate("answers.setClasses(answers.classes().filter((word) => word !== 'wrong').concat('more'))")
    page.click("#undo")  # of a list that somebody has written since, nothing is taken
    assert page.evaluate("answers.classes()") == [*before, "worse", "more", "wrong"]


def test_any_word_comes_back_from_the_table_that_is_saved(visit, plain, tmp_path):
    page = visit(plain)
    for word in WORDS:
        press(page, "/")
        page.keyboard.type(word)
        press(page, "Enter")
    files = page.evaluate("images.map((image) => image.file)")
    rows = exported(page, tmp_path / "out.csv")
    assert read_answers([tmp_path / "out.csv"], NAMES, classes=WORDS).labels == dict(zip(files, WORDS, strict=False))
    assert not [cell for row in rows for cell in row if cell[:1] in "=@+" and cell]
    again = visit(plain)
    again.set_input_files("#file", tmp_path / "out.csv")
    again.wait_for_selector(f"#notice:has-text('{len(WORDS)} labels taken')")
    assert given(again) == given(page)


def test_hostile_names_do_no_harm_and_come_back_as_they_were(visit, tmp_path):
    page = visit(make_page(tmp_path, HOSTILE, classes=["</script><script>window.hacked=1</script>", "ok"]))
    press(page, "v v " + "2 " * len(HOSTILE))
    assert page.evaluate("window.hacked") is None
    assert page.title() == "A <b>title</b>"
    rows = exported(page, tmp_path / "out.csv")[1:]
    assert sorted([unquoted(name), label] for name, label in rows) == sorted([name, "ok"] for name in HOSTILE)
    other = visit(tmp_path / "annotate.html")
    other.set_input_files("#file", tmp_path / "out.csv")
    other.wait_for_selector(f"#notice:has-text('{len(HOSTILE)} labels taken')")
