"""Attention with its head-mean maps, exact and small: no [B, H, S, S] tensor is ever kept.

The maps are means over heads of post-softmax attention. The query heads of one key head are taken together,
in blocks of query rows whose keys end at the block's last row (causal: later keys have weight 0). Backward passes recompute the
softmax, so that what a map saves is q and k. Scores and maps are fp32 whatever the inputs.

    B samples, H query heads, K key heads, G = H / K, S positions, D head width, r rows and e keys of a block, R chosen rows,
    V chosen columns
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Query rows at once, of all G heads: 13 MB of scores at S = 1,834 and G = 7. Smaller blocks cost calls, larger ones cache.
ROW_BLOCK = 256
# What a score is where nothing may be seen: its weight is 0. With -inf a row that sees nothing at all (padding in front) would be
# NaN, and so would be every row behind it one layer later: 0 times NaN is NaN.
HIDDEN = torch.finfo(torch.float32).min

Mask: TypeAlias = Tensor | None  # [B or 1, 1, S, S] bool, true = may attend, within the lower triangle; None = plain causal


def attend_with_mean(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention's output [B, H, S, D] in value's dtype and the mean over heads of its maps, [B, S, S] fp32, both differentiable.

    query [B, H, S, D]; key, value [B, K, S, D]. With gradients, SDPA makes the output, and its backward passes (several a step)
    do not pay for the map; without, one softmax serves both.
    """
    if not torch.is_grad_enabled():
        with torch.autocast(query.device.type, enabled=False):
            return _attend_with_mean(query, key, value, mask, scaling)
    groups = query.shape[1] // key.shape[1]
    keys, values = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    output = F.scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None, scale=scaling)
    return output, mean_map(query, key, mask, scaling)


def mean_map(query: Tensor, key: Tensor, mask: Mask, scaling: float) -> Tensor:
    """The whole head-mean map [B, S, S] fp32, differentiable. query [B, H, S, D], key [B, K, S, D]."""
    with torch.autocast(query.device.type, enabled=False):
        attention: Tensor = _MeanMap.apply(query, key, mask, scaling)  # type: ignore[no-untyped-call]
    return attention


def mean_rows(query: Tensor, key: Tensor, mask: Mask, scaling: float, rows: Tensor, columns: Tensor) -> Tensor:
    """The head-mean map at chosen places alone: [B, R, V] fp32, differentiable.

    query [B, H, S, D], key [B, K, S, D]; rows [B, R] and columns [B, V]: positions. A place behind its row's own has weight 0.
    """
    index = rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    chosen = query.gather(2, index)  # [B, H, R, D]
    with torch.autocast(query.device.type, enabled=False):
        row_mask = _row_mask(mask, rows, key.shape[2])
        attention: Tensor = _MeanRows.apply(chosen, key, row_mask, columns, scaling)  # type: ignore[no-untyped-call]
    return attention


def _attend_with_mean(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scaling: float) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    output = torch.empty_like(query, dtype=value.dtype)
    mean = query.new_zeros(batch, length, length, dtype=_wide_dtype(query))
    for head in range(key.shape[1]):
        mine = _heads_of(query, key, head)
        for start, end in _blocks(length):
            weights = _weights(query, key, mask, scaling, head, start, end)  # [B, G, r, e]
            mixed = weights.flatten(1, 2) @ _wide(value[:, head, :end])  # [B, G r, D]
            output[:, mine, start:end] = mixed.view(*weights.shape[:3], -1).to(output.dtype)
            mean[:, start:end, :end] += weights.sum(1) / heads
    return output, mean


class _MeanMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, mask: Mask, scaling: float) -> Tensor:
        batch, heads, length, _ = query.shape
        mean = query.new_zeros(batch, length, length, dtype=_wide_dtype(query))
        for head in range(key.shape[1]):
            for start, end in _blocks(length):
                mean[:, start:end, :end] += _weights(query, key, mask, scaling, head, start, end).sum(1) / heads
        ctx.save_for_backward(query, key)
        ctx.mask, ctx.scaling = mask, scaling
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key = ctx.saved_tensors
        grad_query, grad_key = (torch.zeros_like(tensor, dtype=_wide_dtype(tensor)) for tensor in (query, key))
        for head in range(key.shape[1]):
            mine = _heads_of(query, key, head)
            for start, end in _blocks(query.shape[2]):
                weights = _weights(query, key, ctx.mask, ctx.scaling, head, start, end)  # [B, G, r, e]
                incoming = (grad[:, start:end, :end] / query.shape[1])[:, None]  # [B, 1, r, e]
                through = _softmax_backward(weights, incoming).flatten(1, 2)  # [B, G r, e]
                towards = through @ _wide(key[:, head, :end])
                grad_query[:, mine, start:end] = towards.view(*weights.shape[:3], -1)
                grad_key[:, head, :end] += through.transpose(1, 2) @ _wide(query[:, mine, start:end]).flatten(1, 2)
        return (grad_query * ctx.scaling).to(query.dtype), (grad_key * ctx.scaling).to(key.dtype), None, None


class _MeanRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, key: Tensor, row_mask: Tensor, columns: Tensor, scaling: float) -> Tensor:
        heads = rows.shape[1]
        mean = rows.new_zeros(len(columns), rows.shape[2], columns.shape[1], dtype=_wide_dtype(rows))  # [B, R, V]
        for head in range(heads):
            weights = _row_weights(rows, key, row_mask, scaling, head)  # [B, R, S]
            mean += _take_columns(weights, columns) / heads
        ctx.save_for_backward(rows, key, row_mask, columns)
        ctx.scaling = scaling
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, key, row_mask, columns = ctx.saved_tensors
        heads = rows.shape[1]
        grad_rows, grad_key = (torch.zeros_like(tensor, dtype=_wide_dtype(tensor)) for tensor in (rows, key))
        incoming = grad.new_zeros(*grad.shape[:2], key.shape[2])  # [B, R, S]
        incoming.scatter_add_(2, columns[:, None].expand_as(grad), grad / heads)
        for head in range(heads):
            kv = _key_head(rows, key, head)
            through = _softmax_backward(_row_weights(rows, key, row_mask, ctx.scaling, head), incoming)
            grad_rows[:, head] = through @ _wide(key[:, kv]) * ctx.scaling
            grad_key[:, kv] += through.transpose(1, 2) @ _wide(rows[:, head]) * ctx.scaling
        return grad_rows.to(rows.dtype), grad_key.to(key.dtype), None, None, None


def _softmax_backward(weights: Tensor, incoming: Tensor) -> Tensor:
    """p (dp - <dp, p>): the gradient through a softmax whose output is `weights`."""
    along = (incoming * weights).sum(-1, keepdim=True)
    return (incoming - along).mul_(weights)


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    """fp32, or float64 where it is given (gradcheck): a half-precision softmax loses the signal."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor))


def _key_head(query: Tensor, key: Tensor, head: int) -> int:
    return head // (query.shape[1] // key.shape[1])


def _heads_of(query: Tensor, key: Tensor, head: int) -> slice:
    """The query heads that share one key head."""
    groups = query.shape[1] // key.shape[1]
    return slice(head * groups, (head + 1) * groups)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + ROW_BLOCK, length)) for start in range(0, length, ROW_BLOCK)]


def _weights(query: Tensor, key: Tensor, mask: Mask, scaling: float, head: int, start: int, end: int) -> Tensor:
    """Attention of rows start..end of one key head's query heads to the keys before `end`, [B, G, r, e]."""
    rows = _wide(query[:, _heads_of(query, key, head), start:end]) * scaling  # [B, G, r, D]
    scores = (rows.flatten(1, 2) @ _wide(key[:, head, :end]).transpose(1, 2)).view(*rows.shape[:3], end)
    if mask is None:
        later = torch.ones(end - start, end - start, dtype=torch.bool, device=scores.device).triu_(1)
        scores[..., start:].masked_fill_(later, HIDDEN)
    else:
        scores.masked_fill_(~mask[:, :, start:end, :end], HIDDEN)
    return scores.softmax(-1)


def _row_weights(rows: Tensor, key: Tensor, row_mask: Tensor, scaling: float, head: int) -> Tensor:
    keys = _wide(key[:, _key_head(rows, key, head)])  # [B, S, D]
    scores = (_wide(rows[:, head]) * scaling) @ keys.transpose(1, 2)  # [B, R, S]
    return scores.masked_fill_(~row_mask, HIDDEN).softmax(-1)


def _row_mask(mask: Mask, rows: Tensor, length: int) -> Tensor:
    """[B, R, S] bool: which positions each chosen row attends to."""
    if mask is None:
        return torch.arange(length, device=rows.device) <= rows[:, :, None]
    whole = mask[:, 0].expand(len(rows), -1, -1)  # [B, S, S]
    return whole.gather(1, rows[:, :, None].expand(-1, -1, length))


def _take_columns(weights: Tensor, columns: Tensor) -> Tensor:
    return weights.gather(2, columns[:, None].expand(-1, weights.shape[1], -1))
