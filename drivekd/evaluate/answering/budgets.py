"""After how many tokens an answer is cut, by capability: what was asked for, else what the model was trained for, else enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drivekd.contract import DEFAULT_MAX_NEW_TOKENS

DEFAULT_TOKENS = 512  # as DriveBench decodes (https://github.com/worldbench/drivebench)


@dataclass(frozen=True)
class Budgets:
    """tokens: of a capability; others have `rest`. origin: who said so, for people."""

    tokens: Mapping[str, int] = field(default_factory=dict)
    rest: int = DEFAULT_TOKENS
    origin: str = "the default, as DriveBench decodes; the model does not say"

    @classmethod
    def chosen(cls, wanted: int | Mapping[str, int] | None, known: Mapping[str, int], origin: str) -> Budgets:
        """wanted: one number, some by capability, or None. known: the model's own, perhaps none; origin: where those stand."""
        if isinstance(wanted, int):
            return cls({}, wanted, "max_new_tokens")
        if wanted:
            return cls({**known, **wanted}, max([DEFAULT_TOKENS, *known.values()]), "max_new_tokens")
        return cls(dict(known), max(known.values()), origin) if known else cls()

    def of(self, capability: str) -> int:
        """The most tokens that an answer of this capability may have."""
        return self.tokens.get(capability, self.rest)

    def told(self) -> str:
        """Of the budgets, for people: "perception 16, planning 8 (max_new_tokens)"."""
        numbers = ", ".join(f"{name} {count}" for name, count in sorted(self.tokens.items())) or str(self.rest)
        return f"{numbers} ({self.origin})"


def json_budgets(known: Mapping[str, int], instruction: str) -> dict[str, int]:
    """Of answers as JSON. instruction: what training asked for them with; without any, JSON is not held to what was learnt of
    texts, as in the car."""
    least = 1 if instruction else DEFAULT_MAX_NEW_TOKENS
    return {name: max(least, count) for name, count in known.items()}
