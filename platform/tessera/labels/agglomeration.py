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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tessera.labels.disjoint import DisjointSets
from tessera.labels.region_graph import RegionGraph, combined, means, quantiles

Indices = NDArray[np.int64]
Evidence = Literal["mean", "median", "upper_quartile"]
"""What of the probability along a contact says whether two fragments are one: its quantiles forgive a few voxels."""
_SHARES = {"median": 0.5, "upper_quartile": 0.75}


def weighed(evidence: Evidence, sums: Indices) -> NDArray[np.float64]:
    """The membrane probability of contacts, of 0 to 1, by their sums.

    Args:
      evidence: what of it.
      sums: int64, (contacts, width), as `sums_of` gives them, or added up.
    """
    if evidence == "mean":
        return means(sums[:, 0], sums[:, 1])
    return quantiles(sums, _SHARES[evidence])


def sums_of(graph: RegionGraph, evidence: Evidence) -> Indices:
    """What of each contact is added up when contacts merge: area and total, or the histogram; int64, (contacts, width).

    Integers: sums of floats would depend on their order.
    """
    return np.stack([graph.area, graph.total], axis=1) if evidence == "mean" else graph.histogram


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


def average_linkage(graph: RegionGraph, most: float, evidence: Evidence = "mean") -> Merges:
    """Merge the two cells with the least membrane along their contact, until no two have less than `most`.

    Contacts of merged cells add up. Of equal scores the smaller ids come first, so that the order of contacts changes
    nothing.

    Args:
      graph: contacts; ids are any below 2^63.
      most: probability.
      evidence: what of the probability along a contact counts.
    """
    contacts, heap = _begun(graph, most, evidence)
    ages = dict.fromkeys(contacts, 0)
    made: list[tuple[int, int]] = []
    scores: list[float] = []
    while heap:
        score, a, b, age_a, age_b = heapq.heappop(heap)
        if ages.get(a) != age_a or ages.get(b) != age_b:
            continue  # one of them has grown since, or is part of another
        made.append((a, b))
        scores.append(score)
        if len(contacts[a]) < len(contacts[b]):
            a, b = b, a
        _absorb(contacts, a, b)
        del ages[b]
        ages[a] += 1
        others = list(contacts[a])
        found = weighed(evidence, np.stack([contacts[a][other] for other in others])) if others else np.empty(0)
        for other, score in zip(others, found.tolist(), strict=True):
            if score < most:
                low, high = min(a, other), max(a, other)
                heapq.heappush(heap, (score, low, high, ages[low], ages[high]))
    pairs = np.array(made, np.int64).reshape(-1, 2)
    return Merges(pairs[:, 0], pairs[:, 1], np.maximum.accumulate(np.array(scores, np.float64)))


_Contacts = dict[int, dict[int, Indices]]
_Heap = list[tuple[float, int, int, int, int]]


def _begun(graph: RegionGraph, most: float, evidence: Evidence) -> tuple[_Contacts, _Heap]:
    """Of each id its neighbours with the sums of their contact, both ways round; and all that may be merged."""
    one = combined(graph, graph.a, graph.b, directions=False)
    sums = sums_of(one, evidence)
    scores = weighed(evidence, sums)
    contacts: _Contacts = {}
    for a, b, row in zip(one.a.tolist(), one.b.tolist(), sums, strict=True):
        contacts.setdefault(a, {})[b] = row
        contacts.setdefault(b, {})[a] = row
    below = np.flatnonzero(scores < most)
    columns = (column[below].tolist() for column in (scores, one.a, one.b))
    heap = [(score, a, b, 0, 0) for score, a, b in zip(*columns, strict=True)]
    heapq.heapify(heap)
    return contacts, heap


def _absorb(contacts: _Contacts, a: int, b: int) -> None:
    """Give all of b's contacts to a."""
    own = contacts[a]
    for other, row in contacts.pop(b).items():
        if other == a:
            del own[b]
            continue
        theirs, before = contacts[other], own.get(other)
        del theirs[b]
        own[other] = theirs[a] = row if before is None else before + row


def linked(
    graph: RegionGraph, sizes: NDArray[np.int64], share: float, most: float, evidence: Evidence = "mean"
) -> NDArray[np.int64]:
    """Cells of neighbouring sections that are one: they cover each other, and there is little membrane between them.

    A share of the smaller one is asked for, so that a neurite that branches keeps its branches.

    Args:
      graph: contacts across sections, between cells.
      sizes: int64, voxels of each cell, by id.
      share: of the smaller cell that has to be covered.
      most: membrane probability along the contact.
      evidence: what of it counts.

    Returns:
      int64, (n, 2): pairs of ids.
    """
    a, b = graph.a.astype(np.int64), graph.b.astype(np.int64)
    covered = graph.area / np.minimum(sizes[a], sizes[b])
    chosen = (covered >= share) & (weighed(evidence, sums_of(graph, evidence)) < most)
    return np.stack([a[chosen], b[chosen]], axis=1)


@dataclass(frozen=True, slots=True)
class AgglomerationRule:
    """How fragments become cells.

    Attributes:
      threshold: membrane probability along a contact, below which two fragments are one.
      per_section: whether fragments are those of sections, to be merged there first and linked then.
      share: of the smaller of two cells in neighbouring sections, how much the other has to cover.
      evidence: what of the probability along a contact counts.
    """

    threshold: float
    per_section: bool
    share: float
    evidence: Evidence = "mean"

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
    merges = average_linkage(_within(graph, rule.per_section), rule.threshold, rule.evidence)
    sets.join(merges.up_to(rule.threshold))
    roots = sets.roots().copy()
    if rule.per_section:
        across = _chosen(graph, graph.across)
        cells = combined(across, roots[across.a].astype(np.uint64), roots[across.b].astype(np.uint64))
        area = np.bincount(roots, weights=sizes, minlength=len(sizes)).astype(np.int64)
        sets.join(linked(cells, area, rule.share, rule.threshold, rule.evidence))
    return sets.roots()


def _within(graph: RegionGraph, per_section: bool) -> RegionGraph:
    """The contacts that average linkage weighs: those within sections, or all, whatever their direction."""
    return _chosen(graph, ~graph.across) if per_section else graph


def _chosen(graph: RegionGraph, rows: NDArray[np.bool_]) -> RegionGraph:
    return RegionGraph(**{name: column[rows] for name, column in graph.columns().items()})
