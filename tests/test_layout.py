"""The layout of the repository: imports, sizes, the tree in the README, and plain English."""

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = {"sharecap_client": ROOT / "client", "service": ROOT, "workers": ROOT}
SOURCE_FOLDERS = ("client", "service", "workers")
MAX_MODULES_PER_FOLDER = 12
MAX_MEDIAN_LINES = 7
MAX_P90_LINES = 20

PHRASES = re.compile(
    r"\b(told|waked|for ever|gone by|none is|whoever|so many as|is let in|go in time|when all that was spent"
    r"|may have asked|from likeness 1|of the sides of images|what a job ends with"
    r"|(?:is|are) no (?!longer\b)[a-z]+)\b",
    re.IGNORECASE,
)
CLASSES = r"Door|Here|Order|Told|Passing|Rewound|Patient|AsyncPatient|persistently|Tools|Dialect|ModelTurns"
IDENTIFIERS = re.compile(rf"({CLASSES}|found|(.*_)?(told|waked)(_.*)?)")
MODULES = {"fitting", "marks", "guard", "children", "dialects", "utils", "helpers", "common", "manager"}
FILE_NAMES = re.compile(
    r"(?<![\w/.-])((?:client|service|workers|tests|bench|docs)/[\w./-]*\w\.(?:py|js|html|css|md|sh))\b"
)
TEXTS = {".py", ".md", ".html", ".js", ".css", ".sh", ".yml", ".toml", ".txt", ".env", ""}


@cache
def tracked() -> list[Path]:
    """Return every file of the working tree that git tracks or would add, relative to the root."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listing.splitlines() if (ROOT / line).is_file()]


@cache
def modules() -> dict[str, Path]:
    """Return the modules of the three packages: dotted name -> file."""
    named = {}
    for package, root in SOURCE_ROOTS.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(module: str, path: Path) -> Iterator[str]:
    """Yield the dotted name of everything a module imports, also inside functions and under TYPE_CHECKING."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


@cache
def imports() -> dict[str, set[str]]:
    """Return the import graph: module -> the modules of this repository that it imports."""
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        candidates = ((name, name.rpartition(".")[0]) for name in imported_names(module, path))
        targets = {next((c for c in pair if c in modules()), "") for pair in candidates}
        graph[module] = targets - {"", module}
    return graph


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("importer", "allowed"),
    [
        ("sharecap_client", ("sharecap_client",)),
        ("service", ("service", "sharecap_client")),
        ("service.contract", ("service.contract",)),
        ("workers", ("workers", "service.contract", "sharecap_client")),
        ("workers.xcomposer2", ("workers.xcomposer2",)),
    ],
)
def test_packages_import_only_what_they_may(importer: str, allowed: tuple[str, ...]) -> None:
    for module, targets in imports().items():
        if within(module, importer):
            refused = [target for target in targets if not within(target, *allowed)]
            assert not refused, f"{module} imports {refused}"


def test_only_commands_import_the_client() -> None:
    for module, targets in imports().items():
        if not within(module, "sharecap_client", "service.local", "workers.commands"):
            assert not any(within(target, "sharecap_client") for target in targets), module


def test_only_the_selected_backend_knows_where_files_are() -> None:
    """Elsewhere, files are reached through the storage interface, so that a backend need not be a local directory."""
    backends = "service.contract.storage.backends"
    for module, path in modules().items():
        assert module == backends or "service.contract.storage.local" not in imports()[module], module
        if module != backends and not within(module, "service.local"):
            names = {node.attr for node in ast.walk(syntax(path)) if isinstance(node, ast.Attribute)}
            assert "data_dir" not in names, f"{module} uses settings.data_dir"


def cycle_from(module: str, path: list[str], done: set[str]) -> list[str]:
    """Return the first import cycle reached from a module, or an empty list. Adds modules without one to `done`."""
    if module in path:
        return [*path[path.index(module) :], module]
    if module in done:
        return []
    for target in sorted(imports()[module]):
        if cycle := cycle_from(target, [*path, module], done):
            return cycle
    done.add(module)
    return []


def test_no_module_imports_itself_through_others() -> None:
    done: set[str] = set()
    for module in imports():
        assert not (cycle := cycle_from(module, [], done)), " -> ".join(cycle)


def test_no_module_imports_a_private_name() -> None:
    for module, path in modules().items():
        for name in imported_names(module, path):
            last = name.rpartition(".")[2]
            assert not last.startswith("_") or last.startswith("__") or not name.startswith(tuple(SOURCE_ROOTS)), (
                f"{module} imports {name}"
            )


def test_folders_are_small() -> None:
    folders = [path.parent for path in modules().values() if path.name != "__init__.py"]
    for folder in set(folders):
        assert folders.count(folder) <= MAX_MODULES_PER_FOLDER, folder.relative_to(ROOT)


def test_functions_are_short() -> None:
    lengths = sorted(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in modules().values()
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert statistics.median(lengths) <= MAX_MEDIAN_LINES
    assert lengths[len(lengths) * 9 // 10] <= MAX_P90_LINES


def readme_tree() -> set[Path]:
    """Return the files that the README's tree lists. A folder stands for the `__init__.py` in it."""
    section = (ROOT / "README.md").read_text().split("## Where everything is")[1].split("\n## ")[0]
    listed, folders = set(), [Path()]
    for line in re.findall(r"^ *[\w./-]+  +.*$", "\n".join(section.split("```")[1::2]), re.MULTILINE):
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = folders[depth] / name
        assert (ROOT / path).exists(), f"the README lists {path}"
        folders[depth + 1 :] = [path]
        listed.add(path / "__init__.py" if name.endswith("/") else path)
    return listed


def test_the_readme_lists_every_module() -> None:
    suffixes = (".py", ".html", ".js", ".css", ".svg")
    present = {path for path in tracked() if path.parts[0] in SOURCE_FOLDERS and path.suffix in suffixes}
    assert not (missing := sorted(str(path) for path in present - readme_tree())), missing


def lines_of_text() -> Iterator[tuple[str, str]]:
    """Yield (place, line) of all code, pages and scripts. This file is exempt because it lists the phrases."""
    for path in tracked():
        if path.suffix in TEXTS and path.name != "LICENSE" and ROOT / path != Path(__file__):
            for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
                yield f"{path}:{number}", line


def test_texts_are_plain_english() -> None:
    phrases = [f"{place}: {line.strip()}" for place, line in lines_of_text() if PHRASES.search(line)]
    assert not phrases, "\n" + "\n".join(phrases)


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for every name that a module defines or uses."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(name := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0), name


def test_identifiers_are_plain_english() -> None:
    odd = [
        f"{path}:{line}: {name}"
        for path in tracked()
        if path.suffix == ".py" and ROOT / path != Path(__file__)
        for line, name in identifiers(syntax(ROOT / path))
        if IDENTIFIERS.fullmatch(name)
    ]
    assert not odd, "\n" + "\n".join(odd)


def test_modules_have_names_that_say_what_they_hold() -> None:
    named = {path.stem: path for path in tracked() if path.suffix == ".py"}
    folders = {folder.name: folder for path in tracked() if path.suffix == ".py" for folder in path.parents}
    assert not MODULES & (named.keys() | folders.keys())


def test_paths_in_texts_exist() -> None:
    """A page or docstring that names a file of this repository names one that exists."""
    for place, line in lines_of_text():
        for name in FILE_NAMES.findall(line):
            assert (ROOT / name).exists(), f"{place} names {name}"
