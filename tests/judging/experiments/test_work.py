"""Who is told how much of an experiment is left."""

from types import SimpleNamespace

from data_selection.judging.experiments import work


class Shelf:
    """A store that another process fills: `others` is known after its first look."""

    def __init__(self, others=()):
        self.found, self.others, self.claimed = set(), set(others), []

    def known(self):
        return self.found

    def claim(self, digest):
        if digest in self.others:  # another process computes it, and is done by the next look
            self.found.add(digest)
            return False
        self.claimed.append(digest)
        return True

    def release(self, digest):
        self.claimed.remove(digest)


def test_what_is_missing_is_told_after_every_look_and_every_cell(monkeypatch):
    cells, shelf, told = [SimpleNamespace(digest=name, pool="one") for name in "abc"], Shelf("c"), []
    monkeypatch.setattr(
        work, "missing", lambda some, store: [cell for cell in some if cell.digest not in store.known()]
    )
    monkeypatch.setattr(work, "compute_one", lambda cell, store, *_: bool(store.found.add(cell.digest) or True))
    work.compute(cells, shelf, {"one": None}, {}, "cpu", told.append)
    assert told == [3, 2, 1, 0]
    assert not shelf.claimed
