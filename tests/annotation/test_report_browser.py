"""The report in a real browser, and the whole way: labels by keys, saved, trained on, told of."""

import pytest

from data_selection.commands.run_choose import choose_images
from tests.support.pages import HOSTILE, PHONE, exported, press
from tests.support.reports import hostile, make_report


def test_a_report_shows_its_numbers_and_asks_for_nothing(visit, tmp_path):
    path, _ = make_report(tmp_path, rounds=[{"labels": n, "accuracy": n, "low": 1, "high": 99} for n in (30, 60)])
    page = visit(path)
    assert page.inner_text(".lead strong") == "70.0 %"
    assert page.locator("#classes tbody tr").count() == 3
    assert page.locator("#curve svg").count() == 2
    assert page.locator("#map circle.known").count() == 6
    assert page.evaluate("[...document.querySelectorAll('.sheet img')].every(image => image.naturalWidth === 1)")
    assert page.evaluate("fetch('https://example.com').then(() => 'reached', () => 'refused')") == "refused"
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    bare = "[...document.querySelectorAll('img, svg')].filter(e => !(e.alt || e.ariaLabel))"
    assert page.evaluate(f"{bare}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_names_and_words_do_no_harm_on_any_screen(visit, tmp_path, scheme):
    page = visit(hostile(tmp_path), viewport=PHONE, color_scheme=scheme)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('script').length") == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shown = page.evaluate("[...document.querySelectorAll('figcaption')].map(e => e.title)")
    assert set(HOSTILE[:8]) <= {*shown}
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(246, 246, 244)") == (scheme == "light")


def test_ten_labels_by_keys_are_trained_on(visit, folder, tmp_path):
    training = pytest.importorskip("deit.labelled.training")
    out, words = tmp_path / "run", {"device": "cpu", "num_workers": 0}
    choose_images(folder, 10, out, method="random", model="demo_vit", classes="even,odd", **words)
    page = visit(out / "annotate.html")
    press(page, "1 2 1 2 1 2 1 2 1 2")
    saved = exported(page, out / "annotate.csv")
    assert sorted(label for _, label in saved[1:]) == ["even"] * 5 + ["odd"] * 5
    training.train_on_labels(out, mode="linear", **words, log=lambda _: None)
    report = visit(out / "report.html")
    assert "of 10 labels" in report.inner_text(".lead")
    assert report.locator("#classes tbody tr").count() == 2
    images, width = "[...document.querySelectorAll('.sheet img')]", "i.decode().then(() => i.naturalWidth)"
    assert set(report.evaluate(f"Promise.all({images}.map(i => (i.loading = 'eager', {width})))")) == {28}
