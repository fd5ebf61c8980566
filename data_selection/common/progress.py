"""One way to show progress: a tqdm bar where the caller wants one and stands at a terminal."""

from tqdm import tqdm


def open_bar(progress, total, desc, unit="it"):
    """A context manager with update(n) and set_postfix_str(text).

    progress: None for silence, or a factory called with total, desc and unit (commands.shared.bar_factory gives one).
    """
    if progress is None:
        return tqdm(total=total, disable=True)
    return progress(total=total, desc=desc, unit=unit)
