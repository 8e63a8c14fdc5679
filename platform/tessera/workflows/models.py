"""Where a model named in settings lies: a bundle folder, or one in MLflow's registry."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tessera.model.bundle import CONTRACT, Contract, bundle_digest, load_contract
from tessera.settings.places import home
from tessera.tracking.runs import fetch_artifacts, tracking_uri


@dataclass(frozen=True)
class FoundModel:
    """A bundle at hand.

    Attributes:
      name: as the user wrote it.
      bundle: its folder; every worker must see it.
      contract: what it expects and means.
      digest: of weights and contract.
    """

    name: str
    bundle: Path
    contract: Contract
    digest: str

    @property
    def run_id(self) -> str | None:
        """The MLflow run that trained it."""
        return self.contract.training.get("run_id")


def find_model(name: str, uri: str | None) -> FoundModel:
    """Find a bundle by folder, or by models:/NAME/VERSION in the registry at `uri`.

    A registered bundle is kept under TESSERA_HOME/models by its digest, so that workers and reruns share one copy.

    Raises:
      FileNotFoundError: there is no such bundle.
      ValueError: its contract is damaged.
    """
    folder = Path(name).expanduser().absolute()
    if name.startswith("models:/"):
        with tempfile.TemporaryDirectory(prefix="tessera-model-") as temporary:
            folder = _cached(fetch_bundle(name, uri, Path(temporary)))
    return FoundModel(name, folder, _contract(folder), bundle_digest(folder))


def _contract(folder: Path) -> Contract:
    """The bundle's contract; what its entries raise on their own does not name the file."""
    try:
        return load_contract(folder)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / CONTRACT} is damaged: {str(error).rstrip('.')}. Its model's predictions could mean anything. "
            "Copy the bundle again from the run that trained it, or train anew."
        ) from error


def fetch_bundle(name: str, uri: str | None, folder: Path) -> Path:
    """Download a registered bundle's two files into `folder`."""
    files = fetch_artifacts(tracking_uri(uri, home()), name, folder)
    contracts = list(files.rglob(CONTRACT))
    if not contracts:
        raise FileNotFoundError(f"{name} holds no {CONTRACT}: it is a model, but not one of tessera's bundles.")
    return contracts[0].parent


def _cached(folder: Path) -> Path:
    kept = home() / "models" / bundle_digest(folder)[:16]
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft = kept.with_name(f".{kept.name}.{os.urandom(4).hex()}.tmp")
        shutil.copytree(folder, draft)
        try:
            draft.rename(kept)
        except OSError:  # another job was quicker with the same bundle
            shutil.rmtree(draft)
    return kept
