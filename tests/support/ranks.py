"""A few processes that make a group, as a launcher would start them."""

import os

import torch
import torch.multiprocessing as mp

from data_selection.common.errors import run
from tests.support.forks import FORKS
from tests.support.trainer_runs import free_port


def as_ranks(size, function, *args):
    """Call function(rank, *args) in `size` processes of one launcher; returns when all have ended."""
    mp.start_processes(one, (size, free_port(), function, args), nprocs=size, start_method=FORKS.get_start_method())


def one(rank, size, port, function, args):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    function(rank, *args)


def errors_of(size, function, folder):
    """What each of the processes says on stderr as a command that calls function(rank)."""
    as_ranks(size, command, function, folder)
    return [(folder / f"said_{rank}").read_text() for rank in range(size)]


def command(rank, function, folder):
    """Write what errors.run says, or the error that it lets through, into a file."""
    handle = os.open(folder / f"said_{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(handle, 2)
    try:
        run(lambda _: function(rank))
    except Exception as error:  # noqa: BLE001 - what a traceback's last line would be
        os.write(2, f"{type(error).__name__}: {error}".encode())
