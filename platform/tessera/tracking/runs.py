"""MLflow runs, by explicit client and run id: no global active run, no current folder.

The driver creates the run; whoever reports writes with the id it was given. There is one writer per run at any time.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from numpy.typing import NDArray

from tessera.tracking.pages import NOTE, experiment_tags, link_to, run_address, with_link
from tessera.tracking.provenance import run_tags, without_passwords

_log = logging.getLogger(__name__)

MAX_PARAM_LENGTH = 6000
LAST_PICTURE = "last picture"
_KNOCK_S = 5.0
# MLflow's client waits 120 s for an answer, 8 times, with pauses that double: 4 minutes for a server that is down.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
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

    def metrics(self, values: Mapping[str, float], step: int = 0, at_ms: int | None = None) -> None:
        """Log metrics at one step; `at_ms`, milliseconds since 1970, is when they were told, by default now."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        told = at_ms or get_current_time_millis()
        _client(self.uri).log_batch(
            self.run_id, metrics=[Metric(name, float(value), told, step) for name, value in values.items()]
        )

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags."""
        for name, value in values.items():
            _client(self.uri).set_tag(self.run_id, name, value)

    def picture(self, key: str, image: NDArray[Any], step: int, words: str = LAST_PICTURE) -> None:
        """Log an RGB picture, uint8 (y, x, 3): MLflow shows it over steps, and the run's description links to the last.

        `words` say in the description what the link leads to. Over steps the picture stands below all parameters and
        begins at step 0; the file of its own opens by itself.
        """
        client, file = _client(self.uri), f"{key}.png"
        client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
        client.log_image(self.run_id, image, artifact_file=file)
        info = client.get_run(self.run_id).info
        address = run_address(info.experiment_id, info.run_id, f"artifacts/{file}")
        _describe(client, info.run_id, words, link_to(file, address))

    def document(self, name: str, content: Mapping[str, Any]) -> None:
        """Log a JSON document."""
        _client(self.uri).log_dict(self.run_id, dict(content), name)

    def text(self, name: str, content: str) -> None:
        """Log a text file, such as a table as CSV."""
        _client(self.uri).log_text(self.run_id, content, name)

    def has_metric(self, name: str) -> bool:
        """Whether a value of this name was logged, by an earlier try for instance."""
        return name in _client(self.uri).get_run(self.run_id).data.metrics

    def dataset(self, name: str, fingerprint: str, context: str) -> None:
        """Tell which data the run read, by name and fingerprint."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": name})
        data = Dataset(name=Path(name).name, digest=fingerprint[:16], source_type="local", source=source)
        _client(self.uri).log_inputs(
            self.run_id, datasets=[DatasetInput(data, tags=[InputTag("mlflow.data.context", context)])]
        )

    def uses_model(self, model_uri: str) -> None:
        """Tell which registered model the run used, models:/NAME/VERSION; a bundle's folder is in no registry."""
        from mlflow.entities import LoggedModelInput
        from mlflow.models import get_model_info

        if not model_uri.startswith("models:/"):
            return
        with speaking_to(self.uri):
            model_id = get_model_info(model_uri).model_id
        if model_id is not None:  # a model that MLflow 2 registered has none
            _client(self.uri).log_inputs(self.run_id, models=[LoggedModelInput(model_id)])

    def link(self, relation: str, other_run_id: str) -> None:
        """Link this run with another in both directions, as tags and in the descriptions that their pages show.

        Linking again changes nothing. The tags are the record; of two jobs that link to one run in the same
        instant, its description may keep one.
        """
        client = _client(self.uri)
        client.set_tag(self.run_id, f"tessera.{relation}", other_run_id)
        if has_run(self.uri, other_run_id):  # the model may come from another lab's server
            client.set_tag(other_run_id, f"tessera.{relation}_of.{self.run_id[:8]}", self.run_id)
            here, there = client.get_run(self.run_id).info, client.get_run(other_run_id).info
            _describe(client, here.run_id, relation.replace("_", " "), _link(there))
            _describe(client, there.run_id, "used by", _link(here))


def check_answers(uri: str) -> None:
    """The quick part of `check_tracking`, without MLflow: whether anything listens at a server's address.

    Raises:
      ConnectionError: nothing does.
    """
    _knock(uri)


def check_tracking(uri: str) -> None:
    """Make sure that runs can be kept at `uri`, before any work starts.

    Raises:
      ValueError: no store speaks this URI.
      ConnectionError: the server does not answer.
    """
    from mlflow.exceptions import MlflowException

    _knock(uri)
    try:
        _client(uri).search_experiments(max_results=1)
    except MlflowException as error:
        raise ConnectionError(without_passwords(f"MLflow at {uri} cannot be used: {error}. {_URI_HINT}")) from error


def _knock(uri: str) -> None:
    """Ask whether anything listens at a server's address: MLflow's client would try again for a long time."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or address.hostname is None:
        return
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    try:
        socket.create_connection((address.hostname, port), timeout=_KNOCK_S).close()
    except OSError as error:
        raise ConnectionError(without_passwords(f"MLflow at {uri} does not answer: {error}. {_URI_HINT}")) from error


def has_run(uri: str, run_id: str) -> bool:
    """Whether this server knows the run and nobody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(_client(uri).get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise ConnectionError(without_passwords(f"MLflow at {uri} cannot be used: {error}. {_URI_HINT}")) from error


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

    Raises:
      ConnectionError: the server does not answer, before the block or to what is asked of it inside.
    """
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    if resume is None or not has_run(uri, resume):
        seen = {"mlflow.source.name": f"tessera {tags.get('tessera.workflow', '')}".strip(), **_user()}
        tracker = _begin(uri, experiment, name, {**seen, **run_tags(params), **tags}, home)
        _log_params(tracker, params)
    else:
        client.update_run(resume, status="RUNNING")
        _tell_other_code(client, resume, run_tags(params))
        tracker = Tracker(uri, resume)
    try:
        yield tracker
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        _tell_of_failure(client, tracker, str(error), status)
        if isinstance(error, MlflowException):
            raise ConnectionError(without_passwords(f"MLflow at {uri} cannot be used: {error}. {_URI_HINT}")) from error
        raise
    if "tessera.error" in client.get_run(tracker.run_id).data.tags:  # of an earlier try
        client.delete_tag(tracker.run_id, "tessera.error")
    client.set_terminated(tracker.run_id, "FINISHED")


def _tell_other_code(client: Any, run_id: str, now: Mapping[str, str]) -> None:
    """Where a run goes on with other code than it began with, say with which: its first tags stay."""
    begun = client.get_run(run_id).data.tags
    for name in ("mlflow.source.git.commit", "tessera.dirty", "tessera.tree", "tessera.version"):
        if name in now and now[name] != begun.get(name):
            client.set_tag(run_id, f"tessera.resumed.{name.rsplit('.', 1)[-1]}", now[name])


def _tell_of_failure(client: Any, tracker: Tracker, error: str, status: str) -> None:
    try:
        client.set_tag(tracker.run_id, "tessera.error", without_passwords(error)[:500])
        client.set_terminated(tracker.run_id, status)
    except Exception as away:  # whatever the store raises, the work's own error is the one to be told
        _log.warning("MLflow at %s could not be told that run %s failed: %s", tracker.uri, tracker.run_id, away)


def _begin(uri: str, experiment: str, name: str, tags: Mapping[str, str], home: Path) -> Tracker:
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    try:
        run = client.create_run(_experiment_id(client, uri, experiment, home), run_name=name, tags=dict(tags))
    except MlflowException as error:
        raise ConnectionError(without_passwords(f"MLflow at {uri} cannot be used: {error}. {_URI_HINT}")) from error
    return Tracker(uri, run.info.run_id)


def _experiment_id(client: Any, uri: str, name: str, home: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        _describe_experiment(client, found.experiment_id, found.tags)
        return str(found.experiment_id)
    # Without a location of its own a local database would put artifacts into the current folder.
    location = (home / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    made = str(client.create_experiment(name, artifact_location=location))
    _describe_experiment(client, made, {})
    return made


def _describe_experiment(client: Any, experiment_id: str, present: Mapping[str, str]) -> None:
    for key, value in experiment_tags(experiment_id).items():
        if key not in present:  # what a person changed stays
            client.set_experiment_tag(experiment_id, key, value)


def _link(info: Any) -> str:
    return link_to(info.run_name, run_address(info.experiment_id, info.run_id))


def _describe(client: Any, run_id: str, words: str, link: str) -> None:
    """Add a line to a run's description, once."""
    note = client.get_run(run_id).data.tags.get(NOTE, "")
    if (linked := with_link(note, words, link)) != note:
        client.set_tag(run_id, NOTE, linked)


def _user() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (OSError, KeyError):  # a container's user may have no name
        return {}


def _log_params(tracker: Tracker, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(key, without_passwords(value)[:MAX_PARAM_LENGTH]) for key, value in flattened(params).items()]
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
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        raise ValueError(without_passwords(f"tracking.uri={uri} cannot be used: {error}. {_URI_HINT}")) from error


def fetch_artifacts(uri: str, model_uri: str, folder: Path) -> Path:
    """Download a registered model's files into `folder`; returns where they lie.

    Raises:
      FileNotFoundError: no such model or version.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        with speaking_to(uri):
            return Path(download_artifacts(artifact_uri=model_uri, dst_path=str(folder), tracking_uri=uri))
    except MlflowException as error:
        raise FileNotFoundError(without_passwords(f"{model_uri} is not in the registry at {uri}: {error}")) from None


@contextmanager
def speaking_to(uri: str) -> Iterator[None]:
    """Let MLflow's module speak to this server inside the block: what reads and logs models knows no client.

    MLflow keeps both addresses in the process and in its environment, from where a child process, and whoever leaves
    the address to the environment, would take them; they are put back.
    """
    _client(uri)
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    environment = {name: os.environ.get(name) for name in names}
    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(environment["MLFLOW_REGISTRY_URI"] or "")  # none: the tracking server's
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
