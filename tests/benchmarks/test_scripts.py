"""Every script answers --help, and every command that a document or a docstring names is one that a script takes."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.e2e

FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
COMMAND = re.compile(r"(?:-m (benchmarks(?:\.\w+)+)|(?<![\w/])(benchmarks(?:/\w+)+\.py))([^`\n]*)")
FLAG = re.compile(r"--[a-z][\w-]*")
WORKERS = {"benchmarks.runtime.decode_worker", "benchmarks.runtime.triad_worker"}  # other scripts start them


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SCRIPTS = [module_of(path) for path in FILES if '__name__ == "__main__"' in path.read_text()]


@cache
def said(module: str) -> str:
    """What --help prints."""
    main, printed = import_module(module).main, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return printed.getvalue()


def commands(text: str) -> list[tuple[str, str]]:
    """Module and the rest of the line, of every command in a text; a path alone is one without flags."""
    joined = re.sub(r"\\+\n", " ", text)
    return [(module or path.removesuffix(".py").replace("/", "."), rest) for module, path, rest in COMMAND.findall(joined)]


@pytest.mark.parametrize("module", SCRIPTS)
def test_help_is_answered(module: str) -> None:
    docstring = import_module(module).__doc__
    assert docstring is not None and docstring.splitlines()[0] in said(module)


@pytest.mark.parametrize("path", [*DOCUMENTS, *FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_named_commands_are_taken(path: Path) -> None:
    for module, rest in commands(path.read_text()):
        assert find_spec(module) is not None, module
        if flags := set(FLAG.findall(rest.split(" #")[0])):
            usage = said(module).split("\n\n")[0]  # the description behind it is the docstring, which may err
            assert flags <= set(FLAG.findall(usage)), module


def test_every_script_tells_its_command() -> None:
    told = {module for path in FILES for module, _ in commands(path.read_text()) if module == module_of(path)}
    assert told == set(SCRIPTS) - WORKERS
    assert set(SCRIPTS) >= WORKERS


def test_modules_that_are_started_by_name_exist() -> None:
    named = {name for path in FILES for name in re.findall(r'"(benchmarks(?:\.\w+)+)"', path.read_text())}
    assert named >= WORKERS
    assert [name for name in sorted(named) if find_spec(name) is None] == []
