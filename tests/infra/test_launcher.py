"""The cluster launcher's configurations, as Ray and AWS's own description of its API see them; nothing is called."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGURATIONS = sorted((REPOSITORY / "infra" / "launcher").glob("*.yaml"))
COMMANDS = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")

pytestmark = pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def check(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does with a configuration before it speaks to a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return dict(prepared)


def test_ray_takes_it(path: Path) -> None:
    prepared = check(read(path))
    assert set(prepared["available_node_types"]) == {"head", "cpu-spot", "gpu-spot"}


@pytest.mark.parametrize("where", [(), ("auth",), ("available_node_types", "gpu-spot")], ids=str)
def test_ray_refuses_a_key_that_it_does_not_know(path: Path, where: tuple[str, ...]) -> None:
    config = read(path)
    inner = config
    for key in where:
        inner = inner[key]
    inner["unheardOf"] = 7
    with pytest.raises(ValidationError, match="unheardOf"):
        check(config)


def test_workers_are_spot_machines_that_cost_nothing_while_idle_and_the_head_does_no_work(path: Path) -> None:
    config = read(path)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    for name in ("cpu-spot", "gpu-spot"):
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        node = types[name]["node_config"]
        spot = node.get("InstanceMarketOptions", {}).get("MarketType") or node["scheduling"]["provisioningModel"]
        assert spot.lower() == "spot"
    assert sum(one["max_workers"] for one in types.values()) <= config["max_workers"]
    assert config["idle_timeout_minutes"] <= 10 and config["provider"]["cache_stopped_nodes"] is False


def test_aws_knows_each_field_of_a_machine(path: Path) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    config = read(path)
    if config["provider"]["type"] != "aws":
        pytest.skip("Google's API has no description that a package ships here")
    shape = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for one in config["available_node_types"].values():
        # The launcher adds the counts; and its image, key and subnet where they are not said.
        said = ParamValidator().validate({**one["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not said.has_errors(), said.generate_report()


def test_its_commands_are_shell_and_rays_own_options(path: Path) -> None:
    from ray.scripts.scripts import cli

    config = read(path)
    starts = []
    for command in (one for key in COMMANDS for one in config[key]):
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0, command
        starts += re.findall(r"\bray (start) (.*)$", command)
    assert len(starts) == 2
    parsed = [cli.commands[name].make_context("ray start", words.split()).params for name, words in starts]
    head, worker = parsed
    assert head["head"] and head["num_cpus"] == 0 and head["dashboard_host"] == "127.0.0.1"
    assert worker["address"].endswith(f":{head['port']}")


def test_it_starts_rays_with_a_token_and_holds_none(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    (surroundings,) = [one for one in config["setup_commands"] if "~/.tessera" in one]
    assert "RAY_AUTH_MODE=token" in surroundings
    started = [one for key in COMMANDS[1:] for one in config[key]]
    assert started and all(one.startswith(". ~/.tessera; ") for one in started)
    assert not re.search(r"AKIA|aws_secret|private_key|BEGIN ", path.read_text(), re.IGNORECASE)


def test_its_machines_install_by_the_images_own_script(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"]["~/tessera-src"] == "."
    (install,) = [one for one in config["setup_commands"] if "install.sh" in one]
    script = re.search(r"~/tessera-src/(\S+install\.sh) packages", install)
    assert script and (REPOSITORY / script[1]).is_file()
