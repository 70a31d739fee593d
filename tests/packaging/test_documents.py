"""What documents and comments point at is there: links, headings, files, tests, and dotted names of ours.

A path in a document counts when it begins with one of our folders, a dotted name anywhere when it begins with `drivekd.`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("drivekd", "export", "runtime", "tests", "benchmarks", "ros2_ws", "docs", "configs", "drivekd_ros")
BEGINNINGS = {"drivekd_ros": ROOT / "ros2_ws" / "src" / "drivekd_ros"}  # where a folder lies when not at the root
PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "ros2_ws/*.md", "ros2_ws/src/*/*.md")
DOCUMENTS = sorted(page for pattern in PAGES for page in ROOT.glob(pattern))
CODE = sorted(path for name in FOLDERS[:6] for path in (ROOT / name).rglob("*.py") if "demo/models" not in path.as_posix())

CHAPTERS = ("runtime/session/__init__.py", "drivekd/distill/__init__.py", "export/__init__.py")  # each tells a whole way

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.~-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)/?(?:::(\w+))?")
DOTTED = re.compile(r"(?<![\w/.-])drivekd(?:\.\w+)+(?<!\.py)(?!\w|/|\.\w)")
STEP = re.compile(r"([\w/]+\.py)::(\w+)(?:\.(\w+))?")
REFERENCE = re.compile(r'(docs/[\w-]+\.md)(?:,[\s#]+"([^"]+)")?')


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def headings(document: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ +(.+?) *$", prose, flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it: lower case, punctuation gone, spaces to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def names_defined(module: Path) -> frozenset[str]:
    """What stands at the top of a module, imports included."""
    found: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


def dotted_exists(dotted: str) -> bool:
    """`drivekd.a.b` is a folder, a file, or a name at the top of one."""
    place = ROOT
    parts = dotted.split(".")
    for index, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
        elif (place / f"{part}.py").is_file():
            rest = parts[index + 1 :]
            return not rest or rest[0] in names_defined(place / f"{part}.py")
        else:
            return part in names_defined(place / "__init__.py")
    return True


def step_exists(path: str, name: str, method: str) -> bool:
    """A function or class at the top of the file; `method` in the class itself or, when it is no class, nowhere."""
    if not (ROOT / path).is_file():
        return False
    found = {
        node.name: node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    inner = getattr(found.get(name), "body", []) if method else []
    return name in found and (not method or method in {node.name for node in inner if isinstance(node, ast.FunctionDef)})


def path_exists(path: str, test: str) -> bool:
    first = path.split("/")[0]
    place = BEGINNINGS.get(first, ROOT) / path
    return place.exists() and (not test or test in names_defined(place))


def broken_links(document: Path) -> Iterator[str]:
    for target in LINK.findall(document.read_text()):
        if re.match(r"\w+:", target):  # another site
            continue
        path, _, wanted = target.partition("#")
        linked = document.parent / path if path else document
        if not linked.exists() or (wanted and wanted not in map(anchor, headings(linked))):
            yield f"{name_of(document)}: {target}"


def broken_references(file: Path) -> Iterator[str]:
    for path, heading in REFERENCE.findall(file.read_text()):
        if not (ROOT / path).is_file() or (heading and heading not in headings(ROOT / path)):
            yield f"{name_of(file)}: {path}, {heading!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document)) == []


def test_pages_and_headings_that_code_and_documents_name_are_there() -> None:
    assert [broken for file in [*CODE, *DOCUMENTS] for broken in broken_references(file)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_and_tests_that_documents_name_are_there(document: Path) -> None:
    assert [path for path, test in PATH.findall(document.read_text()) if not path_exists(path, test)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_dotted_names_in_documents_are_there(document: Path) -> None:
    assert [dotted for dotted in DOTTED.findall(document.read_text()) if not dotted_exists(dotted)] == []


def test_dotted_names_in_code_are_there() -> None:
    """In strings and docstrings, too, where no import fails."""
    found = {(name_of(file), dotted) for file in CODE if file != Path(__file__) for dotted in DOTTED.findall(file.read_text())}
    assert sorted(f"{file}: {dotted}" for file, dotted in found if not dotted_exists(dotted.removesuffix(".__file__"))) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_step_of_a_whole_way_is_a_function_that_is_there(chapter: str) -> None:
    told = ast.get_docstring(ast.parse((ROOT / chapter).read_text())) or ""
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", told, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 6
    assert [step for step in STEP.findall(told) if not step_exists(*step)] == []
    assert len(STEP.findall(told)) == told.count(".py") >= len(numbers)  # no file without its function


def test_the_search_sees_what_is_not_there() -> None:
    """Patterns that find nothing would pass everything above."""
    text = "`tests/none.py`, `runtime/session/prefix.py::gone`, `drivekd_ros/none.py`; ~/.cache/drivekd/gate is no path of ours"
    assert [path for path, test in PATH.findall(text) if not path_exists(path, test)] == [
        "tests/none.py",
        "runtime/session/prefix.py",
        "drivekd_ros/none.py",
    ]
    steps = STEP.findall(
        "a.py::b, runtime/load.py::none, runtime/load.py::load_bundle, runtime/check.py::CheckReport.none; no.py"
    )
    assert [step_exists(*step) for step in steps] == [False, False, True, False]
    dotted = DOTTED.findall(
        "drivekd.none, drivekd.runtime.load_bundle, drivekd.runtime.load.none, drivekd.distill.losses.text_to_vision_mse"
    )
    assert [name for name in dotted if not dotted_exists(name)] == ["drivekd.none", "drivekd.runtime.load.none"]
    assert REFERENCE.findall('# docs/method.md,\n    # "Signals"') == [("docs/method.md", "Signals")]
    assert anchor("What each release takes") == "what-each-release-takes"
    assert sum(bool(heading) for file in CODE for _, heading in REFERENCE.findall(file.read_text())) > 20
