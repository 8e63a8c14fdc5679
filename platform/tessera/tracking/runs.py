"""MLflow runs, by explicit client and run id: no global active run, no current folder.

The driver creates the run; whoever reports writes with the id it was given. There is one writer per run at any time.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

MAX_PARAM_LENGTH = 6000
_URI_HINT = "Try null for a file under TESSERA_HOME, or http://HOST:5000 for a server that runs."


@dataclass(frozen=True, slots=True)
class Tracker:
    """One run on one tracking server; a plain value that travels to other processes.

    Attributes:
      uri: absolute tracking URI.
      run_id: the run's.
    """

    uri: str
    run_id: str

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        _client(self.uri).log_batch(
            self.run_id, metrics=[Metric(name, float(value), now, step) for name, value in values.items()]
        )

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        for name, value in values.items():
            _client(self.uri).set_tag(self.run_id, name, value)

    def picture(self, key: str, image: NDArray[Any], step: int) -> None:
        """Log an RGB picture, uint8 (y, x, 3), that MLflow shows over steps."""
        _client(self.uri).log_image(self.run_id, image, key=key, step=step, synchronous=True)

    def document(self, name: str, content: Mapping[str, Any]) -> None:
        """Log a JSON document."""
        _client(self.uri).log_dict(self.run_id, dict(content), name)

    def dataset(self, name: str, fingerprint: str, context: str) -> None:
        """Tell which data the run read, by name and fingerprint."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": name})
        data = Dataset(name=Path(name).name, digest=fingerprint[:16], source_type="local", source=source)
        _client(self.uri).log_inputs(
            self.run_id, datasets=[DatasetInput(data, tags=[InputTag("mlflow.data.context", context)])]
        )

    def link(self, relation: str, other_run_id: str) -> None:
        """Link this run with another in both directions, as tags: lineage that can be followed either way."""
        client = _client(self.uri)
        client.set_tag(self.run_id, f"tessera.{relation}", other_run_id)
        if has_run(self.uri, other_run_id):  # the model may come from another lab's server
            client.set_tag(other_run_id, f"tessera.{relation}_of.{self.run_id[:8]}", self.run_id)


def check_tracking(uri: str) -> None:
    """Make sure that runs can be kept at `uri`, before any work starts.

    Raises:
      ValueError: no store speaks this URI.
      ConnectionError: the server does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        _client(uri).search_experiments(max_results=1)
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {uri} cannot be used: {error}. {_URI_HINT}") from error


def has_run(uri: str, run_id: str) -> bool:
    """Whether this server knows the run and nobody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(_client(uri).get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise ConnectionError(f"MLflow at {uri} cannot be used: {error}. {_URI_HINT}") from error


def tracking_uri(given: str | None, home: Path) -> str:
    """The URI to use: the one given, else the environment's, else SQLite under `home`."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


@contextmanager
def tracked_run(
    uri: str,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    home: Path,
    *,
    resume: str | None = None,
) -> Iterator[Tracker]:
    """A run that is FINISHED when the block ends and FAILED when it raises.

    Args:
      uri: tracking URI.
      experiment: created where it is missing; its artifacts lie under `home` for a local database.
      name: the run's.
      params: nested settings; flattened to dotted names.
      tags: tags.
      home: TESSERA_HOME.
      resume: id of an earlier run to go on with, instead of a new one, where the server knows it.
    """
    client = _client(uri)
    if resume is None or not has_run(uri, resume):
        seen = {"mlflow.source.name": f"tessera {tags.get('tessera.workflow', '')}".strip(), **_user()}
        tracker = _begin(uri, experiment, name, {**seen, **tags}, home)
        _log_params(tracker, params)
    else:
        client.update_run(resume, status="RUNNING")
        tracker = Tracker(uri, resume)
    try:
        yield tracker
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        client.set_tag(tracker.run_id, "tessera.error", str(error)[:500])
        client.set_terminated(tracker.run_id, status)
        raise
    if "tessera.error" in client.get_run(tracker.run_id).data.tags:  # of an earlier try
        client.delete_tag(tracker.run_id, "tessera.error")
    client.set_terminated(tracker.run_id, "FINISHED")


def _begin(uri: str, experiment: str, name: str, tags: Mapping[str, str], home: Path) -> Tracker:
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    try:
        run = client.create_run(_experiment_id(client, uri, experiment, home), run_name=name, tags=dict(tags))
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {uri} cannot be used: {error}. {_URI_HINT}") from error
    return Tracker(uri, run.info.run_id)


def _experiment_id(client: Any, uri: str, name: str, home: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Without a location of its own a local database would put artifacts into the current folder.
    location = (home / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    # The kind decides which pages the UI opens with: training runs, or those for chat agents.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, artifact_location=location, tags=kind))


def _user() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (OSError, KeyError):  # a container's user may have no name
        return {}


def _log_params(tracker: Tracker, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(key, value[:MAX_PARAM_LENGTH]) for key, value in flattened(params).items()]
    _client(tracker.uri).log_batch(tracker.run_id, params=flat)


def flattened(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names of nested plain values.

    >>> flattened({"network": {"filters": 32}, "seed": 1})
    {'network.filters': '32', 'seed': '1'}
    """
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        raise ValueError(f"tracking.uri={uri} cannot be used: {error}. {_URI_HINT}") from error


def fetch_artifacts(uri: str, model_uri: str, folder: Path) -> Path:
    """Download a registered model's files into `folder`; returns where they lie.

    Raises:
      FileNotFoundError: no such model or version.
    """
    _client(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        found = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=str(folder), tracking_uri=uri)
        return Path(found)
    except mlflow.exceptions.MlflowException as error:
        raise FileNotFoundError(f"{model_uri} is not in the registry at {uri}: {error}") from None
