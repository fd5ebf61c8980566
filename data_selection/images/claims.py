"""Which label an image has where several files name one: a later word counts, and what it corrects is told."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_selection.common.listed_names import composed, unquoted
from data_selection.images.label_files import some
from data_selection.images.name_finder import Finder, by_file_name_alone

if TYPE_CHECKING:
    from data_selection.images.answers import Answers

SHOWN = 10  # corrections that a line names
ROWS = 50  # rows that it names where they are to be taken out


@dataclass(eq=False)
class Source:
    """A file or folder of labels, and how it stands to others that name the same images.

    rows: (name as the pool has it, label) of what is known of it already; by default it is read. renamed: {name in it:
    name by which its label is returned, None where that image is gone}. places: {name under which an image was handed
    out: its name in the pool}. only: names in it that count, by default all. over: sources whose labels its own
    correct. kept: whether it is a copy of what earlier rounds said then, which any word of today corrects. earlier:
    whether its labels are of earlier rounds.
    """

    path: Path
    rows: Sequence[tuple[str, str]] | None = None
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    only: Collection[str] | None = None
    over: set["Source"] = field(default_factory=set)
    kept: bool = False
    earlier: bool = False

    def corrects(self, other: "Source") -> bool:
        return other in self.over or (other.kept and not self.kept)

    @property
    def title(self) -> str:
        return "labels of earlier rounds" if self.earlier else f"labels of {self.path}"


@dataclass
class Claims:
    """What sources say, as it is read. said: {name: [(label, source)]}; unknown, elsewhere: rows, for a message."""

    said: defaultdict[str, list[tuple[str, Source]]] = field(default_factory=lambda: defaultdict(list))
    unknown: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def add(self, rows: Sequence[tuple[str, str]], source: Source, finder: Finder) -> None:
        """Put the rows' labels under the pool's names."""
        for file, label in rows:
            name = file if source.rows is not None else self.find(file, source, finder)
            if name is None or (source.only is not None and name not in source.only):
                continue
            today = source.renamed.get(name, name)
            word = composed(unquoted(label.strip())) if source.rows is None else label
            if word and today is not None:
                self.said[today].append((word, source))

    def find(self, file: str, source: Source, finder: Finder) -> str | None:
        """The pool's name of a row's image; None, and a note, where there is none."""
        name = finder.find(file)
        if name is None:
            self.unknown.append(f"{file} ({source.path.name}{finder.why_not(file)})")
        elif finder.placed(file) is None and by_file_name_alone(file, name):
            self.elsewhere.append(f"{file} as {name}")
        return name

    def settle(self, result: "Answers", flag: str, *, partial: bool) -> None:
        """Give each image its label, tell which ones that corrects, and put what does not fit among the faults.

        partial: rows of no image are told alone; flag: how a command is asked for that.
        """
        both, corrected = [], defaultdict[tuple[str, Path], dict[str, str]](dict)
        for name, said in self.said.items():
            last = [(word, one) for word, one in said if not any(other.corrects(one) for _, other in said)]
            (label, winner), words = last[0], {word for word, _ in last}
            result.labels[name], result.said[name] = label, winner.path
            if len(words) > 1:
                result.apart.add(name)
                both.append(f"{name} ({two_words(last)})")
                continue
            for word, one in said:
                if word != label:
                    corrected[one.title, winner.path][name] = f"{name} ({word} -> {label})"
        if self.elsewhere:
            told = some(self.elsewhere)
            result.understood.append(f"{len(self.elsewhere)} rows by their file name, in another folder: {told}")
        for (title, path), told_of in corrected.items():
            told = some(list(told_of.values()), SHOWN)
            result.understood.append(f"{len(told_of)} {title} are corrected: {told}, by {path}")
        if self.unknown:
            told = f"{len(self.unknown)} rows are of no image of the pool: {some(self.unknown, ROWS)}"
            if partial:
                result.understood.append(f"left out: {told}")
            else:
                result.faults.append(f"{told}; take these rows out, or {flag} leaves them out")
        if both:
            result.faults.append(f"{len(both)} images have two labels: {some(both)}; correct one of the two")


def two_words(said: Sequence[tuple[str, Source]]) -> str:
    """The labels of one image with the files that they are from, for a message."""
    first = {word: source.path for word, source in reversed(said)}
    places = list(dict.fromkeys(first.values()))
    if len(places) == 1:
        return f"{' and '.join(map(repr, reversed(first)))} in {places[0]}"
    return " and ".join(f"{word!r} in {path}" for word, path in reversed(first.items()))


def copies_apart(answers: "Answers", hashes: Mapping[str, str]) -> list[str]:
    """A sentence where images that are equal to the byte have two labels; else none. hashes: {name: of its content}."""
    groups = defaultdict[str, dict[str, str]](dict)  # of each content the first image of each label
    for name, label in sorted(answers.labels.items()):
        if hashes.get(name):
            groups[hashes[name]].setdefault(label, name)
    apart = [
        " and ".join(f"{name} ({label!r} in {answers.said[name]})" for label, name in group.items())
        for group in groups.values()
        if len(group) > 1
    ]
    told = f"{len(apart)} images have copies, equal to the byte, with another label: {some(apart)}"
    return [f"{told}; correct one of the two"] if apart else []
