"""What is in a file of weights: read without running code from it, its wrappings taken off."""

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_selection.common.errors import UserError

WRAPPINGS = ("teacher", "model", "state_dict", "student")  # entries of a checkpoint that may hold the weights
PREFIXES = ("module.", "backbone.", "_orig_mod.")  # left by DistributedDataParallel, DINO and torch.compile


def read_checkpoint(path: Path | str) -> Any:
    """The content of a .safetensors file, or of a torch file read without running code from it.

    argparse.Namespace is let through: full DINO and DeiT checkpoints carry their arguments. Raises UserError where the
    file is damaged or holds other objects.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(
                f"weights {path} are truncated or no safetensors file ({error}): fetch them again"
            ) from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines() or [""]  # the first advises to run the file's code
        reason = next((line for line in lines if "Unpickler error" in line), lines[0]).strip()
        raise UserError(
            f"weights {path} are damaged, or hold Python objects besides tensors, which are not loaded because "
            f"that may run code ({reason}): save the state_dict alone, best as .safetensors"
        ) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - readers of damaged files raise whatever they come upon
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        reason = reason.split(". ")[0]  # torch goes on with what may be the cause
        raise UserError(f"weights {path} are truncated or no torch file ({reason}): fetch them again") from None


def unwrap(content: object, checkpoint_key: str | None, path: Path, hint: str) -> dict[str, torch.Tensor]:
    """The dictionary of tensors within a checkpoint's wrappings.

    checkpoint_key: the entry that it must be in, or None. hint: what the error says to do where there are no tensors.
    """
    held = f"entries {listed(list(content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
    found = checkpoint_key is None
    while isinstance(content, dict):
        inner = next((key for key in (checkpoint_key, *WRAPPINGS) if isinstance(content.get(key), dict)), None)
        if inner is None:
            tensors = {key: value for key, value in content.items() if isinstance(key, str) and torch.is_tensor(value)}
            if found and tensors and len(tensors) == len(content):
                return tensors
            break
        content, found = content[inner], found or inner == checkpoint_key
    if not found:
        raise UserError(f"weights {path} hold {held}, no tensors in {checkpoint_key!r}: name another entry, or none")
    raise UserError(f"weights {path} hold {held}, no tensors by name: {hint}")


def strip_prefixes(
    tensors: dict[str, torch.Tensor], own: dict[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Names as the model has them: wrapping prefixes go, unless the model's own names start that way."""
    stripped: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        while key not in own and key.startswith(PREFIXES):
            key = key.split(".", 1)[1]
        if key in stripped:
            raise UserError(f"weights {path} hold {key} twice under different prefixes: give a file with one backbone")
        stripped[key] = tensor
    return stripped


def listed(keys: Sequence[object], count: int = 6) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(map(str, keys[:count])) + (f" and {len(keys) - count} more" if len(keys) > count else "")
