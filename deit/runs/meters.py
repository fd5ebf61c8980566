"""What a run says: one progress bar or short lines; log.txt, result.json, args.yaml, and events for TensorBoard."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from tqdm import tqdm

from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write
from deit.runs.kinds import Numbers, Settings


class Events(Protocol):
    """What is used of TensorBoard's SummaryWriter."""

    def add_scalar(self, tag: str, value: float, step: float, /) -> object: ...

    def close(self) -> object: ...


class RunLog:
    """The voice of rank 0; on other ranks, and where folder is None, the respective part is silent.

    At a terminal one bar over the run's steps shows the time left, the loss and the accuracy; elsewhere each
    evaluation prints a line. verbose: a line for each step instead. tensorboard: events in folder/tensorboard. desc:
    what stands before the bar. quiet: nothing but the bar.
    """

    def __init__(
        self,
        folder: Path | str | None,
        is_main: bool,
        *,
        verbose: bool = False,
        tensorboard: bool = False,
        desc: str = "finetune",
        quiet: bool = False,
    ) -> None:
        self.desc, self.quiet = desc, quiet
        self.folder = Path(folder) if folder and is_main else None
        self.is_main, self.verbose, self.accuracy, self.read = is_main, verbose, "", 0.0
        self.bar: tqdm[Any] | None = None  # until start
        self.writer = summary_writer() if tensorboard else None  # on every process: all end where it is missing
        self.events: Events | None = None  # until start

    @property
    def trial(self) -> str:
        """The name of a training that is none of the run's own and says nothing; "" for the run's own."""
        return self.desc if self.quiet else ""

    def say(self, text: str) -> None:
        if self.is_main and not self.quiet:
            tqdm.write(text)

    def start(self, epoch: int, epochs: int, steps: int, done: int, args: Settings) -> None:
        """Open the bar (epochs `epoch` to `epochs`, `done` of all `steps` steps behind it) and write args.yaml."""
        self.began, self.first, self.epochs = time.monotonic(), epoch, epochs
        hidden = None if self.is_main and not self.verbose else True  # None: off where there is no terminal
        self.bar = tqdm(
            total=steps, initial=done, desc=self.desc, unit="step", disable=hidden,
            dynamic_ncols=True, mininterval=0.5,
        )  # fmt: skip
        if self.folder:
            self.events = self.writer(str(self.folder / "tensorboard")) if self.writer else None
            with atomic_write(self.folder / "args.yaml", "w") as handle:
                yaml.safe_dump(args, handle, sort_keys=False)

    def keep(self, epochs: int) -> None:
        """Cut log.txt after `epochs` epochs: a continued run writes the later ones again, a new run all of them."""
        if self.folder:
            keep_lines(self.folder / "log.txt", epochs)

    def step(self, epoch: int, number: int, steps: int, loss: torch.Tensor, factor: float) -> None:
        """Show step `number` (from 0) of an epoch; loss (a tensor on the device) times factor is its training loss.

        The loss is read, which makes the device wait, once in two seconds for a bar that is seen, and if verbose.
        """
        assert self.bar is not None  # since start
        if self.verbose and self.is_main:
            self.say(f"epoch {epoch}/{self.epochs} step {number + 1}/{steps}: loss {loss.item() * factor:.4f}")
        elif not self.bar.disable and time.monotonic() - self.read > 2:
            self.read = time.monotonic()
            self.bar.set_postfix_str(f"loss {loss.item() * factor:.4f}{self.accuracy}", refresh=False)
        self.bar.update()

    def record(self, line: Numbers, best: Numbers | None = None) -> None:
        """Append an epoch's numbers to log.txt, as one JSON line, and show them. best: the best epoch's, or None."""
        assert self.bar is not None  # since start
        if self.folder:
            with (self.folder / "log.txt").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        accuracy = f", top-1 {line['test_acc1']:.2f} %" if "test_acc1" in line else ""
        self.accuracy, self.read = accuracy or self.accuracy, time.monotonic()
        self.bar.set_postfix_str(f"loss {line['train_loss']:.4f}{self.accuracy}", refresh=False)
        if self.events is not None:
            for name, value in line.items():
                self.events.add_scalar(name.replace("_", "/", 1), value, line["epoch"])
        if accuracy and self.bar.disable:
            self.say(self.told(line, f"test loss {line['test_loss']:.4f}{accuracy}", best))

    def told(self, line: Numbers, test: str, best: Numbers | None) -> str:
        """An epoch with an evaluation in one line. test: what that gave; best: the best epoch's numbers."""
        numbers = f"loss {line['train_loss']:.4f}, {test}"
        if line["epoch"] == 0:
            return f"head fitted on the frozen backbone: {numbers}"
        done = line["epoch"] - max(1, self.first) + 1
        left = (time.monotonic() - self.began) / done * (self.epochs - line["epoch"])
        so_far = f" (best {best['acc1']:.2f} % at epoch {best['epoch']})" if best and "acc1" in best else ""
        return f"epoch {line['epoch']}/{self.epochs}: lr {line['train_lr']:.3g}, {numbers}{so_far}, {clock(left)} left"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.events is not None:
            self.events.close()

    def stopped(self, by: str, place: str, *, resumes: bool) -> None:
        """Say that the run ends early, as asked by `by`, at a place of it, in words.

        resumes: whether the same command goes on by itself.
        """
        self.close()
        where = "nothing is saved without --output_dir"
        if self.folder:
            again = "" if resumes else " with --auto-resume"
            where = f"wrote checkpoint.pth in {self.folder}; the same command{again} continues"
            if not (self.folder / "checkpoint.pth").exists():
                where = "there was nothing to save yet"
        self.say(f"{by}: stopped {place} of {self.epochs}; {where}")

    def result(self, values: dict[str, Any]) -> None:
        """Write result.json."""
        if self.folder:
            with atomic_write(self.folder / "result.json", "w") as handle:
                json.dump(values, handle)
                handle.write("\n")


def summary_writer() -> Callable[[str], Events]:
    """torch's SummaryWriter. Raises UserError where the package tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard, or leave the flag out; "
            "log.txt has the same numbers"
        ) from None
    return SummaryWriter


def keep_lines(path: Path, epochs: int) -> None:
    """Rewrite a log.txt with its lines of the first `epochs` epochs."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = []
    for line in lines:
        try:
            if line.endswith("\n") and json.loads(line)["epoch"] <= epochs:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            break  # a line that a killed run left half written
    with atomic_write(path, "w") as handle:
        handle.writelines(kept)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
