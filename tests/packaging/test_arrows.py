"""Imports go one way, from folder to folder, also those inside functions; and a few names and habits that are not allowed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {
    "drivekd": ROOT / "drivekd",
    "drivekd.export": ROOT / "export",
    "drivekd.runtime": ROOT / "runtime",
    "drivekd_ros": ROOT / "ros2_ws" / "src" / "drivekd_ros" / "drivekd_ros",
}

GROUND = "ground"  # files directly in drivekd/

# What lies directly in drivekd/, and ROS: the rooms that each may import besides itself and the ground. Rooms within rooms are
# found from the folders: no circle anywhere, see below.
ARROWS = {
    GROUND: set(),
    "runtime": set(),
    "drivekd_ros": {"runtime"},
    "data": {"runtime"},  # a record's own structured answer is held to its schema
    "world": set(),
    "structured": {"data", "runtime"},  # what a bundle's schemas want of records
    "models": set(),
    "quantization": set(),
    "distill": {"data", "models", "quantization", "structured", "evaluate"},  # training validates on what is scored
    "analyze": {"data", "models", "distill"},
    "evaluate": {"data", "models", "quantization", "runtime", "structured"},  # it scores bundles as well as checkpoints
    "export": {"data", "models", "quantization", "distill", "evaluate", "runtime"},
    "demo": {"data", "world", "models", "distill", "evaluate", "export", "runtime"},
    "cli": {"data", "world", "distill", "analyze", "evaluate", "export", "runtime", "demo"},
}
TRAINING_ONLY = {"torch", "transformers", "onnx", "onnxscript", "peft", "accelerate"}
NO_TORCH = (GROUND, "runtime", "drivekd_ros", "world")

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
    def floor(self) -> str:
        return floor_of(self.name)

    @property
    def room(self) -> str:
        """Its folder. Where rooms lie below, the folder's __init__.py is a face of its own: it may show what they hold."""
        is_face = self.path.name == "__init__.py" and any(self.path.parent.glob("*/__init__.py"))
        return self.file if is_face else self.path.parent.relative_to(ROOT).as_posix()


def floor_of(name: str) -> str:
    package, _, rest = name.partition(".")
    if package != "drivekd":
        return package
    return rest.partition(".")[0] if name in PACKAGES or "." in rest else GROUND


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
PACKAGES = {module.name for module in MODULES if module.path.name == "__init__.py"} - {"drivekd"}


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
    assert {module.floor for module in MODULES} == set(ARROWS)
    assert floor_of("drivekd") == floor_of("drivekd.errors") == GROUND
    by_name = {module.name: module for module in MODULES}
    trainer = set(imports(by_name["drivekd.distill.training.trainer"]))
    assert {"drivekd.distill.training.gradients", "drivekd.config", "torch"} <= trainer
    session = set(imports(by_name["drivekd.runtime.session.session"]))
    assert "drivekd.runtime.session.triad" in session  # relative imports are resolved


def test_arrows_go_one_way() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES
        for name in imports(module)
        if is_ours(name) and floor_of(name) not in ARROWS[module.floor] | {module.floor, GROUND}
    ]
    assert wrong == []


def arrows(of: str) -> dict[str, set[str]]:
    """Who imports whom, by file or by room, imports within functions included."""
    ends = {module.name: getattr(module, of) for module in MODULES}
    found: dict[str, set[str]] = {end: set() for end in ends.values()}
    for module in MODULES:
        found[ends[module.name]] |= {ends[name] for name in imports(module) if name in ends} - {ends[module.name]}
    return found


@pytest.mark.parametrize("of", ["file", "room"])
def test_nothing_imports_in_a_circle(of: str) -> None:
    try:
        TopologicalSorter(arrows(of)).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of {of}s: {' <- '.join(error.args[1])}")


def test_every_import_of_ours_exists() -> None:
    """An import inside a function fails only when a user gets there."""
    missing = [f"{module.name}: {name}" for module in MODULES for name in imports(module) if is_ours(name) and name not in NAMES]
    assert missing == []


@pytest.mark.parametrize("floor", NO_TORCH)
def test_what_rides_in_the_car_or_runs_without_a_model_needs_no_torch(floor: str) -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES
        if module.floor == floor
        for name in imports(module)
        if name.split(".")[0] in TRAINING_ONLY
    ]
    assert wrong == []


def test_only_the_batch_makes_tensors_of_data() -> None:
    wanting = {m.name for m in MODULES if m.floor == "data" and "torch" in {name.split(".")[0] for name in imports(m)}}
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


def test_text_files_are_utf_8_whatever_the_locale() -> None:
    wrong = [
        f"{module.file}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and is_text_file(node) and "encoding" not in {keyword.arg for keyword in node.keywords}
    ]
    assert wrong == []


def is_text_file(call: ast.Call) -> bool:
    """Path.read_text, Path.write_text, and any `open` with a mode that is not binary, as a person would see it."""
    if not isinstance(call.func, ast.Attribute):
        return isinstance(call.func, ast.Name) and call.func.id == "open"
    modes = [word.value for word in call.args if isinstance(word, ast.Constant)]
    opens = call.func.attr == "open" and any(mode in ("r", "w", "a", "x", "r+", "w+", "a+") for mode in modes)
    return (opens and ast.unparse(call.func) != "archive.open") or call.func.attr in ("read_text", "write_text")


def test_no_file_is_named_after_nothing() -> None:
    wrong = [module.file for module in MODULES if FORBIDDEN_NAMES & set(module.path.stem.split("_"))]
    assert wrong == []


def test_nothing_reads_the_environment_or_argv_at_import() -> None:
    """Settings are passed in."""
    wrong = [
        f"{module.file}:{node.lineno}"
        for module in MODULES
        for statement in module.tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "argv")
    ]
    assert wrong == []


MAP_LINE = re.compile(r"    ([a-z_/]+) +\S")  # a room; a line without one goes on


def map_of_the_house() -> dict[str, set[str]]:
    """Room -> what it may import, as CONTRIBUTING.md says it."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## The map\n")[2].partition("\n## ")[0]
    found: dict[str, str] = {}
    room = ""
    for line in section.splitlines():
        if match := MAP_LINE.match(line):
            room = match[1]
            assert room not in found, f"{room} stands twice in the map"
        if line.startswith("    "):
            found[room] = found.get(room, "") + line
    return {room: set(re.findall(r"\w+", text.partition("<-")[2])) - {"nothing"} for room, text in found.items()}


def room_on_the_map(module: Module) -> str:
    return module.path.parent.relative_to(ROOT).as_posix().removeprefix("ros2_ws/src/drivekd_ros/")


def name_on_the_map(room: str, seen_from: str) -> str:
    """How the line of `seen_from` calls a room: within a floor by its own name, else by its floor's."""
    floor, floor_seen = (name.removeprefix("drivekd/").split("/")[0] for name in (room, seen_from))
    return room.rsplit("/", 1)[-1] if floor == floor_seen else floor


def test_the_map_shows_every_room_and_no_other() -> None:
    assert set(map_of_the_house()) == {room_on_the_map(module) for module in MODULES}


def test_rooms_import_what_the_map_says() -> None:
    may_import = map_of_the_house()
    by_name = {module.name: room_on_the_map(module) for module in MODULES}
    found: dict[str, set[str]] = {room: set() for room in may_import}
    for module in MODULES:
        room = by_name[module.name]
        others = {by_name[name] for name in imports(module) if name in by_name} - {room, "drivekd"}
        found[room] |= {name_on_the_map(other, room) for other in others}
    assert found == may_import, "the map says what is imported, no more and no less"
