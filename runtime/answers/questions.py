"""Question templates with variables: "The ego vehicle drives at {ego_speed_mps} m/s. ..." """

from __future__ import annotations

import re
from collections.abc import Mapping

from drivekd.errors import UsageError

VARIABLE = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def template_variables(template: str) -> list[str]:
    """Names of the variables in a template, in order."""
    return VARIABLE.findall(template)


def fill_template(template: str, values: Mapping[str, object]) -> str:
    """Put values in place of {names}. Not str.format: a template must not reach into an object's attributes.

    Raises UsageError when a variable has no value.
    """
    if missing := [name for name in template_variables(template) if name not in values]:
        raise UsageError(f"the question needs the variable {missing[0]!r}: {template[:120]!r}")
    return VARIABLE.sub(lambda match: str(values[match[1]]), template)


def merged_variables(defaults: Mapping[str, object], given: Mapping[str, object] | None) -> dict[str, object]:
    """Defaults with the caller's values. Raises UsageError on an unknown name: a typo must not leave a default speed in place."""
    given = given or {}
    if unknown := sorted(set(given) - set(defaults)):
        known = ", ".join(defaults) or "none"
        raise UsageError(f"variable {unknown[0]!r} is unknown to this bundle; it has: {known}")
    return {**defaults, **given}
