"""The manifests of infra/kubernetes as a cluster would see them: built by kustomize, and checked field by field.

The schemas are the real ones: KubeRay's custom resource definitions for Ray's kinds, Kubernetes' own for the rest. An
API server drops or refuses a field that its schema does not know; here each one is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "infra" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())
# The oldest Kubernetes that the manifests are for.
VERSION = "v1.30.0"
Manifest = dict[str, Any]


@lru_cache(maxsize=16)
def built(folder: str) -> tuple[Manifest, ...]:
    """What `kubectl apply -k infra/kubernetes/FOLDER` would send; skips where neither kubectl nor kustomize is."""
    command = _kustomize()
    if command is None:
        pytest.skip("neither kubectl nor kustomize is installed: the manifests cannot be built")
    done = subprocess.run([*command, str(KUBERNETES / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def _kustomize() -> list[str] | None:
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return ["kustomize", "build"] if shutil.which("kustomize") else None


def made_secrets(**variables: str) -> list[Manifest]:
    """What make_secrets.sh prints with these variables in an otherwise bare environment."""
    script = KUBERNETES / "make_secrets.sh"
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def crd_folder() -> Path:
    """The folder of KubeRay's definitions; skips where it is absent."""
    folder = Path(os.environ.get("TESSERA_KUBERAY_CRDS", REPOSITORY.parent / "shared" / "data" / "kuberay"))
    if not folder.is_dir():
        pytest.skip(f"KubeRay's definitions are not in {folder}: name their folder in TESSERA_KUBERAY_CRDS")
    return folder


def complaints(manifest: Manifest) -> list[str]:
    """What a strict API server would say against a manifest, as `where: what`."""
    validator = _ray_validator if manifest["apiVersion"].startswith("ray.io/") else _core_validator
    found = validator(manifest["kind"], manifest["apiVersion"]).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


@lru_cache(maxsize=8)
def _ray_validator(kind: str, api: str) -> Draft202012Validator:
    path = crd_folder() / f"ray.io_{kind.lower()}s.yaml"
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    versions = {f"ray.io/{one['name']}": one for one in definition["spec"]["versions"] if one["served"]}
    schema = strict(versions[api]["schema"]["openAPIV3Schema"])
    metadata = {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    return Draft202012Validator(
        {**schema, "properties": {**schema["properties"], "metadata": metadata}}, registry=_definitions()
    )


def strict(schema: Any) -> Any:
    """A definition's schema in which an object has the properties it names, and no other.

    >>> strict({"type": "object", "properties": {"a": {"type": "string"}}})["additionalProperties"]
    False
    """
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _strict_part(key, value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not open_ended:
        inner["additionalProperties"] = False
    return inner


def _strict_part(key: str, value: Any) -> Any:
    # Below `properties` the keys are names of fields, and may be called `properties` themselves.
    return {name: strict(field) for name, field in value.items()} if key == "properties" else strict(value)


_DEFINITIONS = "file:///api/_definitions.json"


@lru_cache(maxsize=32)
def _core_validator(kind: str, api: str) -> Draft202012Validator:
    # networking.k8s.io/v1 lies in a file called networking-v1.
    group = re.sub(r"\.[^/]*", "", api).replace("/", "-")
    schema = _read(f"{kind.lower()}-{group}.json")
    return Draft202012Validator({**schema, "$id": "file:///object.json"}, registry=_definitions())


@lru_cache(maxsize=1)
def _definitions() -> Registry[Any]:
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    content = Resource.from_contents({**dialect, **_read("_definitions.json")})
    return Registry().with_resource(_DEFINITIONS, content)


def _read(name: str) -> dict[str, Any]:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"{VERSION}-local-strict"
    return dict(json.loads((folder / name).read_text()))


def of_kind(manifests: tuple[Manifest, ...] | list[Manifest], kind: str) -> dict[str, Manifest]:
    """The manifests of a kind by name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def mappings_below(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """(path, mapping) of each mapping inside a manifest, itself included."""
    if isinstance(value, dict):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from mappings_below(inner, (*path, key))


def pod_specs(manifest: Manifest) -> dict[str, Manifest]:
    """Pod templates of a manifest by where they stand: {"": template} or one per group of a Ray cluster."""
    spec = manifest.get("spec", {})
    spec = spec.get("rayClusterSpec", spec)
    if "headGroupSpec" in spec:
        workers = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
        return {"head": spec["headGroupSpec"]["template"], **workers}
    return {"": spec["template"]} if "template" in spec else {}
