"""What a run says: one progress bar or short lines, and the files log.txt, result.json and args.yaml."""

import json
import time
from pathlib import Path

import yaml
from tqdm import tqdm

from data_selection.files import atomic_write


class RunLog:
    """The voice of rank 0; on other ranks, and where folder is None, the respective part is silent.

    At a terminal one bar over the run's steps shows the rate, the loss and the accuracy; elsewhere each evaluation
    prints a line.
    """

    def __init__(self, folder, is_main):
        self.folder = Path(folder) if folder and is_main else None
        self.is_main, self.bar, self.loss = is_main, None, ""

    def say(self, text):
        if self.is_main:
            tqdm.write(text)

    def start(self, epoch, epochs, steps, args):
        """Open the bar (epochs `epoch` to `epochs`, of `steps` steps) and write args.yaml."""
        self.began, self.first, self.epochs = time.monotonic(), epoch, epochs
        hidden = None if self.is_main else True
        self.bar = tqdm(
            total=epochs * steps, initial=max(0, epoch - 1) * steps, desc="finetune", unit="step", disable=hidden,
            dynamic_ncols=True, mininterval=0.5,
        )  # fmt: skip
        if self.folder:
            with atomic_write(self.folder / "args.yaml", "w") as handle:
                yaml.safe_dump(args, handle, sort_keys=False)

    def keep(self, epochs):
        """Cut log.txt after `epochs` epochs: a continued run writes the later ones again, a new run all of them."""
        if self.folder:
            keep_lines(self.folder / "log.txt", epochs)

    def step(self, number, loss, factor):
        """Advance the bar after step `number` (from 0) of an epoch; loss times factor is its training loss."""
        self.bar.update()

    def record(self, line, best=None):
        """Append an epoch's numbers to log.txt, as one JSON line, and show them. best: the best epoch's, or None."""
        if self.folder:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        accuracy = f", top-1 {line['test_acc1']:.2f} %" if "test_acc1" in line else ""
        self.loss = accuracy or self.loss
        self.bar.set_postfix_str(f"loss {line['train_loss']:.4f}{self.loss}", refresh=False)
        if accuracy and self.bar.disable:
            numbers = f"loss {line['train_loss']:.4f}, test loss {line['test_loss']:.4f}{accuracy}"
            if line["epoch"] == 0:
                return self.say(f"head fitted on the frozen backbone: {numbers}")
            done = line["epoch"] - max(1, self.first) + 1
            left = (time.monotonic() - self.began) / done * (self.epochs - line["epoch"])
            self.say(
                f"epoch {line['epoch']}/{self.epochs}: lr {line['train_lr']:.3g}, {numbers} "
                f"(best {best['acc1']:.2f} % at epoch {best['epoch']}), {clock(left)} left"
            )

    def close(self):
        if self.bar is not None:
            self.bar.close()

    def stopped(self, epoch):
        """Say that the run ends early, as asked, after `epoch`."""
        self.close()
        where = (
            f"wrote checkpoint.pth in {self.folder}; the same command with --auto-resume continues"
            if self.folder
            else "nothing is saved without --output_dir"
        )
        self.say(f"SIGTERM: stopped after epoch {epoch} of {self.epochs}; {where}")

    def result(self, values):
        """Write result.json."""
        if self.folder:
            with atomic_write(self.folder / "result.json", "w") as handle:
                json.dump(values, handle)
                handle.write("\n")


def keep_lines(path, epochs):
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


def clock(seconds):
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
