"""Imports go one way (DESIGN section 2), also those inside functions; and a few names and habits that are not allowed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {
    "drivekd": ROOT / "drivekd",
    "drivekd.export": ROOT / "export",
    "drivekd.runtime": ROOT / "runtime",
    "drivekd_ros": ROOT / "ros2_ws" / "src" / "drivekd_ros" / "drivekd_ros",
}

CORE = {"drivekd"} | {
    f"drivekd.{name}"
    for name in (
        *("errors", "config", "digests", "log", "images", "chat", "internvl_chat", "processor", "files", "tables"),
        *("host_memory", "sample"),
    )
}
TOP = "drivekd.cli"  # wires rooms; no room imports it

# room -> the rooms that it may import besides itself
ARROWS = {
    "core": set(),
    "runtime": {"core"},
    "ros2_ws": {"core", "runtime"},
    "data": {"core"},
    "world": {"core", "data"},
    "models": {"core"},
    "distill": {"core", "data", "models"},
    "analyze": {"core", "data", "models", "distill"},
    "evaluate": {"core", "data", "models", "runtime"},  # it scores bundles as well as checkpoints
    "export": {"core", "data", "models", "distill", "evaluate", "runtime"},
    "demo": {"core", "data", "world", "models", "distill", "evaluate", "export", "runtime", "top"},
    "top": {"core", "data", "world", "models", "distill", "analyze", "evaluate", "export", "runtime", "demo"},
}
TRAINING_ONLY = {"torch", "transformers", "onnx", "onnxscript", "peft", "accelerate"}
NO_TORCH = ("core", "runtime", "ros2_ws", "world")

# `except Exception`: file -> how often, and why there
BROAD = {
    "drivekd/processor.py": 1,  # tokenizers raises bare Exception for every malformed file
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def file(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def room(self) -> str:
        return room_of(self.name)


def room_of(name: str) -> str:
    if name in CORE:
        return "core"
    if name.startswith(TOP):
        return "top"
    return "ros2_ws" if name.startswith("drivekd_ros") else name.split(".")[1]


def modules() -> list[Module]:
    found = []
    for package, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):  # links are not followed, so export and runtime come once
            relative = path.relative_to(root)
            if package == "drivekd" and relative.parts[0] in ("export", "runtime"):
                continue
            parts = [package, *relative.with_suffix("").parts]
            name = ".".join(parts).removesuffix(".__init__")
            found.append(Module(name, path, ast.parse(path.read_text())))
    return found


MODULES = modules()
NAMES = {module.name for module in MODULES}


def imports(module: Module) -> Iterator[str]:
    """Full names of everything that a module imports, anywhere in it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in NAMES else base


def absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".") if module.path.name == "__init__.py" else module.name.split(".")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def is_ours(name: str) -> bool:
    return name.split(".")[0] in ("drivekd", "drivekd_ros")


def test_the_walk_sees_the_rooms() -> None:
    """An empty walk would pass everything below."""
    assert {module.room for module in MODULES} == set(ARROWS)
    assert CORE <= NAMES
    trainer = next(module for module in MODULES if module.name == "drivekd.distill.training.trainer")
    assert {"drivekd.distill.training.gradients", "drivekd.config", "torch"} <= set(imports(trainer))
    session = next(module for module in MODULES if module.name == "drivekd.runtime.session.session")
    assert "drivekd.runtime.session.triad" in set(imports(session))  # relative imports are resolved


def test_arrows_go_one_way() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES
        for name in imports(module)
        if is_ours(name) and room_of(name) != module.room and room_of(name) not in ARROWS[module.room]
    ]
    assert wrong == []


def test_every_import_of_ours_exists() -> None:
    """An import inside a function fails only when a user gets there."""
    missing = [f"{module.name}: {name}" for module in MODULES for name in imports(module) if is_ours(name) and name not in NAMES]
    assert missing == []


@pytest.mark.parametrize("room", NO_TORCH)
def test_what_rides_in_the_car_or_runs_without_a_model_needs_no_torch(room: str) -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES
        if module.room == room
        for name in imports(module)
        if name.split(".")[0] in TRAINING_ONLY
    ]
    assert wrong == []


def test_only_the_batch_makes_tensors_of_data() -> None:
    wanting = {m.name for m in MODULES if m.room == "data" and "torch" in {name.split(".")[0] for name in imports(m)}}
    assert wanting == {"drivekd.data.batch"}


def test_inside_a_folder_imports_of_the_mapped_folders_are_never_bare() -> None:
    """`import export` would be another module than drivekd.export."""
    wrong = [f"{m.name}: {name}" for m in MODULES for name in imports(m) if name.split(".")[0] in ("export", "runtime")]
    assert wrong == []


def test_library_code_does_not_print() -> None:
    wrong = [
        f"{module.file}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert wrong == []


def test_broad_excepts_are_only_where_they_are_explained() -> None:
    found: dict[str, int] = {}
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and catches_everything(node.type):
                found[module.file] = found.get(module.file, 0) + 1
    assert found == BROAD


def catches_everything(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds)


def test_no_file_is_named_after_nothing() -> None:
    wrong = [module.file for module in MODULES if FORBIDDEN_NAMES & set(module.path.stem.split("_"))]
    assert wrong == []


def test_nothing_reads_the_environment_or_argv_at_import() -> None:
    """STYLE 20: settings are passed in."""
    wrong = [
        f"{module.file}:{node.lineno}"
        for module in MODULES
        for statement in module.tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "argv")
    ]
    assert wrong == []
