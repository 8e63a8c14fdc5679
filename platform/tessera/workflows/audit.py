"""Do the seams of a prediction show? Every block is looked at once more, and the ledger's rows add up to a verdict.

    block + 8 voxels around --> scores of its faces, and of planes that are none --> one row --> one verdict

A row of the prediction says where its tiles met. Whoever wants to know later runs `tessera audit`; each prediction ends
with it. Where the rows are as they were, an audit reads no voxel again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.metrics.seam_verdict import JudgedFace, SeamAudit, finish
from tessera.metrics.seams import REACH, AxisPlanes, BlockSeams, block_seams
from tessera.settings.audit import AuditSettings
from tessera.settings.common import RunnerSettings
from tessera.settings.places import home, input_path
from tessera.storage.lease import Lease
from tessera.storage.ledger import read_rows
from tessera.storage.ledger_job import has_job, read_job
from tessera.storage.locations import Place
from tessera.storage.removal import remove_stage
from tessera.storage.validity import ReadValid, valid_reader
from tessera.storage.volumes import Volume, is_ours, open_volume, update_attributes
from tessera.tracking.runs import Tracker, check_tracking, has_run, tracking_uri
from tessera.workflows.block_jobs import Stopwatch, run_block_job, session
from tessera.workflows.outputs import OutputPlan, open_finished
from tessera.workflows.seam_pictures import picture_of_faces, read_bytes

_log = logging.getLogger(__name__)

STAGE, METHOD = "audit", 1
# Workers take longer to start than this many voxels take to look at.
_SMALL_VOXELS = 2**25
# Every network's period divides this: for outputs that do not say theirs.
_ANY_PERIOD = 64
_LISTED = 5
_NOTHING = {"skipped": True, **BlockSeams().to_plain()}

Tiles = tuple[tuple[int, ...], ...]
"""For z, y and x the planes at which tiles meet inside a block, counted from its first voxel."""


class AuditFailedError(RuntimeError):
    """The faces of an output stand out; it stays as it is."""


@dataclass(frozen=True)
class AuditPlan:
    """What a worker needs, as plain values.

    Attributes:
      output: the probability volume.
      grid: the blocks in which it was predicted.
      origin: the raw volume's voxel that its voxel 0 is.
      period: of the network, z, y, x.
    """

    output: Place
    grid: BlockGrid
    origin: tuple[int, ...]
    period: tuple[int, ...]

    def axes(self, box: Box, tiles: Tiles) -> list[AxisPlanes]:
        """Where the faces of a block lie."""
        parts = zip(box.start, box.stop, self.grid.shape, tiles, self.period, self.origin, strict=True)
        return [AxisPlanes(a, b, n, tuple(a + p for p in own), period, o) for a, b, n, own, period, o in parts]


@dataclass(frozen=True)
class TileLayouts:
    """Where the tiles of each block met: a number of 4 bytes for each, and the few layouts that there are.

    Attributes:
      layouts: entry 0 is that of blocks without tiles.
      of_block: int32, (blocks,), indices into `layouts`; -1 where the row does not say.
      skipped: bool, (blocks,): those without a valid voxel, of which nothing was written.
      digest: of the rows they were read from.
    """

    layouts: Sequence[Tiles]
    of_block: NDArray[np.int32]
    skipped: NDArray[np.bool_]
    digest: str

    def __getitem__(self, block: int) -> Tiles:
        return self.layouts[max(int(self.of_block[block]), 0)]

    @property
    def silent(self) -> int:
        """Blocks whose rows do not say."""
        return int((self.of_block < 0).sum())


def audit(settings: AuditSettings) -> str:
    """Run the workflow; returns what to print.

    Raises:
      ValueError, OSError: there is nothing that can be audited.
      BlocksFailedError: some blocks could not be read.
      AuditFailedError: faces stand out; the worst are listed.
    """
    uri = tracking_uri(settings.tracking.uri, home())
    check_tracking(uri)
    volume = open_finished(input_path(settings.output, anonymous=settings.storage.anonymous))
    _check_prediction(volume)
    run_id = volume.attributes.get("run_id")
    run = Tracker(uri, run_id) if run_id and has_run(uri, run_id) else None
    with session(settings):
        found = audit_output(volume.place, settings, run)
    return told(volume.place, found)


def _check_prediction(volume: Volume) -> None:
    if not is_ours(volume.place) or volume.attributes.get("made_by") != "predict":
        raise ValueError(
            f"{volume.url} is no output of tessera predict: where its blocks and tiles meet is unknown. Give one."
        )


def audit_output(output: Place, runner: RunnerSettings, run: Tracker | None, lease: Lease | None = None) -> SeamAudit:
    """Audit a finished prediction, and keep the finding with it and with its run.

    Raises:
      FileNotFoundError: its ledger is gone.
      BlocksFailedError: some blocks could not be read.
      AuditFailedError: faces stand out.
    """
    started = time.perf_counter()
    volume = open_volume(output)
    plan = plan_audit(volume)
    tiles = read_tiles(output, len(plan.grid))
    _run_blocks(plan, tiles, volume, runner, lease)
    found = finish(partial(_rows, output), plan.grid.block[0])
    if tiles.silent:
        _log.warning(
            "%s: %d blocks do not say where their tiles met, for an earlier version made them: of these, only the "
            "faces to other blocks were judged",
            output,
            tiles.silent,
        )
    update_attributes(output, audit=found.to_plain())
    if run is not None:
        try:
            _track(run, plan, volume, found, time.perf_counter() - started)
        except Exception as away:  # whatever the store raises: the finding lies with the output
            _log.warning("MLflow at %s was not told what the audit of %s found: %s", run.uri, output, away)
    _log.info("%s: audit %s", output, found.verdict)
    if found.verdict == "failed":
        raise AuditFailedError(told(output, found))
    return found


def plan_audit(volume: Volume) -> AuditPlan:
    """Blocks, region and network of a prediction, from its ledger and attributes.

    Raises:
      FileNotFoundError: there is no ledger beside it.
      ValueError: the ledger does not say its blocks.
    """
    if not has_job(volume.place):
        raise FileNotFoundError(
            f"{volume.url} has no ledger beside it: where its blocks and tiles meet is unknown. Copy "
            "OUTPUT.zarr.ledger along with OUTPUT.zarr."
        )
    facts = read_job(volume.place)["description"]
    if "block" not in facts or "shape" not in facts:
        raise ValueError(
            f"the ledger of {volume.url} does not say its blocks: another version of tessera began it. Audit it with "
            "that version."
        )
    roi = volume.attributes.get("roi") or [[0, 0, 0]]
    period = volume.attributes.get("tile_period") or [1, _ANY_PERIOD, _ANY_PERIOD]
    return AuditPlan(
        volume.place, BlockGrid(tuple(facts["shape"]), tuple(facts["block"])), tuple(roi[0]), tuple(period)
    )


def read_tiles(output: Place, blocks: int) -> TileLayouts:
    """Where tiles met, from the rows of a prediction; a block's latest row counts."""
    numbers: dict[Tiles, int] = {((), (), ()): 0}
    of_block, skipped = np.full(blocks, -1, np.int32), np.zeros(blocks, bool)
    digest = hashlib.blake2b(digest_size=16)
    for row in read_rows(output):
        detail = row.values
        skipped[row.block] = bool(detail.get("skipped"))
        met = [[], [], []] if detail.get("skipped") else detail.get("tiles")
        tiles = None if met is None else tuple(tuple(axis) for axis in met)
        of_block[row.block] = -1 if tiles is None else numbers.setdefault(tiles, len(numbers))
        digest.update(f"{row.block} {row.status} {row.checksum} {of_block[row.block]}\n".encode())
    return TileLayouts(list(numbers), of_block, skipped, digest.hexdigest())


def _run_blocks(
    plan: AuditPlan, tiles: TileLayouts, volume: Volume, runner: RunnerSettings, lease: Lease | None
) -> None:
    job = OutputPlan(
        plan.output,
        made_by="audit",
        kind="seams",
        shape=plan.grid.shape,
        dtype=volume.dtype.name,
        layout=volume.layout,
        block=plan.grid.block,
        voxel_size_nm=volume.voxel_size_nm,
        depends_on={"method": METHOD, "rows": tiles.digest, "origin": plan.origin, "period": plan.period},
    )
    if has_job(plan.output, stage=STAGE) and read_job(plan.output, stage=STAGE)["key"] != job.key:
        remove_stage(plan.output, STAGE)  # blocks were predicted since
    small = int(np.prod(plan.grid.shape)) <= _SMALL_VOXELS
    engine = "serial" if small else runner.engine
    own = RunnerSettings(engine=engine, workers=runner.workers, attempts=runner.attempts, retry_failed=True)
    run_block_job(
        job,
        partial(make_worker, plan),
        own,
        stage=STAGE,
        item=lambda index: (plan.grid.box(index), tiles[index]),
        # Without a valid voxel no face can be scored; in a sparse volume these are nearly all blocks.
        settled=lambda index: {"detail": _NOTHING} if tiles.skipped[index] else None,
        lease=lease,
    )


def make_worker(plan: AuditPlan) -> Process:
    """In a worker: open the output; returns the function that scores one block."""
    volume = open_volume(plan.output)
    return partial(process_block, plan, volume, valid_reader(volume))


def process_block(plan: AuditPlan, volume: Volume, read_valid: ReadValid, item: tuple[Box, Tiles]) -> dict[str, Any]:
    """Score the faces of one block; returns the ledger's row.

    Args:
      plan: the audit.
      volume: the probability volume.
      read_valid: tells which of its voxels were predicted.
      item: the block's box, and where its tiles met.
    """
    box, tiles = item
    watch = Stopwatch()
    seen = box.grown((1, REACH, REACH)).clipped(Box.whole(volume.shape))
    voxels, valid = read_bytes(volume, seen), read_valid(seen)
    row = watch.lap("read")
    seams = block_seams(voxels, seen.start, plan.axes(box, tiles), None if valid.all() else valid)
    return {**row, **watch.lap("compute"), "detail": seams.to_plain()}


def _rows(output: Place) -> Iterator[tuple[int, BlockSeams]]:
    for row in read_rows(output, stage=STAGE):
        if row.status == "done":
            yield row.block, BlockSeams.from_plain(row.values)


def _track(run: Tracker, plan: AuditPlan, volume: Volume, found: SeamAudit, seconds: float) -> None:
    names = {"worst face": "audit_worst_face", "faces": "audit_faces", "block faces": "audit_block_faces"}
    scores = {names.get(name, f"audit_{name}"): score for name, score in found.scores.items()}
    run.metrics({**scores, "audit_seconds": seconds, "audit_failed": float(found.verdict == "failed")})
    run.tags({"tessera.audit": found.verdict})
    run.document("audit.json", found.to_plain())
    sheet = picture_of_faces(volume, plan.grid, found.worst)
    if sheet is not None:
        run.picture("worst faces", sheet, 0, "worst faces")


def told(output: Place, found: SeamAudit) -> str:
    """The finding in words."""
    if found.verdict == "not applicable":
        return (
            f"{output}: audit not applicable: it has no faces of blocks or tiles with enough planes beside them to "
            "compare them with"
        )
    scores = ", ".join(f"{name} {score:.1f} (limit {found.limits[name]:.1f})" for name, score in found.scores.items())
    lines = [
        f"{output}: audit {found.verdict}: {scores}",
        f"{found.faces} faces against {found.references} planes that are none, in standard errors; the worst:",
        *(f"  {_place(face)}" for face in found.worst[:_LISTED]),
    ]
    if found.verdict == "failed":
        lines.append(
            f"Seams show ({', '.join(found.exceeded)}). The output stays as it is. Compare the raw volume at these "
            "places (tessera view): a seam in the raw itself is no fault of the prediction; `--audit false` predicts "
            "without this check."
        )
    return "\n".join(lines)


def _place(face: JudgedFace) -> str:
    where = "all blocks there" if face.block is None else f"block {face.block}"
    return f"{face.kind} face at {face.axis} = {face.plane} of {where}: {face.score:.1f}"
