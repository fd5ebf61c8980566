"""What a selection command replaces: a list of the same pool, said before the work, and never another pool's."""

from data_selection.commands.any_method import main_select
from data_selection.common.errors import run
from data_selection.common.feature_table import save_features


def test_another_pools_list_and_names_are_kept(tmp_path, capsys):
    flags = ["--method", "random", "--budget", "2", "--output_dir", str(tmp_path / "lists"), "--device", "cpu"]
    for place in "ab":
        names, source = [f"cat/{i}.png" for i in range(5)], f"/{place}/pets"
        (tmp_path / place).mkdir()
        save_features(tmp_path / place / "pets.npy", [[1.0, 2.0]] * 5, names=names, provenance={"source": source})
    first, second = (["--features", str(tmp_path / place / "pets.npy"), *flags] for place in "ab")
    assert run(main_select, first) == 0
    files = {file: file.read_bytes() for file in (tmp_path / "lists").iterdir()}
    assert {file.suffix for file in files} == {".json", ".txt"}
    capsys.readouterr()
    assert run(main_select, [*second, "--seed", "0"]) == 2
    assert "was chosen from another pool (/a/pets), not from" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "lists").iterdir()} == files
    assert run(main_select, first) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("exists and will be replaced, and its names with it")
    assert lines[1].startswith("quality without labels: distance to the nearest of the 2 images ")
    assert lines[-1].startswith("replaced ")
