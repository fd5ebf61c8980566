"""What the tests of pages share: a browser, where one is installed, and pages of made-up images."""

import contextlib
import csv
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_selection.annotation.arrangement import arrange
from data_selection.annotation.originals import places, put, relative_address, show
from data_selection.annotation.pages import annotation_page

NAMES = [f"{'ab'[i % 2]}/{i:02}.png" for i in range(24)]
CLASSES = ["cat", "dog", "fox"]
PHONE = {"width": 390, "height": 800}
HOSTILE = [
    "<script>window.hacked = 1</script>.png", "</script><img src=x onerror='window.hacked=1'>.png",
    "\"double\" and 'single'.png", "ünïcødé 图像 🐈.png", "comma, semicolon; tab\t.png", "two\nlines.png",
    f"{'x' * 300}.png", "a & b &amp; {{ 7 * 7 }}.png", "=1+1.png", " spaces at both ends .png",
]  # fmt: skip


@contextlib.contextmanager
def opened_browser():
    """A headless Chromium; the test is skipped where Playwright or a browser is not installed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: requirements-pages.txt"
    )
    with playwright.sync_playwright() as engine:
        own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            browser = engine.chromium.launch(executable_path=own, args=["--no-sandbox"])  # root has no sandbox
        except playwright.Error as error:
            pytest.skip(f"no Chromium is installed: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


def make_page(folder, names, *, beliefs=None, thumbnail=None, **settings):
    """annotate.html in a folder, of images of the names given (which need not be possible as files); its path."""
    (folder / "pool").mkdir(parents=True)
    draw = np.random.default_rng(0)
    files = []
    for i in range(len(names) if thumbnail is None else 1):
        files.append(str(folder / "pool" / f"{i}.png"))
        Image.fromarray(draw.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(files[-1])
    files = files if thumbnail is None else files * len(names)
    stems = [f"{i}.png" for i in range(len(names))]
    if thumbnail is None:
        put(folder / "images", stems, files, "link")
    addresses = [relative_address("images", place) for place in places(stems)]
    shown = show(files[:1], addresses[:1]) * len(names) if thumbnail else show(files, addresses)
    features = np.repeat(np.eye(4), -(-len(names) // 4), axis=0)[: len(names)] + 0.1 * draw.normal(size=(len(names), 4))
    arranged = arrange(features, beliefs)
    likeliest = beliefs and beliefs.likeliest()
    page = folder / "annotate.html"
    page.write_text(
        annotation_page("test", "A <b>title</b>", names, shown, arranged, beliefs=likeliest, **settings),
        encoding="utf-8",
    )
    return page


def page_data(page):
    """What a page of annotation is told, of its file or its text."""
    text = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', text)[1])


def write_answers(path, labels):
    """A table {file: label} as the page saves it."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("file", "label"), *labels.items()])


def watched(page, faults):
    """The page, which notes in a list what it raises, and what it asks for outside."""
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or faults.append(request.url)
    )
    return page


def press(page, keys):
    """Press keys, apart by spaces, one after the other."""
    for key in keys.split():
        page.keyboard.press(key)


def exported(page, where):
    """The rows of the table that the page saves, which is kept as a file."""
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(where)
    with where.open(newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle))


def given(page):
    """{file: answer} as the page holds it."""
    return page.evaluate("Object.fromEntries(images.map((x, i) => [x.file, answers.given[i]]).filter(([, a]) => a))")


def labels(page):
    return page.evaluate(
        "images.map((_, i) => answers.given[i]?.unsure ? '?' : answers.label(i)).join(',').replace(/,*$/, '')"
    )


def eventually(page, script):
    """Waits until an expression holds; the page's policy does not let Playwright wait within it."""
    assert becomes(lambda: bool(page.evaluate(script)), True), script


def becomes(get, wanted, seconds=8):
    """What get() gives once it is as wanted, or after some seconds: a busy browser's store is a little late."""
    end = time.monotonic() + seconds
    while (found := get()) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    return found
