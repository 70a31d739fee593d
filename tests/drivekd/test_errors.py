"""One exception tree, with the exit codes that the command line promises."""

from __future__ import annotations

import inspect

import pytest

from drivekd import errors
from drivekd.errors import ConfigError, DrivekdError, UsageError

ALL = [value for value in vars(errors).values() if inspect.isclass(value)]


def test_every_error_hangs_on_the_one_root() -> None:
    assert all(issubclass(error, DrivekdError) for error in ALL)


def test_every_error_is_drawn_in_the_tree() -> None:
    assert errors.__doc__ is not None
    assert [error.__name__ for error in ALL if error.__name__ not in errors.__doc__] == []


@pytest.mark.parametrize("error", ALL)
def test_only_asking_wrongly_exits_2(error: type[DrivekdError]) -> None:
    assert error.exit_code == (2 if error in (UsageError, ConfigError) else 1)
