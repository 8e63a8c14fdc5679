"""Slow, obvious references: each follows a definition word by word and shares no code with what it checks."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np
from scipy import ndimage

_STRUCTURES = {
    "section-4": (1, True),
    "section-8": (2, True),
    "volume-6": (1, False),
    "volume-18": (2, False),
    "volume-26": (3, False),
}


def whole_labels(mask, connectivity):
    """Connected components of a whole (z, y, x) mask by scipy; `connectivity` is the name, such as 'section-4'."""
    reach, per_section = _STRUCTURES[connectivity]
    structure = ndimage.generate_binary_structure(3, reach)
    if per_section:
        structure[[0, 2]] = False
    return ndimage.label(mask, structure)


def same_up_to_renaming(a, b):
    """Whether two labellings group the voxels alike: each id of one meets exactly one id of the other."""
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    firsts, seconds = [i for i, _ in pairs], [j for _, j in pairs]
    return len(set(firsts)) == len(pairs) == len(set(seconds)) and all((i == 0) == (j == 0) for i, j in pairs)


def fill_components(mask):
    """4-connected components of a (y, x) mask by flood fill, numbered by first pixel."""
    labels = np.zeros(mask.shape, int)
    for seed in zip(*np.nonzero(mask), strict=True):
        if labels[seed]:
            continue
        name = labels[seed] = labels.max() + 1
        queue = deque([seed])
        while queue:
            for pixel in four_neighbours(queue.popleft(), mask.shape):
                if mask[pixel] and not labels[pixel]:
                    labels[pixel] = name
                    queue.append(pixel)
    return labels


def four_neighbours(pixel, shape):
    """The up to four pixels beside one."""
    y, x = pixel
    around = [(y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)]
    return [(j, i) for j, i in around if 0 <= j < shape[0] and 0 <= i < shape[1]]


def flood_first_in_first_out(basins):
    """Flood (y, x) basins by the official rule: what one basin reaches joins it, what two reach stays 0, for good."""
    flooded = basins.copy()
    queue = deque(q for p in zip(*np.nonzero(basins), strict=True) for q in four_neighbours(p, basins.shape))
    while queue:
        pixel = queue.popleft()
        if flooded[pixel]:
            continue
        around = four_neighbours(pixel, basins.shape)
        names = {int(flooded[q]) for q in around} - {0}
        if len(names) == 1:
            flooded[pixel] = names.pop()
            queue.extend(q for q in around if not flooded[q])
    return flooded


def rand_by_pairs(truth, proposal):
    """V_Rand, split and merge score by asking every ordered pair of pixels, a pixel with itself included.

    Two pixels with proposal 0 are together only where they are the same pixel.
    """
    same_truth = same_proposal = same_both = 0
    for p in range(len(truth)):
        for q in range(len(truth)):
            in_truth = truth[p] == truth[q]
            in_proposal = p == q or (proposal[p] == proposal[q] != 0)
            same_truth += in_truth
            same_proposal += in_proposal
            same_both += in_truth and in_proposal
    split, merge = same_both / same_truth, same_both / same_proposal
    return 2 * split * merge / (split + merge), split, merge


def information_by_entropies(truth, proposal):
    """V_Info from three plain entropies, each pixel with proposal 0 given an id of its own."""
    named = [j if j else f"singleton {k}" for k, j in enumerate(proposal)]
    h_truth, h_proposal = entropy(truth), entropy(named)
    h_joint = entropy(list(zip(truth, named, strict=True)))
    if len(set(named)) == 1:
        return 0.0
    return 2 * (h_truth + h_proposal - h_joint) / (h_truth + h_proposal)


def entropy(names):
    """Entropy in nats of a list of names."""
    return -sum(n / len(names) * math.log(n / len(names)) for n in Counter(names).values())


def adapted_rand_of_cremi(truth, proposal):
    """CREMI's adapted Rand error, precision and recall, from a dense table.

    Truth 0 is ignored, proposal 0 joins nothing, and its voxels enter with one n-th each, n being all voxels.
    """
    table = np.zeros((truth.max() + 1, proposal.max() + 1))
    for i, j in zip(truth.ravel(), proposal.ravel(), strict=True):
        table[i, j] += 1
    scored, joined = table[1:], table[1:, 1:]
    loose = table[1:, 0].sum() / truth.size
    both = (joined**2).sum() + loose
    precision = both / ((joined.sum(axis=0) ** 2).sum() + loose)
    recall = both / (scored.sum(axis=1) ** 2).sum()
    return 1 - 2 * precision * recall / (precision + recall), precision, recall
