"""Which version of a registered model to use: the alias `champion` stays with the best one on the same held-out data.

A score counts against another only where both were taken from the same voxels and labels. What cannot be compared
changes nothing: someone may be predicting with models:/NAME@champion at this moment. The newest version needs no alias
of ours: MLflow reserves `latest`, and models:/NAME/latest finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHAMPION = "champion"
_SCORE, _DATA = "tessera.val_v_rand", "tessera.val_data"


@dataclass(frozen=True, slots=True)
class Standing:
    """A version and what it scored on held-out sections.

    Attributes:
      version: of the registered model.
      v_rand: V_Rand at its own frozen threshold; None where nothing was held out.
      data: fingerprint of the held-out voxels and labels.
    """

    version: str
    v_rand: float | None
    data: str | None


def judge(challenger: Standing, champion: Standing | None) -> tuple[bool, str]:
    """Whether the challenger becomes champion, and a sentence that says why.

    >>> judge(Standing("2", 0.97, "d"), Standing("1", 0.96, "d"))
    (True, 'version 2 is the champion now: V_Rand 0.9700 after 0.9600 of version 1 on the same held-out sections')
    """
    new = f"version {challenger.version}"
    if champion is None:
        return True, f"{new} is the champion: there was none before"
    old = f"version {champion.version} stays champion"
    if challenger.v_rand is None:
        return False, f"{old}: {new} was scored on no held-out sections"
    if champion.v_rand is None:
        return False, f"{old}: it was scored on no held-out sections, so that {new} cannot be compared with it"
    if challenger.data != champion.data:
        return False, f"{old}: {new} was scored on other held-out sections, so that their scores do not compare"
    scores = f"V_Rand {challenger.v_rand:.4f} after {champion.v_rand:.4f}"
    if challenger.v_rand > champion.v_rand:
        return True, f"{new} is the champion now: {scores} of version {champion.version} on the same held-out sections"
    return False, f"{old}: {new} is no better, {scores}, on the same held-out sections"


def crown(uri: str, model_uri: str, v_rand: float | None, data: str | None) -> str:
    """Keep a version's score with it, and move the alias `champion` to it where it is better.

    Args:
      uri: tracking URI.
      model_uri: the version's, models:/NAME/VERSION.
      v_rand: V_Rand on held-out sections at the frozen threshold; None where nothing was held out.
      data: fingerprint of these sections' voxels and labels.

    Returns:
      A sentence that says what became of the alias, and why.
    """
    client = _client(uri)
    _, name, version = model_uri.split("/")
    if v_rand is not None:
        client.set_model_version_tag(name, version, _SCORE, repr(float(v_rand)))
        client.set_model_version_tag(name, version, _DATA, data)
    champion = _champion(client, name)
    if champion is not None and champion.version == version:  # an interrupted job crowns again
        return f"version {version} is the champion"
    better, why = judge(Standing(version, v_rand, data), champion)
    if better:
        client.set_registered_model_alias(name, CHAMPION, version)
    return why


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _champion(client: Any, name: str) -> Standing | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    if version is None:
        return None
    tags: Mapping[str, str] = client.get_model_version(name, version).tags
    score = tags.get(_SCORE)
    return Standing(str(version), None if score is None else float(score), tags.get(_DATA))


def numbered(uri: str, model_uri: str) -> str:
    """models:/NAME/VERSION of a model named by alias (models:/NAME@champion) or as models:/NAME/latest.

    What is done with it is recorded: tomorrow the alias may mean another version.

    Raises:
      FileNotFoundError: no such model or alias.
    """
    from mlflow.exceptions import MlflowException

    rest = model_uri.removeprefix("models:/")
    name, at, alias = rest.partition("@")
    if not at:
        name, _, alias = rest.partition("/")
        if alias.lower() != "latest":
            return model_uri
    try:
        version = _client(uri).get_model_version_by_alias(name, alias).version
    except MlflowException as error:
        raise FileNotFoundError(
            f"{model_uri} is not in the registry at {uri}: {error}. Name a version, such as models:/{name}/1."
        ) from None
    return f"models:/{name}/{version}"
