"""Fixtures that several folders share. Made once a session; tests only read them. Types and constants: cases/tiny_run.py."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from kinds import kinds_of_all_tests, unwanted_kinds
from tiny_run import FAMILIES, KINDS, TinyRun, make_tokenizer, write_tiny_run

if TYPE_CHECKING:
    from tokenizers import Tokenizer

pytest_plugins = ["export_fixtures", "command_fixtures", "real_fixtures"]

# The same examples every time, and no verdict by the clock: a loaded machine is no failure (--hypothesis-profile=default: search)
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """What a test (or a fixture made for it) sets in torch for the whole process, no later test sees."""
    before = _torch_settings()
    try:
        return (yield)
    finally:
        if (torch := sys.modules.get("torch")) is not None:
            threads, precision, dtype = before or (os.cpu_count() or 1, "highest", torch.float32)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.set_default_dtype(dtype)


def _torch_settings() -> tuple[int, str, Any] | None:
    if (torch := sys.modules.get("torch")) is None:  # heavy, and most files want none
        return None
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file of nothing but unwanted kinds is not read: its imports alone take seconds."""
    if not collection_path.name.startswith("test_") or not collection_path.is_file():
        return None
    unwanted = unwanted_kinds(config.getoption("-m"))
    return True if unwanted & kinds_of_all_tests(collection_path.read_text()) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes (pytest -n 2 --dist loadgroup) one has a file's tests, and one all that need real weights: each file's
    fixtures are made once, and so is the bundle of real weights."""
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        item.add_marker(pytest.mark.xdist_group("real" if item.get_closest_marker("real") else item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports leave no garbage to speak of."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def settled_objects() -> None:
    """Half a million objects of libraries and session fixtures stay for good: no test's garbage collection looks through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Verdicts of the parity gate are kept below a folder of this run, for started processes as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> TinyRun:
    return write_tiny_run(tmp_path_factory.mktemp("tiny"), tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_qwen_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return write_tiny_run(tmp_path_factory.mktemp("tiny-qwen"), make_tokenizer("qwen2_5_vl"), "qwen2_5_vl")


@pytest.fixture(scope="session", params=FAMILIES)
def family_run(request: pytest.FixtureRequest) -> TinyRun:
    """A run of each family."""
    found = request.getfixturevalue("tiny_run" if request.param == "internvl" else "tiny_qwen_run")
    assert isinstance(found, TinyRun)
    return found


@pytest.fixture(scope="session", params=KINDS)
def kind_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> TinyRun:
    """A run of each family, and of InternVL with a Llama."""
    if request.param not in FAMILIES:
        return write_tiny_run(tmp_path_factory.mktemp(f"tiny-{request.param}"), tiny_tokenizer, request.param)
    found = request.getfixturevalue("tiny_run" if request.param == "internvl" else "tiny_qwen_run")
    assert isinstance(found, TinyRun)
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bit-equality holds for one thread count; and tiny models are fastest on one."""
    with _one_thread():
        yield


@pytest.fixture(scope="module")
def module_on_one_thread() -> Iterator[None]:
    """one_thread, for what a module makes once as well."""
    with _one_thread():
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch  # heavy, and most files want none

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
