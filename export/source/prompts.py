"""The questions a bundle asks: from the caller, from CHECKPOINT/prompts.json, or general ones.

prompts.json    {"prompts": {"perception": "...", ...}, "variables": {"ego_speed_mps": 8},
                 "cameras": ["CAM_FRONT", ...], "max_new_tokens": 64,
                 "note": "what the reader of the answers must know"}      only "prompts" is needed
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from drivekd.errors import CheckpointError, UsageError
from drivekd.hf_checkpoint import CheckpointFiles
from drivekd.runtime.answers.questions import template_variables
from drivekd.runtime.bundle.manifest import Variable
from drivekd.runtime.bundle.typed_json import TypedJsonError, dataclass_from_json

PROMPTS_FILE = "prompts.json"
CAPABILITY = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = ("vision", "prefill", "questions", "decode", "ttft", "total")  # stages in Session.timings_ms

DEFAULT_PROMPTS = {
    "perception": "What are the important objects in the current scene, and where are they?",
    "reasoning": "Which of these objects matters most to the ego vehicle, and why?",
    "planning": "The ego vehicle drives at {ego_speed_mps} m/s. What should it do next, and why?",
}
DEFAULT_VARIABLES: dict[str, Variable] = {"ego_speed_mps": 8}


@dataclass(frozen=True)
class PromptSet:
    """prompts: one template per capability. variables: default values. cameras: () = any. max_new_tokens: per capability."""

    prompts: dict[str, str]
    variables: dict[str, Variable] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    max_new_tokens: int = 64
    note: str = ""


def load_prompts(files: CheckpointFiles, prompts: Mapping[str, str] | None) -> PromptSet:
    """The caller's prompts over those of the checkpoint over the general ones.

    Raises CheckpointError (prompts.json) or UsageError (the caller's) naming what is wrong.
    """
    stored = PromptSet(DEFAULT_PROMPTS, DEFAULT_VARIABLES)
    if (files.path / PROMPTS_FILE).exists():
        stored = _stored_prompts(files)
    if prompts is None:
        return stored
    given = replace(stored, prompts=dict(prompts))
    if problem := _problem(given):
        raise UsageError(f"prompts: {problem}")
    return given


def _stored_prompts(files: CheckpointFiles) -> PromptSet:
    value = files.json(PROMPTS_FILE)
    complete = {"variables": {}, "cameras": [], "max_new_tokens": PromptSet.max_new_tokens, "note": "", **value}
    try:
        stored = dataclass_from_json(PromptSet, complete, PROMPTS_FILE)
    except TypedJsonError as error:
        raise CheckpointError(f"{files.path}: {error}") from error
    if problem := _problem(stored):
        raise CheckpointError(f"{files.path / PROMPTS_FILE}: {problem}")
    return stored


def _problem(prompts: PromptSet) -> str | None:
    if not prompts.prompts:
        return "no capability; expected one question template for each, for example perception, reasoning, planning"
    if prompts.max_new_tokens < 1:
        return f"max_new_tokens is {prompts.max_new_tokens}; expected at least 1"
    if len(set(prompts.cameras)) != len(prompts.cameras):
        return f"a camera is named twice: {', '.join(prompts.cameras)}"
    for capability, template in prompts.prompts.items():
        if not CAPABILITY.fullmatch(capability) or capability in RESERVED:
            return f"{capability!r} is no name for a capability; expected lower-case words, none of {', '.join(RESERVED)}"
        if not template.strip():
            return f"the question of {capability!r} is empty"
        if unset := [name for name in template_variables(template) if name not in prompts.variables]:
            return f"{capability!r} uses the variable {unset[0]!r}, which has no default value in variables"
    return None
