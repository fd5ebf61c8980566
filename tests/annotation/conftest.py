"""A browser for the tests of pages."""

import pytest

from tests.support.pages import CLASSES, NAMES, make_page, opened_browser, watched


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as found:
        yield found


@pytest.fixture
def visit(browser):
    """Opens a file in a fresh profile; fails where the page asks for anything outside, or raises."""
    contexts, faults = [], []

    def go(path, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = watched(context.new_page(), faults)
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("plain"), NAMES, classes=CLASSES)
