"""Promises about block codes: what a dictionary would say, in a byte a block."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tessera.storage.block_codes import PAGE, BlockCodes

BLOCK = st.integers(0, 40) | st.integers(PAGE - 3, PAGE + 3) | st.integers(2**40, 2**40 + 2)
CHANGES = st.lists(st.lists(st.tuples(BLOCK, st.integers(1, 3)), max_size=20), max_size=6)


@given(CHANGES)
def test_codes_are_those_of_a_dictionary_whatever_the_batches(batches: list[list[tuple[int, int]]]) -> None:
    codes, expected = BlockCodes(), dict[int, int]()
    for batch in batches:
        expected.update(batch)
        blocks, values = np.array([b for b, _ in batch], np.int64), np.array([c for _, c in batch], np.uint8)
        codes.set_many(blocks, values)
    assert {block: codes[block] for block in expected} == expected
    for code in (1, 2, 3):
        of_code = {block for block, value in expected.items() if value == code}
        assert set(codes.where(code).tolist()) == of_code
        found = codes.blocks_of(code)
        assert found == of_code and list(found) == sorted(of_code) and len(found) == len(of_code)
        assert all(block in found for block in of_code) and -1 not in found
    total = PAGE + 2
    assert list(codes.without({1, 3}, total)) == [b for b in range(total) if expected.get(b) not in (1, 3)]


def test_a_set_of_blocks_stays_as_it_was() -> None:
    codes = BlockCodes()
    codes.set(3, 1)
    before = codes.blocks_of(1)
    codes.set(4, 1)
    assert before == {3} and codes.blocks_of(1) - before == {4} and repr(before) == "Blocks(1 of them)"


def test_a_million_blocks_take_a_megabyte() -> None:
    codes = BlockCodes()
    codes.set_many(np.arange(10**6), np.ones(10**6, np.uint8))
    assert sum(page.nbytes for page in codes.pages.values()) <= 2**20 and len(codes.blocks_of(1)) == 10**6
