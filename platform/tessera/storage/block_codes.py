"""A small code for each of millions of blocks: a byte each, and only where blocks have one.

A set of Python integers takes 60 bytes a block or more, and building one of a million takes longer than reading the
ledger that it comes from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = 1 << 16
"""Blocks per page: 64 KiB of memory for every 65,536 consecutive blocks of which one has a code."""


class BlockCodes:
    """Block -> code, 0 where none was set.

    >>> codes = BlockCodes()
    >>> codes.set_many(np.array([1, 70_000]), np.array([2, 3], np.uint8))
    >>> codes[1], codes[2], codes.where(3).tolist(), len(codes.pages)
    (2, 0, [70000], 2)
    """

    def __init__(self) -> None:
        self.pages: dict[int, NDArray[np.uint8]] = {}

    def __getitem__(self, block: int) -> int:
        page = self.pages.get(block // PAGE)
        return 0 if page is None else int(page[block % PAGE])

    def set(self, block: int, code: int) -> None:
        """Give one block a code."""
        self._page(block // PAGE)[block % PAGE] = code

    def set_many(self, blocks: NDArray[np.int64], codes: NDArray[np.uint8]) -> None:
        """Give many blocks codes; of a block that is named twice, the last one counts.

        Args:
          blocks: (n,) int64, not negative.
          codes: (n,) uint8.
        """
        # Assigning through repeated indices has no order that NumPy promises: one of each is chosen first.
        named, from_end = np.unique(blocks[::-1], return_index=True)
        latest = codes[::-1][from_end]
        pages, starts = np.unique(named // PAGE, return_index=True)
        for number, start, stop in zip(pages.tolist(), starts, np.append(starts[1:], len(named)), strict=False):
            self._page(number)[named[start:stop] % PAGE] = latest[start:stop]

    def _page(self, number: int) -> NDArray[np.uint8]:
        if number not in self.pages:
            self.pages[number] = np.zeros(PAGE, np.uint8)
        return self.pages[number]

    def where(self, code: int) -> NDArray[np.int64]:
        """Blocks of one code, ascending: (n,) int64."""
        found = [number * PAGE + np.flatnonzero(self.pages[number] == code) for number in sorted(self.pages)]
        return np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64, copy=False)

    def blocks_of(self, code: int) -> Blocks:
        """The same as a set, which later changes leave as it is."""
        return Blocks({number: np.packbits(page == code) for number, page in self.pages.items()})

    def without(self, codes: Collection[int], total: int) -> Iterator[int]:
        """Blocks below `total` that have none of these codes, ascending, page by page: nobody holds all of them.

        Codes that change meanwhile count for pages that were not reached yet.
        """
        chosen = np.isin(np.arange(256), list(codes), invert=True)
        for first in range(0, total, PAGE):
            page = self.pages.get(first // PAGE)
            codes_here = np.zeros(PAGE, np.uint8) if page is None else page
            yield from (first + np.flatnonzero(chosen[codes_here[: total - first]])).tolist()


class Blocks(Set[int]):
    """An unchanging set of block numbers, of a bit each.

    >>> codes = BlockCodes()
    >>> codes.set_many(np.array([5, 2]), np.array([1, 1], np.uint8))
    >>> blocks = codes.blocks_of(1)
    >>> blocks == {2, 5}, 3 in blocks, list(blocks)
    (True, False, [2, 5])
    """

    def __init__(self, pages: dict[int, NDArray[np.uint8]]) -> None:
        self._pages = pages
        self._count = sum(int(np.bitwise_count(page).sum()) for page in pages.values())

    @classmethod
    def _from_iterable(cls, blocks: Any) -> set[int]:  # type: ignore[override]
        """What unions and differences give: sets as everywhere."""
        return set(blocks)

    def __contains__(self, block: object) -> bool:
        if not isinstance(block, int | np.integer) or block < 0:
            return False
        page = self._pages.get(int(block) // PAGE)
        at = int(block) % PAGE
        return page is not None and bool(page[at >> 3] >> (7 - (at & 7)) & 1)

    def __iter__(self) -> Iterator[int]:
        for number in sorted(self._pages):
            yield from (number * PAGE + np.flatnonzero(np.unpackbits(self._pages[number]))).tolist()

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"Blocks({self._count} of them)"
