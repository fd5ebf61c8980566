"""The report's numbers against those worked out by hand, and its page."""

import json

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from data_selection.annotation import label_report
from data_selection.annotation.label_report import places, report_values
from data_selection.annotation.outlook import axes, last_round, outlook
from data_selection.judging.estimate import Estimate
from data_selection.judging.findings import Curve, Point, Share
from tests.support.reports import CURVE, facts, hostile, make_report

ROUND = {"labels": 100, "accuracy": 60.0, "low": 58.0, "high": 62.0}


def test_accuracy_and_classes_are_those_of_the_hand():
    values = report_values(facts())
    assert values["accuracy"] == {"value": 70, "low": 30, "high": 90, "drawn": 0, "right": 4, "labels": 6}
    assert values["expected_of_pool"] == pytest.approx(100 * (0.5 + 0.9 + 1 / 3 + 1 / 3) / 4)
    assert values["accuracy_of_labels"]["value"] == pytest.approx(100 * 4 / 6)
    assert values["accuracy_of_labels"]["low"] == pytest.approx(30.0, abs=0.05)  # Wilson's interval, as in its tables
    assert values["accuracy_of_labels"]["high"] == pytest.approx(90.3, abs=0.05)
    assert values["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    cat, dog, fox = values["classes"]
    assert (cat["labels"], dog["labels"], fox["labels"]) == (3, 2, 1)
    assert [part["recall"]["value"] for part in (cat, dog, fox)] == pytest.approx([200 / 3, 50, 100])
    assert [part["precision"]["value"] for part in (cat, dog, fox)] == pytest.approx([200 / 3, 50, 100])
    assert cat["taken_for"] == [{"class": "dog", "count": 1}]
    assert fox["taken_for"] == []


def test_a_class_that_is_never_said_has_no_precision(tmp_path):
    path, values = make_report(tmp_path, predicted=torch.zeros(6, dtype=torch.int64))
    assert values["classes"][2]["precision"] == {"value": None, "low": 0.0, "high": 100.0}
    assert json.loads(path.with_suffix(".json").read_text()) == values


def test_confusions_mistakes_and_doubts_name_their_images():
    values = report_values(facts())
    assert [(part["label"], part["predicted"], part["count"]) for part in values["confused"]] == [
        ("cat", "dog", 1), ("dog", "cat", 1),
    ]  # fmt: skip
    assert [part["images"][0]["file"] for part in values["confused"]] == ["2.png", "4.png"]
    assert [(one["file"], one["label"], one["predicted"]) for one in values["mistakes"]] == [
        ("4.png", "dog", "cat"), ("2.png", "cat", "dog"),
    ]  # fmt: skip
    # no labelled image; equals in the pool's order, then the smaller margin first
    assert [one["file"] for one in values["doubtful"]] == ["8.png", "9.png", "6.png", "7.png"]
    assert values["doubtful"][2] == {"file": "6.png", "between": ["cat", "dog"], "confidence": [0.5, 0.45]}


def test_the_least_certain_image_is_that_of_the_smallest_margin():
    pool = facts().pool.clone()
    pool[6:8] = torch.tensor([[0.40, 0.30, 0.30], [0.48, 0.47, 0.05]])
    found = [one["file"] for one in report_values(facts(pool=pool))["doubtful"]]
    assert found.index("7.png") < found.index("6.png")


def test_a_class_is_taken_for_three_others_at_most_the_commonest_first():
    given = facts(
        classes=("cat", "dog", "fox", "owl", "pig"), labels=torch.zeros(6, dtype=torch.int64),
        predicted=torch.tensor([4, 4, 3, 2, 1, 0]), pool=torch.eye(5).repeat(2, 1),
    )  # fmt: skip
    taken = report_values(given)["classes"][0]["taken_for"]
    assert taken[0] == {"class": "pig", "count": 2}
    assert [one["count"] for one in taken] == [2, 1, 1]


def test_regions_do_not_depend_on_the_number_of_threads(monkeypatch):
    seen, real = [], KMeans.fit
    monkeypatch.setattr(
        KMeans, "fit", lambda *words: (seen.extend(one["num_threads"] for one in threadpool_info()), real(*words))[1]
    )
    with threadpool_limits(2):
        report_values(facts())
    assert set(seen) == {1}


def test_regions_and_map_hold_every_image_once():
    given = facts()
    parts = report_values(given)["regions"]
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert sorted(card["file"] for part in parts for card in part["images"]) == [f"{i}.png" for i in range(6)]
    where = places(given)
    assert (len(where["pool"]), len(where["known"])) == (4, 6)
    assert [point["class"] for point in sorted(where["known"], key=lambda one: one["row"])] == given.labels.tolist()


def test_two_images_are_too_few_for_a_map_and_have_a_report(tmp_path):
    few = {
        "names": ["0.png", "1.png"], "features": np.eye(2), "ids": torch.tensor([0, 1]), "labels": torch.tensor([0, 1]),
        "predicted": torch.tensor([0, 1]), "sure": torch.tensor([0.9, 0.9]), "pool": torch.full((2, 3), 1 / 3),
    }  # fmt: skip
    assert places(facts(**few)) == {"pool": [], "known": []}
    assert "A &lt;b&gt;title&lt;/b&gt;" in make_report(tmp_path, **few)[0].read_text()


def test_the_map_fills_its_square_both_ways(monkeypatch):
    points = np.array([[float(i % 5), 100.0 * (i // 5)] for i in range(10)])
    monkeypatch.setattr(label_report, "project_2d", lambda *_, **__: (np.arange(10), points))
    where = places(facts())
    assert where["pool"] == [(0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)]
    assert [(one["x"], one["y"]) for one in where["known"]] == [(i / 4, 0.0) for i in range(5)] + [(0.0, 1.0)]


@pytest.mark.parametrize(
    ("ahead", "says"),
    [((71, 62, 80), "another round pays"), ((61, 55, 65), "another round may pay"), ((60.2, 59, 62), "add little")],
)
def test_the_outlook_says_whether_another_round_pays(ahead, says):
    points = (*CURVE.points[:2], Point(20, *ahead, False))
    told = outlook(Curve(points))
    assert says in told
    assert told.startswith(f"With 20 labels the accuracy is expected to change by {ahead[0] - 60:+.1f} points")
    assert f"({ahead[1] - 60:+.1f} to {ahead[2] - 60:+.1f}) from that with 10: " in told
    assert outlook(Curve(())).startswith("Too few labels")


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [(70, "it paid"), (62, "it seems to have paid"), (60.2, "brought little"), (50, "brought little")],
)
def test_the_last_round_is_told(accuracy, says):
    now = {"labels": 200, "accuracy": accuracy, "low": accuracy - 2, "high": accuracy + 2}
    told = last_round([ROUND, now])
    assert told.startswith(f"The last round, from 100 to 200 labels, moved the accuracy by {accuracy - 60:+.1f} points")
    assert says in told
    wide = last_round([ROUND | {"low": 40.0, "high": 80.0}, now | {"accuracy": 60.0, "low": 40.0, "high": 80.0}])
    assert "too few labels judge it" in wide
    assert last_round([ROUND]) == ""
    assert last_round([ROUND, now | {"labels": 100}]) == ""  # no label came, and with --partial some may have gone
    assert last_round([ROUND, now | {"labels": 90}]) == ""
    assert "judged in different ways" in last_round([ROUND | {"drawn": 0}, now | {"drawn": 50}])
    assert says in last_round([ROUND | {"drawn": 20}, now | {"drawn": 40}])


def test_a_point_lies_where_the_axes_say():
    drawn = axes([{"labels": 50, "accuracy": 60, "low": 40, "high": 80}, {"labels": 100, "accuracy": 70, "low": 70,
                   "high": 70}])  # fmt: skip
    assert [mark["text"] for mark in drawn["marks"]] == ["40 %", "50 %", "60 %", "70 %", "80 %"]
    assert drawn["points"][0] == {"at": (50, 50), "low": (50, 100), "high": (50, 0)}
    assert axes([]) == {}


def test_the_page_holds_the_words_and_escapes_them(tmp_path):
    page = make_report(tmp_path)[0].read_text()
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "2 groups &lt;i&gt;of&lt;/i&gt; copies" in page
    assert "4 of 6 labels, by hand." in page
    assert "51.7 % there" in page
    assert page.count("<img ") == 4 + 6 + 3  # confusions and mistakes, regions, doubts without 9.png
    assert '<span class="gone">9.png</span>' in page
    assert "The rounds so far" not in page
    assert "<script>window" not in hostile(tmp_path).read_text()


def page_of(folder, estimate=None, **changes):
    """The words of a report's page, of 6 labels; spaces as people see them."""
    given = {"estimate": Estimate(*estimate)} if estimate else {}
    return " ".join(make_report(folder, **given, **changes)[0].read_text().split())


def test_images_drawn_at_random_judge_without_bias_unless_some_have_no_label(tmp_path):
    drawn = Share(75.0, 46.8, 91.1), 4, 3
    page = page_of(tmp_path, drawn, drawn=4)
    assert "by 3 of the 4 images drawn at random, by hand." in page
    assert "An estimate without bias" in page
    assert "Of all 6 labels, 2 of them of images that were chosen, 66.7 % were right." in page
    assert "--check" not in page
    assert "of images that were chosen" not in page_of(tmp_path, drawn, drawn=6)  # all were drawn
    page = page_of(tmp_path, drawn, drawn=4, bare=2)
    assert "by 3 of the 4 images drawn at random that have a label, by hand." in page
    assert "2 of the 6 images drawn at random have no label, and may be harder than the others" in page
    assert "without bias" not in page


@pytest.mark.parametrize(
    ("drawn", "bare", "hint"), [(5, 7, "label the other 7 drawn ones, too"), (5, 2, "choose with")]
)
def test_too_few_labels_of_images_drawn_at_random_are_told(tmp_path, drawn, bare, hint):
    page = page_of(tmp_path, drawn=drawn, bare=bare)
    assert f"Of the {drawn + bare} images drawn at random 5 have a label: too few to judge by, as 10 are needed" in page
    assert "1 of the labelled images was chosen." in page
    assert f"For a number without this bias {hint}" in page
    assert "not drawn at random" not in page


@pytest.mark.parametrize(
    ("drawn", "says", "by"),
    [
        ((0, 0), "judged on the labels that there were.", "all labels"),
        ((20, 40), "judged by the images drawn at random, of all rounds so far.", "40 images drawn at random"),
        ((0, 20), "by all labels that there were, as the table says: the two do not compare.", "all labels"),
        ((None, 20), "as the table says: the two do not compare.", "all labels"),
    ],
)
def test_each_round_tells_what_it_was_judged_by(tmp_path, drawn, says, by):
    rounds = [
        ROUND | ({} if count is None else {"drawn": count}) | {"labels": 100 + i} for i, count in enumerate(drawn)
    ]
    page = page_of(tmp_path, rounds=rounds)
    told = page[page.index("The rounds so far") : page.index('<section id="map">')]
    assert says in told
    assert f"<td>{by}</td>" in told
    assert ("do not compare" in told) == (len({bool(count) for count in drawn}) == 2)


@pytest.mark.parametrize("count", [40, 41, 60])
def test_the_legend_of_the_map_says_how_many_it_leaves_out(tmp_path, count):
    page = page_of(tmp_path, classes=[f"c{i}" for i in range(count)], pool=torch.full((10, count), 1 / count))
    assert page.count("<li><i ") == 40
    assert (f"<li>and {count - 40} more, whose names their points show" in page) == (count > 40)
