"""Runs of deit/main.py, each in a process of its own: as an evaluation of experiments, and for the benchmarks."""

import ctypes
import signal
import subprocess
import sys
import time
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.files import read_json, sha256
from data_selection.common.paths import ROOT
from data_selection.common.system import ended
from data_selection.judging.experiments.cells import Kind
from data_selection.judging.experiments.plan import resolve
from deit.learner.building import check_learner
from deit.learner.building import resolve as resolve_flags
from deit.options import build_parser, parse
from deit.recipes import flag_tokens, recipe_file
from deit.samples.sources import check_images

OURS = ("subset_ids", "output_dir", "resume", "auto_resume", "seed", "config", "eval", "start_epoch", "missing")
FILES = ("finetune", "labels", "val_labels", "teacher_path", "features", "train_path", "val_path")  # by their content
FOLDERS = ("train_path", "val_path")  # or lists of paths
GIVEN = ("--subset_ids", "LIST", "--output_dir", "FOLDER", "--auto-resume")  # what every run is given, for a check
READS_POOL = ("self-train", "smoothed", "auto")  # modes that learn from the images without a label, too
PLACES = ("data_path", "device", "num_workers", "pin_mem", "verbose", "tensorboard", "save_interval")  # change nothing
SCORES = ("last", "best", "ema", "graph")  # the last epoch's, the best one's, the average's, the pool's graph's
# Runs a program (FILE or -m MODULE) and leaves in a file how many kB it held at most, or one of its processes. What the
# system counts for a child (ru_maxrss) is never below what its parent holds, which may be a large pool.
MEASURED = """
import atexit, os, pathlib, resource, runpy, sys
peak, status = pathlib.Path(sys.argv.pop(1)), pathlib.Path("/proc/self/status")
def told():
    held = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    peak.write_text(str(max(int(held[0]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)))
if status.exists():
    atexit.register(told)
module = sys.argv[1] == "-m"
del sys.argv[: 1 + module]
sys.path[0] = os.path.dirname(sys.argv[0])
if module:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
DEATH = 1  # prctl's PR_SET_PDEATHSIG


def check(settings, pool, where):
    """{flags: by name, those of the pool among them; processes: of torchrun; folders: names of flags, as typed}.

    UserError for what is no flag, for flags that the trainer refuses, and where the images are not at hand.
    """
    flags = {str(key).replace("-", "_"): value for key, value in (dict(pool.trainer) | settings).items()}
    flags = {name: value for name, value in flags.items() if value is not None}
    processes = flags.pop("processes", 1)
    if type(processes) is not int or processes < 1:
        raise UserError(f"{where}: processes {processes!r} must be a whole number from 1")
    flag_tokens(flags, build_parser(), where, OURS)
    if "data_set" not in flags:
        raise UserError(f"{where}: pool {pool.name!r} needs trainer: {{data-set: ...SUBSET, data-path: ...}}")
    folders = {name: flags[name] for name in FOLDERS if name in flags}
    for name in (*FILES, "data_path"):
        path = resolve(str(flags.get(name) or "none"))
        flags |= {name: str(path.absolute())} if path.exists() else {}
    try:
        args = parse([*flag_tokens(flags, build_parser(), where), *GIVEN])
        check_images(args.data_set.removesuffix("SUBSET"), args.data_path, args.train_path, args.val_path)
        resolve_flags(args)
        check_learner(args)
    except UserError as error:
        raise UserError(f"{where}, pool {pool.name!r}: {error}") from None
    if pool.imbalance and args.mode in READS_POOL:
        raise UserError(f"{where}: {args.mode} learns from all images of {pool.name!r}, not from its cut: leave it out")
    return {"flags": flags, "processes": processes, "folders": folders}


def key(settings, hash_of=sha256):
    """What a run depends on: its flags, for files and the recipe what is in them, and the number of processes.

    A folder counts by the name in the config, wherever the experiment is. hash_of: of a file's content.
    """
    flags = {name: value for name, value in settings["flags"].items() if name not in PLACES}
    for name in FILES:
        if (path := Path(str(flags.get(name, "")))).is_file():
            flags[name] = hash_of(path)
        elif name in settings["folders"]:
            flags[name] = settings["folders"][name]
    flags["recipe"] = sha256(recipe_file(str(flags.get("recipe", "auto")), flags["data_set"]))
    return {"flags": flags, "processes": settings["processes"]}


def run(task):
    """An evaluation by the trainer: accuracies, and what the run took. A killed one goes on where it stopped."""
    flags = dict(task.settings["flags"])
    processes = task.settings["processes"]
    if task.device != "auto":  # which is the trainer's own default, and a recipe may know better
        # a single card chooses the lists; of several processes each needs its own
        flags.setdefault("device", task.device if processes == 1 else task.device.split(":")[0])
    words = flag_tokens(flags, build_parser(), "trainer")
    words += ["--subset_ids", task.file, "--seed", task.seed, "--auto-resume"]
    return train(words, task.folder, processes)


TRAINER = Kind(SCORES, False, check, run, key)


def train(words, folder, processes=1):
    """Run deit/main.py with these words; it writes to `folder`. Returns its SCORES, verdict, minutes and GiB.

    Its output goes to FOLDER.log, which stays where it fails; then UserError with the last line.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    command = [*launcher, ROOT / "deit" / "main.py", *words, "--output_dir", folder]
    folder.mkdir(parents=True, exist_ok=True)
    peak = folder.parent / f"{folder.name}.peak"
    began = time.perf_counter()
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", MEASURED, *map(str, [peak.absolute(), *command])], stdout=log, stderr=log,
            preexec_fn=die_with_us(signal.SIGTERM if processes > 1 else signal.SIGKILL),
        )  # fmt: skip
        status = child.wait()
    held = int(peak.read_text()) if peak.exists() else 0
    peak.unlink(missing_ok=True)
    if status:
        said = Path(log.name).read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"the trainer {ended(status)}, {''.join(said)} ({log.name}): {' '.join(map(str, command))}")
    Path(log.name).unlink()
    result = read_json(folder / "result.json")
    return {name: result[name] and result[name]["acc1"] for name in SCORES} | {
        "verdict": result["verdict"],
        "minutes": (time.perf_counter() - began) / 60,
        "gib": held / 2**20,
    }


def die_with_us(number):
    """What a child calls first, so that a killed parent leaves no training behind; Linux alone knows how."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(DEATH, number)
