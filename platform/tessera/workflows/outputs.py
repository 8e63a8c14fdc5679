"""A volume that a job makes: planned without touching anything, claimed for that job alone, tracked while it grows.

    plan --> claim: folder and ledger are this job's --> blocks --> complete

A plan is a plain value: whoever wants to know what a job would do makes one, and nothing has happened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tessera.geometry.blocks import BlockGrid, check_alignment
from tessera.images.colours import label_colours
from tessera.settings.common import OutputSettings, TrackedOutputSettings
from tessera.settings.places import home, output_path
from tessera.storage.layouts import Layout, legal_layout
from tessera.storage.lease import Lease
from tessera.storage.ledger_job import begin_or_resume, has_job, ledger_path
from tessera.storage.locations import Place, place_of
from tessera.storage.objects import exists
from tessera.storage.ome import OmeZarr
from tessera.storage.removal import check_removable, remove_output
from tessera.storage.room import check_writable
from tessera.storage.stores import describe
from tessera.storage.validity import add_validity
from tessera.storage.volumes import ImageLabel, Volume, create_volume, is_ours, open_volume, update_attributes
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.workflows.plain import plain
from tessera.workflows.scene import inputs_of, kind_of

AVERAGED = ("image", "raw", "membrane probability")
"""Kinds whose voxels are amounts. Everything else is names: an average of two ids is a third object's."""

_COLOURED = 64


@dataclass(frozen=True)
class OutputPlan:
    """A volume to be made, checked in all that can be checked beforehand.

    Attributes:
      path: where.
      made_by: the workflow.
      kind: what its voxels mean.
      shape: z, y, x, voxels.
      dtype: name of the voxel type.
      layout: chunk and shard.
      block: voxels per task: whole shards.
      voxel_size_nm: z, y, x; None where the input does not say.
      depends_on: JSON values that the voxels depend on, besides the layout: another job's have others.
      attributes: further entries of the `tessera` attribute.
      name: the image's; the folder's by default.
      translation_nm: where voxel 0 lies, z, y, x; None at the origin.
      channels: what the one channel is called, for viewers; none is fine.
      ome_zarr: version of the format.
      validity: whether a validity mask is kept beside the voxels.
    """

    path: Place
    made_by: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    block: tuple[int, ...]
    voxel_size_nm: tuple[float, float, float] | None
    depends_on: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    translation_nm: tuple[float, ...] | None = None
    channels: tuple[str, ...] = ()
    ome_zarr: OmeZarr = "0.5"
    validity: bool = False

    @property
    def grid(self) -> BlockGrid:
        """Its tasks."""
        return BlockGrid(self.shape, self.block)

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel."""
        return np.dtype(self.dtype).itemsize

    @property
    def facts(self) -> dict[str, Any]:
        """All that a block's voxels depend on; what differs is told when another job claims the output."""
        own = {
            "workflow": self.made_by,
            "shape": self.shape,
            "block": self.block,
            "shard": self.layout.shard,
            "output": self.dtype,
        }
        return own | {"ome_zarr": self.ome_zarr} | dict(self.depends_on)

    @property
    def key(self) -> str:
        """The ledger's key: a digest of the facts."""
        return digest_of(self.facts)


def plan_output(
    settings: OutputSettings,
    output: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    block: tuple[int, int, int] | None = None,
    **facts: Any,
) -> OutputPlan:
    """Choose layout and block of an output and check them; `facts` are the plan's further attributes.

    Raises:
      ValueError: chunk, shard and block do not fit each other or the shape, or the place is not legal.
    """
    kind = np.dtype(dtype)
    layout = legal_layout(shape, kind.itemsize, settings.chunk, settings.shard)
    chosen = block or layout.shard
    if settings.ome_zarr == "0.4":  # a task is as large as it would be with shards, and writes many chunks
        layout = Layout(layout.chunk, layout.chunk)
    check_alignment(chosen, layout.shard, shape)
    place, version = output_path(output), settings.ome_zarr
    check_free(place)
    return OutputPlan(place, shape=shape, dtype=kind.name, layout=layout, block=chosen, ome_zarr=version, **facts)


def check_free(place: Place) -> None:
    """Refuse a place where something that is not ours lies, or nothing can be written, before a job starts its workers.

    Raises:
      FileExistsError: something that tessera did not make is there.
      NotADirectoryError, PermissionError: no folder can be made there, or nothing written in it.
      OSError: the store cannot be reached, or refuses.
    """
    held = describe(place) if exists(place) and not is_ours(place) else "an empty folder"
    if held != "an empty folder":
        raise FileExistsError(
            f"{place} is {held} that tessera did not make: it would be overwritten. Give another output, or remove it "
            "yourself."
        )
    check_writable(place)


def digest_of(facts: Mapping[str, Any]) -> str:
    """A digest of JSON values, whatever their order.

    >>> digest_of({"a": (1, 2), "b": 3}) == digest_of({"b": 3, "a": [1, 2]})
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def claimed_output(plan: OutputPlan, settings: OutputSettings) -> Iterator[Lease]:
    """Be the one driver of an output inside the block; it is created, or made sure of that it is this job's.

    Where `overwrite` is set, what was there is deleted under the same lease: of two who do so at once, one is refused.

    Raises:
      FileExistsError: something else is there, or it is finished and no ledger tells by which job.
      OutputInUseError: another driver works on it.
      ValueError: it is another job's.
    """
    if settings.overwrite:
        check_removable(plan.path)  # before the lease makes a folder of its own
    with Lease.take(ledger_path(plan.path), settings.lease_expiry_s) as lease:
        if settings.overwrite:
            remove_output(plan.path, lease)
        volume = create_output(plan)
        if plan.validity:
            add_validity(volume)
        if not has_job(plan.path) and volume.attributes.get("complete"):
            raise FileExistsError(
                f"{plan.path} is a finished volume without its ledger ({ledger_path(plan.path)}): whether this job "
                "made it cannot be told, and it would be overwritten. Give another output, or say `--overwrite true`."
            )
        begin_or_resume(plan.path, None, plan.key, plan.facts)
        yield lease


def create_output(plan: OutputPlan) -> Volume:
    """Create the volume, or open it where it is there already.

    Raises:
      FileExistsError: something else is there.
    """
    own = {"made_by": plan.made_by, "kind": plan.kind, "complete": False, **plan.attributes}
    return create_volume(
        plan.path,
        plan.shape,
        plan.dtype,
        voxel_size_nm=plan.voxel_size_nm,
        chunk=plan.layout.chunk,
        shard=plan.layout.shard,
        attributes=own,
        name=plan.name,
        channels=plan.channels,
        translation_nm=plan.translation_nm,
        exist_ok=True,
        ome_zarr=plan.ome_zarr,
        labels=image_label(plan),
    )


def image_label(plan: OutputPlan) -> ImageLabel | None:
    """What NGFF is told of an output of ids: the image behind it, and the colours of the first ids as `view` has them.

    The list of colours is short: a volume has millions of ids, and viewers that know no rule of ours take their own.
    """
    if plan.kind in AVERAGED or np.dtype(plan.dtype).kind != "u":
        return None
    ids = np.arange(1, _COLOURED + 1, dtype=np.uint64)
    colours = {int(i): rgb.tolist() for i, rgb in zip(ids, label_colours(ids), strict=True)}
    return ImageLabel(_image_behind(plan), colours)


def _image_behind(plan: OutputPlan) -> str | None:
    """The image that was labelled, as its group is reached from the output's; None where nobody says."""
    named = plan.attributes.get("input")
    if not isinstance(named, str):
        return None
    try:
        found = list(inputs_of(open_volume(place_of(named))))
    except (OSError, ValueError):  # it was opened a moment ago, perhaps in another way: a link is not worth a job
        return None
    place = next((one.place for one in found if kind_of(one) == "raw"), found[-1].place)
    if isinstance(place, Path) and isinstance(plan.path, Path):
        return os.path.relpath(place, plan.path)
    return str(place)


@contextmanager
def tracked_output(plan: OutputPlan, settings: TrackedOutputSettings, tags: Mapping[str, str]) -> Iterator[Tracker]:
    """The MLflow run of a claimed output: the one that an interrupted job began, else a new one."""
    uri = tracking_uri(settings.tracking.uri, home())
    name = f"{plan.made_by} {plan.path.name}"
    shown = {"tessera.workflow": plan.made_by, "tessera.output": str(plan.path), **tags}
    earlier = open_volume(plan.path).attributes.get("run_id")
    with tracked_run(uri, settings.tracking.experiment, name, plain(settings), shown, home(), resume=earlier) as run:
        update_attributes(plan.path, run_id=run.run_id)
        yield run


def open_finished(path: Place, *, voxel_size_nm: Sequence[float] | None = None) -> Volume:
    """Open a volume to read, and refuse one that a job of ours has not finished.

    Args:
      path: a folder or URL.
      voxel_size_nm: z, y, x, where the volume does not say.

    Raises:
      ValueError: it is half-written; its missing blocks would read as zeros.
    """
    volume = open_volume(path, voxel_size_nm=voxel_size_nm)
    if volume.attributes.get("complete") is False:
        raise ValueError(
            f"{path} is only half-written: blocks that are missing would read as zeros. Run the command that makes it "
            "again; it does only what is missing."
        )
    return volume
