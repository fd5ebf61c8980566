"""A flag that takes several values may come several times: what came first is not forgotten."""

import pytest

from data_selection.commands import activeft, any_method, choose_images
from deit.labelled import training
from deit.labelled.commands import main_train
from scripts.experiments import command

PARSERS = {
    "select_subset": (any_method.build_parser, ["--features", "F", "--budget", "5"]),
    "activeft": (lambda: activeft.build_parser("activeft_cifar"), ["--feature_path", "F"]),
    "choose_images": (choose_images.build_parser, ["IMAGES", "--budget", "5", "--out", "OUT"]),
    "run_experiment": (command.build_parser, ["CONFIG"]),
}


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("select_subset", "labelled"),
        ("select_subset", "excluded"),
        ("activeft", "labelled"),
        ("activeft", "excluded"),
        ("choose_images", "labelled"),
        ("run_experiment", "only"),
    ],
)
def test_values_of_every_time_count(name, flag):
    build, words = PARSERS[name]
    for _ in range(2):  # the second start does not see the first one's
        args = build().parse_args([*words, f"--{flag}", "a", "b", f"--{flag}", "c"])
        assert getattr(args, flag) == ["a", "b", "c"]
    assert not getattr(build().parse_args(words), flag)


def test_label_files_of_every_time_count(monkeypatch):
    asked = []
    monkeypatch.setattr(training, "train_on_labels", lambda run, labels, **_: asked.append(labels))
    main_train(["RUN", "--labels", "a.csv", "--labels", "b.csv", "c.csv"])
    main_train(["RUN"])
    assert asked == [["a.csv", "b.csv", "c.csv"], []]
