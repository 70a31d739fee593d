"""The schemas' words for what people write: categories of things, actions of the ego vehicle.

A text that names none of them gives none: "vehicle" may be a bus, so it has no category.
"""

from __future__ import annotations

import re

# In this order where two end at the same place. A thing is what its description ends with: "pickup truck" is a truck.
_CATEGORIES = {
    "traffic_light": r"traffic lights?|(?:red|green|yellow|amber) lights?",
    "traffic_sign": r"(?:traffic |road |stop |speed (?:limit )?)?signs?|no entry|speed limit",
    "traffic_cone": r"(?:traffic )?cones?",
    "barrier": r"barriers?|fences?|guard ?rails?",
    "debris": r"debris|garbage|trash|rubble",
    "motorcycle": r"motor ?(?:cycles?|bikes?)|motorcyclists?|scooters?|mopeds?",
    "bicycle": r"bicycles?|bikes?|cyclists?",
    "pedestrian": r"pedestrians?|persons?|people|m[ae]n|wom[ae]n|child(?:ren)?|boys?|girls?|workers?",
    "animal": r"animals?|dogs?|cats?|deer|birds?",
    "trailer": r"trailers?",
    "bus": r"bus(?:es)?|coach(?:es)?",
    "truck": r"trucks?|lorr(?:y|ies)",
    "van": r"(?:mini)?vans?",
    "car": r"cars?|sedans?|suvs?|hatchbacks?|coupes?|taxis?|jeeps?|station wagons?",
}
_CATEGORY = re.compile("|".join(rf"(?P<{name}>\b(?:{words})\b)" for name, words in _CATEGORIES.items()), re.IGNORECASE)
_BEHIND_THE_THING = re.compile(r"\s(?:with|in|on|to|at|of|near|behind|that|which|relative)\s|[,;(\[]", re.IGNORECASE)
_LIGHT = re.compile(r"\b(red|green|yellow|amber)\s+(?:traffic\s+)?lights?\b", re.IGNORECASE)


def category_of(description: str) -> str | None:
    """The category of what is described, None where it names none that the schemas know.

    >>> category_of("black SUV, relative to ego: front-left"), category_of("gray pickup truck"), category_of("a vehicle")
    ('car', 'truck', None)
    """
    thing = _BEHIND_THE_THING.split(description.strip(), maxsplit=1)[0]
    return next((found.lastgroup for found in reversed(list(_CATEGORY.finditer(thing)))), None)


def light_of(description: str) -> str | None:
    """What a traffic light shows, by its description: "Green light." is "green"."""
    found = _LIGHT.search(description)
    return found[1].lower() if found else None


# Of one clause; the first that fits. A clause that says what must not be done names no action.
_NO = r"\b(?:not|n't|never|avoid\w*|without|no|instead of|rather than|unless|back up|backing up|backward|reverse)\b"
_BRAKE = r"\b(?:brak\w+|decelerat\w*|slow(?:s|ing|ly)?(?: down)?|reduc\w+)\b"
_ACTIONS = (
    ("stop", r"\b(?:stop(?:s|ping|ped)?|(?:remain\w*|stay\w*|keep\w*) stationary|standstill|halt)\b|^\W*stationary\W*$"),
    ("yield", r"\b(?:yield\w*|giv\w+ way|wait\w* for|let\w* \w+(?: \w+)? pass)\b"),
    ("change_lane_left", r"\b(?:chang\w+|merg\w+|mov\w+|switch\w*)\b.*\bleft\b|\bleft lane change\b"),
    ("change_lane_right", r"\b(?:chang\w+|merg\w+|mov\w+|switch\w*)\b.*\bright\b|\bright lane change\b"),
    ("turn_left", r"\bturn\w*\b(?: to the)? left\b|\bleft turn\b"),
    ("turn_right", r"\bturn\w*\b(?: to the)? right\b|\bright turn\b"),
    ("accelerate", r"\b(?:accelerat\w*|speed(?:s|ing)? up)\b"),
    (
        "keep_speed",
        r"\b(?:(?:same|current|constant|normal) speed|keep (?:going|driving|moving)|maintain\w* (?:the |its )?speed)\b",
    ),
    ("slow_down", _BRAKE),
    ("keep_lane", r"\b(?:straight|(?:keep\w*|stay\w*|remain\w*)(?: in)?(?: the| its)?(?: same| current| ego)? lane)\b"),
    ("keep_lane", r"\b(?:go|going|continue|continuing|proceed|proceeding|driv\w+|mov\w+)(?: \w+)? ahead\b"),
)
_PATTERNS = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _ACTIONS]
_NEGATED = re.compile(_NO, re.IGNORECASE)
_CLAUSE = re.compile(r"[.;,\n]|\b(?:and|or|then|but)\b", re.IGNORECASE)


def actions_of(text: str) -> list[str]:
    """The actions that a text tells the ego vehicle to take, in its order, none twice.

    >>> actions_of("Keep going at the same speed, decelerate gradually without braking.")
    ['keep_speed', 'slow_down']
    >>> actions_of("decelerate gradually until it comes to a stop"), actions_of("do not accelerate"), actions_of("Back up.")
    (['stop'], [], [])
    """
    found = (_action_of(clause) for clause in _CLAUSE.split(text))
    return list(dict.fromkeys(action for action in found if action is not None))


def _action_of(clause: str) -> str | None:
    negation = _NEGATED.search(clause)
    said = clause[: negation.start()] if negation else clause  # "slow down without braking" says: slow down
    return next((name for name, pattern in _PATTERNS if pattern.search(said)), None)
