"""Greedy answers of a torch model: a frame's prefix is read once, its questions branch off, all of them are decoded together.

Rows are padded on the left, so that all of them generate in the same column; a row leaves the batch when its answer ends. Where
a grammar constrains an answer, tokens that it forces are not chosen, and their probabilities do not count.

    F frames, B questions, P tokens of the longest prefix, Q of the longest question, S of both and the answer so far, D width,
    V vocabulary, A rotary axes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from drivekd.errors import RunnerError
from drivekd.models import family_of, language_model, rotary_positions

if TYPE_CHECKING:
    from drivekd.runtime.answers.grammar import Constraint


@dataclass
class Branch:
    """One question and what was answered so far, the end of turn left out.

    question: its ids. budget: tokens after which the answer is cut. constraint: the grammar's side of it, None = free text.
    logprobs: of chosen tokens. num_read: tokens that the decoder has read.
    """

    question: list[int]
    budget: int
    constraint: Constraint | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    num_read: int = 0

    def open(self) -> list[int]:
        """What is read first: the question, and the tokens that every answer under this grammar begins with."""
        if self.constraint is not None:
            self.tokens = self.constraint.opening()
        self.num_read = len(self.tokens)
        return [*self.question, *self.tokens]

    @property
    def awaits_choice(self) -> bool:
        """Whether all its tokens are read; else the grammar has forced some that are not."""
        return self.num_read == len(self.tokens)

    def add(self, token: int, logprob: float, end_id: int) -> None:
        """Go on behind a chosen token. Raises RunnerError when its grammar does not allow it."""
        if token == end_id:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.constraint is not None:
            self.constraint.accept(token)
            self.tokens += self.constraint.forced()
        if self.constraint is not None and self.constraint.finished:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.budget:
            self.finish_reason = "length"

    @property
    def mean_logprob(self) -> float | None:
        """Of the chosen tokens; None where there are none."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None


@dataclass(frozen=True)
class Prefixes:
    """Frames as the decoder has read them. cache: K/V of F rows; mask [F, P]: 1 at tokens; following [F]: the next position."""

    cache: DynamicCache
    mask: Tensor
    following: Tensor


def read_prefixes(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    image_embeds: Sequence[Tensor],
    positions: Sequence[NDArray[np.int64]],
    image_token_id: int,
) -> Prefixes:
    """Token ids of each frame's prefix, its images' embeddings put in, go through the decoder once.

    image_embeds: for each prompt [its vision tokens, D], in order. positions: for each prompt [A, its length].
    """
    length = max(map(len, prompts))
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])  # [F, P]
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])  # [F, P]
    padded = np.stack([np.pad(axes, ((0, 0), (length - axes.shape[1], 0))) for axes in positions], axis=1)  # [A, F, P]
    vision = (ids == image_token_id) & mask.bool()
    device = image_embeds[0].device
    embeds = model.get_input_embeddings()(ids.to(device))  # [F, P, D]
    embeds[vision.to(device)] = torch.cat(list(image_embeds)).to(embeds.dtype)
    cache, mask = DynamicCache(config=model.config.text_config), mask.to(device)
    _last_hidden(model, embeds, mask, torch.from_numpy(padded).to(device), cache)
    following = torch.tensor([int(axes.max()) + 1 for axes in positions], device=device)
    return Prefixes(cache, mask, following)


def generate(
    model: PreTrainedModel, prefixes: Prefixes, frames: Sequence[int], branches: Sequence[Branch], *, end_id: int
) -> None:
    """Fill branches: the likeliest token after another, until `end_id` (left out), the grammar's end or the budget.

    frames: which row of `prefixes` each branch is about. Raises RunnerError when a logit is not finite.
    """
    embed, axes = model.get_input_embeddings(), family_of(model).rotary_axes
    texts = [branch.open() for branch in branches]
    rows = torch.tensor(frames, device=prefixes.mask.device)
    cache = _selected(prefixes.cache, rows, model)
    length = max(map(len, texts))
    pads = torch.tensor([length - len(text) for text in texts], device=rows.device)  # [B]
    ids = torch.tensor([[0] * (length - len(text)) + text for text in texts], device=rows.device)  # [B, Q]
    columns = torch.arange(length, device=rows.device)
    mask = torch.cat([prefixes.mask[rows], (columns >= pads[:, None]).to(prefixes.mask.dtype)], dim=1)  # [B, P + Q]
    steps = (columns - pads[:, None]).clamp(min=0) + prefixes.following[rows][:, None]  # [B, Q]
    going = list(range(len(branches)))  # which branches are still in the batch
    while True:
        hidden = _last_hidden(model, embed(ids), mask, steps.expand(axes, *steps.shape), cache)
        _choose(model.lm_head(hidden).float(), [branches[i] for i in going], end_id)
        alive = [place for place, i in enumerate(going) if branches[i].finish_reason is None]
        if not alive:
            return
        if len(alive) < len(going):
            kept = torch.tensor(alive, device=rows.device)
            cache.batch_select_indices(kept)
            going, mask, steps = [going[place] for place in alive], mask[kept], steps[kept]
        ids = torch.tensor([[branches[i].tokens[branches[i].num_read]] for i in going], device=rows.device)  # [B, 1]
        for i in going:
            branches[i].num_read += 1
        steps = steps[:, -1:] + 1  # a question ends with text, whose axes are alike
        mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)


def _last_hidden(model: PreTrainedModel, embeds: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Hidden states [B, D] of the last column; the cache grows by embeds [B, S, D]. positions [A, B, S]."""
    hidden: Tensor = language_model(model)(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=rotary_positions(model, positions),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden[:, -1]


def _selected(cache: DynamicCache, rows: Tensor, model: PreTrainedModel) -> DynamicCache:
    """A copy with these rows, any of them several times."""
    kept = [(layer.keys.index_select(0, rows), layer.values.index_select(0, rows)) for layer in cache.layers]
    return DynamicCache(kept, config=model.config.text_config)


def _choose(logits: Tensor, branches: Sequence[Branch], end_id: int) -> None:
    """The next token of every branch that has read all it has. logits [B, V]."""
    if not bool(logits.isfinite().all()):
        raise RunnerError(
            "the model gave logits that are not finite; its weights are broken, or too large for fp16: take bf16 or fp32"
        )
    tokens = logits.argmax(-1).tolist()
    for place, branch in enumerate(branches):
        if branch.awaits_choice and branch.constraint is not None and not branch.constraint.allows(tokens[place]):
            row = logits[place].cpu().numpy().copy()
            branch.constraint.mask(row)
            tokens[place] = int(row.argmax())
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    logprobs = (logits.gather(1, chosen)[:, 0] - logits.logsumexp(-1)).tolist()  # before the grammar's mask, as in the car
    for branch, token, logprob in zip(branches, tokens, logprobs, strict=True):
        if branch.awaits_choice:
            branch.add(token, logprob, end_id)
