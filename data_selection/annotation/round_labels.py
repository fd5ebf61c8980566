"""What a round and those before it say of their images today: their tables, and what training was given instead.

A round keeps a copy of the labels of the rounds before it (labelled.csv). The word that a person gave last counts: what
these folders say today corrects the copy, the round's own table corrects both, and so do labels that training was given
by --labels (labels.csv), unless the others have changed since. What training has taken from an earlier round stays,
also where that is not at hand any more.
"""

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_selection.annotation.run_folder import (
    ANSWERS,
    LABELLED,
    SUBSET,
    UNDERSTOOD,
    WAITING,
    chosen_names,
    contents,
    is_run,
    note,
    read_run,
)
from data_selection.common.feature_table import sidecar
from data_selection.common.files import sha256
from data_selection.images.answers import Answers, read_answers, written_labels
from data_selection.images.claims import Source

EARLIER, GIVEN = "earlier", "given"  # of run.json


def digest(labels: Mapping[str, str], waiting: Sequence[str] = ()) -> str:
    """What labels, and names that wait for one, are told apart by."""
    text = json.dumps([sorted(labels.items()), sorted(waiting)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def note_earlier(runs: Iterable[Path], out: Path) -> list[dict[str, str]]:
    """For run.json: where earlier rounds are, from anywhere and from `out`, and their lists, to know them by."""
    return [
        {
            "folder": os.path.abspath(run),  # noqa: PTH100 - links stay
            "beside": Path(os.path.relpath(run, out)).as_posix(),
            "list": sha256(sidecar(run / SUBSET, "provenance")),
        }
        for run in runs
    ]


def earlier_runs(run: Path) -> list[Path]:
    """The folders of the rounds that a run took labels from, those that are at hand."""
    found = []
    for one in read_run(run).get(EARLIER) or ():
        for place in (Path(os.path.normpath(run / one["beside"])), Path(one["folder"])):
            record = sidecar(place / SUBSET, "provenance")
            with contextlib.suppress(OSError):  # a folder that is not ours to read is not at hand
                if is_run(place) and record.is_file() and sha256(record) == one["list"]:
                    found.append(place)
                    break
    return found


def rounds_before(*runs: Path) -> set[Path]:
    """All rounds at hand that came before any of some runs, by their real places."""
    found: set[Path] = set()
    ahead = list(runs)
    while ahead:  # each once: a round that names all before it has 2 ** rounds ways back to the first
        new = {one.resolve(): one for one in earlier_runs(ahead.pop())}
        ahead += [one for place, one in new.items() if place not in found]
        found.update(new)
    return found


def sources_in_turn(runs: Sequence[Path], names: Sequence[str]) -> dict[Path, list[Source]]:
    """{run: its Sources}, where what a round says itself corrects what those before it say of the same images."""
    before = {run: rounds_before(run) for run in runs}
    found = {run: sources_of(run, names) for run in runs}
    for run, sources in found.items():
        earlier = [one for other in runs if other.resolve() in before[run] for one in found[other]]
        for source in sources:
            if not source.earlier:
                source.over.update(earlier)
    return found


def sources_of(
    run: Path, names: Sequence[str], asked: Sequence[str] = (), given: Sequence[Source] | None = None
) -> list[Source]:
    """The Sources of all labels of a run, by its own names of images.

    names, asked: as for read_answers; given: in place of what its own tables say.
    """
    before = sources_before(run, names)
    if given is None:
        return [*before, *own_sources(run, before, names, asked)]
    for source in given:
        source.over.update(before)
    return [*before, *given]


def sources_before(run: Path, names: Sequence[str]) -> list[Source]:
    """The Sources of labels of the rounds before a run: its copy of them, and what they say of these images today.

    A copy that somebody has changed is a word of its own, which no earlier round corrects.
    """
    path = run / LABELLED
    if not path.exists():
        return []
    record = read_run(run)
    asked = (record.get("request") or {}).get("labelled")
    written = written_labels(path)
    copied = asked is None or asked == digest(written, record.get(WAITING) or ())
    kept = written if copied else read_answers([path], names).labels
    found, direct = [Source(path, kept=copied, earlier=True)], earlier_runs(run)
    later = rounds_before(*direct)  # these come through the rounds after them
    for one in direct:
        if one.resolve() not in later:
            found += words_today(one, run, kept)
    return found


def words_today(earlier: Path, run: Path, kept: Mapping[str, str]) -> list[Source]:
    """What an earlier round says today of the images of a later one's copy `kept`, a Source for each of its files."""
    copy, asked = earlier / LABELLED, chosen_names(earlier)
    names = list(dict.fromkeys([*kept, *(written_labels(copy) if copy.exists() else ()), *asked]))
    before = sources_before(earlier, names)
    answers = read_answers([*before, *own_sources(earlier, before, names, asked)], names, asked)
    rows: defaultdict[Path, list[tuple[str, str]]] = defaultdict(list)
    if not answers.faults and all(kept.get(name) == label for name, label in answers.labels.items()):
        for name, label in answers.labels.items():  # said again, as training may have noted another word since
            rows[answers.said[name]].append((name, label))
        return [Source(path, said, earlier=True) for path, said in rows.items()]
    now, past = contents(run), contents(earlier)
    if past:  # a row of an image that was not handed out is of none that has its file name alone
        names = list(past)
        answers = read_answers([*before, *own_sources(earlier, before, names, asked)], names, asked)
    place = {value: name for name, value in now.items()}
    for name, label in answers.labels.items():
        own = past.get(name, "")
        unknown = not own or not now or now.get(name) == ""  # nobody has noted contents: names are all there is
        today = name if unknown or now.get(name) == own else place.get(own)
        if today is not None and today in kept and name not in answers.apart:
            rows[answers.said[name]].append((today, label))
    return [Source(path, said, earlier=True) for path, said in rows.items()]


def own_sources(run: Path, before: Sequence[Source], names: Sequence[str], asked: Sequence[str]) -> list[Source]:
    """The Sources of a run's own table and of labels that training has left, as they correct one another."""
    own, trained = run / ANSWERS, run / UNDERSTOOD
    filled = [Source(own, over={*before})] if own.exists() else []
    if not trained.exists():
        return filled
    given = read_run(run).get(GIVEN)
    if given is not None and digest(written_labels(trained)) in (given["table"], given.get("before")):
        if not given["labels"]:
            return filled
        # the word that came last: what training was given, unless the others say another one than they did then
        rest = plain_labels(run, before, names, asked)
        noted = [(name, word, then, rest.get(name, "")) for name, (then, word) in given["labels"].items()]
        last = [(name, word) for name, word, then, now in noted if word != then == now]
        since = [(name, word) for name, word, then, now in noted if word != then != now]
        taken = [(name, word) for name, word, then, _ in noted if word == then]
        old, new = Source(trained, since), Source(trained, last, over={*before, *filled})
        for source in (*filled, *(one for one in before if not one.kept)):
            source.over.add(old)
        of_earlier = Source(trained, taken, over={one for one in before if one.kept}, kept=True, earlier=True)
        return [*filled, *(one for one in (old, new, of_earlier) if one.rows)]
    # somebody else's, or of a version that has noted nothing: where it and annotate.csv disagree, only the time tells
    words, found = read_answers(filled, names, asked).labels, read_answers([trained], names, asked).labels
    copied = read_answers([one for one in before if one.kept], names).labels
    free = Source(trained, only={
        name for name, label in found.items() if copied.get(name) != label and (given or not words or name in words)
    })  # fmt: skip
    if given is None and filled and own.stat().st_mtime_ns >= trained.stat().st_mtime_ns:
        filled[0].over.add(free)
    return [*filled, free] if free.only else filled


def plain_labels(
    run: Path, before: Sequence[Source], names: Sequence[str], asked: Sequence[str] = ()
) -> dict[str, str]:
    """The labels that a run has without those that training was given."""
    own = run / ANSWERS
    return read_answers([*before, *([Source(own, over={*before})] if own.exists() else [])], names, asked).labels


def given_labels(run: Path, answers: Answers, names: Sequence[str], asked: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{name: (what else is said of it, "" for nothing; its label)} of labels that only training was given.

    And of those that earlier rounds have corrected since they were copied, which then say the label itself: these
    rounds may not be at hand the next time.
    """
    before = sources_before(run, names)
    copied = read_answers([one for one in before if one.kept], names).labels
    today = {one.path for one in before if one.rows is not None}
    found = {
        name: (word, word)
        for name, word in answers.labels.items()
        if answers.said[name] in today and copied.get(name, word) != word
    }
    if {*answers.said.values()} <= {run / ANSWERS, *(source.path for source in before)}:
        return found
    rest = plain_labels(run, before, names, asked)
    return found | {name: (rest.get(name, ""), word) for name, word in answers.labels.items() if rest.get(name) != word}


def note_given(run: Path, labels: Mapping[str, str], given: Mapping[str, tuple[str, str]]) -> None:
    """Note in run.json which labels only training was given, and of which labels.csv that is true.

    That is the one that is written next, and, should that be cut short, the one that is there.
    """
    path = run / UNDERSTOOD
    before = digest(written_labels(path) if path.exists() else {})
    words = {name: list(pair) for name, pair in given.items()}
    note(run, GIVEN, {"table": digest(labels), "before": before, "labels": words})
