"""bfloat16 finds the candidates, float64 decides: the outcome must be that of float64."""

import pytest
import torch
import torch.nn.functional as F

from data_selection.common.distributed import World
from data_selection.nearest import narrow
from data_selection.nearest.assignment import distinct_nearest
from data_selection.nearest.narrow import (
    LOWEST,
    Narrow,
    entries,
    floor_bits,
    nearest_of_few,
    nearest_unit,
    own_dot,
    pairs_above,
)
from data_selection.nearest.screening import Screen
from tests.support import oracles


def test_few_are_enough_without_many_ties():
    rows, units = directions(300), torch.cat([directions(60), directions(60)])
    similarity, index = nearest_of_few(rows, units)
    expected, among = nearest_unit(rows, units)
    assert index.tolist() == among.tolist()
    assert torch.equal(similarity, expected)


def directions(count):
    return F.normalize(torch.randn(count, 64, generator=torch.Generator().manual_seed(count)), dim=1)


def pools():
    """(name, rows, units): ties, near-ties below both precisions, one direction only, zeros."""
    generator = torch.Generator().manual_seed(0)
    rows, units = (F.normalize(torch.randn(n, 48, generator=generator), dim=1) for n in (400, 90))
    yield "uniform", rows, units
    yield "repeated", rows, units[:30].repeat(3, 1)
    close = F.normalize(units[:1] + 1e-4 * torch.randn(90, 48, generator=generator), dim=1)
    yield "closer than bfloat16", rows, close
    yield "closer than float32", rows, F.normalize(units[:1] + 3e-8 * torch.randn(90, 48, generator=generator), dim=1)
    yield "opposite", F.normalize(-close.repeat(4, 1) + 0.1 * rows[:360], dim=1), close
    yield "half the space", rows.abs(), units.abs()
    yield "zeros", torch.cat([torch.zeros(3, 48), rows[:20]]), torch.cat([units[:5], torch.zeros(2, 48)])
    yield "one unit", rows, units[:1]


@pytest.mark.parametrize(("rows", "units"), [pool[1:] for pool in pools()], ids=[pool[0] for pool in pools()])
def test_nearest_is_that_of_float64(rows, units):
    exact = (rows.double()[:, None] * units.double()).sum(-1)  # (B, K), each pair added up in the same order
    best = exact.amax(1, keepdim=True)
    expected = (exact == best).int().argmax(1)  # the lowest of equal ones
    basis = torch.linalg.eigh(units.T @ units)[1][:, -16:]
    for low in (None, Narrow(units), Narrow(units, basis)):
        similarity, index = nearest_unit(rows, units, low)
        assert index.tolist() == expected.tolist()
        assert torch.equal(similarity, own_dot(rows, units, expected))


def test_candidates_are_few_on_separate_units():
    """The bounds are not so wide that everything passes."""
    rows, units = (
        F.normalize(torch.randn(n, 64, generator=torch.Generator().manual_seed(n)), dim=1) for n in (500, 80)
    )
    assert len(Narrow(units).pairs(rows)[0]) < 700


def test_screen_uses_as_many_directions_as_it_takes():
    scale = 0.9 ** torch.arange(128)
    falling = F.normalize(torch.randn(2000, 128, generator=torch.Generator().manual_seed(0)) * scale, dim=1)
    flat = F.normalize(torch.randn(2000, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    used = {}
    for name, rows in {"falling": falling, "flat": flat}.items():
        screen = Screen(rows)
        for _ in range(6):
            nearest_unit(rows, rows[:1500], screen.narrow(rows[:1500]))
        used[name] = screen.sizes[screen.level]
    assert used["falling"] < used["flat"] == 128


@pytest.mark.parametrize("columns", [1, 511, 512, 513, 700])
def test_folded_search_finds_all(columns):
    product = torch.randint(-50, 50, (37, columns), generator=torch.Generator().manual_seed(columns))
    row, column = pairs_above(product, lambda guess: entries(product, guess) - 9, None)
    expected = (product >= product.amax(1, keepdim=True) - 9).nonzero().tolist()
    assert sorted(zip(row.tolist(), column.tolist(), strict=True)) == [tuple(pair) for pair in expected]


def test_finds_every_pair_that_reaches_the_best():
    rows, units = directions(50), directions(80)
    exact = rows.double() @ units.double().T
    barred = torch.rand(50, 80, generator=torch.Generator().manual_seed(1)) < 0.3
    allowed = exact.masked_fill(barred, -2)
    best = allowed.amax(1)
    row, unit = Narrow(units).pairs(rows, torch.full((50,), -torch.inf), barred)
    found = set(zip(row.tolist(), unit.tolist(), strict=True))
    assert {(i, int(allowed[i].argmax())) for i in range(50)} <= found
    assert not any(barred[i, j] for i, j in found)
    assert len(Narrow(units).pairs(rows, (best + 0.05).float(), barred)[0]) == 0
    row, _ = Narrow(units).pairs(rows, (best - 1e-6).float(), barred)
    assert set(row.tolist()) == set(range(50))


def test_floor_is_below_and_close():
    values = torch.rand(1000) + 1e-3
    bits = floor_bits(values, torch.zeros(1000))
    floor = bits.view(torch.bfloat16).float()
    assert (floor <= values).all()
    assert (floor > values * 0.97).all()
    assert floor_bits(torch.tensor([-0.5, 0.0]), torch.zeros(2)).tolist() == [LOWEST] * 2


@pytest.mark.parametrize("size", [384, 1024])
def test_rest_of_a_length_is_not_lost_in_rounding(size):
    """Rows almost along one direction of the basis: what is left of their squared length rounds to nothing."""

    def vector(along, across, axis):
        result = torch.zeros(size + 8)
        result[:size] = along * size**-0.5
        result[size + axis] = across
        return result

    basis = torch.stack([vector(1, 0, 0), vector(0, 1, 7)], 1)
    rows = torch.stack([vector((1 - t**2) ** 0.5, t, 0) for t in torch.linspace(1e-4, 8e-3, 1000).tolist()])
    lost = rows[:, size] - (rows.square().sum(1) - (rows @ basis).square().sum(1)).clamp(min=0).sqrt()
    tilt = rows[lost.argmax(), size].item()
    ahead, side = 0.3 + 0.9 * tilt * (1 - 0.09) ** 0.5, (1 - 0.09) ** 0.5
    far = [vector(0.285, (-1) ** i * (1 - 0.285**2) ** 0.5, 2) for i in range(62)]
    units = torch.stack([vector(0.3, side, 0), vector(ahead, (1 - ahead**2) ** 0.5, 1), *far])
    exact = (rows.double()[:, None] * units.double()).sum(-1)
    assert nearest_unit(rows, units, Narrow(units, basis))[1].tolist() == exact.argmax(1).tolist()


def test_very_many_close_pairs_are_settled_in_parts(monkeypatch):
    monkeypatch.setattr(narrow, "MANY_PAIRS", 500)
    base = F.normalize(
        torch.ones(1, 64) + 0.003 * torch.randn(300, 64, generator=torch.Generator().manual_seed(0)), dim=1
    )
    exact = (base.double()[:, None] * base[:90].double()).sum(-1)
    for low in (None, Narrow(base[:90])):
        assert nearest_unit(base, base[:90], low)[1].tolist() == exact.argmax(1).tolist()
    parts = [(0, base[:200]), (200, base[200:])]
    barred = torch.zeros(300, dtype=torch.bool)
    chosen = distinct_nearest(lambda rows: parts, base[:90], barred, World(0, 1, torch.device("cpu")), 1 << 20)
    assert chosen.tolist() == oracles.greedy_assignment(exact.T)
