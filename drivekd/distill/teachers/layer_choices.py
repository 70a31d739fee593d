"""The layers that `drivekd analyze` chose for a pair of models, as `signals.layers` names them.

{"pair": {"student": {"depth": 24}, "teacher": {"planning": {"depth": 28}}},
 "capabilities": {"planning": {"student_layers": [22], "teacher_layers": [26], "signal": "attention", "reason": "..."}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from drivekd.config import SignalConfig, SignalsConfig
from drivekd.errors import ConfigError
from drivekd.sample import Capability


class _Model(BaseModel):
    depth: int


class _Pair(BaseModel):
    student: _Model
    teacher: Mapping[Capability, _Model] = {}


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    student_layers: list[int]
    teacher_layers: list[int]
    signal: Literal["attention", "hidden"]
    reason: str = ""


class LayerChoices(BaseModel):
    """The file's content; what else it holds (curves, counts) is for people."""

    pair: _Pair
    capabilities: Mapping[Capability, _Choice]


def read_layer_choices(path: Path) -> LayerChoices:
    """Raises ConfigError when the file is not what `drivekd analyze` writes."""
    try:
        return LayerChoices.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"signals.layers = {path}: cannot be read ({error.strerror}); `drivekd analyze` writes it") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"signals.layers = {path}: {where}: {fault['msg']}; expected what `drivekd analyze` writes") from error
    except ValueError as error:
        raise ConfigError(f"signals.layers = {path}: not valid JSON ({error})") from error


def signal_config(name: Capability, signals: SignalsConfig, student_depth: int, teacher_depth: int) -> SignalConfig:
    """signals.NAME, with the layers of the file that signals.layers names where it names none itself. Raises ConfigError."""
    own: SignalConfig = getattr(signals, name)
    if signals.layers is None or own.student_layers or own.teacher_layers or own.loss == "kl":
        return own
    return with_choice(name, own, read_layer_choices(signals.layers), student_depth, teacher_depth, str(signals.layers))


def with_choice(
    name: Capability, own: SignalConfig, choices: LayerChoices, student_depth: int, teacher_depth: int, source: str
) -> SignalConfig:
    """`own` with the chosen layers, and with hidden states compared where they are what the choice is about.

    Layers chosen for their hidden states say little about attention, hence `signal: hidden` turns mse and cosine into hidden; the
    other way round the configuration's own word holds. Raises ConfigError naming `source` when the choice is for models of other
    depths or for other capabilities.
    """
    chosen = choices.capabilities.get(name)
    if chosen is None or not chosen.student_layers or not chosen.teacher_layers:
        raise ConfigError(
            f"signals.layers = {source}: chooses no layers of student and teacher for {name}, only for "
            f"{sorted(choices.capabilities)}; analyse with its teacher, or name signals.{name}.student_layers and teacher_layers"
        )
    teacher = choices.pair.teacher.get(name)
    analysed = {"student": choices.pair.student.depth, "teacher": None if teacher is None else teacher.depth}
    for who, depth in (("student", student_depth), ("teacher", teacher_depth)):
        if analysed[who] != depth:
            raise ConfigError(
                f"signals.layers = {source}: {name} was analysed with a {who} of {analysed[who]} layers, this run's has {depth}; "
                "run `drivekd analyze` with this run's configuration"
            )
    loss = "hidden" if chosen.signal == "hidden" else own.loss
    return own.model_copy(update={"student_layers": chosen.student_layers, "teacher_layers": chosen.teacher_layers, "loss": loss})
