"""The manifests of infra/kubernetes: no field that the API does not know, and what they promise to who uses them."""

from __future__ import annotations

import base64
import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import (
    KUBERNETES,
    OVERLAYS,
    REPOSITORY,
    Manifest,
    built,
    complaints,
    made_secrets,
    mappings_below,
    of_kind,
    pod_specs,
)
from reach import Pod, may_reach

from tessera.cli.main import parse

ACCESS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "sec'ret: &x", "AWS_REGION": "us-east-1"}
JOBS = [name for name in OVERLAYS if name.endswith(("-train", "-predict"))]
PLACES = [name for name in OVERLAYS if name not in JOBS]


def overlay(name: str) -> tuple[Manifest, ...]:
    return built(f"overlays/{name}")


def ray_spec(manifests: tuple[Manifest, ...]) -> Manifest:
    """Of the standing cluster, or of the job's own."""
    (one,) = [m for m in manifests if m["apiVersion"] == "ray.io/v1"]
    return dict(one["spec"].get("rayClusterSpec", one["spec"]))


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_field_is_one_that_the_api_knows(name: str) -> None:
    found = {f"{m['kind']} {m['metadata']['name']}": complaints(m) for m in overlay(name)}
    assert {what: said for what, said in found.items() if said} == {}


def test_an_unknown_field_is_refused_wherever_it_stands() -> None:
    # Labels, quantities and the like are maps from any name: there the value is refused, not the name.
    for manifest in (*overlay("kind"), *of_kind(overlay("kind-train"), "RayJob").values(), *made_secrets(**ACCESS)):
        for path, _ in mappings_below(manifest):
            broken = copy.deepcopy(manifest)
            inner: Any = broken
            for key in path:
                inner = inner[key]
            inner["unheardOf"] = {"of": []}
            assert complaints(broken), f"{manifest['kind']} {manifest['metadata']['name']}: {path}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_name_that_a_pod_uses_is_there(name: str) -> None:
    manifests = [*overlay(name), *made_secrets(**ACCESS)]
    keys = {secret: set(one["data"]) for secret, one in of_kind(manifests, "Secret").items()}
    claims, accounts = set(of_kind(manifests, "PersistentVolumeClaim")), set(of_kind(manifests, "ServiceAccount"))
    for _, inner in (found for one in manifests for found in mappings_below(one)):
        if "secretKeyRef" in inner:
            assert inner["secretKeyRef"]["key"] in keys[inner["secretKeyRef"]["name"]]
        if "secretRef" in inner:
            assert inner["secretRef"]["name"] in keys
        if "persistentVolumeClaim" in inner:
            assert inner["persistentVolumeClaim"]["claimName"] in claims
        assert inner.get("serviceAccountName") in {None, *accounts}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_address_inside_is_a_service_whose_port_a_pod_listens_at(name: str) -> None:
    manifests = overlay(name)
    services = of_kind(manifests, "Service")
    text = yaml.safe_dump_all(one for one in manifests if one["kind"] not in ("Service", "NetworkPolicy"))
    used = set(re.findall(r"(?:http://|@|redisAddress: )([a-z0-9]+):(\d+)", text))
    assert {host for host, _ in used} >= {"mlflow", "postgres", "redis"}
    for host, port in used:
        assert int(port) in {one["port"] for one in services[host]["spec"]["ports"]}
    for service in services.values():
        assert _listeners(manifests, service), f"nothing listens behind {service['metadata']['name']}"


def _listeners(manifests: tuple[Manifest, ...], service: Manifest) -> list[str]:
    """Names of the workloads whose pods a service picks and which name its ports."""
    chosen, wanted = service["spec"]["selector"].items(), {one["port"] for one in service["spec"]["ports"]}
    found = []
    for one in manifests:
        for pod in pod_specs(one).values():
            ports = {p["containerPort"] for c in pod["spec"]["containers"] for p in c.get("ports", ())}
            if chosen <= pod.get("metadata", {}).get("labels", {}).items() and wanted <= ports:
                found.append(one["metadata"]["name"])
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_may_run_in_a_restricted_namespace(name: str) -> None:
    # Kubernetes' pod security standard "restricted"; the namespace enforces it.
    enforced = of_kind(overlay(name), "Namespace")["tessera"]["metadata"]["labels"]
    assert enforced["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = [pod["spec"] for one in overlay(name) for pod in pod_specs(one).values()]
    assert len(pods) >= 6
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod.get("volumes", ()) if "hostPath" in volume]
        for container in pod["containers"]:
            assert container["securityContext"] == _UNPRIVILEGED
    assert ray_spec(overlay(name))["autoscalerOptions"]["securityContext"] == _UNPRIVILEGED


_UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("name", OVERLAYS)
def test_images_are_ours_by_target_or_pinned(name: str) -> None:
    targets = re.findall(r"^FROM \S+ AS (\w+)", (REPOSITORY / "infra/docker/Dockerfile").read_text(), re.MULTILINE)
    images = {inner["image"] for one in overlay(name) for _, inner in mappings_below(one) if "image" in inner}
    ours = {image for image in images if "tessera-" in image}
    assert ours and {re.search(r"tessera-(\w+):\d+\.\d+\.\d+$", image)[1] for image in ours} <= set(targets)  # type: ignore[index]
    assert all(re.search(r":\d+\.\d+", image) for image in images), images


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_cluster_keeps_its_promises(name: str) -> None:
    spec = ray_spec(overlay(name))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    # KubeRay refuses other policies with autoscaler v2: a pod that ends is replaced, never restarted in place.
    assert {pod["spec"]["restartPolicy"] for pod in pod_specs({"spec": spec}).values()} == {"Never"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["gcsFaultToleranceOptions"]["backend"] == "redis"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups["gpu"]["minReplicas"] == groups["gpu"]["replicas"] == 0
    gpu = groups["gpu"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    spot = {taint["key"] for taint in gpu["tolerations"]}
    assert spot >= {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    for group in groups.values():
        (container,) = group["template"]["spec"]["containers"]
        # Memory that is asked for is memory that may be used: Ray sizes its workers by the limit.
        resources = container["resources"]
        assert resources["requests"]["memory"] <= resources["limits"]["memory"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_is_the_version_of_the_constraints_in_every_pod(name: str) -> None:
    (pin,) = re.findall(r"^ray==(\S+)$", (REPOSITORY / "infra/constraints.txt").read_text(), re.MULTILINE)
    assert ray_spec(overlay(name))["rayVersion"] == pin


@pytest.mark.parametrize("name", OVERLAYS)
def test_all_of_ray_shares_one_home_and_one_tracking_server(name: str) -> None:
    for pod in pod_specs({"spec": ray_spec(overlay(name))}).values():
        (container,) = pod["spec"]["containers"]
        told = {one["name"]: one["value"] for one in container["env"]}
        assert told["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        assert told["TESSERA_HOME"] in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"secretRef": {"name": "object-store"}} in container["envFrom"]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_tried_again_and_cleans_up_in_a_cluster_like_the_standing_one(name: str) -> None:
    place, _, job = name.rpartition("-")
    manifests = overlay(name)
    spec = of_kind(manifests, "RayJob")[job]["spec"]
    assert of_kind(manifests, "RayCluster") == {}
    assert spec["rayClusterSpec"] == of_kind(overlay(place), "RayCluster")["tessera"]["spec"]
    assert spec["backoffLimit"] >= 3 and spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True and 0 < spec["ttlSecondsAfterFinished"] <= 3600


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_command_is_one_that_tessera_understands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)  # as in the image, whose folder holds jobs/ and configs/
    (job,) = of_kind(overlay(name), "RayJob").values()
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    assert python == "python" and Path(script).is_file()
    command, settings = parse([Path(script).stem, *words])
    assert command == name.rpartition("-")[2]
    # A second try must find what the first one did.
    assert (settings.name if command == "train" else settings.output) not in (None, "")


RAY = Pod({"ray.io/cluster": "tessera", "ray.io/node-type": "worker"})
MLFLOW, POSTGRES, REDIS, S3 = (Pod({"app.kubernetes.io/name": name}) for name in ("mlflow", "postgres", "redis", "s3"))
OPERATOR = Pod({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system")
NAMES = Pod({"k8s-app": "kube-dns"}, "kube-system")
STRANGER, NEIGHBOUR, OUTSIDE = Pod({"app": "shell"}, "default"), Pod({"app": "shell"}), Pod({}, None)
OPEN = [
    *((RAY, RAY, 6379), (RAY, RAY, 10002), (RAY, MLFLOW, 5000), (RAY, REDIS, 6379), (MLFLOW, POSTGRES, 5432)),
    *((OPERATOR, RAY, 8265), (RAY, OUTSIDE, 443), (MLFLOW, OUTSIDE, 443), (RAY, OUTSIDE, 6443)),
]
SHUT = [
    *((STRANGER, RAY, 8265), (STRANGER, RAY, 6379), (STRANGER, MLFLOW, 5000), (STRANGER, REDIS, 6379)),
    *((NEIGHBOUR, RAY, 8265), (NEIGHBOUR, POSTGRES, 5432), (RAY, POSTGRES, 5432), (OPERATOR, RAY, 6379)),
    *((MLFLOW, RAY, 8265), (OUTSIDE, RAY, 8265), (OUTSIDE, MLFLOW, 5000), (RAY, OUTSIDE, 80), (REDIS, OUTSIDE, 443)),
]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_network_lets_through_what_is_needed_and_nothing_else(name: str) -> None:
    policies = list(of_kind(overlay(name), "NetworkPolicy").values())
    assert [link for link in OPEN if not may_reach(policies, *link)] == []
    assert [link for link in SHUT if may_reach(policies, *link)] == []
    assert may_reach(policies, POSTGRES, NAMES, 53, "UDP")
    own_store = "s3" in of_kind(overlay(name), "Service")
    assert may_reach(policies, RAY, S3, 9000) is may_reach(policies, MLFLOW, S3, 9000) is own_store
    assert not may_reach(policies, STRANGER, S3, 9000)


def test_secrets_are_made_whole_never_twice_alike_and_from_the_environment_alone() -> None:
    first, second = made_secrets(**ACCESS), made_secrets(**ACCESS, AWS_ENDPOINT_URL="http://s3:9000")
    told = {name: _decoded(secret) for name, secret in of_kind(first, "Secret").items()}
    assert told["object-store"] == ACCESS
    assert _decoded(of_kind(second, "Secret")["object-store"]) == {
        **ACCESS,
        "AWS_ENDPOINT_URL": "http://s3:9000",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, key in (("postgres", "POSTGRES_PASSWORD"), ("redis", "REDIS_PASSWORD")):
        assert re.fullmatch(r"[0-9a-f]{48}", told[name][key])
        assert _decoded(of_kind(second, "Secret")[name])[key] != told[name][key]


def _decoded(secret: Manifest) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


@pytest.mark.parametrize("absent", sorted(ACCESS))
def test_secrets_are_not_made_by_halves(absent: str) -> None:
    import subprocess

    with pytest.raises(subprocess.CalledProcessError) as refused:
        made_secrets(**{name: value for name, value in ACCESS.items() if name != absent})
    assert absent in refused.value.stderr and refused.value.stdout == ""


def test_no_manifest_holds_a_secret() -> None:
    for path in KUBERNETES.rglob("*.yaml"):
        for manifest in yaml.safe_load_all(path.read_text()):
            assert manifest["kind"] != "Secret", path
    for name in OVERLAYS:
        for _, inner in (found for one in overlay(name) for found in mappings_below(one)):
            if re.search("PASSWORD|SECRET|TOKEN", str(inner.get("name", "")), re.IGNORECASE):
                assert "value" not in inner, inner


@pytest.mark.parametrize("folder", sorted({path.parent for path in KUBERNETES.rglob("*.yaml")}), ids=lambda p: p.name)
def test_every_manifest_is_built_by_its_folder(folder: Path) -> None:
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = {str(one) for one in settings.get("resources", ())}
    assert {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"} <= named


def test_places_have_a_train_and_a_predict_job_each() -> None:
    assert sorted(JOBS) == sorted(f"{place}-{job}" for place in PLACES for job in ("train", "predict"))
