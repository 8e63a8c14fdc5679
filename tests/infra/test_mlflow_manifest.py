"""MLflow's server as its manifest starts it: the same words and environment, with a real Postgres and a real S3."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import KUBERNETES, Manifest, made_secrets, of_kind

from objectstore import SECRET, S3Server

ACCOUNT = "postgres"


@contextmanager
def running_postgres(port: int, values: dict[str, str]) -> Iterator[None]:
    """A database server with the user, password and database that the image would make of `values`."""
    tools = {name: _tool(name) for name in ("initdb", "postgres", "psql")}
    if None in tools.values():
        pytest.skip("PostgreSQL is not installed")
    # It refuses to run as root.
    own: dict[str, Any] = {"user": ACCOUNT, "group": ACCOUNT} if os.geteuid() == 0 else {}
    # Short, for its socket's sake, and outside pytest's folders, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:
        folder = Path(name)
        password = folder / "password"
        password.write_text(values["POSTGRES_PASSWORD"])
        for path in (folder, password) if own else ():
            shutil.chown(path, **own)
        data = ["-D", str(folder / "data")]
        made = [tools["initdb"], *data, "-U", values["POSTGRES_USER"], f"--pwfile={password}", "--auth=scram-sha-256"]
        subprocess.run(made, check=True, capture_output=True, **own)
        server = [tools["postgres"], *data, "-p", str(port), "-k", name, "-c", "listen_addresses=127.0.0.1"]
        process = subprocess.Popen(server, stderr=subprocess.DEVNULL, **own)
        try:
            _create_database(str(tools["psql"]), port, values)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def _tool(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _create_database(psql: str, port: int, values: dict[str, str]) -> None:
    command = [psql, "-h", "127.0.0.1", "-p", str(port), "-U", values["POSTGRES_USER"], "-d", "postgres"]
    environment = os.environ | {"PGPASSWORD": values["POSTGRES_PASSWORD"]}
    for _ in range(150):
        create = [*command, "-c", f'CREATE DATABASE "{values["POSTGRES_DB"]}"']
        if subprocess.run(create, env=environment, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError("PostgreSQL did not start")


def container() -> Manifest:
    manifests = list(yaml.safe_load_all((KUBERNETES / "base" / "mlflow.yaml").read_text()))
    (one,) = of_kind(manifests, "Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"]
    return dict(one)


def environment_of(
    container: Manifest, secrets: dict[str, dict[str, str]], addresses: dict[str, str]
) -> dict[str, str]:
    """What the kubelet would set: whole secrets, then single variables with $(NAME) replaced."""
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        found |= secrets[source["secretRef"]["name"]]
    for one in container["env"]:
        value = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], one["value"])
        for inside, here in addresses.items():
            value = value.replace(inside, here)
        found[one["name"]] = value
    return found


@pytest.mark.slow
def test_the_server_of_the_manifest_keeps_runs_in_postgres_and_artifacts_in_s3(s3: S3Server, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    secrets, spec = decoded_secrets(s3), container()
    database, port = free_ports(2)
    told = environment_of(spec, secrets, {"@postgres:5432": f"@127.0.0.1:{database}"})
    # On loopback, at a free port; everything else as it stands.
    words = " ".join([*spec["command"], *spec["args"]]).replace("0.0.0.0", "127.0.0.1").replace("=5000", f"={port}")
    assert secrets["postgres"]["POSTGRES_PASSWORD"] in told["MLFLOW_BACKEND_STORE_URI"]
    assert secrets["postgres"]["POSTGRES_PASSWORD"] not in words and SECRET not in words
    s3.client.create_bucket(Bucket="tessera")
    address = f"http://127.0.0.1:{port}"
    running = running_postgres(database, secrets["postgres"])
    with running, _serving(words.split(), told, address, tmp_path):
        client = MlflowClient(address)
        run = client.create_run(client.create_experiment("kept")).info.run_id
        client.log_text(run, "text", "note.txt")
        assert [one.path for one in client.list_artifacts(run)] == ["note.txt"]
        assert _status(address, "mlflow:5000") == 200
        assert _status(address, "10.1.2.3:5000") == 200
        assert _status(address, "page.example:5000") == 403
    kept = [item["Key"] for item in s3.client.list_objects_v2(Bucket="tessera")["Contents"]]
    assert len(kept) == 1 and kept[0].startswith("mlflow/") and kept[0].endswith(f"{run}/artifacts/note.txt")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("mlflow.db", "mlruns", "mlartifacts")]


def decoded_secrets(s3: S3Server) -> dict[str, dict[str, str]]:
    """The secrets as pods see them."""
    made = of_kind(made_secrets(**s3.environment), "Secret").items()
    return {name: {key: base64.b64decode(text).decode() for key, text in one["data"].items()} for name, one in made}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _serving(words: list[str], told: dict[str, str], address: str, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", *words]
    environment = {"PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true", "NO_PROXY": "127.0.0.1", **told}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while _status(address, address.removeprefix("http://")) != 200:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.5)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _status(address: str, host: str) -> int | None:
    """What the server answers a browser that knows it by this name; None where nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
    try:
        with opener.open(asked, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return None
