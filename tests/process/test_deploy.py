"""What `scripts/deploy` has for Compose, Kubernetes and systemd, looked at with their own tools."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from worker.settings.environment import load
from worker.settings.variables import VARIABLES
from worker.values import parse_duration

DEPLOY = Path(__file__).parents[2] / "scripts" / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNIT = DEPLOY / "cronium-worker.service"
KUBERNETES = "1.30"
# Of a worker with these settings, the claims end at once.
DRAIN_SECONDS = load(
    {"CRONIUM_API_ENDPOINT": "http://app", "CRONIUM_API_TOKEN": "x"}
).jobs.drain_seconds
# To hear of ends, to tell the API of them, and a little.
AFTER_DRAIN_SECONDS = 30

Json = dict[str, Any]


def documents(*files: Path) -> list[Json]:
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def pods() -> list[Json]:
    found = [each for each in documents(*MANIFESTS) if "template" in each.get("spec", {})]
    assert [each["kind"] for each in found] == ["Deployment", "StatefulSet"]
    return [each["spec"]["template"]["spec"] for each in found]


def probes() -> Iterator[tuple[str, list[str]]]:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        commands = [pod["containers"][0][name]["exec"]["command"] for pod in pods()]
        assert commands[0] == commands[1]
        yield name, commands[0]


def succeeds(command: list[str], state: Path) -> bool:
    return (
        subprocess.run(command, env={**os.environ, "CRONIUM_STATE_DIR": str(state)}).returncode == 0
    )


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_are_what_kubernetes_takes(file: Path) -> None:
    for document in documents(file):
        if document["apiVersion"].startswith("keda.sh/"):
            continue  # its schema is no part of Kubernetes
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_pods_obey_the_restricted_standard_of_their_namespace() -> None:
    (namespace,) = (each for each in documents(*MANIFESTS) if each["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "ports" not in container
        # What is written to is a volume.
        assert {each["mountPath"] for each in container["volumeMounts"]} == {
            "/var/lib/cronium-worker",
            "/run/secrets/cronium",
            "/tmp",  # noqa: S108  a path in the container
        }


def test_nothing_comes_in_over_the_network() -> None:
    (policy,) = (each for each in documents(*MANIFESTS) if each["kind"] == "NetworkPolicy")
    assert policy["spec"]["ingress"] == []
    assert "Ingress" in policy["spec"]["policyTypes"]
    assert "ports" not in documents(DEPLOY / "compose.yaml")[0]["services"]["worker"]


def test_keda_scales_what_there_is() -> None:
    (scaled,) = (each for each in documents(*MANIFESTS) if each["kind"] == "ScaledObject")
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in {
        (each["kind"], each["metadata"]["name"]) for each in documents(*MANIFESTS)
    }


def test_probes_fail_where_the_files_are_old_or_not_there(tmp_path: Path) -> None:
    for name, command in probes():
        file = tmp_path / ("ready" if name == "readinessProbe" else "heartbeat")
        file.unlink(missing_ok=True)
        missing = succeeds(command, tmp_path)
        file.touch()
        fresh = succeeds(command, tmp_path)
        os.utime(file, (time.time() - 300,) * 2)
        old = succeeds(command, tmp_path)

        assert (missing, fresh) == (False, True), name
        assert old is (name == "startupProbe"), name


def test_each_has_the_time_to_drain() -> None:
    least = DRAIN_SECONDS + AFTER_DRAIN_SECONDS
    compose = documents(DEPLOY / "compose.yaml")[0]["services"]["worker"]
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)

    assert all(pod["terminationGracePeriodSeconds"] >= least for pod in pods())
    assert parse_duration(compose["stop_grace_period"]) >= least
    assert stop is not None
    assert int(stop[1]) >= least


def test_only_settings_that_there_are_are_named() -> None:
    known = {each.name for each in VARIABLES} | {f"{each.name}_FILE" for each in VARIABLES}
    # What Compose fills in by itself.
    known |= {"CRONIUM_APP_NETWORK", "CRONIUM_SECRETS"}
    for file in (*MANIFESTS, UNIT, DEPLOY / "compose.yaml"):
        assert set(re.findall(r"CRONIUM_[A-Z_]+", file.read_text())) <= known, file


def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(
        UNIT.read_text().replace("/opt/cronium-worker/.venv/bin/cronium-worker", "/bin/sh")
    )

    verified = analyze("verify", str(unit))
    judged = analyze("security", "--offline=yes", str(unit))

    assert (verified.returncode, verified.stderr) == (0, "")
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged.stdout)
    assert level is not None
    assert float(level[1]) <= 1.5


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60
    )


def test_compose_takes_its_file(tmp_path: Path) -> None:
    command = next(filter(shutil.which, ("docker-compose",)), None)
    if command is None:
        pytest.skip("there is no docker-compose")
    for secret in ("api-token", "encryption-key"):
        (tmp_path / secret).touch()
    done = subprocess.run(
        [command, "-f", str(DEPLOY / "compose.yaml"), "config"],
        env={**os.environ, "CRONIUM_SECRETS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    worker = yaml.safe_load(done.stdout)["services"]["worker"]
    assert worker["read_only"] is True
    assert worker["cap_drop"] == ["ALL"]
