"""Every entry answers --help from its own folder, the root and anywhere, and with -m; mistakes end with status 2."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_selection.common.feature_table import save_features

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = [
    "data_selection/extract_feature.py",
    "data_selection/sample_tools/ActiveFT_CIFAR.py",
    "data_selection/sample_tools/ActiveFT_ImageNet.py",
    "data_selection/Core_Selection/ActiveFT_CIFAR.py",
    "data_selection/Core_Selection/ActiveFT_ImageNet.py",
    "data_selection/Boundary_Selection/density_cluster.py",
    "data_selection/Boundary_Selection/density_cluster_imagenet.py",
    "deit/main.py",
    "scripts/select_subset.py",
    "scripts/choose_images.py",
    "scripts/train_on_labels.py",
    "scripts/predict.py",
    "scripts/run_experiment.py",
    "scripts/compare_with_paper.py",
    "scripts/quickstart.py",
    "scripts/demo/make_demo_data.py",
    "scripts/demo/make_demo_backbone.py",
    "scripts/demo/make_pictures.py",
    "scripts/benchmark.py",
]


def call(*words, cwd=ROOT):
    """A finished process of this interpreter, with no variable that would help it find the project."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def test_the_list_is_complete():
    found = {
        str(path.relative_to(ROOT))
        for folder in ("data_selection", "deit", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    assert found == set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_with_m_from_the_root(entry):
    done = call("-m", entry.removesuffix(".py").replace("/", "."), "--help")
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_as_a_file_from_its_own_folder(entry):
    path = ROOT / entry
    done = call(path.name, "--help", cwd=path.parent)
    assert done.returncode == 0, done.stderr


def test_help_as_a_file_from_a_folder_with_misleading_names(tmp_path):
    for name in ("datasets", "data_selection", "samplers", "utils"):  # of these only the project's may be imported
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong module')")
    for entry in ("deit/main.py", "data_selection/extract_feature.py"):
        done = call(ROOT / entry, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "P_train.npy"
    generator = np.random.default_rng(0)
    save_features(path, generator.normal(size=(200, 8)).astype(np.float32), generator.integers(0, 4, 200))
    return path


CIFAR, DENSITY, SELECT = ENTRIES[1], ENTRIES[5], "scripts/select_subset.py"


@pytest.mark.parametrize(
    ("entry", "flags", "says"),
    [
        (CIFAR, ["--feature_path", "none.npy"], r"feature file none\.npy does not exist"),
        (CIFAR, ["--feature_path", "{cut}"], "truncated"),
        (CIFAR, ["--feature_path", "{table}", "--budget", "0"], "budget 0"),
        (CIFAR, ["--feature_path", "{table}", "--budget", "201"], r"budget 201 is outside 1\.\.200"),
        (CIFAR, ["--feature_path", "{table}", "--percent", "0.01"], "budget of 0"),
        (CIFAR, ["--feature_path", "{table}", "--output_dir", "{file}/x"], "file"),
        (DENSITY, ["--features_inputs", "{table}", "--indices_file_name", "{high}"], r"outside the pool's 0\.\.199"),
        (DENSITY, ["--features_inputs", "{table}", "--indices_file_name", "{cores}", "--budget", "2"], "2 .* 3 cores"),
        (SELECT, ["--features", "{table}", "--budget", "5", "--method", "best"], "activeft.*random"),
        (SELECT, ["--features", "{table}", "--budget", "5", "--cores", "3"], "--cores"),
        ("data_selection/extract_feature.py", ["--dataset", "CIFAR11"], "CIFAR10, CIFAR100"),
        ("data_selection/extract_feature.py", ["--dataset", "DEMO", "--output_dir", "{file}/x"], "file"),
        ("deit/main.py", ["--data-set", "CIFAR11"], "CIFAR10"),
        ("deit/main.py", ["--data-set", "DEMOSUBSET", "--subset_ids", "{demo_high}"], r"outside the pool's 0\.\.9999"),
        ("deit/main.py", ["--data-set", "DEMOSUBSET", "--subset_ids", "{cores}", "--output_dir", "{file}/x"], "file"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(entry, flags, says, table, tmp_path, monkeypatch, capfd):
    texts = {"high": "[1, 200]", "cores": "[1, 5, 9]", "demo_high": "[1, 10000]", "file": "x"}
    places = {"table": table}
    for name, text in texts.items():
        places[name] = tmp_path / f"{name}.json"
        places[name].write_text(text)
    places["cut"] = tmp_path / "cut.npy"
    places["cut"].write_bytes(table.read_bytes()[:-100])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / entry), *(flag.format(**places) for flag in flags)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / entry), run_name="__main__")
    told = capfd.readouterr().err
    assert ended.value.code == 2, told
    lines = [line for line in told.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1, told
    assert re.search(says, told), told
