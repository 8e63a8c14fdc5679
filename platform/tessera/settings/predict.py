"""Settings of `tessera predict`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tessera.geometry.boxes import Box
from tessera.images.quantise import StoredDtype
from tessera.images.symmetries import SymmetryCount
from tessera.settings.common import TrackedOutputSettings, check_layout
from tessera.settings.places import check_apart

_RANGE = re.compile(r"\s*(\d*)\s*:\s*(\d*)\s*")


@dataclass(frozen=True)
class PredictSettings(TrackedOutputSettings):
    """Predict membrane probability for a whole volume, block by block, into OME-Zarr.

    Args:
      volume: the raw volume: a name under TESSERA_HOME/volumes, a path, or a URL (s3://, gs://, https://).
      model: a bundle folder, or models:/NAME/VERSION from MLflow's registry.
      output: name, path or URL of the probability volume.
      level: number of the volume's pyramid level to read, 0 being the finest; null takes the one whose voxel size is
        the model's.
      voxel_size_nm: z, y, x in nanometres, such as [50, 4, 4], where the volume does not say (a plain Zarr array).
      invert_contrast: turn grey values round before they are normalised, where the volume shows membranes bright and
        the model learned them dark, or the other way.
      roi: half-open region of interest in voxels of the level that is read, such as 0:10,100:400,0:512 (z, y, x); null
        takes everything.
      tile: most useful voxels the network yields per pass, z, y, x. Changes speed and memory, never a voxel.
      symmetries: orientations of each tile to average over: 1 as is, 4 flips, 8 flips and turns by 90 degrees, at as
        many times the cost; null takes those that the model's threshold was chosen with.
      output_dtype: uint8 stores probability in steps of 1/255; float16 and float32 more finely, in 2 and 4 bytes.
      block: voxels per task, z, y, x: a whole number of output shards; null takes one shard.
      chunk: voxels a reader of the output decodes at once; null chooses.
      shard: voxels per output object; null chooses.
      accept_mismatch: go on although the volume does not fit the model's contract.
      audit: look for seams when all blocks are done, as `tessera audit` does; where the faces of blocks or tiles stand
        out, the output stays and the command exits with 1.
      ome_zarr: version of the output: 0.5 is sharded; 0.4, for older tools, keeps each chunk as a file.
      overwrite: delete an earlier output of that name first, if tessera made it.
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      tracking: where MLflow keeps the run.
      storage: how inputs in object stores are reached.
    """

    volume: str = ""
    model: str = ""
    output: str = ""
    level: int | None = None
    voxel_size_nm: tuple[float, float, float] | None = None
    invert_contrast: bool = False
    roi: str | None = None
    tile: tuple[int, int, int] = (1, 512, 512)
    symmetries: SymmetryCount | None = None
    output_dtype: StoredDtype = "uint8"
    accept_mismatch: bool = False
    audit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("volume", "my-volume"), ("model", "models:/tessera-unet/1"), ("output", "my-membranes")):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given. Try --{name} {example}.")
        check_layout("tile", self.tile)
        check_apart(self.output, self.volume)


def parse_roi(text: str | None, shape: tuple[int, ...]) -> Box:
    """The box that `text` names in a volume of `shape`; all of it for None.

    >>> parse_roi("0:1,8:,:16", (4, 32, 32))
    Box(start=(0, 8, 0), stop=(1, 32, 16))

    Raises:
      ValueError: the volume has other axes than z, y, x; not three ranges; or a range that is empty, backwards or
        passes the volume.
    """
    if len(shape) != 3:
        raise ValueError(
            f"the volume has shape {shape}: networks here read one channel with axes z, y, x. Save the channel to be "
            "segmented as a volume of its own."
        )
    whole = Box.whole(shape)
    if text is None:
        return whole
    ranges = [_RANGE.fullmatch(part) for part in text.split(",")]
    legal = ",".join(f"0:{n}" for n in shape)
    if len(ranges) != 3 or None in ranges:
        raise ValueError(f"roi={text!r} is not three ranges z, y, x. Try {legal}.")
    start = tuple(int(found[1] or 0) for found in ranges if found)
    stop = tuple(int(found[2] or n) for found, n in zip(ranges, shape, strict=True) if found)
    if any(a >= b or b > n for a, b, n in zip(start, stop, shape, strict=True)):
        raise ValueError(f"roi={text!r} is empty, runs backwards or passes the volume {whole}. Try {legal}.")
    return Box(start, stop)
