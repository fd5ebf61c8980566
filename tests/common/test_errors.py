"""How a command ends: its status and its one line, whatever went wrong; and what a misspelt word was meant to be."""

import io
import os
import subprocess
import sys

import pytest

from data_selection.common.errors import UserError, meant, run


def test_a_close_word_is_offered_and_a_strange_one_is_not():
    assert meant("kmean", ["random", "kmeans", "fps"]) == " (did you mean kmeans?)"
    assert meant("kmeans", iter({"kmeans ": 1})) == " (did you mean kmeans ?)"
    assert meant("zzz", ["random", "kmeans"]) == meant("random", []) == ""


def ends(*raised):
    """A command that raises."""

    def main(argv):
        assert argv == ["word"]
        raise raised[0]

    return run(main, ["word"])


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (UserError("budget \x1b[1m0\x1b[0m is too small"), 2, "error: budget 0 is too small\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (FileNotFoundError(2, "No such file or directory", "a.npy"), 2, "error: No such file or directory: a.npy\n"),
        (OSError("\x1b[31mthe disk\x1b[0m is full"), 2, "error: the disk is full\n"),
    ],
)
def test_each_end_is_one_line_and_its_status(raised, status, line, capsys):
    assert ends(raised) == status
    assert capsys.readouterr().err == line


def test_what_nobody_foresaw_is_shown_whole():
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_success_writes_out_what_was_said(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    assert run(lambda argv: print("a \udcff name, ä")) == 0
    assert raw.getvalue() == b"a \\udcff name, \\xe4\n"  # a file name may be no text


def test_a_reader_who_has_enough_is_no_error():
    """`... | head -1`, of more than a pipe holds."""
    code = "import sys; from data_selection.common.errors import run; sys.exit(run(lambda _: print('x\\n' * 100_000)))"
    reading, writing = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert os.read(reading, 2) == b"x\n"
    os.close(reading)
    assert child.communicate(timeout=60)[1] == ""
    assert child.returncode == 0
