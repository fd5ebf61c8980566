"""What the annotation page is told of each image, in the order in which it shows them."""

from data_selection.annotation.arrangement import Arrangement
from data_selection.annotation.originals import Shown
from data_selection.annotation.pages import annotation_page
from tests.support.pages import page_data


def test_every_image_has_its_own_words_group_and_look_alikes():
    arranged = Arrangement([2, 0, 1], [0, 0, 1], ["near", "far"], alike=[[1, 2], [0], [0, 1]], twins=[2, 0, 1])
    shown = [Shown(10 + i, 20 + i, f"thumb {i}", f"images/{i}") for i in range(3)]
    beliefs = [("cat", 0.25), ("dog", 0.5), ("fox", 0.75)]
    page = annotation_page("id", "t", ["a", "b", "c"], shown, arranged, labels={"b": "dog"}, beliefs=beliefs)
    told = page_data(page)
    assert told["groups"] == ["near", "far"]
    assert [(one["file"], one["group"], one["alike"], one["twins"]) for one in told["images"]] == [
        ("c", 0, [1, 2], 1), ("a", 0, [2, 0], 2), ("b", 1, [1], 0),
    ]  # fmt: skip
    assert [(one["width"], one["height"], one["thumb"], one["src"]) for one in told["images"]] == [
        (12, 22, "thumb 2", "images/2"), (10, 20, "thumb 0", "images/0"), (11, 21, "thumb 1", "images/1"),
    ]  # fmt: skip
    assert [(one["belief"], one["sure"], one.get("label")) for one in told["images"]] == [
        ("fox", 0.75, None), ("cat", 0.25, None), ("dog", 0.5, "dog"),
    ]  # fmt: skip
