"""What a frame is asked, and the face of all that answer it: sessions here, in a process of their own, on rungs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

from drivekd.contract import DEFAULT_MAX_NEW_TOKENS, answer_budget
from drivekd.errors import UsageError
from drivekd.images import RGBImage
from drivekd.runtime.bundle.manifest import Manifest

from .answer import Answer
from .deadline import Cancelled
from .questions import fill_template, merged_variables

OnText = Callable[[str, str], None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature: 0 = always the likeliest. top_p: from the smallest set that holds this probability.

    seed: the same seed gives the same answer to the same frame. Raises UsageError: out of range.

    Shares are exp(z / temperature) / Σ exp(z / temperature) of logits z (arXiv 1503.02531, equation 1), and top_p is nucleus
    sampling (arXiv 1904.09751, section 3.1). By hand: logits ln 1 and ln 3 have the shares 1/4 and 3/4 at temperature 1, and
    1/10 and 9/10 at 1/2. Either way the second token alone holds 0.7, so that no other is drawn:

        >>> Sampling(temperature=0.5, top_p=0.7, seed=1)
        Sampling(temperature=0.5, top_p=0.7, seed=1)

        >>> import numpy as np
        >>> from drivekd.runtime.session.sampling import Sampler
        >>> sampler = Sampler(Sampling(temperature=1.0, top_p=0.7), streams=["planning"])
        >>> [sampler.choose(np.log(np.asarray([[1, 3]], np.float32)))[0].item() for _ in range(5)]
        [1, 1, 1, 1, 1]
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}; expected 0 (the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; expected above 0 and at most 1")
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise UsageError(f"seed is {self.seed}; expected a whole number, 0 or more")


GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one frame is asked: the bundle's question of each capability, or one free `question`.

    capabilities: None = all. question: asked literally, under the single capability named, whose schema it then has, or under
    "question". variables: values for the templates, such as {"ego_speed_mps": 8}. deadline_ms: from when a session takes the
    frame; the answers then end with finish_reason "deadline", at most one engine call later. on_text(capability, piece): text as
    it is generated. max_new_tokens: of each answer, or by capability; None, and for a capability left out: the bundle's.
    structured: JSON that fits the capability's schema, whatever happens; what was cut is null. cancelled: asked between engine
    calls; True ends the answers.
    """

    capabilities: Sequence[str] | None = None
    question: str | None = None
    variables: Mapping[str, object] | None = None
    deadline_ms: float | None = None
    on_text: OnText | None = None
    max_new_tokens: int | Mapping[str, int] | None = None
    structured: bool = False
    sampling: Sampling = GREEDY
    cancelled: Cancelled | None = None

    def __post_init__(self) -> None:
        if isinstance(self.capabilities, str):
            raise UsageError(f"capabilities is {self.capabilities!r}; expected a list of names")
        if self.capabilities is not None:
            object.__setattr__(self, "capabilities", tuple(self.capabilities))  # of any kind; this one travels to another process
        if self.deadline_ms is not None and math.isnan(self.deadline_ms):
            raise UsageError("deadline_ms is NaN; expected milliseconds, or None for no deadline")
        if self.deadline_ms == math.inf:
            object.__setattr__(self, "deadline_ms", None)
        if isinstance(self.max_new_tokens, Mapping):
            object.__setattr__(self, "max_new_tokens", dict(self.max_new_tokens))  # of any kind; this one can be sent
        if any(not isinstance(tokens, Integral) for tokens in self._stated_limits()):
            raise UsageError(f"max_new_tokens is {self.max_new_tokens!r}; expected a whole number, or one by capability")
        if self.question is not None and not _is_text(self.question):
            raise UsageError(f"question is {self.question!r:.80}; expected text in Unicode, without halves of characters")

    def questions(
        self, prompts: Mapping[str, str], defaults: Mapping[str, object], *, structured_instruction: str = ""
    ) -> dict[str, str]:
        """What is asked, by capability: the bundle's templates with their variables filled in, or the literal question.

        prompts, defaults, structured_instruction: the bundle's templates by capability, its variables, and what stands behind a
        question whose answer shall be JSON. Everything that can be wrong with what is
        asked, apart from its length, is found here.
        Raises UsageError: an unknown capability or variable, none, several or a schema for one question, not one new token.

            >>> Ask(variables={"speed": 8}).questions({"planning": "At {speed} m/s, what now?"}, {"speed": 0})
            {'planning': 'At 8 m/s, what now?'}
            >>> Ask(question="Is it wet?").questions({"planning": "What now?"}, {})
            {'question': 'Is it wet?'}
        """
        if self.structured and self.question is not None and self.capabilities is None:
            raise UsageError("a free question has no schema: name the one capability whose schema it has, or ask for free text")
        values, names = merged_variables(defaults, self.variables), self.capabilities
        if any(tokens < 1 for tokens in self._stated_limits()):
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; an answer takes at least 1")
        behind = structured_instruction if self.structured else ""
        if self.question is not None:
            if names is not None and len(names) != 1:
                raise UsageError(f"one free question is asked under one capability, got {len(names)}")
            return {names[0] if names else "question": self.question + behind}
        names = list(prompts) if names is None else names
        if not names:
            raise UsageError(f"no capability asked; this bundle has: {', '.join(prompts)}")
        if unknown := [name for name in names if name not in prompts]:
            raise UsageError(f"capability {unknown[0]!r} is unknown; this bundle has: {', '.join(prompts)}")
        return {name: fill_template(prompts[name], values) + behind for name in names}

    def limits(self, manifest: Manifest, names: Iterable[str]) -> dict[str, int]:
        """Tokens that each answer may have. names: of the questions, as `questions` gives them. A free question has the largest
        budget of all; JSON that training never asked for is not held to what it learnt of texts.

        Raises UsageError: max_new_tokens names what is no capability.
        """
        names = list(names)
        if isinstance(self.max_new_tokens, Integral):
            return dict.fromkeys(names, int(self.max_new_tokens))
        stated = self.max_new_tokens if isinstance(self.max_new_tokens, Mapping) else {}
        if unknown := [name for name in stated if name not in manifest.prompts and name not in names]:
            raise UsageError(
                f"max_new_tokens: capability {unknown[0]!r} is unknown; this bundle has: {', '.join(manifest.prompts)}"
            )
        least = DEFAULT_MAX_NEW_TOKENS if self.structured and not manifest.structured_instruction else 1
        budgets = {name: max(least, answer_budget(manifest.generation.max_new_tokens, name)) for name in names}
        return budgets | {name: tokens for name, tokens in stated.items() if name in budgets}

    def _stated_limits(self) -> list[int]:
        stated = self.max_new_tokens
        if stated is None:
            return []
        return list(stated.values()) if isinstance(stated, Mapping) else [stated]


def _is_text(value: object) -> bool:
    """Text that UTF-8 can hold: no lone surrogate."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


class Answering(Protocol):
    """Whatever answers frames: it has `answer_ask`, and with it `answer`."""

    @abstractmethod
    def answer_ask(self, images: Mapping[str, RGBImage], ask: Ask) -> dict[str, Answer]:
        """Answers by capability about one frame. images: uint8 RGB [H, W, 3] by camera name.

        Raises UsageError (unknown capability, camera, variable; chat markers; a free question has no schema; another frame is
        being answered), DataError (a bad image), RunnerError.
        """
        ...

    def answer(
        self,
        images: Mapping[str, RGBImage],
        *,
        capabilities: Sequence[str] | None = None,
        question: str | None = None,
        variables: Mapping[str, object] | None = None,
        deadline_ms: float | None = None,
        on_text: OnText | None = None,
        max_new_tokens: int | Mapping[str, int] | None = None,
        structured: bool = False,
        sampling: Sampling = GREEDY,
        cancelled: Cancelled | None = None,
    ) -> dict[str, Answer]:
        """The same by keyword: an Ask's, which says what each means. Raises as `answer_ask` does.

        Without any time left a structured answer still fits its schema; it says that it is not complete:

            >>> from drivekd.runtime import load_bundle
            >>> with load_bundle(bundle) as session:
            ...     answers = session.answer({"CAM_FRONT": image}, capabilities=["planning"], structured=True, deadline_ms=0)
            >>> answers["planning"].finish_reason, answers["planning"].structured["complete"]
            ('deadline', False)
        """
        ask = Ask(
            capabilities=capabilities,
            question=question,
            variables=variables,
            deadline_ms=deadline_ms,
            on_text=on_text,
            max_new_tokens=max_new_tokens,
            structured=structured,
            sampling=sampling,
            cancelled=cancelled,
        )
        return self.answer_ask(images, ask)
