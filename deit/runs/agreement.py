"""Processes of one run that are about to train different things: found before the first step, not in the result."""

import hashlib
import json

import torch
from torch import nn

from data_selection.common.distributed import World, on_main
from data_selection.common.errors import UserError
from deit.runs.checkpoints import RECIPE, plain, steps_done
from deit.runs.kinds import Settings, State


def check_start_agrees(world: World, settings: Settings, state: State | None) -> None:
    """Raise UserError where the processes' recipes, training images or steps to continue from differ.

    state: of the checkpoint to continue, None where there is none.
    """
    recipe = {f"--{name.replace('_', '-')}": plain(name, settings[name]) for name in RECIPE if name in settings}
    images = recipe.pop("--train-ids", None)
    done = {"epochs done": state["epoch"], "steps done": steps_done(state)} if state is not None else {"epochs done": 0}
    check_agreement(world, recipe | {"training images": images} | done)


def check_weights_agree(world: World, model: nn.Module) -> None:
    """Raise UserError where the processes' weights differ in a bit. Reads them all, with several processes."""
    if world.size > 1:
        check_agreement(world, {"weights": digest(model)})


def check_agreement(world: World, mine: dict[str, object]) -> None:
    """Raise UserError on rank 0, and end the others quietly, where not all processes have the same values."""

    def compare() -> None:
        for rank, other in enumerate(values):
            differing = [name for name in mine if other.get(name) != values[0].get(name)]
            if differing:
                name = differing[0]
                raise UserError(
                    f"the processes of this run would not train the same: {name} {values[0].get(name)} in process 0, "
                    f"{other.get(name)} in process {rank}"
                    + (f" ({', '.join(differing[1:])} differ, too)" if differing[1:] else "")
                    + ": give all the same command, and files that are the same for all"
                )

    values = [json.loads(text) for text in world.gather(json.dumps(mine, default=str))]
    on_main(world, compare)


def digest(model: nn.Module) -> str:
    """A hash of all tensors of a model, in hex."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in model.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
