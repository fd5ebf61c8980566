"""Processes of a run that would train different things end before the first step, and say what differs."""

import pytest
import torch

from data_selection.common.errors import UserError
from deit.runs.agreement import check_agreement, check_start_agrees, check_weights_agree
from tests.support.thread_world import on_ranks
from tests.support.trainer_runs import child, command, free_port, make_images


def outcome(function):
    def call(world):
        try:
            return function(world)
        except (UserError, SystemExit) as error:
            return str(error)

    return call


def test_the_same_passes_and_what_differs_is_named():
    same = {"--lr": 0.1, "--opt-betas": (0.9, 0.99)}
    assert on_ranks(3, outcome(lambda world: check_agreement(world, same))) == [None] * 3
    said = on_ranks(3, outcome(lambda world: check_agreement(world, same | {"epochs done": world.rank // 2})))
    assert "epochs done 0 in process 0, 1 in process 2: give all the same command" in said[0]
    assert said[1:] == ["2", "2"]


def test_steps_of_an_epoch_that_one_process_has_done_alone():
    def check(world):
        sofar = {"sofar": {"losses": torch.zeros(2)}} if world.rank else {}
        check_start_agrees(world, {"lr": 0.1}, {"epoch": 1} | sofar)

    assert "steps done 0 in process 0, 2 in process 1" in on_ranks(2, outcome(check))[0]


def test_one_bit_of_one_weight():
    def check(world):
        model = torch.nn.BatchNorm1d(3)
        if world.rank == 1:
            model.running_var[1] += 1e-7
        check_weights_agree(world, model)

    assert "weights" in on_ranks(2, outcome(check))[0]


@pytest.mark.parametrize("differing", ["lr", "finetune"])
def test_a_run(differing, tmp_path):
    images = make_images(tmp_path)
    weights = torch.load(images / "weights.pth", weights_only=True)
    torch.save(weights | {"cls_token": weights["cls_token"] + 1}, images / "other.pth")
    other = {"lr": {"lr": 0.06}, "finetune": {"finetune": images / "other.pth"}}[differing]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        child(
            command(images, tmp_path / "out", num_workers=0, **(other if rank else {})),
            str(tmp_path / f"said_{rank}"), **shared, RANK=str(rank), LOCAL_RANK=str(rank),
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        process.join(60)
    said = (tmp_path / "said_0").read_text()
    assert [process.exitcode for process in processes] == [2, 2], said
    assert {"lr": "--lr 0.05 in process 0, 0.06 in process 1", "finetune": "weights"}[differing] in said
    assert not list((tmp_path / "out").glob("*.pth"))
