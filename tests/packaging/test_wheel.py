"""The wheel holds every file of the three folders under its import name, and works away from the source tree.

A forgotten subpackage vanishes from a wheel without a word.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tomllib
from packaging.requirements import Requirement

from drivekd import __version__

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"drivekd": ROOT / "drivekd", "drivekd/export": ROOT / "export", "drivekd/runtime": ROOT / "runtime"}
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def source_files() -> set[str]:
    """Every file of the three folders, named as it must be in the wheel; links are not followed."""
    return {
        f"{name}/{(Path(where) / file).relative_to(folder).as_posix()}"
        for name, folder in FOLDERS.items()
        for where, _, files in os.walk(folder)
        for file in files
        if "__pycache__" not in where
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build/ left in the tree would be swept into the wheel."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("drivekd", "export", "runtime", "configs"):  # demo.yaml is a link into configs/
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    project = PYPROJECT["project"]
    for name in ("pyproject.toml", project["readme"], *project["license-files"]):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (tree / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, away from the source tree."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.mark.e2e
def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == source_files()


def test_every_folder_with_code_is_a_package_that_is_listed() -> None:
    packages = {Path(name).parent.as_posix().replace("/", ".") for name in source_files() if name.endswith(".py")}
    assert packages == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert all(f"{package.replace('.', '/')}/__init__.py" in source_files() for package in packages)


@pytest.mark.e2e
def test_the_command_is_declared(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "drivekd = drivekd.cli:main" in entry_points.read_text()


def test_the_version_is_the_codes() -> None:
    assert PYPROJECT["project"]["version"] == __version__


@pytest.mark.parametrize("name", ["export", "runtime"])
def test_the_links_for_type_checkers_point_at_the_folders(name: str) -> None:
    link = ROOT / "drivekd" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", ["export", "runtime"])
def test_the_folders_refuse_their_bare_names(name: str) -> None:
    """`import export` from the source tree would load every module twice."""
    spec = importlib.util.spec_from_file_location(name, ROOT / name / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=f"^import drivekd.{name}$"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def run_python(installed: Path, code: str) -> str:
    """Run code against the unpacked wheel, not the source tree; returns what it prints."""
    start = f"import sys; sys.path.insert(0, {str(installed)!r})\n"
    done = subprocess.run([sys.executable, "-I", "-c", start + code], capture_output=True, text=True, cwd=installed)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_the_installed_runtime_imports_where_torch_is_not(installed: Path) -> None:
    """On the car there is no torch, transformers or onnx."""
    modules = sorted(
        name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for name in source_files()
        if name.startswith("drivekd/runtime/") and name.endswith(".py")
    )
    code = f"""
import importlib, importlib.abc

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "onnxscript") or name.startswith("drivekd.export"):
            raise ImportError(f"{{name}} is not in the car")

sys.meta_path.insert(0, Blocked())
for name in {modules!r}:
    importlib.import_module(name)
print(sys.modules["drivekd.runtime"].__file__)
"""
    assert run_python(installed, code).strip() == str(installed / "drivekd" / "runtime" / "__init__.py")


@pytest.mark.e2e
def test_the_installed_command_line_imports(installed: Path) -> None:
    code = "import drivekd.cli, drivekd.config; print(drivekd.cli.__file__)"
    assert run_python(installed, code).strip() == str(installed / "drivekd" / "cli" / "__init__.py")


def test_what_make_installs_is_pinned_within_its_floor() -> None:
    extras = re.search(r"pip install -q -c constraints.txt -e '\.\[([\w,-]+)\]'", (ROOT / "Makefile").read_text())
    assert extras is not None
    optional = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"], *(line for extra in extras[1].split(",") for line in optional[extra])]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in map(Requirement, wanted):
        assert canonical(requirement.name) in pins, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pins[canonical(requirement.name)], prereleases=True), requirement


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
