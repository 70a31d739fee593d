"""Text is UTF-8 wherever we open it, whatever the locale: no call leaves the encoding to Python, which asks the locale.

Tests themselves are not asked: they write what they read. `tests/drivekd/test_locale.py` runs the product under Latin-1.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("drivekd", "export", "runtime", "ros2_ws", "benchmarks", "tests/cases")

WHOLE = {"read_text", "write_text"}  # methods of Path: text, always
PROCESSES = {"run", "Popen", "check_output", "check_call", "call"}
TEXT_FLAGS = ("text", "universal_newlines")
ALWAYS_TEXT = {"TextIOWrapper", "FileHandler", "RotatingFileHandler"}
OTHER_OPENERS = {"av", "Image", "os", "rung", "self", "step", "branch"}  # X.open(): of these, no file of text
TEXT_MODES = set("rwax+t")


def files() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted({path.resolve() for path in found if "build" not in path.parts})


def words_of(call: ast.Call) -> dict[str | None, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords}


def mode_of(call: ast.Call, place: int) -> str | None:
    """The mode where it is written out; None where it is computed."""
    mode = words_of(call).get("mode") or (call.args[place] if len(call.args) > place else ast.Constant("r"))
    return mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else None


def leaves_the_encoding_open(call: ast.Call) -> bool:
    words = words_of(call)
    if "encoding" in words or None in words:  # **settings: whoever wrote them
        return False
    if isinstance(call.func, ast.Name):
        name, owner = call.func.id, ""
    elif isinstance(call.func, ast.Attribute):
        name, owner = call.func.attr, ast.unparse(call.func.value)
    else:
        return False
    if name in WHOLE:
        return len(call.args) < (1 if name == "read_text" else 2)  # the encoding comes first, or behind the text
    if name in PROCESSES:
        return any(isinstance(flag := words.get(word), ast.Constant) and flag.value is True for word in TEXT_FLAGS)
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"):
        return opens_text(call, name, owner)
    return name in ALWAYS_TEXT


def opens_text(call: ast.Call, name: str, owner: str) -> bool:
    if name != "open":
        place, binary_default = (1, False) if name == "fdopen" else (0, True)
        mode = mode_of(call, place)
        written = len(call.args) > place or "mode" in words_of(call)
        return mode is not None and "b" not in mode and (written or not binary_default)
    if owner in ("gzip", "bz2", "lzma"):
        return "t" in (mode_of(call, 1) or "")
    if owner.rpartition(".")[2] in OTHER_OPENERS:
        return False
    mode = mode_of(call, 1 if owner in ("", "io", "codecs", "builtins") else 0)
    return mode is not None and set(mode) <= TEXT_MODES


def offenders(source: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and leaves_the_encoding_open(node):
            yield node.lineno


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_text_file_is_opened_as_utf_8(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    found = [f"{path.relative_to(ROOT)}:{line}: {lines[line - 1].strip()}" for line in offenders(source)]
    assert not found, 'say encoding="utf-8":\n' + "\n".join(found)


OPEN = [
    "path.read_text()",
    'path.write_text("a")',
    'path.write_text(data="a", newline="")',
    "open(path)",
    'open(path, "w", newline="")',
    'path.open("a")',
    'io.open(path, "rt")',
    'gzip.open(path, "rt")',
    'os.fdopen(descriptor, "w")',
    'NamedTemporaryFile("w")',
    "subprocess.run(command, text=True)",
    "subprocess.Popen(command, universal_newlines=True)",
    "io.TextIOWrapper(stream)",
    "logging.FileHandler(path)",
]
CLOSED = [
    'path.read_text("utf-8")',
    'path.read_text(encoding="utf-8")',
    'path.write_text("a", encoding="utf-8")',
    'open(path, "rb")',
    'path.open("wb")',
    'open(path, encoding="utf-8")',
    "gzip.open(path)",
    'os.fdopen(descriptor, "rb")',
    "NamedTemporaryFile()",
    "Image.open(path)",
    "subprocess.run(command)",
    'subprocess.run(command, text=True, encoding="utf-8")',
]


def test_what_is_looked_for_is_found() -> None:
    assert [call for call in OPEN if not list(offenders(call))] == []
    assert [call for call in CLOSED if list(offenders(call))] == []
    assert len(files()) > 250
