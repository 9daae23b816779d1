"""cluster.yaml passes Ray's own checks, and those that Ray does not make until an instance fails to start."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()
CONFIG = yaml.safe_load(TEXT)
NODE_TYPES = CONFIG["available_node_types"]
WORKERS = {name: node for name, node in NODE_TYPES.items() if name != CONFIG["head_node_type"]}
each_node_type = pytest.mark.parametrize("name", NODE_TYPES)


def has_gpu(node: dict) -> bool:
    return re.match(r"[gp]\d", node["node_config"]["InstanceType"]) is not None


def test_ray_accepts_it():
    util = pytest.importorskip("ray.autoscaler._private.util")
    pytest.importorskip("jsonschema")
    prepared = util.prepare_config(copy.deepcopy(CONFIG))
    util.validate_config(prepared)
    assert set(prepared["available_node_types"]) == set(NODE_TYPES)  # none of Ray's default types slipped in


@each_node_type
def test_ec2_accepts_every_node(name):
    """Ray passes node_config on unread: a misspelt key would show when the first instance is asked for."""
    session = pytest.importorskip("botocore.session").get_session()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    arguments = {**NODE_TYPES[name]["node_config"], "MinCount": 1, "MaxCount": 1}
    report = pytest.importorskip("botocore.validate").ParamValidator().validate(arguments, shape)
    assert not report.has_errors(), report.generate_report()


def test_workers_scale_from_nothing_to_limits_that_add_up():
    assert all(node["min_workers"] == 0 and node["max_workers"] > 0 for node in WORKERS.values())
    assert CONFIG["max_workers"] == sum(node["max_workers"] for node in WORKERS.values())
    assert 0 < CONFIG["idle_timeout_minutes"] <= 30


def test_head_takes_no_work_and_workers_of_both_kinds_do():
    head = NODE_TYPES[CONFIG["head_node_type"]]
    assert not has_gpu(head)
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "--num-cpus=0 --num-gpus=0" in CONFIG["head_start_ray_commands"][-1]
    assert {has_gpu(node) for node in WORKERS.values()} == {True, False}


def test_rights_come_from_instance_profiles_and_the_head_has_its_own():
    profiles = {name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in NODE_TYPES.items()}
    head = profiles.pop(CONFIG["head_node_type"])
    assert head not in profiles.values()  # only the head may start instances


@pytest.mark.parametrize(
    "secret",
    [
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
        r"(?i)aws_(secret_access_key|access_key_id|session_token)",
        r"PRIVATE KEY",
        r"RAY_AUTH_TOKEN\b",
        r"(?i)(password|secret|token)\s*[:=]\s*[0-9a-f]{8}",
        r"arn:aws:\w*:\w*:\d{12}",
    ],
)
def test_no_credential_is_in_it(secret):
    assert re.search(secret, TEXT) is None


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_node_starts_with_the_token(role):
    starts = [command for command in CONFIG[f"{role}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 1
    assert "RAY_AUTH_MODE=token ray start" in starts[0]
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_is_not_on_the_network():
    assert "--dashboard-host=127.0.0.1" in CONFIG["head_start_ray_commands"][-1]


def test_every_file_that_is_sent_along_is_there():
    local = [path for path in CONFIG["file_mounts"].values() if not path.startswith("~")]
    assert local
    assert all((ROOT / path).is_file() for path in local)


def test_nodes_install_what_the_project_requires_at_one_version():
    install = next(command for command in CONFIG["setup_commands"] if "pyproject.toml" in command)
    mounted = next(remote for remote, path in CONFIG["file_mounts"].items() if path == "./pyproject.toml")
    assert f"-r {mounted}" in install
    assert CONFIG["head_setup_commands"] == CONFIG["worker_setup_commands"] == []
    pins = dict(re.findall(r"\b(ray|torch|torchvision)(?:\[[\w,]+\])?==([\d.]+)", install))
    assert set(pins) == {"ray", "torch", "torchvision"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    assert all(wanted[name].specifier.contains(version) for name, version in pins.items())
    assert f'"ray[default]=={pins["ray"]}"' in TEXT  # the launcher's own Ray, in the commands at the top


def test_the_commands_at_the_top_name_this_file_and_jobs_that_exist():
    comments = "\n".join(line for line in TEXT.splitlines() if line.startswith("#"))
    assert comments.count("cluster.yaml") >= 3
    assert "export RAY_AUTH_MODE=token" in comments
    jobs = re.findall(r"jobs/\w+\.py", comments)
    assert jobs
    assert all((ROOT / job).is_file() for job in jobs)
