"""Where a model named in settings lies: a bundle folder, or one in MLflow's registry."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tessera.model.bundle import CONTRACT, Contract, bundle_digest, load_contract
from tessera.settings.places import home
from tessera.tracking.champion import numbered
from tessera.tracking.runs import fetch_artifacts, tracking_uri

_DRAFT, _STALE_S = ".draft-", 24 * 3600


@dataclass(frozen=True)
class FoundModel:
    """A bundle at hand.

    Attributes:
      name: as the user wrote it, an alias replaced by its version.
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

    A registered bundle is kept under TESSERA_HOME/models by its digest, so that workers and reruns share one copy. One
    named by alias (models:/NAME@champion, models:/NAME/latest) is found, and recorded, under its version's number.

    Raises:
      FileNotFoundError: there is no such bundle.
      ValueError: its contract is damaged.
    """
    folder = Path(name).expanduser().absolute()
    if name.startswith("models:/"):
        name = numbered(tracking_uri(uri, home()), name)
        with _drafts() as draft:
            folder = _cached(fetch_bundle(name, uri, draft))
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


@contextmanager
def _drafts() -> Iterator[Path]:
    """A folder to download to, beside where the bundle will be kept: a rename puts it there whole.

    A job that is killed leaves its own behind; the next one after a day removes it.
    """
    models = home() / "models"
    models.mkdir(parents=True, exist_ok=True)
    for left in models.glob(f"{_DRAFT}*"):
        with suppress(FileNotFoundError):  # its own job was quicker
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=_DRAFT) as folder:
        yield Path(folder)


def _cached(found: Path) -> Path:
    """Keep a downloaded bundle under its digest."""
    kept = home() / "models" / bundle_digest(found)[:16]
    if not kept.exists():
        try:
            found.rename(kept)
        except OSError:
            if not kept.exists():  # else another job was quicker with the same bundle
                raise
    return kept
