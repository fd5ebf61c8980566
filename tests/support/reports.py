"""A report of made-up labels, whose numbers are worked out by hand."""

import base64

import numpy as np
import torch

from data_selection.annotation.label_report import Facts, write_report
from data_selection.judging.estimate import Estimate
from data_selection.judging.findings import Curve, Point, Share
from tests.support.pages import HOSTILE

DOT = (
    "data:image/gif;base64,"
    + base64.b64encode(
        b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\4\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    ).decode()
)
WORDS = ["cat", "dog", "fox"]
CURVE = Curve((Point(5, 50.0, 30.0, 70.0, True), Point(10, 60.0, 45.0, 75.0, True), Point(20, 71.0, 62.0, 80.0, False)))


def facts(names=None, classes=WORDS, **changes):
    """Ten images, six of them labelled 0 0 0 1 1 2 and predicted 0 0 1 1 0 2."""
    names = names or [f"{i}.png" for i in range(10)]
    pool = torch.full((10, 3), 1 / 3)
    pool[6], pool[7] = torch.tensor([0.5, 0.45, 0.05]), torch.tensor([0.9, 0.1, 0.0])
    given = {
        "title": "A <b>title</b>", "classes": classes, "names": names,
        "features": np.random.default_rng(0).normal(size=(10, 4)), "ids": torch.tensor([0, 1, 2, 3, 4, 5]),
        "labels": torch.tensor([0, 0, 0, 1, 1, 2]), "predicted": torch.tensor([0, 0, 1, 1, 0, 2]),
        "sure": torch.tensor([0.9, 0.8, 0.6, 0.7, 0.95, 0.5]), "pool": pool,
        "estimate": Estimate(Share(70.0, 30.0, 90.0), 0, 4), "curve": CURVE, "judged_by": "by hand",
        "notes": ["2 groups <i>of</i> copies"], "record": {"images": "/a <b>", "labels": 6},
        "rounds": [{"labels": 6, "accuracy": 66.7, "low": 30.0, "high": 90.3}],
    }  # fmt: skip
    return Facts(**given | changes)


def make_report(folder, **changes):
    """(path of report.html, values) with a picture of every image but the last."""
    return write_report(folder, facts(**changes), lambda names: {
        name: {"thumbnail": DOT, "address": "images/none.png"} for name in names if name != "9.png"
    })  # fmt: skip


def hostile(folder):
    """The report of hostile names and classes."""
    classes = ["</script><script>window.hacked = 1</script>", "\"><img src=x onerror='window.hacked = 1'>", "x" * 300]
    return make_report(folder, names=HOSTILE, classes=classes, judged_by="<script>window.hacked = 1</script>")[0]
