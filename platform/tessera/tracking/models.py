"""Bundles in MLflow's registry: a pyfunc model from code, its weights and contract as artifacts, no pickle."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessera.tracking.pages import link_to, run_address, with_link
from tessera.tracking.runs import Tracker, speaking_to

CODE = Path(__file__).with_name("pyfunc_model.py")


def register_bundle(tracker: Tracker, bundle: Path, name: str, requirements: Sequence[str]) -> str:
    """Log a bundle with the run and register it.

    Args:
      tracker: the training run's.
      bundle: folder with weights.keras and contract.json.
      name: of the registered model.
      requirements: pip requirements, `name==version`.

    Returns:
      The model's URI, models:/NAME/VERSION.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = (-1, -1, -1)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), pixels, "raw")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), pixels, "membrane_probability")]),
    )
    with speaking_to(tracker.uri), mlflow.start_run(run_id=tracker.run_id), warnings.catch_warnings():
        # It asks for type hints and an input example to guess a signature from, although one is given.
        warnings.simplefilter("ignore", UserWarning)
        info = mlflow.pyfunc.log_model(
            name="bundle",
            python_model=str(CODE),
            artifacts={path.name.replace(".", "_"): str(path) for path in sorted(bundle.iterdir())},
            pip_requirements=list(requirements),
            signature=signature,
            registered_model_name=name,
        )
    model_uri = f"models:/{name}/{_version(tracker, name, info)}"
    _describe(tracker, model_uri)
    return model_uri


def _describe(tracker: Tracker, model_uri: str) -> None:
    """What the version's page says of it; the run that trained it leads on to those that used it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)
    run = client.get_run(tracker.run_id).info
    trained = link_to(run.run_name, run_address(run.experiment_id, run.run_id))
    _, name, version = model_uri.split("/")
    use = f"`tessera predict --model {model_uri} --volume RAW --output MEMBRANES`"
    client.update_model_version(name, version, f"Membrane probability of raw sections: {use}. Trained by {trained}.")


def tell_descendant(tracker: Tracker, model_uri: str) -> None:
    """Let a registered version's page lead to a run that started from it; a bundle's folder is in no registry.

    Telling again changes nothing.
    """
    from mlflow import MlflowClient

    if not model_uri.startswith("models:/"):
        return
    client = MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)
    name, version = _registered(client, model_uri)
    run = client.get_run(tracker.run_id).info
    link = link_to(run.run_name, run_address(run.experiment_id, run.run_id))
    told = client.get_model_version(name, version).description or ""
    client.update_model_version(name, version, with_link(told, "fine-tuned by", link))
    client.set_model_version_tag(name, version, f"tessera.fine_tuned_by.{run.run_id[:8]}", run.run_id)


def _registered(client: Any, model_uri: str) -> tuple[str, str]:
    """Name and version that models:/NAME/VERSION or models:/NAME@ALIAS stands for at this moment."""
    name, _, version = model_uri.removeprefix("models:/").partition("/")
    if "@" in name:
        name, _, alias = name.partition("@")
        version = client.get_model_version_by_alias(name, alias).version
    return name, str(version)


def _version(tracker: Tracker, name: str, info: Any) -> str:
    from mlflow import MlflowClient

    if getattr(info, "registered_model_version", None):
        return str(info.registered_model_version)
    client = MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)
    return str(max(int(v.version) for v in client.search_model_versions(f"name='{name}'")))
