"""U-Net arithmetic against running the layers: legal sizes, derived outputs, and the grid that pooling stays on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.geometry.arithmetic import LayerRecord, fold, unet_records


@pytest.mark.parametrize(
    ("depth", "margin", "halo", "period", "phase"),
    [(1, 8, 8, 2, 0), (2, 20, 22, 4, 2), (3, 44, 46, 8, 2), (4, 92, 94, 16, 2), (5, 188, 190, 32, 2)],
)
def test_unets_of_any_depth(depth: int, margin: int, halo: int, period: int, phase: int) -> None:
    z, y, x = fold(unet_records(depth)).axes
    assert (z.margin, z.halo, z.period) == (0, 0, 1)
    assert y == x
    assert (y.margin, y.halo, y.period, y.phase % period) == (margin, halo, period, phase)
    assert y.crop == halo - margin


def test_pooling_windows_of_the_paper_s_network_start_where_design_says() -> None:
    starts, margin, scale = [], 0, 1
    for record in unet_records(4):
        if record.kind == "conv":
            margin += scale
        elif record.kind == "pool":
            starts.append(margin)
            scale *= 2
    assert starts == [2, 6, 14, 30]


kinds = st.lists(st.integers(1, 3), min_size=1, max_size=3)


@st.composite
def networks(draw: st.DrawFn) -> tuple[LayerRecord, ...]:
    """Symmetric encoder-decoders with kernels 1, 3, 5 and strides 2, 3 that differ between axes."""
    strides = [tuple(draw(st.sampled_from([1, 2, 3])) for _ in range(3)) for _ in range(draw(st.integers(1, 2)))]

    def convs() -> list[LayerRecord]:
        kernels = [tuple(draw(st.sampled_from([1, 3, 5])) for _ in range(3)) for _ in range(draw(st.integers(1, 2)))]
        return [LayerRecord("conv", kernel, (1, 1, 1), "valid") for kernel in kernels]

    down = [record for s in strides for record in (*convs(), LayerRecord("pool", s, s, "valid"))]
    up = [record for s in reversed(strides) for record in (LayerRecord("up", s, s, "valid"), *convs())]
    return (*down, *convs(), *up)


def _run(records: tuple[LayerRecord, ...], axis: int, size: int) -> int | None:
    """The extent after the layers, None where a window is cut or nothing is left."""
    for record in records:
        if record.kind == "conv":
            size -= record.kernel[axis] - 1
        elif record.kind == "pool":
            if size % record.stride[axis]:
                return None
            size //= record.stride[axis]
        else:
            size *= record.stride[axis]
        if size < 1:
            return None
    return size


@settings(max_examples=60, deadline=None)
@given(networks(), st.integers(0, 2), st.integers(1, 400))
def test_legal_inputs_are_those_that_run_and_give_the_derived_output(
    records: tuple[LayerRecord, ...], axis: int, size: int
) -> None:
    arithmetic = fold(records).axes[axis]
    result = _run(records, axis, size)
    assert arithmetic.is_legal_input(size) == (result is not None)
    if result is not None:
        assert result == size - 2 * arithmetic.margin
    nearest = arithmetic.nearest_legal_input(size)
    assert _run(records, axis, nearest) is not None


@settings(max_examples=60, deadline=None)
@given(networks(), st.integers(0, 2), st.integers(-3, 3))
def test_halo_keeps_every_pooling_window_on_the_volume_s_grid(
    records: tuple[LayerRecord, ...], axis: int, tile: int
) -> None:
    arithmetic = fold(records).axes[axis]
    first = tile * arithmetic.period - arithmetic.halo
    scale = 1
    for record in records:
        if record.kind == "conv":
            first += (record.kernel[axis] - 1) // 2 * scale
        elif record.kind == "pool":
            scale *= record.stride[axis]
            assert first % scale == 0
        else:
            scale //= record.stride[axis]
    assert 0 <= arithmetic.crop < arithmetic.period or arithmetic.period == 1
    assert arithmetic.is_legal_input(arithmetic.useful_extent(1) + 2 * arithmetic.halo)


def test_records_that_no_halo_exists_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no centre voxel or skips voxels.*Use odd kernels and stride 1"):
        LayerRecord("conv", (1, 2, 2), (1, 1, 1), "valid")
    with pytest.raises(ValueError, match=r"differs from its stride.*Try kernel=\(1, 2, 2\)"):
        LayerRecord("pool", (1, 3, 3), (1, 2, 2), "valid")
    with pytest.raises(ValueError, match="kind 'norm' is unknown"):
        LayerRecord("norm", (1, 1, 1), (1, 1, 1), "valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"end at 1/2 of the input's resolution"):
        fold([LayerRecord("pool", (1, 2, 2), (1, 2, 2), "valid")])


def test_receptive_field_is_what_the_margin_says() -> None:
    """Perturb one input voxel of a 1D valid network in numpy: outputs beyond the margin never change."""
    records, axis = unet_records(2), 1
    arithmetic = fold(records).axes[axis]
    size = arithmetic.min_input + 4 * arithmetic.period
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(size)
    base = _network_1d(records, signal)
    for at in range(0, size, 7):
        moved = signal.copy()
        moved[at] += 10
        changed = np.flatnonzero(_network_1d(records, moved) != base) + arithmetic.margin
        assert changed.size == 0 or np.abs(changed - at).max() <= arithmetic.margin + arithmetic.period


def _network_1d(records: tuple[LayerRecord, ...], signal: np.ndarray) -> np.ndarray:
    for record in records:
        if record.kind == "conv":
            signal = np.convolve(signal, np.ones(record.kernel[1]) / record.kernel[1], "valid")
        elif record.kind == "pool":
            signal = signal.reshape(-1, record.stride[1]).max(axis=1)
        else:
            signal = np.repeat(signal, record.stride[1])
    return signal
