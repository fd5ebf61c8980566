"""Every flag of BiLAF's commands and of select_subset has a test that fails where the flag is ignored."""

import dataclasses
import json

import pytest

from data_selection.commands import any_method, bilaf
from data_selection.common.errors import UserError
from data_selection.methods.bilaf import selection as bilaf_method
from data_selection.methods.bilaf.selection import select_bilaf
from data_selection.methods.configs import BILAF_PRESETS
from data_selection.methods.random_choice import select_random
from data_selection.methods.table import METHODS
from tests.support.selection_commands import COUNT, WIDTH, Command, asked_of, ids_file, make_table, words

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("features"))


CORES = [0, 11, 22, 33, 44, 105]


@pytest.fixture
def around(table, tmp_path):
    """The BiLAF command: 30 of 300 images around six cores."""
    base = {"features_inputs": table[0], "indices_file_name": ids_file(tmp_path / "cores.json", CORES), "budget": 30,
            "device": "cpu", "filename": None}  # fmt: skip

    def main(argv):
        bilaf.main_bilaf("density_cluster", [word for word in argv if word not in ("--filename", "chosen.json")])
        newest = max(tmp_path.glob("Density_*ActiveFT*[!e].json"), key=lambda path: path.stat().st_mtime_ns)
        (tmp_path / "chosen.json").write_text(newest.read_text())

    return Command(main, base, tmp_path)


BOUNDARY = [  # flag, field of the config, two values, whether the list differs
    ("density_nearst_number", "density_number", 3, 30, True),
    ("remove_percentage", "remove_share", 0.0, 0.4, True),
    ("cycle_percentage", "ring_share", 0.1, 0.7, True),
    ("same_oppo_penalty_ratio", "penalty", 1.0, 3.0, True),
    ("nested", "nested", None, True, True),
    ("max_memory", "max_memory", 0.02, 0.5, False),
]


@pytest.mark.parametrize(("flag", "field", "one", "other", "differs"), BOUNDARY, ids=[entry[0] for entry in BOUNDARY])
def test_bilaf_is_told_its_settings(around, table, monkeypatch, flag, field, one, other, differs):
    calls, lists = asked_of(bilaf_method, "select_bilaf", monkeypatch), []
    for value in (one, other):
        lists.append(around(**{flag: value}))
        config = dataclasses.replace(BILAF_PRESETS["paper"], **{field: bool(value) if field == "nested" else value})
        assert calls[-1]["config"] == config
        assert lists[-1] == select_bilaf(table[1], 30, cores=CORES, config=config).tolist()
    assert (lists[0] != lists[1]) == differs


@pytest.mark.parametrize(("script", "variant", "share"), [
    ("density_cluster", "paper", 0.1), ("density_cluster", "released", 0.1),
    ("density_cluster_imagenet", "paper", 0.1), ("density_cluster_imagenet", "released", 0.2),
])  # fmt: skip
def test_settings_typed_as_they_are_anyway_leave_no_trace_in_the_name(around, tmp_path, script, variant, share):
    typed = {"density_nearst_number": 10, "remove_percentage": share, "cycle_percentage": 0.1, "variant": variant,
             "same_oppo_penalty_ratio": 1.1, "output_dir": tmp_path / "lists"}  # fmt: skip
    bilaf.main_bilaf(script, words(around.base | typed))
    told = "" if variant == "paper" else "_variant_released"
    names = [path.name for path in (tmp_path / "lists").glob("*.json") if "provenance" not in path.name]
    assert names == [f"Density_30_from_ActiveFT6{told}.json"]
    bilaf.main_bilaf(script, words(around.base | typed | {"remove_percentage": 0.3}))
    assert (tmp_path / "lists" / f"Density_30_from_ActiveFT6{told}_remove_share_0.3.json").exists()


def test_the_variants_and_the_two_programs_differ(around, monkeypatch):
    calls = asked_of(bilaf_method, "select_bilaf", monkeypatch)
    assert around() != around(variant="released")
    again = around.base | {"output_dir": around.folder, "overwrite": True}
    around.main(words(again))
    bilaf.main_bilaf("density_cluster_imagenet", words(again | {"variant": "released"}))
    kinds = [call["config"] for call in calls]
    wanted = [BILAF_PRESETS[name] for name in ("paper", "released", "paper", "released_imagenet")]
    assert kinds == wanted


def test_bilaf_reads_and_writes_where_told(around, table, tmp_path, monkeypatch):
    calls = asked_of(bilaf_method, "select_bilaf", monkeypatch)
    assert set(CORES) < set(around())
    other = ids_file(tmp_path / "others.json", [7, 8, 9])
    assert {7, 8, 9} < set(around(indices_file_name=other, cur_number=3, budget=20))
    assert calls[-1]["budget"] == 20
    with pytest.raises(UserError, match="--cur_number 4"):
        around(indices_file_name=other, cur_number=4)
    around(features_inputs=None, feature_path=table[0].parent, dataset="POOL", distance="euclidean", seed=5)
    assert calls[-1]["features"].shape == (COUNT, WIDTH)
    assert (tmp_path / "Density_30_from_ActiveFT6_seed_5.json").exists()
    around(no_label_column=True)
    assert calls[-1]["features"].shape == (COUNT, WIDTH + 1)
    with pytest.raises(UserError, match="cuda:99"):
        around(device="cuda:99")


DEVIATIONS = {  # of the released program: another value than the default
    "normalised": False, "neighbours": "position", "ring_start": "nearest", "ring_end": "whole", "small_class": 60,
    "rounding": "kept", "opponent": "nearest", "intra": "class", "removal": "class", "budget_rule": "smallest",
}  # fmt: skip


def test_bilaf_is_told_each_deviation(around, monkeypatch):
    calls = asked_of(bilaf_method, "select_bilaf", monkeypatch)
    for field, value in DEVIATIONS.items():
        flag = {f"no-{field}": True} if value is False else {field: value}
        around.main(words(around.base | {"output_dir": around.folder} | flag))
        assert calls[-1]["config"] == dataclasses.replace(BILAF_PRESETS["paper"], **{field: value})


BILAF_ROWS = {entry[1] for entry in BOUNDARY} | set(DEVIATIONS) | {
    "dataset", "feature_path", "features_inputs", "indices_file_name", "cur_number", "budget", "output_dir", "variant",
    "distance", "no_label_column", "seed", "device", "filename", "overwrite", "keep_duplicates",
}  # fmt: skip


@pytest.fixture
def pick(table, tmp_path):
    """select_subset: 10 of 300 images."""
    return Command(any_method.main_select, {"features": table[0], "budget": 10, "device": "cpu"}, tmp_path)


def test_select_subset_does_as_its_methods(pick, table, tmp_path, monkeypatch):
    rows = table[1]
    assert pick(method="random", seed=2) == sorted(select_random(rows, 10, seed=2).tolist())
    assert pick(method="random", seed=2) != pick(method="random", seed=3)
    taken = ids_file(tmp_path / "taken.json", pick(method="random"))
    for flag in ("labelled", "excluded"):
        ids = json.loads(taken.read_text())
        assert pick(method="random", **{flag: taken}) == sorted(select_random(rows, 10, **{flag: ids}).tolist())
    assert len(pick(method="random", budget=None, percent=4)) == 12
    calls = asked_of(bilaf_method, "select_bilaf", monkeypatch)
    pick(method="bilaf", cores=4)
    pick(method="bilaf", cores=4, variant="released")
    assert [call["config"].core_number for call in calls] == [4, 4]
    assert calls[0]["config"] == dataclasses.replace(BILAF_PRESETS["paper"], core_number=4)
    assert calls[1]["config"] == dataclasses.replace(BILAF_PRESETS["released"], core_number=4)
    pick(method="bilaf", cores=4, no_label_column=True)
    assert calls[-1]["features"].shape == (COUNT, WIDTH + 1)
    with pytest.raises(UserError, match="cuda:99"):
        pick(device="cuda:99")
    with pytest.raises(UserError, match="--variant is for bilaf; method fps has no variants: drop it"):
        pick(method="fps", variant="paper")
    pick.main(words(pick.base | {"output_dir": tmp_path / "there", "method": "random"}))
    assert (tmp_path / "there" / "POOL_train_random_sampleNum_10.json").exists()


SELECT_ROWS = {"features", "method", "budget", "percent", "cores", "variant", "labelled", "excluded", "output_dir",
               "filename", "no_label_column", "seed", "device", "missing", "overwrite", "keep_duplicates",
               "classes"}  # of which test_next_round.py has the test  # fmt: skip
SELECT_ROWS = (SELECT_ROWS - {"cores"}) | {  # test_settings.py has a test for each of the latter
    field.name for method in METHODS.values() for field in dataclasses.fields(method.config)
}


@pytest.mark.parametrize(
    ("parser", "rows"),
    [*((bilaf.build_parser(script), BILAF_ROWS) for script in bilaf.SCRIPTS), (any_method.build_parser(), SELECT_ROWS)],
)
def test_every_flag_has_a_row(parser, rows):
    assert {action.dest for action in parser._actions} - {"help", "local_rank"} == rows


@pytest.mark.parametrize(
    ("script", "dataset", "budget"),
    [("density_cluster", "CIFAR100", 1000), ("density_cluster_imagenet", "ImageNet", 12811)],
)
def test_without_a_flag_it_is_the_released_command(script, dataset, budget):
    args = bilaf.build_parser(script).parse_args([])
    assert (args.dataset, args.budget, args.cur_number, args.seed) == (dataset, budget, None, 0)
    assert (args.variant, args.distance, args.feature_path.name) == ("paper", "euclidean", "features")
