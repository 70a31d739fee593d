"""A file that is left unread holds nothing but tests that `-m` leaves out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from kinds import kinds_of_all_tests, unwanted_kinds
from places import TESTS

FILES = sorted(TESTS.rglob("test_*.py"))


@pytest.mark.parametrize(
    ("expression", "kinds"),
    [
        ("", set()),
        ("numerics", set()),
        ("not numerics", {"numerics"}),
        ("not slow and not gpu and not trt", {"slow", "gpu", "trt"}),
        ("ros and not slow", {"slow"}),
        ("not slow or numerics", set()),
        ("not (slow or gpu)", set()),
        ("not numerics or e2e and not slow", set()),
    ],
)
def test_only_what_is_left_out_for_sure_is_unwanted(expression: str, kinds: set[str]) -> None:
    assert unwanted_kinds(expression) == kinds


def test_kinds_are_those_of_pytestmark() -> None:
    """As Python reads them, in every file; whatever is marked test by test is not told by the file."""
    found = {path: kinds_of_all_tests(path.read_text()) for path in FILES}
    assert found == {path: marks(path) for path in FILES}
    assert set().union(*found.values()) >= {"numerics", "e2e", "real", "ros", "slow"}


def marks(path: Path) -> set[str]:
    values = [
        node.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["pytestmark"]
    ]
    nodes = [node for value in values for node in ast.walk(value)]
    return {n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pytest.mark"}
