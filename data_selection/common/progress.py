"""One way to show progress: a tqdm bar where the caller wants one and stands at a terminal."""

from types import TracebackType
from typing import Protocol

from tqdm import tqdm


class Bar(Protocol):
    """What is used of a tqdm bar."""

    def update(self, n: int, /) -> object: ...

    def set_postfix_str(self, s: str, /) -> object: ...

    def __enter__(self) -> "Bar": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...


class OpenBar(Protocol):
    """A progress factory: tqdm itself, or what commands.shared.bar_factory gives."""

    def __call__(self, *, total: int, desc: str, unit: str) -> Bar: ...


def open_bar(progress: OpenBar | None, total: int, desc: str, unit: str = "it") -> Bar:
    """A context manager with update(n) and set_postfix_str(text); progress: None for silence."""
    if progress is None:
        return tqdm(total=total, disable=True)
    return progress(total=total, desc=desc, unit=unit)
