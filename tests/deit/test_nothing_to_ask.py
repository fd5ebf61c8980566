"""Cross-validation that could find nothing out, and is left out: no linear classifier for its probe."""

import json

import pytest

from data_selection.common.errors import UserError
from deit.main import main
from tests.support.trainer_runs import few_shot, make_images

CONVOLUTION = {"model": "resnetv2_18", "finetune": "none", "input_size": 32}  # its classifier is one
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_mode_full_does_without_a_probe_where_the_classifier_is_not_linear(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deit.crossval.one_part", lambda *_: pytest.fail("asked"))
    (tmp_path / "four.json").write_text("[0, 1, 12, 13]")
    flags = {"data_set": "FOLDERSUBSET", "subset_ids": tmp_path / "four.json", "epochs": 1, "amp": "measured"}
    words = few_shot(images, tmp_path / "out", mode="full", folds=2, auto_resume=True, **flags | CONVOLUTION)
    main(words)
    told = "cross-validation is left out: its probe needs a linear classifier, and this model has Conv2d(512, 2, kernel"
    assert told in capsys.readouterr().out
    assert result(tmp_path / "out")["verdict"] is None
    main(words)
    assert "the run is finished" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["lp-ft", "three-phase", "self-train", "smoothed", "linear", "auto"])
def test_a_mode_that_needs_a_linear_classifier_says_so_before_any_work(images, monkeypatch, mode):
    monkeypatch.setattr("deit.trainer.starting_point", lambda *_: pytest.fail("it has begun"))
    idle = dict.fromkeys(("epochs", "lr", "global_batch_size", "restarts") if mode in ("smoothed", "linear") else ())
    told = r"every --mode but full needs a linear classifier, and this model has Conv2d\(.*: use --mode full$"
    with pytest.raises(UserError, match=told):
        main(few_shot(images, mode=mode, **CONVOLUTION | idle))
