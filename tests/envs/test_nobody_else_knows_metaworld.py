"""Nothing outside envs/ knows Meta-World: it names no module of it, and no text in code is its name."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
FILES = [
    file
    for room in ("policies", "accel", "eval", "deploy")
    for file in sorted((SOURCE / room).rglob("*.py"))
    if "zoo" not in file.parts and file.name != "extras.py"  # which names packages to install
]


def texts(tree: ast.AST) -> list[str]:
    """Strings of a module that are no docstrings, and the modules it imports."""
    words = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            found.append(f"{node.module}.{[alias.name for alias in node.names]}")
    return found


@pytest.mark.parametrize("room", ["policies", "accel", "eval", "deploy"])
def test_a_room_knows_worlds_by_their_registry_alone(room):
    files = [file for file in FILES if file.relative_to(SOURCE).parts[0] == room]
    assert len(files) > 20
    knowing = [
        f"{file.relative_to(SOURCE)}: {text[:60]}"
        for file in files
        for text in texts(ast.parse(file.read_text(encoding="utf-8")))
        if any(name in text.lower() for name in ("metaworld", "meta-world"))
    ]
    assert not knowing
