"""Flags that mix the images of a batch: what the loss saw, and how shares are distributed beside timm's Mixup."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from timm.data import Mixup
from torch.nn.functional import cross_entropy

from deit.samples.draws import ORDER, seed_of, seeded
from deit.samples.mixing import Mixing, draw, draw_boxes, mix
from tests.support.flag_runs import CLASSES, ROWS, Runs, targets_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(one_thread, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("mixing"))


PLAIN = {"epochs": 2}
MIXED = [  # flag, two values, what else is set
    ("mixup", 0.3, 2.0, {"mixup_prob": 1.0}),
    ("cutmix", 0.3, 2.0, {"mixup_prob": 1.0}),
    ("cutmix_minmax", [0.2, 0.4], [0.6, 0.9], {"mixup_prob": 1.0}),
    ("mixup_prob", 0.4, 1.0, {"mixup": 0.8, "mixup_mode": "elem"}),
    ("mixup_switch_prob", 0.1, 0.9, {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "mixup_mode": "elem"}),
    ("mixup_mode", "batch", "pair", {"mixup": 0.8, "mixup_prob": 1.0}),
    ("mixup_mode", "batch", "elem", {"mixup": 0.8, "mixup_prob": 1.0}),
    ("seed", 0, 1, {"mixup": 0.8, "mixup_prob": 1.0}),
]


def mixing_of(flags):
    return Mixing(
        flags.get("mixup", 0.0), flags.get("cutmix", 0.0), flags.get("cutmix_minmax"), flags.get("mixup_prob", 0.0),
        flags.get("mixup_switch_prob", 0.5), flags.get("mixup_mode", "batch"),
    )  # fmt: skip


@pytest.mark.parametrize(("flag", "one", "other", "extra"), MIXED, ids=[f"{r[0]}-{r[2]}" for r in MIXED])
def test_a_step_sees_what_the_mixing_flags_make_of_its_batch(runs, flag, one, other, extra):
    seen = []
    for value in (one, other):
        flags = extra | {flag: value}
        run, plain = runs(**PLAIN | flags), runs(**PLAIN, seed=flags.get("seed", 0))
        for number, (mixed, bare) in enumerate(zip(run.seen, plain.seen, strict=True)):
            wanted = mix(
                bare.images, bare.targets, CLASSES, torch.arange(4), 4, mixing_of(flags),
                seed=flags.get("seed", 0), epoch=1 + number // 2, step=number % 2,
            )  # fmt: skip
            torch.testing.assert_close(mixed.images, wanted[0])
            torch.testing.assert_close(mixed.targets, wanted[1])
            loss = cross_entropy(torch.zeros(4, CLASSES), mixed.targets).item()
            assert loss == pytest.approx(np.log(CLASSES), rel=1e-5)  # targets are shares that add up to 1
        seen.append(torch.cat([part.images for part in run.seen]))
        assert not torch.allclose(seen[-1], torch.cat([part.images for part in plain.seen]))
    assert not torch.allclose(*seen)


ROWS |= {entry[0]: entry for entry in MIXED if entry[0] != "seed"}


def test_the_draws_of_mixing_depend_on_seed_epoch_and_step(runs):
    labels, images = torch.tensor([0, 1, 0, 1]), torch.rand(4, 3, 8, 8)
    keys = [{"seed": s, "epoch": e, "step": n} for s in (0, 1) for e in (1, 2) for n in (0, 1)]
    mixing = Mixing(mixup=0.8, prob=1.0)
    made = [mix(images, labels, 2, torch.arange(4), 4, mixing, **key)[1][0, 0].item() for key in keys]
    assert len(set(made)) == len(keys)


TIMM_MIXINGS = [
    {"mixup": 0.3}, {"mixup": 2.0}, {"cutmix": 0.3}, {"cutmix": 2.0}, {"minmax": (0.2, 0.5)},
    {"mixup": 0.8, "prob": 0.4}, {"mixup": 0.8, "cutmix": 1.0, "switch_prob": 0.2},
    {"mixup": 0.8, "minmax": (0.5, 0.9), "prob": 0.7, "switch_prob": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("settings", TIMM_MIXINGS, ids=str)
def test_shares_are_distributed_as_timms(settings, mode):
    """How much of an image stays, over many batches of timm's Mixup and as many draws of ours."""
    batches, size, side = (2000, 4, 64) if mode == "batch" else (8, 400, 64)
    given = {"prob": 1.0} | settings
    timms = Mixup(
        given.get("mixup", 0.0), given.get("cutmix", 0.0), given.get("minmax"), given["prob"],
        given.get("switch_prob", 0.5), mode, label_smoothing=0.0, num_classes=2,
    )  # fmt: skip
    labels, theirs = torch.cat([torch.zeros(size // 2), torch.ones(size // 2)]).long(), []
    with seeded(5):
        for _ in range(batches):
            _, targets = timms(torch.zeros(size, 1, side, side), labels)
            theirs.append(targets.gather(1, labels[:, None])[:, 0].numpy())
    ours = [draw(size, side, side, Mixing(**given, mode=mode), seed)[0] for seed in range(batches)]
    if mode == "batch":
        assert all(len(set(share.tolist())) == 1 for share in ours)
    elif mode == "pair":
        assert all(np.array_equal(share, share[::-1]) for share in ours)
    else:
        assert not any(np.array_equal(share, share[::-1]) for share in ours)
    first = 1 if mode == "batch" else size // 2 if mode == "pair" else size  # draws of their own in a batch
    shares = [np.concatenate([one[:first] for one in some]) for some in (theirs, ours)]
    assert ks_2samp(*shares).pvalue > 1e-3
    np.testing.assert_allclose(*(np.mean(share == 1) for share in shares), atol=0.05)


def test_a_box_that_lies_inside_has_the_drawn_sides():
    """An odd side is as long as it is drawn, as timm has it: sides whose square is what the mixing partner takes."""
    share = np.full(2000, 0.75)
    for side in (9, 10, 30, 31):
        boxes = draw_boxes(np.random.default_rng(0), share, side, side, None)
        tall, wide = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
        assert tall.max() == wide.max() == int(side * 0.5)
        assert np.median(tall) == int(side * 0.5)
        assert boxes.min() == 0
        assert boxes.max() == side


def test_targets_are_labels_where_nothing_is_mixed(runs):
    run = runs(**PLAIN)
    labels = torch.tensor([0] * 4 + [1] * 4)
    for epoch in (1, 2):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed_of(0, ORDER, epoch)))
        seen = torch.cat([part.targets for part in run.seen[2 * (epoch - 1) : 2 * epoch]])
        assert torch.equal(seen, labels[order])
    mixed = runs(**PLAIN, mixup=0.8, mixup_prob=1.0, mixup_mode="elem")
    assert targets_of(seen).sum() == torch.cat([part.targets for part in mixed.seen[2:]]).sum()
