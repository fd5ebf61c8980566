"""The pages name files, headings, flags, commands and imports that exist, and README.md stays short."""

import argparse
import ast
import functools
import importlib
import os
import re
import shlex
from pathlib import Path
from unittest import mock

import pytest
import yaml

from data_selection.commands.activeft import main_activeft
from data_selection.commands.any_method import main_select
from data_selection.commands.bilaf import main_bilaf
from data_selection.commands.choose_images import main_choose
from data_selection.commands.extract import main_extract
from deit.labelled.commands import main_predict, main_train
from deit.main import main as main_deit

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md", "data_selection/README.md", "deit/README.md",
    "scripts/benchmarks/README.md", "data_selection/demo/MODEL_CARD.md",
)  # fmt: skip
TOP = ("configs", "data_selection", "deit", "scripts", "subsets", "tests", ".github")
SUFFIXES = (".py", ".sh", ".md", ".yaml", ".png", ".sbatch")
MADE = ("data_selection/features", "data_selection/data", "deit/data", "subsets")  # by the commands, not by us
YOURS = {"train", "val", "X.partial", "tensorboard"}  # folders of the user's data and runs, written with a slash
FOREIGN = {"--fix"}  # of ruff
COMMANDS = {
    "data_selection/extract_feature.py": main_extract,
    "data_selection/sample_tools/ActiveFT_CIFAR.py": functools.partial(main_activeft, "activeft_cifar"),
    "data_selection/sample_tools/ActiveFT_ImageNet.py": functools.partial(main_activeft, "activeft_imagenet"),
    "data_selection/Core_Selection/ActiveFT_CIFAR.py": functools.partial(main_activeft, "bilaf_cifar"),
    "data_selection/Core_Selection/ActiveFT_ImageNet.py": functools.partial(main_activeft, "bilaf_imagenet"),
    "data_selection/Boundary_Selection/density_cluster.py": functools.partial(main_bilaf, "density_cluster"),
    "data_selection/Boundary_Selection/density_cluster_imagenet.py": functools.partial(
        main_bilaf, "density_cluster_imagenet"
    ),
    "deit/main.py": main_deit,
    "scripts/finetune.sbatch": main_deit,
    "scripts/select_subset.py": main_select,
    "scripts/run_experiment.py": "scripts.experiments.command",
    "scripts/compare_with_paper.py": "scripts.compare_with_paper",
    "scripts/choose_images.py": main_choose,
    "scripts/train_on_labels.py": main_train,
    "scripts/predict.py": main_predict,
    "scripts/quickstart.sh": "scripts.quickstart",
    "scripts/demo/make_demo_data.py": "scripts.demo.make_demo_data",
    "scripts/demo/make_demo_backbone.py": "scripts.demo.make_demo_backbone",
} | {
    f"scripts/benchmark.py {path.stem}": f"scripts.benchmarks.{path.stem}"
    for path in (ROOT / "scripts" / "benchmarks").glob("[a-z]*.py")
}


class CaughtError(Exception):
    """Carries the parser of a command out of it."""


@functools.cache
def parser_of(command):
    """The ArgumentParser of one of COMMANDS, which gets no further than to read its flags."""

    def stop(parser, *_):
        raise CaughtError(parser)

    main = COMMANDS[command]
    main = importlib.import_module(main).main if isinstance(main, str) else main
    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), pytest.raises(CaughtError) as caught:
        main([])
    return caught.value.args[0]


def flags_of(command):
    return set(parser_of(command)._option_string_actions)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_text(command):
    bare = [
        " ".join(action.option_strings) or action.dest
        for action in parser_of(command)._actions
        if len((action.help or "").split()) < 2 and action.help != argparse.SUPPRESS
    ]
    assert not bare, "flags without a text"


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page, *languages):
    """The fenced blocks of a page whose language is one of these (default: none, which are commands and trees)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.M | re.S)
    return [body for language, body in found if language in (languages or ("",))]


def prose(page):
    return re.sub(r"^```\w*\n.*?^```$", "", read(page), flags=re.M | re.S)


def spans(page):
    """The words in back-ticks, outside of fenced blocks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def typed(page):
    """(the folder stood in, words) of each line of a page's fenced commands."""
    for body in fences(page):
        folder = ROOT
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:1] == ["cd"]:
                folder = Path(os.path.normpath(folder / words[1]))
                assert folder.is_dir(), f"{page}: {line}"
            yield folder, words


def command_in(words, folder=ROOT):
    """(one of COMMANDS that the words call, the words after it), or (None, []) where there is none."""
    for at, word in enumerate(words):
        name = Path(os.path.normpath(folder / word))
        name = name.relative_to(ROOT).as_posix() if name.is_relative_to(ROOT) else word
        for count in (1, 2):  # a file, or a file and a subject
            called = " ".join([name, *words[at + 1 : at + count]])
            if called in COMMANDS:
                return called, words[at + count :]
    return None, []


def is_ours(word, endings=SUFFIXES):
    """Whether a word should name a file or folder of the repository: by its first folder, or by its ending."""
    if re.search(r"[<>{}*$]|\.\.\.|^/|^https?:", word) or "/" not in word:
        return False
    if any(word == made or word.startswith(f"{made}/") for made in MADE):
        return False
    return word.removeprefix("./").split("/")[0] in TOP or word.endswith(endings)


def headings(path):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    reached = set()
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
            assert path.exists(), f"{page}: {target}"
            assert not anchor or anchor in headings(path), f"{page}: {target}"
            reached.add(path)
    assert page == "README.md" or ROOT / "README.md" in reached, f"{page} has no way back to README.md"


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    here = (ROOT / page).parent
    for span in spans(page):
        for word in re.split(r"[\s=,;]+", span):
            if is_ours(word, (*SUFFIXES, "/")) and word.rstrip("/") not in YOURS:
                assert (ROOT / word).exists() or (here / word).exists(), f"{page}: {word}"
    for folder, words in typed(page):
        for word in words:
            if is_ours(word) or word.endswith((".py", ".sh", ".sbatch")):
                assert (folder / word).exists(), f"{page}: {word}"


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    every = FOREIGN.union(*map(flags_of, COMMANDS))
    for span in spans(page):
        command, _ = command_in(span.split())
        known = flags_of(command) if command else every
        for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", span):
            assert flag in known, f"{page}: {flag} in `{span}`"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page, capsys):
    for folder, words in typed(page):
        command, arguments = command_in(words, folder)
        if command:
            try:
                parser_of(command).parse_args(arguments)
            except SystemExit:
                pytest.fail(f"{page}: {' '.join(words)}\n{capsys.readouterr().err}")
        else:
            assert "scripts/benchmark.py" not in words, f"{page}: no such subject in {' '.join(words)}"


def test_python_examples_import_public_names():
    (example,) = fences("README.md", "python")
    for line in [node for node in ast.parse(example).body if isinstance(node, ast.ImportFrom)]:
        assert {alias.name for alias in line.names} <= set(importlib.import_module(line.module).__all__)


def test_citation_is_of_this_version():
    version = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.M)[1]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert str(citation["version"]) == version
    assert f"## {version}" in read("CHANGELOG.md").splitlines()
