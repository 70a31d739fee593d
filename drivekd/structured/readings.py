"""What a record's question and answer say, as facts: objects seen, objects noticed, actions. Which schema takes what: shape.py.

    perception   objects       of tags: camera, position in px, category and status where the text states them
    reasoning    objects       noticed first, second ...: object, state, effect
    planning     actions, reason, probability

Two ways of writing are read: Drive-KD's named parts and lists, and DriveLM's sentences, which DriveBench shares. An answer to
another kind of question (how many? would they collide? is it dangerous?) says nothing for a schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivekd.sample import Capability

from .asked import Asked
from .noticed import noticed_facts
from .planned import planned_facts
from .seen import seen_facts

Facts = dict[str, Any]

_READERS: dict[Capability, Callable[[Asked], Facts]] = {
    "perception": seen_facts,
    "reasoning": noticed_facts,
    "planning": planned_facts,
}


def read_facts(asked: Asked) -> Facts:
    """Facts of a labelled record; {} when it says nothing that a schema asks for."""
    return _READERS[asked.capability](asked)
