"""What a caller can reach says what it is: every public function and method is documented, once.

Documented is a function with a docstring; a method that its class's docstring names ("name: ..." or `name`); one that a base
class documents, or a Protocol that the class's docstring names; and what a framework or a convention here defines
(DEFINED_ELSEWHERE).
Private are names with a leading underscore, what lies in a private class, and functions within functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from places import ROOT

FOLDERS = ("drivekd", "export", "runtime", "ros2_ws/src/drivekd_ros/drivekd_ros")
DEFINED_ELSEWHERE = {
    "to_json": "",  # of a report: its fields, and what follows from them, as json.dumps takes it
    "forward": "Module",  # torch.nn: shapes stand in the class's docstring
    "invoke": "TyperGroup",
}


@dataclass
class Class:
    """methods: the public ones. parents: names of its bases, and of Protocols that its docstring names."""

    doc: str
    methods: list[ast.FunctionDef]
    parents: set[str] = field(default_factory=set)


def public(nodes: list[ast.stmt]) -> list[ast.FunctionDef]:
    return [node for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def bases(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}


def classes_of(trees: list[ast.Module]) -> dict[str, list[Class]]:
    """By name; two files may use one name."""
    nodes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    protocols = {node.name for node in nodes if "Protocol" in bases(node)}
    found: dict[str, list[Class]] = {}
    for node in nodes:
        doc = ast.get_docstring(node) or ""
        named = protocols & set(re.findall(r"\w+", doc)) - {node.name}
        found.setdefault(node.name, []).append(Class(doc, public(node.body), bases(node) | named))
    return found


def names(doc: str, method: str) -> bool:
    arguments = r"(?:\([^)]*\))?"
    return re.search(rf"\b{method}{arguments}(?:,\s+\w+{arguments})*:|`{method}`", doc) is not None


def documents(found: Class, method: str, classes: dict[str, list[Class]]) -> bool:
    own = any(node.name == method and ast.get_docstring(node) for node in found.methods)
    inherited = (parent for name in found.parents for parent in classes.get(name, []))
    return own or names(found.doc, method) or any(documents(parent, method, classes) for parent in inherited)


def undocumented(trees: list[ast.Module], classes: dict[str, list[Class]]) -> Iterator[str]:
    for tree in trees:
        yield from (node.name for node in public(tree.body) if not ast.get_docstring(node))
    for name, several in classes.items():
        for found in several if not name.startswith("_") else ():
            for method in dict.fromkeys(node.name for node in found.methods):
                defined = DEFINED_ELSEWHERE.get(method)
                elsewhere = defined is not None and (not defined or defined in found.parents)
                if not (elsewhere or documents(found, method, classes)):
                    yield f"{name}.{method}"


@cache
def ours() -> list[ast.Module]:
    return [ast.parse(path.read_text()) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_public_function_is_documented() -> None:
    assert list(undocumented(ours(), classes_of(ours()))) == []


def test_no_docstring_only_repeats_the_name() -> None:
    for tree in ours():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
                assert set(re.findall(r"[a-z0-9]+", doc.lower())) - {"the", "a", "of", *node.name.lower().split("_")}, node.name


def test_the_rule_sees_what_is_missing() -> None:
    tree = ast.parse(
        '''
class Face(Protocol):
    """rate: in Hz."""
    @property
    def rate(self): ...
    def ask(self):
        """A question."""
    def silent(self): ...
class Speaker:
    """A Face."""
    def rate(self): ...
    def ask(self): ...
    def silent(self): ...
    def to_json(self): ...
    def forward(self): ...
class Loud(Speaker):
    def ask(self): ...
    def more(self): ...
class Graph(nn.Module):
    def forward(self): ...
class _Own:
    def anything(self): ...
def said():
    """Yes."""
    def inner(): ...
def unsaid(): ...
def _private(): ...
'''
    )
    missing = ["unsaid", "Face.silent", "Speaker.silent", "Speaker.forward", "Loud.more"]
    assert list(undocumented([tree], classes_of([tree]))) == missing
    assert sum(len(public(tree.body)) for tree in ours()) > 300 and len(classes_of(ours())) > 200
