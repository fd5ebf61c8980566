"""Which entry of a checkpoint is taken, and what is said where there is none."""

import functools
import random

import pytest
import torch

from data_selection.common.errors import UserError, run
from data_selection.embedding.backbones import build_model, load_weights
from data_selection.embedding.checkpoint_files import listed, read_checkpoint, unwrap

ONE, TWO = {"w": torch.ones(1)}, {"w": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "key", "taken"),
    [({"model": TWO, "teacher": ONE}, None, ONE), ({"model": ONE, "teacher": TWO}, "model", ONE),
     ({"ema": ONE, "teacher": TWO}, "ema", ONE), ({"state_dict": {"student": ONE}}, "student", ONE), (ONE, None, ONE)],
)  # fmt: skip
def test_the_entry_that_is_taken(content, key, taken):
    assert torch.equal(unwrap(content, key, "x.pth", "")["w"], taken["w"])


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [({"teacher": ONE, "student": TWO}, "studnet", "hold entries teacher, student, no tensors in 'studnet'"),
     ({"teacher": ONE, "epoch": 3}, "epoch", "hold entries teacher, epoch, no tensors in 'epoch'"),
     ({"model": ONE, "opt": {"teacher": TWO}}, "teacher", "hold entries model, opt, no tensors in 'teacher'"),
     (ONE, "teacher", "hold entries w, no tensors in 'teacher'"), ({"epoch": 3}, None, "no tensors by name: do this")],
)  # fmt: skip
def test_a_typed_key_that_is_missing_is_named(content, key, message):
    with pytest.raises(UserError, match=message):
        unwrap(content, key, "x.pth", "do this")


def test_who_has_no_such_flag_is_not_sent_to_it(tmp_path):
    """The trainer has no --checkpoint_key."""
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no tensors by name: save the dictionary of tensors alone"):
        load_weights(build_model("demo_vit"), tmp_path / "w.pth")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_damaged_ends_in_one_line(tmp_path, new):
    torch.save({"model": ONE, "epoch": 3}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    whole, draw, refused = (tmp_path / "w.pth").read_bytes(), random.Random(0), 0
    for _ in range(60):
        part = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.5 else whole)
        for _ in range(9):
            part[draw.randrange(len(part))] = draw.randrange(256)
        (tmp_path / "w.pth").write_bytes(part)
        try:
            read_checkpoint(tmp_path / "w.pth")
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 40  # the rest could be read


def test_no_terminal_codes_in_messages(tmp_path, capsys):
    torch.save({"model": ONE, "recipe": functools.partial(print)}, tmp_path / "unsafe.pth")
    with pytest.raises(UserError, match=r"may run code .*functools") as caught:
        read_checkpoint(tmp_path / "unsafe.pth")
    assert "\x1b" not in str(caught.value)
    assert str(UserError("\x1b[1mbold\x1b[0m text")) == "bold text"

    def fail(_):
        raise OSError("\x1b[31mred\x1b[0m")

    assert run(fail) == 2
    assert capsys.readouterr().err == "error: red\n"


def test_long_lists_of_names_are_cut():
    assert listed(range(8)) == "0, 1, 2, 3, 4, 5 and 2 more"
    assert listed(["a", "b"], 2) == "a, b"
