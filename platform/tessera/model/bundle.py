"""The bundle: a trained network and the contract under which it may be used.

    bundle/
      weights.keras     the Keras graph and its weights, loaded in safe mode only
      contract.json     what the numbers mean: normalisation, axes, voxel size, layers, channels, provenance

Training writes it and inference reads it, so both normalise with the same statistics; a volume that does not fit the
contract is refused with both sides named, never adapted in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.images.normalise import Normalisation
from tessera.images.symmetries import SymmetryCount, check_square
from tessera.model.safe_layers import check_safe
from tessera.model.spec import UnetSpec

WEIGHTS, CONTRACT = "weights.keras", "contract.json"
FORMAT = "tessera-bundle/2"


@dataclass(frozen=True)
class Contract:
    """What a trained network expects and what its output means.

    Attributes:
      network: the graph's choices.
      normalisation: applied to raw voxels before the network, in training and inference alike.
      input_dtype: of the raw volumes it was trained on.
      voxel_size_nm: z, y, x, of the volumes it was trained on.
      threshold: cell probability above which a pixel is cell, chosen on validation sections; None before that.
      training: provenance: run id, data fingerprint, steps, validation scores, software version.
      axes: of input and output volumes.
      channels: what each output channel is the probability of.
      symmetries: how many of the square's the threshold was chosen with; prediction averages over as many.
    """

    network: UnetSpec
    normalisation: Normalisation
    input_dtype: str
    voxel_size_nm: tuple[float, float, float]
    threshold: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    axes: str = "zyx"
    channels: tuple[str, ...] = ("membrane probability",)
    symmetries: SymmetryCount = 1

    def __post_init__(self) -> None:
        check_square(self.symmetries, self.voxel_size_nm)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-ready; the layer records stand beside the spec for other tools to read."""
        return {
            "format": FORMAT,
            "network": self.network.to_dict(),
            "layers": [[r.kind, r.kernel, r.stride, r.padding] for r in self.network.records],
            "normalisation": self.normalisation.to_dict(),
            "input_dtype": self.input_dtype,
            "axes": self.axes,
            "voxel_size_nm": list(self.voxel_size_nm),
            "channels": list(self.channels),
            "threshold": self.threshold,
            "symmetries": self.symmetries,
            "training": self.training,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Contract:
        """Read back what `to_dict` gave.

        Raises:
          ValueError: another format or a missing entry.
        """
        _check_format(plain.get("format"))
        try:
            z, y, x = (float(size) for size in plain["voxel_size_nm"])
            return cls(
                network=UnetSpec(**plain["network"]),
                normalisation=Normalisation.from_dict(plain["normalisation"]),
                input_dtype=plain["input_dtype"],
                voxel_size_nm=(z, y, x),
                threshold=plain["threshold"],
                training=plain["training"],
                axes=plain["axes"],
                channels=tuple(plain["channels"]),
                symmetries=plain["symmetries"],
            )
        except KeyError as missing:
            raise ValueError(f"contract entry {missing} is missing: the bundle is damaged. Export it again.") from None
        except (TypeError, AttributeError) as wrong:
            raise ValueError(
                f"a contract entry is malformed ({wrong}): the bundle is damaged. Export it again."
            ) from None

    def with_training(self, threshold: float | None, **facts: Any) -> Contract:
        """This contract with a chosen threshold and further provenance."""
        return replace(self, threshold=threshold, training={**self.training, **facts})


def _check_format(found: Any) -> None:
    if found == "tessera-bundle/1":
        raise ValueError(
            f"contract format 'tessera-bundle/1' is not {FORMAT!r}: it does not say over how many symmetries "
            'predictions are averaged. An earlier tessera never averaged: set "format" to '
            f'"{FORMAT}" and add "symmetries": 1.'
        )
    if found != FORMAT:
        raise ValueError(f"contract format {found!r} is not {FORMAT!r}: not made by tessera?")


def save_bundle(folder: Path, model: Any, contract: Contract) -> None:
    """Write a bundle; `model` is the Keras graph as trained."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / WEIGHTS)
    save_contract(folder, contract)


def save_contract(folder: Path, contract: Contract) -> None:
    """Write or replace a bundle's contract."""
    (folder / CONTRACT).write_text(json.dumps(contract.to_dict(), indent=2) + "\n")


def load_contract(folder: Path) -> Contract:
    """Read a bundle's contract, without Keras.

    Raises:
      FileNotFoundError: the folder is not a bundle.
      ValueError: the contract is unreadable.
    """
    missing = [name for name in (WEIGHTS, CONTRACT) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a model bundle: {' and '.join(missing)} not there. Give the bundle folder that "
            "`tessera train` printed, or models:/NAME/VERSION from the registry."
        )
    try:
        plain = json.loads((folder / CONTRACT).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / CONTRACT} is not valid JSON ({error}): the bundle is damaged.") from None
    return Contract.from_dict(plain)


def load_model(folder: Path, digest: str | None = None) -> Any:
    """The trained Keras graph, loaded in safe mode and of known layers only: no code from the file runs.

    Args:
      folder: the bundle.
      digest: what `bundle_digest` said of it when it was chosen; None loads whatever is there.

    Raises:
      ValueError: the weights are unreadable, hold what no network of tessera's has, or are not those that were chosen.
    """
    import keras

    if digest is not None and bundle_digest(folder) != digest:
        raise ValueError(
            f"{folder} is not the bundle that this job chose: its digest was {digest[:12]}... and is no more. Two "
            "models' predictions would lie in one volume. Leave bundles as they are, and start the job again."
        )
    check_safe(folder / WEIGHTS)
    try:
        return keras.saving.load_model(folder / WEIGHTS, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} cannot be loaded: {error}. The bundle is damaged; export it again."
        ) from error


def bundle_digest(folder: Path) -> str:
    """sha256 over the decoded weights file and the contract: the model's identity in ledgers and lineage."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, CONTRACT):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def check_fit(
    contract: Contract,
    *,
    dtype: np.dtype[Any],
    axes: str,
    voxel_size_nm: Sequence[float] | None,
    accept_mismatch: bool = False,
) -> list[str]:
    """Compare a volume with the contract.

    Args:
      contract: the model's.
      dtype: the volume's.
      axes: the volume's, such as "zyx".
      voxel_size_nm: the volume's; None where it is unknown.
      accept_mismatch: return the disagreements instead of raising, for a user who knows better.

    Returns:
      The disagreements, one sentence each.

    Raises:
      ValueError: dtype, axes or voxel size disagree and `accept_mismatch` is off; both sides are named.
    """
    found, other_size = [], False
    if str(dtype) != contract.input_dtype:
        found.append(f"the volume's dtype is {dtype}, the model was trained on {contract.input_dtype}")
    if axes != contract.axes:
        found.append(f"the volume's axes are {axes!r}, the model wants {contract.axes!r}")
    if voxel_size_nm is None:
        found.append(f"the volume's voxel size is unknown, the model was trained on {contract.voxel_size_nm} nm")
    elif other_size := not np.allclose(voxel_size_nm, contract.voxel_size_nm, rtol=0.01):
        found.append(
            f"the volume's voxel size is {tuple(voxel_size_nm)} nm, the model wants {contract.voxel_size_nm} nm"
        )
    if found and not accept_mismatch:
        raise ValueError(
            f"the model's contract does not fit the volume: {'; '.join(found)}. Probabilities would be meaningless. "
            "Ingest the volume with its true voxel size and dtype, or pass --accept_mismatch true if you know better."
            + (" To read it at the model's voxel size, say --resample true." if other_size else "")
        )
    return found
