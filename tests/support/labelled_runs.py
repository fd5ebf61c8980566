"""What tests of labelled runs share: what a person would say, training in words, the files that it leaves."""

import csv
import json

import torch

from data_selection.images.pools import load_demo
from deit.crossval import Asked
from deit.labelled.training import train_on_labels
from tests.support.extraction_cases import COUNT

KINDS = {0: "top", 2: "top", 4: "top", 6: "top", 5: "shoe", 7: "shoe", 9: "shoe"}
DEMO_LABELS = load_demo()["train_labels"][:COUNT].tolist()


def word(name):
    """What a person would say of an image: its row of the demo pool is its name."""
    return KINDS.get(DEMO_LABELS[int(name[:3])], "else")


def train(run, **words):
    """(what it returns, what it said), the head alone where nothing else is asked for."""
    said = []
    done = train_on_labels(run, **{"mode": "linear", "device": "cpu", "num_workers": 0, "log": said.append} | words)
    return done, "\n".join(said)


def values(run):
    return json.loads((run / "report.json").read_text())


def values_of(run):
    return json.loads((run / "run.json").read_text())


def rows(path):
    with path.open(newline="") as handle:
        return list(csv.reader(handle))[1:]


def finetuning_wins(job, _source):
    """A verdict: the finetuned model has all right but one."""
    labels = torch.tensor([job.train_pool.label(i) for i in job.ids])
    found = torch.nn.functional.one_hot(labels, 3).float()
    finetuned = found.clone()
    finetuned[0] = finetuned[0].roll(1)
    verdict = {"labels": len(labels), "probe_right": 0, "finetuned_right": len(labels) - 1, "only_probe": 0,
               "only_finetuned": len(labels) - 1, "kept": "finetuned"}  # fmt: skip
    return verdict, Asked(job.ids, found.roll(1, 1), finetuned)
