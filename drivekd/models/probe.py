"""Capture: the attention maps (or hidden states) of chosen decoder layers, taken while the model does its own work.

A function registered with transformers' AttentionInterface computes SDPA, and for the layers that a capture asks for also the
head-mean map: whole maps together with the layer's output (`attend_with_mean`), chosen rows beside it (`mean_rows`). Three traps
are met here (docs/method.md, "Capture of attention maps"):

- the same name is registered with AttentionMaskInterface, else padding vanishes;
- under gradient checkpointing the backward pass runs the forward again, which must save the same tensors: the map is computed
  again and the first one stays. The backward pass therefore belongs into the capture's block;
- FSDP2 frees the weights behind a map that is not a module's output: see `drivekd.distill.training.sharding`.

    B samples, S positions, R chosen rows, V chosen columns, D width
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from drivekd.models.attention import attend_with_mean, mean_map, mean_rows

CAPTURE_ATTENTION = "drivekd_capture"
_CAPTURE = "drivekd_capture_request"


@dataclass(frozen=True)
class MapRequest:
    """Which part of a layer's head-mean map is wanted: rows [B, R] and columns [B, V] as positions, or None for all of it."""

    rows: Tensor | None = None
    columns: Tensor | None = None


@dataclass
class Captured:
    """attention: layer -> [B, S, S] or [B, R, V] fp32, mean over heads. hidden: layer -> its output, [B, S, D]."""

    attention: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    released: bool = False

    def release(self) -> None:
        """Let go of everything, and keep nothing that a backward pass computes again."""
        self.attention.clear()
        self.hidden.clear()
        self.released = True

    def keep(self, kind: dict[int, Tensor], layer: int, value: Tensor) -> None:
        """The first one stays."""
        if not self.released:
            kind.setdefault(layer, value)


class _CaptureComplete(Exception):
    """Ends a forward pass behind the last thing that anyone reads; never leaves `capture`."""


@dataclass(frozen=True)
class _LayerCapture:
    request: MapRequest
    captured: Captured
    is_last: bool


def _capturing_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    capture: _LayerCapture | None = getattr(module, _CAPTURE, None)
    if capture is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    layer = module.layer_idx
    assert isinstance(layer, int)
    request, captured, scaling = capture.request, capture.captured, kwargs["scaling"]
    if request.rows is not None and request.columns is not None:
        mean = mean_rows(query, key, attention_mask, scaling, request.rows, request.columns)
        captured.keep(captured.attention, layer, mean)
        if capture.is_last:
            raise _CaptureComplete
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    if capture.is_last:
        captured.keep(captured.attention, layer, mean_map(query, key, attention_mask, scaling))
        raise _CaptureComplete
    whole, mean = attend_with_mean(query, key, value, attention_mask, scaling)
    captured.keep(captured.attention, layer, mean)
    return whole.transpose(1, 2).contiguous(), None  # [B, S, H, D]


AttentionInterface.register(CAPTURE_ATTENTION, _capturing_attention)
AttentionMaskInterface.register(CAPTURE_ATTENTION, sdpa_mask)


@contextmanager
def capture(
    decoder_layers: nn.ModuleList,
    attention: Mapping[int, MapRequest],
    *,
    hidden: Collection[int] = (),
    stop_after_last: bool = False,
) -> Iterator[Captured]:
    """Within the block, one forward pass fills the yielded `Captured`.

    attention, hidden: 0-based layers. stop_after_last: the forward pass, and with it the rest of the block, ends as soon as the
    last wanted thing is there; without gradients only. The model must have been loaded with `attention=CAPTURE_ATTENTION`,
    otherwise KeyError at the block's end. With gradient checkpointing (use_reentrant=False) backward belongs into the block.
    """
    captured = Captured()
    last_map, last_hidden = max(attention, default=-1), max(hidden, default=-1)
    with ExitStack() as undo:
        for layer, request in attention.items():
            is_last = stop_after_last and layer == last_map and last_map > last_hidden
            module = decoder_layers[layer].self_attn
            setattr(module, _CAPTURE, _LayerCapture(request, captured, is_last))
            undo.callback(delattr, module, _CAPTURE)
        for layer in hidden:
            is_last = stop_after_last and layer == last_hidden and last_hidden >= last_map
            hook = partial(_keep_output, layer=layer, captured=captured, is_last=is_last)
            undo.callback(decoder_layers[layer].register_forward_hook(hook).remove)
        try:
            yield captured
        except _CaptureComplete:
            assert stop_after_last
    if not captured.released and (missing := [layer for layer in attention if layer not in captured.attention]):
        raise KeyError(f"layers {missing} were not captured: load the model with attention={CAPTURE_ATTENTION!r}")


def _keep_output(module: nn.Module, inputs: Any, output: Any, *, layer: int, captured: Captured, is_last: bool) -> None:
    captured.keep(captured.hidden, layer, output if isinstance(output, Tensor) else output[0])
    if is_last:
        raise _CaptureComplete
