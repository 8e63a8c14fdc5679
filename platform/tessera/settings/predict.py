"""Settings of `tessera predict`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.geometry.boxes import Box
from tessera.settings.common import RunnerSettings, TrackingSettings, check_layout


@dataclass(frozen=True)
class PredictSettings:
    """Predict membrane probability for a whole volume, block by block, into OME-Zarr.

    Args:
      volume: the raw volume: a name under TESSERA_HOME/volumes or a path.
      model: a bundle folder, or models:/NAME/VERSION from MLflow's registry.
      output: name or path of the probability volume.
      roi: half-open region of interest in voxels, such as 0:10,100:400,0:512 (z, y, x); null takes everything.
      tile: most useful voxels the network yields per pass, z, y, x. Changes speed and memory, never a voxel.
      block: voxels per task, z, y, x: a whole number of output shards; null takes one shard.
      chunk: voxels a reader of the output decodes at once; null chooses.
      shard: voxels per output object; null chooses.
      accept_mismatch: go on although the volume does not fit the model's contract.
      overwrite: delete an earlier output of that name first, if tessera made it.
      runner: serial or on Ray, with how many workers.
      tracking: where MLflow keeps the run.
    """

    volume: str = ""
    model: str = ""
    output: str = ""
    roi: str | None = None
    tile: tuple[int, int, int] = (1, 512, 512)
    block: tuple[int, int, int] | None = None
    chunk: tuple[int, int, int] | None = None
    shard: tuple[int, int, int] | None = None
    accept_mismatch: bool = False
    overwrite: bool = False
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        for name, example in (("volume", "my-volume"), ("model", "models:/tessera-unet/1"), ("output", "my-membranes")):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given. Try --{name} {example}.")
        for name in ("tile", "block", "chunk", "shard"):
            check_layout(name, getattr(self, name))


def parse_roi(text: str | None, shape: tuple[int, ...]) -> Box:
    """The box that `text` names in a volume of `shape`; all of it for None.

    >>> parse_roi("0:1,8:,:16", (4, 32, 32))
    Box(start=(0, 8, 0), stop=(1, 32, 16))

    Raises:
      ValueError: not three ranges, or a range that is empty or passes the volume.
    """
    whole = Box.whole(shape)
    if text is None:
        return whole
    try:
        ranges = [part.split(":") for part in text.split(",")]
        start = tuple(int(a or 0) for a, _ in ranges)
        stop = tuple(int(b or n) for (_, b), n in zip(ranges, shape, strict=True))
        roi = Box(start, stop)
    except ValueError as error:
        raise ValueError(f"roi={text!r} is not three ranges z, y, x ({error}). Try 0:10,100:400,0:512.") from None
    if not whole.contains(roi) or roi.size == 0:
        raise ValueError(
            f"roi={text!r} is empty or passes the volume {whole}. Try {','.join(f'0:{n}' for n in shape)}."
        )
    return roi
