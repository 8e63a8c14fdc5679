"""A Ray cluster of the tests' own, as a user would start one: a head with token authentication, and `ray job submit`.

tessera is not installed in the interpreter that it runs on, so whatever a worker imports came with the job.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS, JOB_SECONDS = 120, 500


@dataclass(frozen=True)
class Cluster:
    """A running head.

    Attributes:
      folder: everything below lies in it; short, because Ray puts sockets there.
      python: an interpreter that has everything but tessera.
      address: of the dashboard, to which jobs are submitted.
      environment: of the head and of who submits; it holds the way to the token.
      agent_port: at which the head's node is asked for its health.
    """

    folder: Path
    python: Path
    address: str
    environment: dict[str, str]
    agent_port: int = 52365

    @property
    def checkout(self) -> Path:
        """A copy of the repository, in which the head was started."""
        return self.folder / "checkout"

    @property
    def tessera_home(self) -> Path:
        """The jobs' TESSERA_HOME."""
        return self.folder / "home"

    @property
    def uploads(self) -> Path:
        """Where Ray unpacks working directories."""
        return self.folder / "ray" / "session_latest" / "runtime_resources" / "working_dir_files"

    def submit(self, *options: str, job: Sequence[str], **changed: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit OPTIONS -- JOB` from the checkout; standard output and error come back as one text."""
        command = [*self.ray, "job", "submit", "--address", self.address, *options, "--", *job]
        return subprocess.run(
            command,
            cwd=self.checkout,
            env=self.environment | changed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_SECONDS,
            check=False,
        )

    def submit_bare(self, *job: str) -> subprocess.CompletedProcess[str]:
        """Submit with nothing but TESSERA_HOME: the job runs in the folder that Ray was started in."""
        return self.submit("--runtime-env-json", json.dumps({"env_vars": self._job_variables}), job=job)

    def submit_checkout(self, *job: str) -> subprocess.CompletedProcess[str]:
        """Submit the checkout as infra/runtime_env.yaml says, with TESSERA_HOME filled in."""
        settings = yaml.safe_load((self.checkout / "infra" / "runtime_env.yaml").read_text())
        settings["env_vars"] |= self._job_variables
        filled_in = self.folder / "runtime_env.yaml"
        filled_in.write_text(yaml.safe_dump(settings))
        return self.submit("--runtime-env", str(filled_in), job=job)

    @property
    def ray(self) -> list[str]:
        """The `ray` command of this interpreter."""
        return [str(self.python), "-m", "ray.scripts.scripts"]

    @property
    def _job_variables(self) -> dict[str, str]:
        return {"TESSERA_HOME": str(self.tessera_home)}


@contextmanager
def running_cluster(cpus: int) -> Iterator[Cluster]:
    """A head of `cpus` logical CPUs in a folder of its own; both are gone at the end."""
    with ExitStack() as stack:
        # Ray's socket names below it may have 107 characters in all, which pytest's own folders use up.
        folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        copy_checkout(folder / "checkout")
        python = interpreter_without_tessera(folder / "python")
        ports = free_ports(6)
        cluster = Cluster(folder, python, f"http://127.0.0.1:{ports[1]}", cluster_environment(folder, python), ports[2])
        stack.callback(end_processes_of, folder)
        start_head(cluster, cpus, ports)
        yield cluster


def copy_checkout(target: Path) -> None:
    """What of the repository a job needs, without what building and running left in it."""
    for name in ("platform", "jobs", "configs", "infra"):
        shutil.copytree(REPOSITORY / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy2(REPOSITORY / ".rayignore", target)


def interpreter_without_tessera(folder: Path) -> Path:
    """A virtual environment with links to all packages of this one but tessera, installed or editable."""
    venv.create(folder, symlinks=True, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    for site in ("purelib", "platlib"):
        for entry in Path(sysconfig.get_paths()[site]).iterdir():
            link = Path(paths[site]) / entry.name
            # An editable install is a .pth file, which would lead back to the repository.
            if entry.suffix != ".pth" and "tessera" not in entry.name and not link.is_symlink():
                link.symlink_to(entry)
    return folder / "bin" / "python"


def cluster_environment(folder: Path, python: Path) -> dict[str, str]:
    """This process's environment without what it tells its own Ray and tessera, and with a token of its own."""
    token = folder / "user" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    ours = ("RAY_", "TESSERA_", "MLFLOW_", "PYTHONPATH", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "HOME": str(token.parents[1]),
        # Matplotlib's cache of fonts takes seconds to make.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start_head(cluster: Cluster, cpus: int, ports: Sequence[int]) -> None:
    """`ray start --head` in the checkout, until its dashboard answers to the token.

    Raises:
      RuntimeError: it ended or did not answer; its output is quoted.
    """
    names = ("", "dashboard-", "dashboard-agent-listen-", "dashboard-agent-grpc-", "runtime-env-agent-")
    chosen = [f"--{name}port={port}" for name, port in zip(names, ports, strict=False)]
    command = [*cluster.ray, "start", "--head", "--block", f"--num-cpus={cpus}", *chosen]
    command += [f"--ray-client-server-port={ports[5]}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    command += [f"--object-store-memory={200 * 2**20}", f"--temp-dir={cluster.folder / 'ray'}"]
    log = cluster.folder / "head.log"
    with log.open("w") as file:
        head = subprocess.Popen(
            command, cwd=cluster.checkout, env=cluster.environment, stdout=file, stderr=subprocess.STDOUT
        )
    give_up = time.monotonic() + START_SECONDS
    while not answers(cluster) or not listens(ports[2]):
        if head.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"the head did not start:\n{log.read_text()}")
        time.sleep(0.3)


def answers(cluster: Cluster) -> bool:
    """Whether the dashboard answers to the token."""
    token = (Path(cluster.environment["HOME"]) / ".ray" / "auth_token").read_text()
    asked = urllib.request.Request(f"{cluster.address}/api/version", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def listens(port: int) -> bool:
    """Whether someone does on this port of this machine."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def end_processes_of(folder: Path) -> None:
    """End the head and all it started, and nothing else: `ray stop` would end every Ray of this user."""
    # Killed, not asked: nothing of theirs is kept, and some take ten seconds to go when asked.
    while ours := [process for process in psutil.process_iter() if belongs_to(process, folder)]:
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=10)


def belongs_to(process: psutil.Process, folder: Path) -> bool:
    """Whether its command line or its HOME lies in `folder`."""
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        named = any(str(folder) in word for word in process.cmdline())
        return named or process.environ().get("HOME", "").startswith(str(folder))
    except psutil.Error:
        return False
