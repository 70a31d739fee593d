"""What `drivekd judge --set KEY=VALUE` takes. The key itself is never a setting: only the name of the variable that holds it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError

from drivekd.config import Section, apply_override, explain
from drivekd.errors import ConfigError
from drivekd.sample import Capability

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def _as_list(value: object) -> object:
    """One capability need not be in brackets."""
    return [value] if isinstance(value, str) else value


class JudgeSettings(Section):
    """Who judges, how carefully, and at what cost. Prices and max_cost are in one currency, whichever it is."""

    endpoint: str = Field(description="Address of an OpenAI-compatible service, up to and without /chat/completions.")
    model: str = Field(min_length=1, description="The judge, as the endpoint calls it.")
    key_env: str | None = Field(default=None, description="Name of the environment variable with the key; none: no key is sent.")
    only: Annotated[list[Capability], BeforeValidator(_as_list)] = Field(
        default=[], description="Capabilities to judge; none named: all."
    )
    object_descriptions: Path | None = Field(
        default=None, description="DriveBench's visual_description.json: what the judge is told of the objects."
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Calls at once.")
    timeout_s: float = Field(default=120.0, gt=0, le=3600, allow_inf_nan=False, description="Of one call, to its last byte.")
    retries: int = Field(default=5, ge=0, le=20, description="Further attempts at a call that failed in passing.")
    first_wait_s: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Before the second attempt; doubled for each further one, with jitter.",
    )
    max_wait_s: float = Field(
        default=120.0, gt=0, allow_inf_nan=False, description="Longest wait; an endpoint that asks for more ends the run."
    )
    max_reply_tokens: int = Field(default=1024, ge=16, description="Budget of one reply.")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="How the endpoint calls that budget."
    )
    price_per_million_input: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="Of prompt tokens.")
    price_per_million_output: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="Of reply tokens.")
    max_cost: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Of all that this judge was asked in EVAL_DIR, earlier runs too."
    )
    ask_again: bool = Field(default=False, description="Ask again where the kept reply has no score.")
    seed: int = Field(default=0, ge=0, description="Sent with each call; an endpoint may ignore it.")

    @property
    def host(self) -> str:
        """The endpoint as reports name it: host and port."""
        return urlsplit(self.endpoint).netloc

    @property
    def url(self) -> str:
        """The endpoint without a slash at its end."""
        return self.endpoint.rstrip("/")

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """Of one call; None without prices."""
        if self.price_per_million_input is None or self.price_per_million_output is None:
            return None
        return (prompt_tokens * self.price_per_million_input + reply_tokens * self.price_per_million_output) / 1e6


def judge_settings(overrides: Sequence[str]) -> JudgeSettings:
    """`--set key=value` as settings. Raises ConfigError, whose text never holds what may be a key."""
    tree: dict[str, Any] = {}
    for number, override in enumerate(overrides, 1):
        if "=" not in override:  # apply_override would show it
            raise ConfigError(f"--set number {number}: expected key=value, for example --set model=NAME")
        apply_override(tree, override, "model=NAME")
    _check_secrets(tree)
    try:
        settings = JudgeSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", JudgeSettings)) from error
    if settings.max_cost is not None and settings.cost(0, 0) is None:
        raise ConfigError("--set: max_cost needs price_per_million_input and price_per_million_output, to know what a call costs")
    return settings


def _check_secrets(tree: Mapping[str, Any]) -> None:
    """Before anything can quote them: key_env is a name and no key, and the endpoint carries no password."""
    name, endpoint = tree.get("key_env"), tree.get("endpoint")
    if name is not None and not (isinstance(name, str) and _VARIABLE.fullmatch(name)):
        raise ConfigError(
            "--set: key_env: expected the NAME of an environment variable (capital letters, digits, _), such as OPENAI_API_KEY; "
            "what was given is not shown, since it may be the key itself"
        )
    if endpoint is None:
        return
    try:
        parts = urlsplit(str(endpoint))
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "--set: endpoint: expected http(s)://HOST[:PORT]/PATH such as https://api.openai.com/v1, without user, password and "
            "query; what was given is not shown, since it may hold a key. Give keys by key_env"
        )


def read_key(settings: JudgeSettings, environment: Mapping[str, str] | None = None) -> str | None:
    """The key out of the environment (os.environ without one given); None when none is wanted. Raises ConfigError."""
    if settings.key_env is None:
        return None
    key = (os.environ if environment is None else environment).get(settings.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"key_env = {settings.key_env}: this environment variable is not set or empty; export it, then run again"
        )
    if not key.isascii() or any(letter.isspace() for letter in key):
        raise ConfigError(f"key_env = {settings.key_env}: its value cannot be a key: it holds blanks or other than ASCII letters")
    return key
