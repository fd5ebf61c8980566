"""The order of an epoch and its split over processes: counts of the released sampler, coverage, one order for all."""

import pytest
import torch

from deit.samplers import epoch_order, plan_epoch, split_rows

# images, entries and distinct images per epoch, steps at 512 per step (85 images: without the released padding)
COUNTS = [
    (50, 150, 50, 1), (85, 255, 85, 1), (250, 256, 86, 1), (500, 256, 86, 1), (511, 256, 86, 1), (512, 512, 171, 1),
    (1000, 768, 256, 2), (2500, 2304, 768, 5), (5000, 4864, 1622, 10), (12811, 12800, 4267, 25),
    (25623, 25600, 8534, 50), (64058, 64000, 21334, 125), (50000, 49920, 16640, 98),
]  # fmt: skip


@pytest.mark.parametrize(("count", "entries", "distinct", "steps"), COUNTS)
def test_an_epoch_has_the_released_counts(count, entries, distinct, steps):
    order = epoch_order(count, 1)
    assert len(order) == entries
    assert len(order.unique()) == distinct
    assert len(plan_epoch(order, 512, 256, 0, 2)) == steps


def test_each_image_stands_three_times_in_a_row():
    order = epoch_order(500, 3)[:255].view(-1, 3)
    assert (order == order[:, :1]).all()


def test_the_epochs_cover_the_whole_subset():
    seen = torch.cat([epoch_order(500, epoch) for epoch in range(1, 41)]).unique()
    assert len(seen) == 500


def test_without_repeats_an_epoch_is_a_permutation():
    order = epoch_order(100, 1, repeated=False)
    assert order.sort().values.tolist() == list(range(100))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_order(100, epoch, seed=seed) for epoch in (1, 2) for seed in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[0], epoch_order(100, 1, seed=0))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 24, 25, 256])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_parts_share_out_a_batch_in_mirrored_pairs(size, parts):
    rows = split_rows(size, parts)
    assert torch.cat(rows).sort().values.tolist() == list(range(size))
    assert all(torch.equal(part, size - 1 - part.flip(0)) for part in rows)
    assert max(map(len, rows)) <= -(-size // parts) + 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [5, 24, 100])
def test_every_process_count_trains_on_the_same_steps(world_size, batch):
    order = epoch_order(20, 1)  # 60 entries
    plans = [plan_epoch(order, 24, batch, rank, world_size) for rank in range(world_size)]
    for number, size in enumerate([24, 24, 12]):
        parts = [part for plan in plans for part in plan[number].parts]
        assert all(plan[number].size == size for plan in plans)
        assert torch.cat([part.rows for part in parts]).sort().values.tolist() == list(range(size))
        for part in parts:
            assert len(part.rows) <= batch + 1
            assert torch.equal(part.places, 24 * number + part.rows)
            assert torch.equal(part.indices, order[part.places])
