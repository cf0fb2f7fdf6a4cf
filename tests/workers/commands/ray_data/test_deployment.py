"""The job for KubeRay fits the command, the image and the pinned version of Ray. It was not applied to a cluster."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from workers.commands import registration

ROOT = Path(__file__).parents[4]
JOB_FIELDS = {
    "entrypoint",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load((ROOT / "deploy/ray/job.yaml").read_text())


def test_the_entry_point_is_a_valid_command(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LookupError("the arguments are valid")

    monkeypatch.setattr("workers.commands.ray_data.command.require", refuse)
    app = typer.Typer()
    registration.register(app)
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "sharecap"
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, LookupError), result.output


def test_the_job_has_the_fields_of_kuberay(job: Any) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() == JOB_FIELDS
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    assert all(group.keys() == GROUP_FIELDS for group in cluster["workerGroupSpecs"])


def test_there_are_as_many_gpus_as_the_command_asks_for(job: Any) -> None:
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"]) * group["replicas"]
    assert f"--gpus {gpus}" in job["spec"]["entrypoint"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}


def test_every_container_has_the_image_the_keys_and_no_privileges(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in (container for group in groups for container in group["template"]["spec"]["containers"]):
        assert container["image"] == "REGISTRY/sharecap-ray"
        assert container["envFrom"] == [{"secretRef": {"name": "sharecap-s3"}}]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_version_of_ray_is_the_pinned_one(job: Any) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "requirements/ray.txt").read_text(), re.MULTILINE)
    assert pinned and job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"ray=={pinned[1]} " in (ROOT / "requirements/hashed/ray-cluster.txt").read_text()
