"""A real Slurm on this machine alone: a controller and two nodes, as root, in a folder of its own, on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
START_SECONDS, JOB_SECONDS = 60, 600
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
NodeName=first NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running controller with its nodes `first` and `second`, two CPUs each.

    Attributes:
      folder: of its state and logs.
      environment: with which its commands find it.
    """

    folder: Path
    environment: dict[str, str]

    def call(self, *words: str | Path, cwd: Path | None = None, **variables: str) -> str:
        """One of Slurm's commands; its standard output."""
        done = subprocess.run(
            words, cwd=cwd, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """What the controller says of a job, such as its JobState."""
        shown = dict(word.partition("=")[::2] for word in self.call("scontrol", "show", "job", job).split())
        return shown[name]

    def wait_until(self, job: str, name: str, values: set[str]) -> str:
        """Wait until a field of a job has one of these values.

        Raises:
          TimeoutError: it has not in all that time.
        """
        give_up = time.monotonic() + JOB_SECONDS
        while (found := self.field(job, name)) not in values:
            if time.monotonic() > give_up:
                raise TimeoutError(f"job {job}: {name} is still {found}")
            time.sleep(0.5)
        return found


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Slurm's daemons over `folder`, which must be root's; skips where Slurm is not installed."""
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no Slurm here: {', '.join(missing) or 'not root'}; Debian has it in slurm-wlm and munge")
    with ExitStack() as stack:
        _configure(folder)
        slurm = Slurm(folder, os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "NO_PROXY": "127.0.0.1"})
        for command in _daemons(folder):
            stack.callback(_end, subprocess.Popen(command, env=slurm.environment, stderr=subprocess.DEVNULL))
            time.sleep(0.5)
        _await_nodes(slurm)
        # A test that gave up leaves its job, which would outlive the daemons.
        stack.callback(_end_jobs, slurm)
        yield slurm


def _configure(folder: Path) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in sockets]
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=ports))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)


def _daemons(folder: Path) -> list[list[str]]:
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    munge = [f"--{option}={folder / name}" for option, name in files.items()]
    nodes = [["slurmd", "-D", "-N", name] for name in ("first", "second")]
    return [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], *nodes]


def _await_nodes(slurm: Slurm) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        command = ["sinfo", "--noheader", "--format=%D %t"]
        shown = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, check=False).stdout
        if shown.strip() == "2 idle":
            return
        time.sleep(0.5)
    raise TimeoutError(f"the nodes are not idle: {shown}\n{(slurm.folder / 'slurmctld.log').read_text()[-2000:]}")


def _end_jobs(slurm: Slurm) -> None:
    give_up = time.monotonic() + START_SECONDS
    while slurm.call("squeue", "--noheader", "--states=RUNNING,PENDING,COMPLETING"):
        slurm.call("scancel", "--user=root")
        if time.monotonic() > give_up:
            return
        time.sleep(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
