"""Where a subset list goes and what it is called by default. Imports nothing slow."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data_selection.common.errors import UserError
from data_selection.common.files import check_writable
from data_selection.common.paths import SUBSETS

LONGEST_WORD, LONGEST_NAME = (
    24,
    200,
)  # characters, bytes; file systems take 255 bytes, and names of temporary files are longer


class ActiveFTSettings(Protocol):
    """What a name says of methods.configs.ActiveFTConfig, which this room may not import."""

    @property
    def init(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def distance(self) -> str: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def balance(self) -> float: ...
    @property
    def max_iter(self) -> int: ...


def activeft_name(
    stem: str, config: ActiveFTSettings, count: int, seed: int = 0, settings: Mapping[str, object] | None = None
) -> str:
    """The released default name of an ActiveFT subset.

    Appended where they are not the released programs' only way: `_init_I`, `_objective_O`, `_NAME_VALUE` for each of
    settings, `_seed_S`.
    """
    balance = "" if config.balance == 1 else f"_br_{_digits(config.balance, 2)}"
    ours = "".join(
        f"_{name}_{value}" for name, value, usual in (
            ("init", config.init, "random"), ("objective", config.objective, "released"),
        ) if value != usual
    )  # fmt: skip
    return (
        f"{stem}_ActiveFT_{config.distance}_temp_{_digits(config.temperature, 2)}_lr_{_digits(config.lr, 6)}"
        f"_scheduler_{config.scheduler}{balance}_iter_{config.max_iter}_sampleNum_{count}{ours}{_listed(settings)}"
        f"{seed_suffix(seed)}.json"
    )


def _digits(value: float, places: int) -> str:
    """The released form with a fixed number of places; more of them where it would lose some (0.005 is not 0.01)."""
    text = f"{value:.{places}f}"
    return text if float(text) == value else f"{value:g}"


def bilaf_name(budget: int, cores: int, seed: int = 0, settings: Mapping[str, object] | None = None) -> str:
    """The released default name of a BiLAF subset.

    Appended: `_NAME_VALUE` for each of settings, `_seed_S` where the seed is not 0.
    """
    return f"Density_{budget}_from_ActiveFT{cores}{_listed(settings)}{seed_suffix(seed)}.json"


def method_name(stem: str, method: str, count: int, seed: int = 0, settings: Mapping[str, object] | None = None) -> str:
    """The default name of a subset of any other method; settings as in bilaf_name."""
    return f"{stem}_{method}_sampleNum_{count}{_listed(settings)}{seed_suffix(seed)}.json"


def _listed(settings: Mapping[str, object] | None) -> str:
    return "".join(f"_{name}_{setting_word(value)}" for name, value in (settings or {}).items())


def setting_word(value: object) -> str:
    """How a name tells a setting: as it is; yes or no; a list by its length and digest, a long text by its digest."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return f"{len(value)}_{digest(value)}"
    text = str(value)
    return text if len(text) <= LONGEST_WORD and re.fullmatch(r"[\w.+-]*", text) else digest(text)


def digest(value: Sequence[object] | str) -> str:
    """Eight hex digits that tell a list or text from others."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def with_settings(name: str, settings: Mapping[str, object]) -> str:
    """A default name with more settings told at its end."""
    return name.removesuffix(".json") + _listed(settings) + ".json"


def shortened(name: str) -> str:
    """A default name as it is, where file systems take it; else its beginning and a digest of all."""
    if len(name.encode(errors="surrogateescape")) <= LONGEST_NAME:
        return name
    start = name.encode(errors="surrogateescape")[: LONGEST_NAME - len("_12345678.json")]
    return f"{start.decode(errors='ignore')}_{digest(name)}.json"


def default_folder(feature_path: Path | str) -> Path:
    """subsets/<POOL> of a feature file: CIFAR10_train.npy -> subsets/CIFAR10."""
    stem = Path(feature_path).stem
    pool = next((stem.removesuffix(end) for end in ("_train", "_test", "_val") if stem.endswith(end)), stem)
    return SUBSETS / pool


def output_path(folder: Path | str, name: str) -> Path:
    """Where a subset file is to go, checked before the work. Raises UserError or OSError where it can't be written.

    A feature file of the same stem is refused: both would own X.provenance.json.
    """
    path = check_writable(Path(folder) / name)
    if path.with_suffix(".npy").exists():
        raise UserError(f"{path} would share its provenance file with {path.with_suffix('.npy')}: choose another name")
    return path


def seed_suffix(seed: int) -> str:
    return "" if seed == 0 else f"_seed_{seed}"
