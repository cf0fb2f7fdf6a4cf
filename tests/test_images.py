"""The container images, as far as they can be checked without building them: paths, packages, commands, settings."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from sharecap_client.cli import app as cli

from service.settings import Settings as GatewaySettings
from tests.test_repository import ROOT, pins

LINES = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()
COPIES = [line.split()[1:-1] for line in LINES if line.startswith("COPY ")]
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ENV_FILE = dict(
    line.split("=", 1) for line in (ROOT / "deploy/compose.env").read_text().splitlines() if re.match("[A-Z]", line)
)


@pytest.mark.parametrize("source", sorted({source for copy in COPIES for source in copy}))
def test_copied_paths_exist_and_are_sent_to_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    assert f"!{Path(source).parts[0]}" in IGNORED


def test_requirements_are_copied_before_they_are_installed() -> None:
    copied: set[str] = set()
    for line in LINES:
        if line.startswith("COPY "):
            copied.update(line.split()[1:-1])
        for path in re.findall(r"--requirement (\S+)", line):
            assert path in copied and pins(ROOT / path)


def test_the_copied_files_are_enough_to_build_both_packages() -> None:
    copied = {source for copy in COPIES for source in copy}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {"client", "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {pattern.rstrip("*") for pattern in include} <= copied


def commands_of_the_images() -> list[list[str]]:
    """Return the `sharecap` commands of the Dockerfile and of the compose file's health checks, split into words."""
    commands = [re.findall(r'"([^"]+)"', line) for line in LINES if '["sharecap"' in line]
    commands += [
        service["healthcheck"]["test"][1:] for service in COMPOSE["services"].values() if "healthcheck" in service
    ]
    return [words[1:] for words in commands if words[0] == "sharecap"]


def test_health_checks_are_commands_of_sharecap() -> None:
    assert sorted(commands_of_the_images()) == [["health", "gateway"], ["health", "worker"]]
    health = cli.registered_commands()["health"]
    assert {words[1] for words in commands_of_the_images()} <= set(health.commands)


def test_every_variable_of_the_compose_file_has_a_value() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert used == ENV_FILE.keys()


def test_the_gateway_has_every_variable_that_compose_sets() -> None:
    names = {name.upper() for name in GatewaySettings.model_fields}
    assert set(COMPOSE["services"]["gateway"]["environment"]) <= names
