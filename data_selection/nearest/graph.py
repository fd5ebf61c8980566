"""The k nearest neighbours of every row, the graph they make, and features averaged over it.

Smoothed features are those of a simplified graph convolution (Wu et al., 2019, "Simplifying Graph Convolutional
Networks") with self-tuning weights (Zelnik-Manor and Perona, 2004, "Self-Tuning Spectral Clustering").
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.kinds import Features
from data_selection.common.precision import full_float32
from data_selection.common.progress import open_bar
from data_selection.nearest.narrow import narrow_is_faster
from data_selection.nearest.neighbour_search import MAX_ROWS, Search, first_copies, rows_at_once
from data_selection.nearest.pool_reader import UnitPool, pool_device, working_memory
from data_selection.nearest.similarity import normalise

NEIGHBOURS, SPREAD_NEIGHBOURS = 10, 15  # of a row, that it is averaged over and that labels are spread over
SAME = 1e-6  # cosine distances up to this are rounding of float32 unit rows: 0


def check_neighbours(k: int) -> None:
    """Raise UserError where no row can have so many neighbours."""
    if k < 1:
        raise UserError(f"{k} neighbours asked for: at least 1 is needed")


class Finder:
    """Finds the k nearest rows of a pool, for rows of its own (which are not their own neighbours) or for others.

    features, queries: as nearest_neighbours takes them. centre: (D,), see UnitPool. limit: working memory in bytes.
    """

    def __init__(
        self,
        features: Features,
        k: int,
        device: torch.device,
        limit: int,
        queries: Features | None = None,
        centre: torch.Tensor | None = None,
    ) -> None:
        """Raises UserError as nearest_neighbours does."""
        check_neighbours(k)
        shapes = [tuple(table.shape) for table in (features, queries) if table is not None]
        if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
            raise UserError(
                f"pool and queries of shape {shapes}: tables (rows, dimensions) of equal dimensions are needed"
            )
        self.count, self.own, self.device = min(k, len(features) - (queries is None)), queries is None, device
        if self.count < 1:
            raise UserError(f"a pool of {len(features)} rows has no neighbours to give: more rows are needed")
        self.pool = UnitPool(features, None, device, limit, centre)
        self.asking = self.pool if queries is None else UnitPool(queries, None, device, limit, centre)
        self.step = rows_at_once(self.pool.dimensions, limit, device)
        places = first_copies(self.pool, self.count + 1, self.step)
        wanted = self.pool if len(places) == self.pool.count else UnitPool(features, places, device, limit, centre)
        narrow = device.type == "cpu" and self.pool.count >= 2 * MAX_ROWS and narrow_is_faster()
        self.search = Search(wanted, places, self.count, self.step, narrow)

    def find(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(index, similarity), (B, k) each, of the asking rows ids (B,) int64 on the CPU."""
        return self.find_rows(self.asking.take(ids), ids.to(self.device) if self.own else None)

    def find_rows(self, rows: torch.Tensor, names: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of unit rows (B, D); names: (B,), what they are called in the pool, None for rows from outside."""
        live = rows.any(1).nonzero()[:, 0]
        index = torch.arange(self.count, device=self.device).repeat(len(rows), 1)  # as near as any to an all-zero row
        similarity = torch.zeros(len(rows), self.count, device=self.device)
        if names is not None:
            index += index >= names[:, None]
        if len(live):
            index[live], similarity[live] = self.search.find(rows[live], None if names is None else names[live])
        return index, similarity


@full_float32()
def nearest_neighbours(
    features: Features,
    k: int,
    *,
    queries: Features | None = None,
    world: World | None = None,
    max_bytes: int | None = None,
    centre: torch.Tensor | None = None,
    progress: Callable[..., Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k rows of highest cosine similarity, best first: (index (Q, k) int64, similarity (Q, k) float32).

    features: (N, D) float tensor, array or memory map. queries: (Q, D), or None for the pool itself, where a row is not
    its own neighbour (but its copies are). index holds row numbers of features; of equal similarities the lowest comes
    first. An all-zero row has similarity 0 to all. Fewer columns come back where there are fewer than k others.
    world: its ranks share the rows and all get the whole result, on its device (without it: that of features).
    max_bytes: working memory beside the result, by default a quarter of what is free; the result does not depend on it.
    centre: (D,), taken off all unit rows first. Raises UserError where there is no other row, the dimensions differ, k
    is below 1 or a value is not finite.
    """
    world = world or World(0, 1, pool_device(features, None))
    limit = working_memory(None, world.device) if max_bytes is None else max_bytes
    finder = Finder(features, k, world.device, limit, queries, centre)
    total = finder.asking.count
    index = torch.zeros(total, finder.count, dtype=torch.int64, device=world.device)
    similarity = torch.zeros(total, finder.count, device=world.device)
    begin, end = (total * rank // world.size for rank in (world.rank, world.rank + 1))
    with open_bar(progress, end - begin, "neighbours", "row") as bar:
        for ids in torch.arange(begin, end).split(finder.step):
            index[ids], similarity[ids] = finder.find(ids)
            bar.update(len(ids))
    return world.sum_(index), world.sum_(similarity)


@dataclass(frozen=True)
class Graph:
    """A pool's neighbours and the weights of its edges.

    index, similarity: (N, k) as nearest_neighbours gives them for the pool itself. reach: (N,) float64 array, cosine
    distance to the last neighbour, tau. average: (N, N) float32 matrix A, each row of which sums to 1.
    """

    index: torch.Tensor
    similarity: torch.Tensor
    reach: np.ndarray
    average: sparse.csr_array


def build_graph(index: torch.Tensor, similarity: torch.Tensor) -> Graph:
    """The Graph of a pool's neighbours, (N, k) each: A = D^-1 W, W = max(W, W^T), D = the sums of W's rows.

    w_ij = exp(-2 d_ij / sqrt(tau_i tau_j)) for the k neighbours j of row i, d = 1 - cosine, tau_i = d to the last one.
    Copies have weight 1; a tau of 0 counts as SAME. Rows at a right angle, as an all-zero row is to all, share no edge;
    a row without an edge averages over itself.
    """
    distance = distances(similarity)
    count, k = distance.shape
    ends = np.arange(0, count * k + 1, k)
    closeness = 1 / (1 - exponents(similarity, distance[:, -1], distance[:, -1], index))  # in (0, 1], 0: no edge
    edges = sparse.csr_array((closeness.ravel(), index.cpu().numpy().ravel(), ends), (count, count))
    edges = edges.maximum(edges.T)  # which stores no zeros
    best, degree = edges.max(axis=1).toarray().ravel(), np.diff(edges.indptr)
    below = 1 / np.repeat(best, degree) - 1 / edges.data  # logarithms, the largest of a row's is 0: none is lost
    edges.data = np.exp(below)
    edges.data /= np.repeat(edges.sum(axis=1), degree)
    average = edges + sparse.dia_array(((degree == 0)[None].astype(float), 0), (count, count))
    return Graph(index, similarity, distance[:, -1], sparse.csr_array(average).astype(np.float32))


def distances(similarity: torch.Tensor) -> np.ndarray:
    """Cosine distances (N, k) float64; those that may be rounding alone are 0."""
    distance = 1 - similarity.cpu().double().numpy()
    return np.where(distance <= SAME, 0.0, distance)


def exponents(similarity: torch.Tensor, own: np.ndarray, reach: np.ndarray, index: torch.Tensor) -> np.ndarray:
    """Logarithms of the weights of edges, (Q, k) float64, -inf where there is none.

    own: (Q,) tau of the rows that ask; reach: (N,) that of the pool's; index: (Q, k), rows of the pool.
    """
    scale = np.sqrt(np.maximum(own, SAME)[:, None] * np.maximum(reach, SAME)[index.cpu().numpy()])
    return np.where(similarity.cpu().numpy() == 0, -np.inf, -2 * distances(similarity) / scale)


def smooth(features: torch.Tensor, graph: Graph, steps: int = 2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(Z, levels): the pool's features averaged `steps` times over the graph, Z_t+1 = (Z_t + A Z_t) / 2.

    features: (N, D), Z_0. Z: (N, D) float32, the last at unit length. levels: those before, Z_0 to Z_steps-1, which
    smooth_outside needs.
    """
    levels = [features.float()]
    for _ in range(steps):
        levels.append((levels[-1] + times(graph.average, levels[-1])) / 2)
    return normalise(levels[-1]), levels[:-1]


def outside_average(index: torch.Tensor, similarity: torch.Tensor, graph: Graph) -> tuple[sparse.csr_array, np.ndarray]:
    """(A, alone): the weights of rows from outside over the pool, (Q, N) float32, and which have none, (Q,) bool.

    index, similarity: (Q, k) from nearest_neighbours with `queries`. a_j ~ exp(-2 d_j / sqrt(tau tau_j)), tau the
    distance of the row to its last neighbour; a row's sum is 1, or 0 where all neighbours are at right angles.
    """
    exponent = exponents(similarity, distances(similarity)[:, -1], graph.reach, index)
    alone = np.asarray(np.isneginf(exponent).all(axis=1))
    weight = np.exp(exponent - np.where(alone, 0, exponent.max(axis=1))[:, None])  # the largest is 1: none underflows
    weight /= np.where(alone, 1, weight.sum(axis=1))[:, None]
    ends = np.arange(0, weight.size + 1, weight.shape[1])
    shape = (len(weight), len(graph.reach))
    return sparse.csr_array((weight.ravel().astype(np.float32), index.cpu().numpy().ravel(), ends), shape), alone


def smooth_outside(
    queries: torch.Tensor, levels: list[torch.Tensor], index: torch.Tensor, similarity: torch.Tensor, graph: Graph
) -> torch.Tensor:
    """U, (Q, D) float32 at unit length, of rows from outside the pool: U_t+1 = U_t / 2 + sum_j a_j Z_t(j) / 2.

    queries: (Q, D), U_0. levels: of the pool, from smooth. index, similarity: the queries' neighbours in the pool,
    (Q, k). A row without weights (see outside_average) keeps its direction.
    """
    average, _ = outside_average(index, similarity, graph)
    rows = queries.float()
    for level in levels:
        rows = (rows + times(average, level)) / 2
    return normalise(rows)


def times(matrix: sparse.csr_array, table: torch.Tensor) -> torch.Tensor:
    """The product of a sparse matrix (M, N) with a table (N, C), (M, C), computed on the CPU, on the table's device."""
    return torch.from_numpy(matrix @ table.cpu().numpy()).to(table.device)
