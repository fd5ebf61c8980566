"""What a selection command finds where its list goes: the same list stays, another is kept unless told."""

import contextlib
import functools
import json
import re
import tempfile

import pytest

from data_selection.commands.activeft import main_activeft
from data_selection.commands.any_method import main_select
from data_selection.commands.bilaf import main_bilaf
from data_selection.common.errors import run
from data_selection.common.feature_table import save_features
from tests.support.ranks import errors_of

NAMES = [f"cat/{i}.png" for i in range(9)]


def features(folder, source=None):
    folder.mkdir(exist_ok=True)
    rows = [[float(i % 3), float(i)] for i in range(9)]
    save_features(folder / "pets.npy", rows, names=NAMES, provenance=source and {"source": source})
    return folder / "pets.npy"


@pytest.fixture
def select(tmp_path, capsys):
    """A function of more words: runs the command, returns (status, what it said)."""
    table = features(tmp_path / "a", "/a/pets")

    def selected(*words, main=main_select):
        base = ["--features", table, "--budget", 2, "--output_dir", tmp_path / "lists", "--device", "cpu"]
        status = run(main, [str(word) for word in (*base, *words)])
        told = capsys.readouterr()
        return status, told.out + told.err

    return selected


def files(tmp_path):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (tmp_path / "lists").iterdir()}


def test_the_same_list_is_left_as_it_is(select, tmp_path):
    assert select("--method", "random")[0] == 0
    before = files(tmp_path)
    assert {name.split(".")[-1] for name in before} == {"json", "txt"}
    status, said = select("--method", "random")
    assert status == 0
    assert re.search(r"pets_random_sampleNum_2\.json is already there: 2 of 9 images chosen by random", said)
    assert files(tmp_path) == before
    (tmp_path / "lists" / "pets_random_sampleNum_2.txt").unlink()
    assert select("--method", "random")[0] == 0
    assert files(tmp_path).keys() == before.keys()  # names that a kill had prevented


def test_another_list_is_kept_unless_it_may_be_replaced(select, tmp_path):
    assert select("--method", "random", "--filename", "mine.json")[0] == 0
    before = files(tmp_path)
    status, said = select("--method", "random", "--filename", "mine.json", "--seed", 2)
    assert (status, files(tmp_path)) == (2, before)
    assert "seed 0 there, 2 now" in said
    status, said = select("--method", "random", "--filename", "mine.json", "--seed", 2, "--overwrite")
    assert status == 0
    assert "exists and will be replaced, and its names with it" in said
    assert re.search("^replaced .*mine", said, re.MULTILINE)
    assert files(tmp_path) != before


def test_another_pools_list_and_names_are_kept(select, tmp_path):
    assert select("--method", "random")[0] == 0
    before = files(tmp_path)
    other = features(tmp_path / "b", "/b/pets")
    save_features(other, [[1.0, 2.0]] * 9, names=NAMES, provenance={"source": "/b/pets"})
    status, said = select("--method", "random", "--features", other)
    assert (status, files(tmp_path)) == (2, before)
    assert re.search(r"features \w{8} of /a/pets there, \w{8} of /b/pets now", said)


def test_names_tell_labelled_and_excluded_images(select, tmp_path):
    for name, ids in (("one.json", [0, 1]), ("two.json", [1, 2])):
        (tmp_path / name).write_text(json.dumps(ids))
    (tmp_path / "copy.json").write_text("[1, 0]")
    for words in (["--labelled", "one"], ["--labelled", "two"], ["--excluded", "one"], ["--labelled", "copy"], []):
        lists = [tmp_path / f"{word}.json" if word in ("one", "two", "copy") else word for word in words]
        assert select("--method", "random", *lists)[0] == 0
    lists = [name for name in files(tmp_path) if re.fullmatch(r"pets_random_sampleNum_2[^.]*\.json", name)]
    assert len(lists) == 4  # the copy means the same images
    assert sum("_labelled_2_" in name for name in lists) == 2
    assert sum("_excluded_2_" in name for name in lists) == 1


@pytest.mark.parametrize("flag", ["--threshold", "--batch_size", "--no_label_column"])
def test_names_tell_what_the_released_ones_do_not(select, tmp_path, flag):
    def main(argv):
        main_activeft("activeft_cifar", argv)

    words = ["--max_iter", 2]
    assert select(*words, main=main)[0] == 0
    assert select(*words, flag, *([] if flag == "--no_label_column" else [5]), main=main)[0] == 0
    names = {name for name in files(tmp_path) if name.endswith(".json") and "provenance" not in name}
    assert len(names) == 2
    assert any(flag[2:] in name for name in names)


def test_a_history_is_written_of_a_list_that_is_there(select, tmp_path):
    def main(argv):
        main_activeft("activeft_cifar", argv)

    assert select("--max_iter", 2, main=main)[0] == 0
    before = {name: content for name, (content, _) in files(tmp_path).items() if "provenance" not in name}
    assert select("--max_iter", 2, "--history", tmp_path / "steps.csv", main=main)[0] == 0
    assert select("--max_iter", 2, "--history", tmp_path / "steps.csv", main=main)[0] == 0
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 3
    (tmp_path / "labels.csv").write_text("file,label\na.png,cat\n")
    assert select("--max_iter", 2, "--history", tmp_path / "labels.csv", main=main)[0] == 2
    assert (tmp_path / "labels.csv").read_text() == "file,label\na.png,cat\n"
    (tmp_path / "labels.csv").unlink()
    assert {name: content for name, (content, _) in files(tmp_path).items() if "provenance" not in name} == before


def test_a_history_that_cannot_be_written_is_told_before_the_choice(select, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied", "some temporary name")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    status, said = select("--history", tmp_path / "steps.csv", main=lambda argv: main_activeft("activeft_cifar", argv))
    assert (status, said) == (2, f"error: Permission denied: {tmp_path / 'steps.csv'}\n")
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("name", ["mine.txt", "round.1", ".json", "mine"])
def test_a_list_is_called_json(select, tmp_path, capsys, name):
    with pytest.raises(SystemExit, match="2"):
        select("--method", "random", "--filename", name)
    assert re.search(rf"'{re.escape(name)}' must end in \.json, for example", capsys.readouterr().err)
    assert not (tmp_path / "lists").exists()


def test_bilaf_has_the_same_flags(select, tmp_path):
    (tmp_path / "cores.json").write_text("[0, 4]")

    def main(argv):
        main_bilaf("density_cluster", argv)

    words = ["--indices_file_name", tmp_path / "cores.json", "--budget", 4, "--filename", "b.json"]
    assert select(*words, main=main)[0] == 0
    assert "is already there" in select(*words, main=main)[1]
    (tmp_path / "cores.json").write_text("[0, 5]")
    status, said = select(*words, main=main)
    assert status == 2
    assert re.search(r"cores 2_\w{8} there, 2_\w{8} now", said)
    assert select(*words, "--overwrite", main=main)[0] == 0


@pytest.mark.parametrize(
    ("words", "missing"),
    [([], "--features"), (["--features", "a.npy"], "one of the arguments --budget --percent is required")],
)
def test_what_a_choice_cannot_do_without_is_asked_for(words, missing, capsys):
    with pytest.raises(SystemExit) as ended:
        main_select(words)
    assert ended.value.code == 2
    assert missing in capsys.readouterr().err


def choose_as_a_rank(rank, words):
    with contextlib.suppress(SystemExit):
        main_select(words)


@pytest.mark.parametrize(
    ("words", "told"), [(("--budget", "99"), "budget 99 is outside"), (("--budget", "2", "--labelled", "n"), "list n ")]
)
def test_a_mistake_is_told_by_one_of_several_processes(tmp_path, words, told):
    base = ["--features", str(features(tmp_path / "a")), "--output_dir", str(tmp_path), "--device", "cpu"]
    command = functools.partial(choose_as_a_rank, words=[*base, "--method", "fps", *words])
    first, second = errors_of(2, command, tmp_path)
    assert first.startswith(f"error: {told}")
    assert "error" not in second
