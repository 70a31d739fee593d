"""The questions a bundle asks, of which cameras, and how long answers may be: what training's contract.json says, else
CHECKPOINT/prompts.json, made by hand for a checkpoint of other tools, else general ones. A caller's questions stand over each.

prompts.json    {"prompts": {"perception": "...", ...}, "variables": {"ego_speed_mps": 8},
                 "cameras": ["CAM_FRONT", ...], "max_new_tokens": 64 or {"perception": 64, ...},
                 "note": "what the reader of the answers must know"}      only "prompts" is needed
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from drivekd.contract import CONTRACT_FILE, DEFAULT_MAX_NEW_TOKENS, Contract, Variable, answer_budget
from drivekd.errors import CheckpointError, UsageError
from drivekd.hf_checkpoint import CheckpointFiles
from drivekd.runtime.answers.questions import template_variables
from drivekd.typed_json import TypedJsonError, dataclass_from_json

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
    """prompts: one template per capability. variables: default values. cameras: () = any. max_new_tokens: of an answer, by
    capability; in prompts.json also one number for all."""

    prompts: dict[str, str]
    variables: dict[str, Variable] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    max_new_tokens: int | dict[str, int] = DEFAULT_MAX_NEW_TOKENS
    note: str = ""

    def budgets(self) -> dict[str, int]:
        """Tokens of an answer, of every capability in prompts."""
        given = self.max_new_tokens
        return {name: given if isinstance(given, int) else answer_budget(given, name) for name in self.prompts}


def load_prompts(places: Sequence[CheckpointFiles], prompts: Mapping[str, str] | None) -> PromptSet:
    """The caller's prompts over those of the checkpoint over the general ones. places: adapter and base, nearest first.

    Raises CheckpointError (contract.json, prompts.json, or both where they contradict) or UsageError (the caller's) naming what
    is wrong.
    """
    stored = next(
        (found for files in places if (found := _stored(files)) is not None), PromptSet(DEFAULT_PROMPTS, DEFAULT_VARIABLES)
    )
    if prompts is None:
        return stored
    given = replace(stored, prompts=dict(prompts))
    if problem := _problem(given):
        raise UsageError(f"prompts: {problem}")
    return given


def _stored(files: CheckpointFiles) -> PromptSet | None:
    """What one directory says."""
    by_hand = _by_hand(files) if files.has(PROMPTS_FILE) else None
    contract = files.contract
    if contract is None:
        return by_hand
    promised = _promised(contract)
    if problem := _problem(promised):
        raise CheckpointError(f"{files.path / CONTRACT_FILE}: {problem}")
    if by_hand is not None:
        _check_agreement(files, by_hand, promised)
    return promised


def _promised(contract: Contract) -> PromptSet:
    return PromptSet(contract.prompts, contract.variables, contract.cameras, contract.max_new_tokens, contract.note)


def _check_agreement(files: CheckpointFiles, by_hand: PromptSet, promised: PromptSet) -> None:
    """What prompts.json states must be what training promised."""
    promised = replace(promised, max_new_tokens=promised.budgets())
    by_hand = replace(by_hand, max_new_tokens=by_hand.budgets())
    for key in files.json(PROMPTS_FILE):
        one, other = getattr(by_hand, key), getattr(promised, key)
        if one != other:
            raise CheckpointError(
                f"{files.path / PROMPTS_FILE} says {key} {one!r:.200}, {files.path / CONTRACT_FILE} says {other!r:.200}: the "
                f"model was trained as the contract says; take {PROMPTS_FILE} out, or train with other prompts"
            )


def _by_hand(files: CheckpointFiles) -> PromptSet:
    value = files.json(PROMPTS_FILE)
    complete = {"variables": {}, "cameras": [], "max_new_tokens": DEFAULT_MAX_NEW_TOKENS, "note": "", **value}
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
    if wrong := [name for name, tokens in prompts.budgets().items() if tokens < 1]:
        return f"max_new_tokens of {wrong[0]!r} is {prompts.budgets()[wrong[0]]}; expected at least 1"
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
