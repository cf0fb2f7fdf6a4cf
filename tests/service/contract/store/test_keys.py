"""Redis keys: only `keys.py` spells them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract.store import keys

ROOT = Path(__file__).resolve().parents[4]
PREFIX = "sharecap:"


def literals(path: Path) -> Iterator[str]:
    """Yield the string literals of a module that are not docstrings."""
    tree = ast.parse(path.read_text())
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.Expr))
    docstrings = {id(statement.value) for statement in statements}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("package", ["service", "workers"])
def test_no_other_module_spells_a_key(package: str) -> None:
    modules = [path for path in (ROOT / package).rglob("*.py") if path != Path(keys.__file__)]
    spelled = {(str(path.relative_to(ROOT)), text) for path in modules for text in literals(path) if PREFIX in text}
    assert {entry for entry in spelled if not entry[1].startswith(("sharecap: ", "urn:sharecap:"))} == set()


def test_every_key_is_described() -> None:
    spelled = {text.rstrip(":*") for text in literals(Path(keys.__file__)) if text.startswith(PREFIX)}
    assert spelled
    for key in spelled:
        assert key in (keys.__doc__ or ""), key
