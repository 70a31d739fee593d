"""Every error that drivekd raises on purpose. The command line prints them without a traceback.

    DrivekdError            exit code 1: it was asked rightly and failed
    ├── UsageError          exit code 2: it was asked wrongly
    │   └── ConfigError     a key or value of a YAML or of --set
    ├── DataError           a record, an image, a data file
    ├── CheckpointError     a model directory or a training checkpoint
    ├── TrainingError       training cannot go on (NaN, out of memory)
    ├── ExportError         a graph could not be made, or its parity failed
    ├── BundleError         a bundle is incomplete, changed or not for this machine
    ├── RunnerError         an inference engine refused or failed
    └── JudgeError          the endpoint that judges answers refused, or left questions unjudged

A message says what was expected, what was found, where, and what to do.
"""


class DrivekdError(Exception):
    """Root of the tree."""

    exit_code = 1


class UsageError(DrivekdError):
    """The command or its arguments are wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is wrong; names key, value, file and what would be right."""


class DataError(DrivekdError):
    """A record or an image cannot be used; names file and record."""


class CheckpointError(DrivekdError):
    """A model directory or training checkpoint cannot be used."""


class TrainingError(DrivekdError):
    """Training cannot go on."""


class ExportError(DrivekdError):
    """A graph could not be exported, or differs from the model."""


class BundleError(DrivekdError):
    """A bundle is incomplete, changed, or not for this machine."""


class RunnerError(DrivekdError):
    """An inference engine refused to start or failed."""


class JudgeError(DrivekdError):
    """The endpoint that judges answers refused, or left questions unjudged."""
