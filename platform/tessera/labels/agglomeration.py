"""Fragments merged into cells: neighbours with the least membrane between them first, weighed anew after every merge.

    contacts within sections --> average linkage up to a threshold --> cells of each section
    contacts across sections --> linked where two cells cover each other --> cells of the volume

Where voxels are about as deep as wide, contacts are weighed alike in all directions, and nothing needs linking. The
merges up to a threshold are the first ones of those up to a higher one: one run serves every threshold below its own.

Source: average linkage on boundary evidence, as in Bailoni et al. 2022, "GASP, a generalized framework for
agglomerative clustering of signed graphs", section 3; linking by overlap as in Beier et al. 2017.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera.labels.disjoint import DisjointSets
from tessera.labels.region_graph import STEPS, RegionGraph, combined

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Merges:
    """Merges in the order in which they were made.

    Attributes:
      a: int64, (merges,), a fragment of one cell ...
      b: ... and of the other, as they then were.
      score: float64: the membrane probability between them, or that of an earlier merge, where that was higher.
    """

    a: Indices
    b: Indices
    score: NDArray[np.float64]

    def up_to(self, threshold: float) -> NDArray[np.int64]:
        """The pairs merged below a threshold: (n, 2)."""
        count = int(np.searchsorted(self.score, threshold, side="left"))
        return np.stack([self.a[:count], self.b[:count]], axis=1)


def average_linkage(graph: RegionGraph, most: float) -> Merges:
    """Merge the two cells with the lowest mean probability along their contact, until none is below `most`.

    Contacts of merged cells add up. Of equal scores the smaller ids come first, so that the order of contacts changes
    nothing.

    Args:
      graph: contacts; ids are any below 2^63.
      most: probability.
    """
    area, total = _neighbours(graph)
    alive = dict.fromkeys(area, 0)
    scores = ((total[a][b] / area[a][b], a, b) for a in area for b in area[a] if a < b)
    limit = most * STEPS
    heap = [(score, a, b, 0, 0) for score, a, b in scores if score < limit]
    heapq.heapify(heap)
    made: list[tuple[int, int, float]] = []
    highest = 0.0
    while heap:
        score, a, b, age_a, age_b = heapq.heappop(heap)
        if alive.get(a) != age_a or alive.get(b) != age_b:
            continue  # one of them has grown since, or is part of another
        highest = max(highest, score)
        made.append((a, b, highest / STEPS))
        if len(area[a]) < len(area[b]):
            a, b = b, a
        _absorb(area, total, a, b)
        del alive[b]
        alive[a] += 1
        for other in area[a]:
            score = total[a][other] / area[a][other]
            if score < limit:
                low, high = min(a, other), max(a, other)
                heapq.heappush(heap, (score, low, high, alive[low], alive[high]))
    pairs = np.array([pair[:2] for pair in made], np.int64).reshape(-1, 2)
    return Merges(pairs[:, 0], pairs[:, 1], np.array([pair[2] for pair in made], np.float64))


_Sums = dict[int, dict[int, int]]  # integers: sums of floats would depend on their order


def _neighbours(graph: RegionGraph) -> tuple[_Sums, _Sums]:
    """Of each id its neighbours, with area and summed probability of the contact, both ways round."""
    area: _Sums = {}
    total: _Sums = {}
    columns = (graph.a.tolist(), graph.b.tolist(), graph.area.tolist(), graph.total.tolist())
    for a, b, size, weight in zip(*columns, strict=True):
        for one, other in ((a, b), (b, a)):
            sizes, weights = area.setdefault(one, {}), total.setdefault(one, {})
            sizes[other] = sizes.get(other, 0) + size
            weights[other] = weights.get(other, 0) + weight
    return area, total


def _absorb(area: _Sums, total: _Sums, a: int, b: int) -> None:
    """Give all of b's contacts to a."""
    for sums in (area, total):
        for other, value in sums.pop(b).items():
            del sums[other][b]
            if other != a:
                added = sums[a].get(other, 0) + value
                sums[a][other] = sums[other][a] = added


def linked(graph: RegionGraph, sizes: NDArray[np.int64], share: float, most: float) -> NDArray[np.int64]:
    """Cells of neighbouring sections that are one: they cover each other, and there is little membrane between them.

    Of two that are linked, each covers more of the other than of any third in the same section, or is covered by it for
    the most part: a neurite that ends beside a larger one is not swallowed, and one that branches keeps its branches.

    Args:
      graph: contacts across sections, between cells.
      sizes: int64, voxels of each cell, by id.
      share: of the smaller cell that has to be covered.
      most: mean probability along the contact.

    Returns:
      int64, (n, 2): pairs of ids.
    """
    a, b = graph.a.astype(np.int64), graph.b.astype(np.int64)
    covered = graph.area / np.minimum(sizes[a], sizes[b])
    chosen = (covered >= share) & (graph.mean() < most)
    return np.stack([a[chosen], b[chosen]], axis=1)


@dataclass(frozen=True, slots=True)
class AgglomerationRule:
    """How fragments become cells.

    Attributes:
      threshold: mean membrane probability along a contact, below which two fragments are one.
      per_section: whether fragments are those of sections, to be merged there first and linked then.
      share: of the smaller of two cells in neighbouring sections, how much the other has to cover.
    """

    threshold: float
    per_section: bool
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"threshold={self.threshold} must be a probability and share={self.share} a share above 0: everything, "
                "or whatever touches, would be merged. Try 0.5 and 0.5."
            )


def agglomerated(graph: RegionGraph, sizes: NDArray[np.int64], rule: AgglomerationRule) -> Indices:
    """The cell of every fragment.

    Args:
      graph: contacts of fragments 1..n.
      sizes: int64, (n + 1,): voxels of each fragment, by id.
      rule: how.

    Returns:
      int64, (n + 1,): the smallest fragment of each one's cell, by id.

    Raises:
      ValueError: a contact names a fragment without a size.
    """
    if len(graph) and int(graph.b.max()) >= len(sizes):
        raise ValueError(
            f"contacts name the fragment {graph.b.max()}, but there are sizes of {len(sizes) - 1}: they come from "
            "different fragments. Take both from the same ones."
        )
    sets = DisjointSets(len(sizes))
    sets.join(average_linkage(_within(graph, rule.per_section), rule.threshold).up_to(rule.threshold))
    roots = sets.roots().copy()
    if rule.per_section:
        across = _chosen(graph, graph.across)
        cells = combined(across, roots[across.a].astype(np.uint64), roots[across.b].astype(np.uint64))
        area = np.bincount(roots, weights=sizes, minlength=len(sizes)).astype(np.int64)
        sets.join(linked(cells, area, rule.share, rule.threshold))
    return sets.roots()


def _within(graph: RegionGraph, per_section: bool) -> RegionGraph:
    """The contacts that average linkage weighs: those within sections, or all, whatever their direction."""
    return _chosen(graph, ~graph.across) if per_section else graph


def _chosen(graph: RegionGraph, rows: NDArray[np.bool_]) -> RegionGraph:
    return RegionGraph(**{name: column[rows] for name, column in graph.columns().items()})
