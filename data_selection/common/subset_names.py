"""Where a subset list goes and what it is called by default. Imports nothing slow."""

from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.files import check_writable
from data_selection.common.paths import SUBSETS


def activeft_name(stem, config, count, seed=0):
    """The released default name of an ActiveFT subset.

    Appended where they are not the released programs' only way: `_init_I`, `_objective_O`, `_seed_S`. config: an
    ActiveFTConfig.
    """
    balance = "" if config.balance == 1 else f"_br_{_digits(config.balance, 2)}"
    ours = "".join(
        f"_{name}_{value}" for name, value, usual in (
            ("init", config.init, "random"), ("objective", config.objective, "released"),
        ) if value != usual
    )  # fmt: skip
    return (
        f"{stem}_ActiveFT_{config.distance}_temp_{_digits(config.temperature, 2)}_lr_{_digits(config.lr, 6)}"
        f"_scheduler_{config.scheduler}{balance}_iter_{config.max_iter}_sampleNum_{count}{ours}{seed_suffix(seed)}.json"
    )


def _digits(value, places):
    """The released form with a fixed number of places; more of them where it would lose some (0.005 is not 0.01)."""
    text = f"{value:.{places}f}"
    return text if float(text) == value else f"{value:g}"


def bilaf_name(budget, cores, seed=0, settings=None):
    """The released default name of a BiLAF subset.

    Appended: `_NAME_VALUE` for each of settings (a dictionary), `_seed_S` where the seed is not 0.
    """
    return f"Density_{budget}_from_ActiveFT{cores}{_listed(settings)}{seed_suffix(seed)}.json"


def method_name(stem, method, count, seed=0, settings=None):
    """The default name of a subset of any other method; settings as in bilaf_name."""
    return f"{stem}_{method}_sampleNum_{count}{_listed(settings)}{seed_suffix(seed)}.json"


def _listed(settings):
    return "".join(f"_{name}_{value}" for name, value in (settings or {}).items())


def default_folder(feature_path):
    """subsets/<POOL> of a feature file: CIFAR10_train.npy -> subsets/CIFAR10."""
    stem = Path(feature_path).stem
    pool = next((stem.removesuffix(end) for end in ("_train", "_test", "_val") if stem.endswith(end)), stem)
    return SUBSETS / pool


def output_path(folder, name):
    """Where a subset file is to go, checked before the work. Raises UserError or OSError where it can't be written.

    A feature file of the same stem is refused: both would own X.provenance.json.
    """
    path = check_writable(Path(folder) / name)
    if path.with_suffix(".npy").exists():
        raise UserError(f"{path} would share its provenance file with {path.with_suffix('.npy')}: choose another name")
    return path


def seed_suffix(seed):
    return "" if seed == 0 else f"_seed_{seed}"
