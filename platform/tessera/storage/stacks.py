"""A stack of 2D slices read window by window, never whole.

Annotated EM arrives as multi-page TIFF or as a folder of numbered slices. Everything that can be wrong with such a
stack is found from its headers when it is opened, before a job of hours begins.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.geometry.boxes import Box
from tessera.storage.numbering import number_sections
from tessera.storage.page_windows import Windows, bands, opened
from tessera.storage.pages import PNG_SUFFIXES, TIFF_SUFFIXES, Page, read_pages
from tessera.storage.pixels import (
    Kind,
    Pixels,
    check_dtype,
    check_finite,
    check_invertible_labels,
    collapse_grey,
    has_equal_channels,
    invert_scale,
    look_up_grey,
    pack_colours,
)

OpenPage = Callable[[Page], AbstractContextManager[Windows]]
"""Opens a stored section for reading windows of it."""

_BAND_ROWS = 1024
_SUFFIXES = TIFF_SUFFIXES + PNG_SUFFIXES


@dataclass(frozen=True)
class SliceStack:
    """Sections along z, decoded where they are asked for; holds headers and paths only, so it pickles.

    `shape` is (z, y, x) and `dtype` that of every section read. `names` has one entry per section. `missing` lists the
    sections that a gap in a folder's numbering stands for: they read as zeros. `ignored` names what else lay in the
    folder.
    """

    path: Path
    kind: Kind
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    names: tuple[str, ...] = field(repr=False)
    missing: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()
    invert: bool | None = None
    packed: bool = False
    pages: tuple[Page | None, ...] = field(default=(), repr=False)

    @property
    def segment(self) -> tuple[int, int] | None:
        """The most rows and columns that any section decodes together; None where all are plain rows."""
        coded = [page.segment for page in self.pages if page and page.segment]
        return (max(rows for rows, _ in coded), max(columns for _, columns in coded)) if coded else None

    @property
    def pixel_bytes(self) -> int:
        """The most bytes that a stored pixel has, all channels together, or that a voxel has."""
        return max(self.dtype.itemsize, *(page.channels * page.dtype.itemsize for page in self.pages if page), 1)

    @contextmanager
    def opened(self, z: int, open_page: OpenPage = opened) -> Iterator[Section]:
        """Open one section for reading windows of it.

        Args:
          z: section index, 0 to shape[0] - 1.
          open_page: what decodes.

        Raises:
          IndexError: there is no such section.
          ValueError: the file is corrupt or has changed; names the section.
        """
        if not 0 <= z < self.shape[0]:
            raise IndexError(f"section {z} of {self.path}: there are sections 0 to {self.shape[0] - 1}.")
        page = self.pages[z]
        if page is None:
            yield Section(self, z, None)
            return
        with open_page(page) as windows:
            yield Section(self, z, windows)

    def read_section(self, z: int) -> Pixels:
        """One whole section.

        Args:
          z: section index, 0 to shape[0] - 1.

        Returns:
          (y, x) of `dtype`; zeros where the section is missing.

        Raises:
          IndexError: there is no such section.
          ValueError: the file is corrupt or its values are not fit for the stack's kind; names the section.
        """
        with self.opened(z) as section:
            return section.read(Box.whole(self.shape[1:]))


@dataclass(frozen=True)
class Section:
    """One section, open; `windows` is None where it is missing."""

    stack: SliceStack
    z: int
    windows: Windows | None

    @property
    def decoded(self) -> int:
        """Strips and tiles decoded so far."""
        return self.windows.decoded if self.windows else 0

    def read(self, window: Box) -> Pixels:
        """A window of the section, by the rules of the stack's kind.

        Args:
          window: (y, x), inside the section.

        Returns:
          (y, x) of the stack's `dtype`; zeros where the section is missing.

        Raises:
          ValueError: the file is corrupt or its values are not fit for the stack's kind; names the section.
        """
        page = self.stack.pages[self.z]
        if self.windows is None or page is None:
            return np.zeros(window.shape, self.stack.dtype)
        settle = _settle_image if self.stack.kind == "image" else _settle_labels
        values = settle(self.windows.read(window), page, self.stack.invert, self.stack.packed)
        check_finite(values, f"{self.stack.path}, section {self.z} ({page.name})")
        return np.ascontiguousarray(values.astype(np.uint8) * 255 if values.dtype.kind == "b" else values)

    def is_zero(self, window: Box) -> bool:
        """Whether a window is known to be zeros without reading it: nothing was ever stored there."""
        if self.windows is None or not window.size:
            return True
        corner = Box(window.start, tuple(a + 1 for a in window.start))
        return self.windows.is_hole(window) and not self.read(corner).any()


def open_stack(path: Path, *, kind: Kind, invert: bool | None = None) -> SliceStack:
    """Open a multi-page TIFF, a single PNG, or a folder of numbered TIFF or PNG slices; no pixels are kept.

    Bool becomes uint8 0 or 255. An image's RGB(A) and palette colours must be greys and become one channel. Labels keep
    palette indices as ids; coloured labels become uint32 r << 16 | g << 8 | b, unless every section's channels are
    equal. Alpha is ignored.

    Args:
      path: file or folder.
      kind: "image" (bool, uint8, uint16, int16, float32) or "labels" (bool or integers).
      invert: None inverts sections stored with photometric MINISWHITE, so that bright stays bright; True inverts all;
        False none.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: the stack cannot be read as sections along z; says which file, why, and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a multi-page TIFF or a folder of numbered slices.")
    pages, ignored = _folder_pages(path) if path.is_dir() else (_file_pages(path), ())
    present = [page for page in pages if page is not None]
    for page in present:
        check_dtype(page.dtype, kind, f"{path}, {page.name}")
    _check_uniform(present, kind, path)
    packed = kind == "labels" and present[0].channels == 3 and _needs_packing(present)
    return SliceStack(
        path=path,
        kind=kind,
        shape=(len(pages), *present[0].shape),
        dtype=_section_dtype(present[0], kind, packed),
        names=tuple(page.name if page else "(missing)" for page in pages),
        missing=tuple(z for z, page in enumerate(pages) if page is None),
        ignored=ignored,
        invert=invert,
        packed=packed,
        pages=tuple(pages),
    )


def _file_pages(path: Path) -> tuple[Page, ...]:
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"{path} is neither TIFF nor PNG by its suffix ({', '.join(_SUFFIXES)}). Convert it, or rename it."
        )
    return read_pages(path)


def _folder_pages(path: Path) -> tuple[tuple[Page | None, ...], tuple[str, ...]]:
    """One page per section, None in gaps, and the names left out of the stack."""
    entries = sorted(entry.name for entry in path.iterdir())
    slices = [n for n in entries if not n.startswith(".") and Path(n).suffix.lower() in _SUFFIXES]
    ignored = tuple(n for n in entries if n not in set(slices) and not n.startswith("."))
    if not slices:
        _refuse_empty(path, ignored)
    ordered = number_sections(slices)
    return tuple(_slice_page(path / name) if name else None for name in ordered), ignored


def _refuse_empty(path: Path, ignored: Sequence[str]) -> None:
    holds = f"holds {', '.join(ignored[:5])}" if ignored else "is empty"
    raise ValueError(
        f"{path} {holds}: no section to read. Give a folder of numbered {' or '.join(_SUFFIXES)} slices, or a "
        "multi-page TIFF; a folder with zarr.json, .zgroup or .zarray is a Zarr volume already."
    )


def _slice_page(path: Path) -> Page:
    if path.is_dir():
        raise ValueError(f"{path} is a folder with a slice's name: rename it, or move it elsewhere.")
    pages = read_pages(path)
    if len(pages) > 1:
        raise ValueError(
            f"{path} holds {len(pages)} pages: in a folder of slices each file is one section. Give the multi-page "
            "TIFF itself, or split it."
        )
    return replace(pages[0], name=path.name)


def _section_dtype(page: Page, kind: Kind, packed: bool) -> np.dtype[Any]:
    """The dtype of a section as read, from its header alone."""
    if packed:
        return np.dtype(np.uint32)
    if page.dtype.kind == "b" or (kind == "image" and page.palette is not None):
        return np.dtype(np.uint8)
    return page.dtype.newbyteorder("=")


# Uniformity


def _check_uniform(pages: Sequence[Page], kind: Kind, path: Path) -> None:
    _check_same(pages, lambda page: f"{page.shape[0]}x{page.shape[1]} px", "size", path)
    _check_same(pages, lambda page: _section_dtype(page, kind, False).name, "dtype", path)
    if kind == "labels":
        # Greys and colours, or ids through different palettes, would give one object different ids along z.
        _check_same(pages, lambda page: "colour" if page.channels == 3 else "grey", "colour model", path)
        _check_same(pages, _palette_name(pages), "palette", path)


def _check_same(pages: Sequence[Page], trait: Callable[[Page], str], noun: str, path: Path) -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for page in pages:
        found[trait(page)].append(page.name)
    if len(found) == 1:
        return
    counts = Counter({value: len(names) for value, names in found.items()})
    (majority, count), *odd = counts.most_common()
    shown = "; ".join(f"{value}: {_listed(found[value])}" for value, _ in odd)
    raise ValueError(
        f"{path}: sections differ in {noun}. {count} of {len(pages)} have {majority}, but {shown}. One volume has one "
        f"{noun}: convert or remove the odd ones (a removed slice of a folder counts as missing)."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _palette_name(pages: Sequence[Page]) -> Callable[[Page], str]:
    """Name a section's palette so that one that begins another counts as the same: indices agree in both."""
    longest = max((page.palette or b"" for page in pages), key=len)

    def name(page: Page) -> str:
        if page.palette is None:
            return "no palette"
        return "one palette" if longest.startswith(page.palette) else f"a palette of {len(page.palette) // 3} colours"

    return name


# Values


def _needs_packing(pages: Sequence[Page]) -> bool:
    """Whether any section holds a colour that is not grey; decodes up to the first one.

    Decided once for the whole stack: deciding it per section would give one object two ids.
    """
    coloured = next((page for page in pages if _is_coloured(page)), None)
    if coloured is not None and coloured.dtype != np.uint8:
        raise ValueError(
            f"{coloured.path}, {coloured.name}: colour labels of dtype {coloured.dtype.name}: three channels of more "
            "than 8 bits do not fit an id. Convert the labels to integer ids (uint32) first."
        )
    return coloured is not None


def _is_coloured(page: Page) -> bool:
    with opened(page) as windows:
        whole = Box.whole(page.shape)
        return not all(has_equal_channels(windows.read(band)) for band in bands(whole, page.segment, _BAND_ROWS))


def _settle_image(values: Pixels, page: Page, invert: bool | None, _packed: bool) -> Pixels:
    name = f"{page.path}, {page.name}"
    if page.palette is not None:
        values = look_up_grey(values, page.colours, name)
        return invert_scale(values, 8, name) if invert else values
    values = collapse_grey(values, name) if page.channels == 3 else values
    return invert_scale(values, page.bits, name) if _is_inverted(page, invert) else values


def _settle_labels(values: Pixels, page: Page, invert: bool | None, packed: bool) -> Pixels:
    name = f"{page.path}, {page.name}"
    if packed:
        return pack_colours(values)
    values = collapse_grey(values, name) if page.channels == 3 else values
    if not _is_inverted(page, invert):
        return values
    if invert is None:
        check_invertible_labels(values, page.bits, name)
    return invert_scale(values, page.bits, name)


def _is_inverted(page: Page, invert: bool | None) -> bool:
    return page.inverted if invert is None else invert
