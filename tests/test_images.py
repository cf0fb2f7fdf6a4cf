"""The container images, as far as they can be checked without building them: paths, packages, commands, privileges."""

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
SERVICES = COMPOSE["services"]
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
            assert path in copied and pins(ROOT / path) and "--require-hashes" in line


@pytest.mark.parametrize("name", ["gateway.txt", "worker.txt", "datasets.txt", "stats.txt", "build.txt"])
def test_lists_with_hashes_contain_the_pinned_packages(name: str) -> None:
    """`requirements/hash.sh` writes them."""
    hashed = ROOT / "requirements/hashed" / name
    assert pins(hashed) == pins(ROOT / "requirements" / name)
    entries = re.split(r"\n(?=\S)", hashed.read_text().partition("\n")[2].strip())
    assert len(entries) == len(pins(hashed))
    for entry in entries:
        assert re.fullmatch(r"\S+==[^\n]+ \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+", entry), entry


def test_the_copied_files_are_enough_to_build_both_packages() -> None:
    copied = {source for copy in COPIES for source in copy}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {"client", "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {pattern.rstrip("*") for pattern in include} <= copied


def commands_of_the_images() -> list[list[str]]:
    """Return the `sharecap` commands of the Dockerfile and of the compose file, split into words."""
    commands = [re.findall(r'"([^"]+)"', line) for line in LINES if '["sharecap"' in line]
    for service in SERVICES.values():
        commands += [service.get("command", [""]), service.get("healthcheck", {}).get("test", ["", ""])[1:]]
    return [words[1:] for words in commands if words[0] == "sharecap"]


def test_commands_of_the_images_are_commands_of_sharecap() -> None:
    assert sorted(commands_of_the_images()) == [
        ["deploy", "first-key", "/data/first-key"],
        ["deploy", "secrets", "/secrets"],
        ["health", "gateway"],
        ["health", "worker"],
    ]
    for group, command, *_ in commands_of_the_images():
        assert command in cli.registered_commands()[group].commands


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True and service["tmpfs"][0].split(":")[0] == "/tmp"
    assert "privileged" not in service and "cap_add" not in service


def test_no_secret_is_in_an_environment_or_in_the_images() -> None:
    names = {name for service in SERVICES.values() for name in service.get("environment", {})} | set(ENV_FILE)
    names |= {name for line in LINES if line.startswith("ENV ") for name in re.findall(r"([A-Z_]+)=", line)}
    secret = {name for name in names if re.search("SECRET|TOKEN|PASSWORD|REDIS_URL|KEY", name)}
    assert secret == {"SECRETS_DIR", "HF_TOKEN_PATH", "HF_TOKEN_FILE", "WEBHOOK_SECRET_FILE"}
    assert (ROOT / ENV_FILE["HF_TOKEN_FILE"]).read_text() == (ROOT / ENV_FILE["WEBHOOK_SECRET_FILE"]).read_text() == ""
    assert (
        set(COMPOSE["secrets"]) == {"webhook_secret", "hf_token"} and "webhook_secret" in GatewaySettings.model_fields
    )


def test_each_base_image_can_be_fixed_to_a_digest_by_one_variable() -> None:
    defaults = dict(line.removeprefix("ARG ").split("=") for line in LINES if line.startswith("ARG "))
    stages = [line.split() for line in LINES if line.startswith("FROM ")]
    bases = {base for _, base, *_ in stages} - {name for *_, name in stages}
    assert bases == {f"${{{name}}}" for name in defaults}
    assert {name: ENV_FILE[name] for name in defaults} == defaults
    builds = [service["build"] for service in SERVICES.values() if "build" in service]
    assert all(build["args"] == {name: f"${{{name}:?see deploy/compose.env}}" for name in defaults} for build in builds)
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert images == ["${REDIS_IMAGE:?see deploy/compose.env}"]


def test_the_gateway_starts_only_with_a_key() -> None:
    assert "ALLOW_PUBLIC_BIND" not in "".join(LINES) + str(COMPOSE)
    assert [line for line in LINES if "HOST=0.0.0.0" in line] and GatewaySettings(host="0.0.0.0").exposed
    completed = {"condition": "service_completed_successfully"}
    assert SERVICES["gateway"]["depends_on"] == {"first-key": completed}
    assert SERVICES["redis"]["depends_on"] == {"secrets": completed}
    assert SERVICES["redis"]["command"][1:3] == ["--aclfile", "/secrets/redis.acl"]
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]


def test_every_variable_of_the_compose_file_has_a_value() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert used == ENV_FILE.keys()


def test_the_gateway_has_every_variable_that_compose_sets() -> None:
    names = {name.upper() for name in GatewaySettings.model_fields}
    assert set(SERVICES["gateway"]["environment"]) - {"SECRETS_DIR"} <= names
