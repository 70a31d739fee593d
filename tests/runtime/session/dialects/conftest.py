"""Both families in both dialects, in place of the one bundle of the folder above; and six cameras for the tests of the prefix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from dialect_cases import NUM_CAMERAS, Images
from tiny_run import FAMILIES

from drivekd.runtime.bundle.manifest import DIALECTS
from drivekd.runtime.parity.golden import golden_images
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.session import Session

if TYPE_CHECKING:  # torch is imported when the fixture is asked for: collecting wants none
    from dialect_exports import Exported


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each family; shared_session and session of the folder above are then on its bundle, in each dialect."""
    from dialect_exports import exported_family

    return exported_family(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture(scope="module", params=DIALECTS)
def shared_session(request: pytest.FixtureRequest, exported: Exported) -> Iterator[Session]:
    with Session(exported.bundle, threads=1, dialect=request.param) as session:
        yield session


@pytest.fixture
def images(exported: Exported) -> Images:
    return golden_images(exported.bundle.manifest.images.tile_px)


@pytest.fixture(scope="module", params=DIALECTS)
def models(request: pytest.FixtureRequest, exported: Exported) -> Iterator[tuple[StartedModel, StartedModel]]:
    """One whose prefix is kept and whose memory is reserved, and one that reads everything anew."""
    with (
        StartedModel(exported.bundle, threads=1, dialect=request.param) as kept,
        StartedModel(exported.bundle, threads=1, dialect=request.param) as anew,
    ):
        yield kept, anew


@pytest.fixture
def kept(models: tuple[StartedModel, StartedModel]) -> StartedModel:
    models[0].prefix.forget()
    return models[0]


@pytest.fixture
def anew(models: tuple[StartedModel, StartedModel]) -> StartedModel:
    models[1].prefix.forget()
    return models[1]


@pytest.fixture
def frame(exported: Exported) -> Images:
    return golden_images(exported.bundle.manifest.images.tile_px, NUM_CAMERAS)
