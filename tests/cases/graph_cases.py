"""Tiny models of both families, their written graphs with onnxruntime sessions on them, and what torch answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tiny_run import make_tokenizer
from torch import Tensor
from transformers.cache_utils import DynamicCache

from drivekd.export.graphs.graphs import write_graphs
from drivekd.export.source.source import Source, load_source
from drivekd.models import language_model, rotary_positions
from drivekd.models.tiny import TinySize, build_tiny, build_tiny_qwen, write_checkpoint
from drivekd.runtime.bundle.graph_contract import past_names
from drivekd.runtime.bundle.manifest import GraphSpec

SIZE = TinySize(vision_layers=2, vision_width=32, language_layers=2, language_width=64, image_size_px=56)  # heads 16 wide
CAMERA_PX = (140, 84)  # 3 x 5 tokens in windows of 2 x 2: four sizes of windows
LIMIT = 1e-4  # of the reference's largest magnitude: docs/design.md, "Exactness and tolerances"; measured 2e-6
PROMPT = 11
CAPACITY = 32

Array = NDArray[Any]
Outputs = tuple[Array, list[Array]]  # logits [B, V], K/V per layer


@dataclass(frozen=True)
class WrittenGraphs:
    """A family's tiny model, its graphs, and onnxruntime sessions on them by graph name."""

    source: Source
    folder: Path
    specs: dict[str, GraphSpec]
    sessions: dict[str, onnxruntime.InferenceSession]

    @property
    def axes(self) -> int:
        return self.source.info.rotary_axes

    def prompt(self, batch: int = 1, length: int = PROMPT, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, D] and positions [A, B, T]; rows and columns of an image run apart from time."""
        generator = torch.Generator().manual_seed(seed)
        embeds = torch.randn(batch, length, self.source.info.hidden_size, generator=generator)
        positions = torch.arange(length).expand(self.axes, batch, length).clone()
        positions[1:] += torch.randint(0, 4, positions[1:].shape, generator=generator)
        return embeds, positions

    def torch_answer(self, embeds: Tensor, positions: Tensor) -> Outputs:
        """The model's own layers, attention and cache."""
        model: Any = self.source.model
        cache = DynamicCache(config=model.config.text_config)
        with torch.no_grad():
            hidden = language_model(model)(
                inputs_embeds=embeds,
                position_ids=rotary_positions(model, positions),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = model.lm_head(hidden[:, -1])
        return logits.numpy(), [tensor.numpy() for layer in cache.layers for tensor in (layer.keys, layer.values)]

    def empty(self, batch: int = 1, capacity: int = 0) -> list[Array]:
        info = self.source.info
        return [np.zeros((batch, info.num_kv_heads, capacity, info.head_dim), np.float32)] * (2 * info.num_layers)

    def run(self, graph: str, feeds: Mapping[str, Array], past: Sequence[Array]) -> Outputs:
        cache = dict(zip(past_names(self.source.info.num_layers), past, strict=True))
        logits, *present = self.sessions[graph].run(None, {**feeds, **cache})
        return logits, present

    def concat(self, embeds: Tensor, positions: Tensor, past: Sequence[Array], mask: Array | None = None) -> Outputs:
        if mask is None:
            mask = np.ones((len(embeds), past[0].shape[2] + embeds.shape[1]), np.int64)
        return self.run("decoder.concat", {**self._text(embeds, positions, True), "attention_mask": mask}, past)

    def gqa(self, embeds: Tensor, positions: Tensor, past: Sequence[Array], lengths: Sequence[int]) -> Outputs:
        """lengths: each row's tokens after this call."""
        read = {"seqlens_k": np.asarray(lengths, np.int32) - 1, "total_sequence_length": np.asarray([max(lengths)], np.int32)}
        return self.run("decoder.gqa", {**self._text(embeds, positions, self.axes > 1), **read}, past)

    def _text(self, embeds: Tensor, positions: Tensor, with_positions: bool) -> dict[str, Array]:
        rows = (positions if self.axes > 1 else positions[0]).numpy()
        return {"inputs_embeds": embeds.numpy(), **({"position_ids": rows} if with_positions else {})}


def write_lively(folder: Path, family: str, size: TinySize = SIZE) -> Path:
    """A checkpoint whose attention matters: at its usual initialisation it is uniform to 1e-4, and biases are zero."""
    tokenizer = make_tokenizer(family)
    model = (build_tiny if family == "internvl" else build_tiny_qwen)(size, tokenizer, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
            elif "q_proj" in name or "k_proj" in name or "qkv" in name:
                parameter.mul_(4.0)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    write_checkpoint(folder, model, tokenizer, camera_size_px=CAMERA_PX)
    return folder


@cache
def written_graphs(root: Path, family: str) -> WrittenGraphs:
    """Made once under a test run's folder; tests write only beside the graphs."""
    folder = root / f"graphs-{family}"
    source = load_source(write_lively(folder / "checkpoint", family), None)
    (folder / "graphs").mkdir()
    specs = write_graphs(source, folder / "graphs")
    sessions = {name: open_session(folder / "graphs" / spec.file) for name, spec in specs.items()}
    return WrittenGraphs(source, folder / "graphs", specs, sessions)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


def assert_close(found: Array, expected: Array, what: str = "") -> None:
    assert found.shape == expected.shape, what
    error = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    assert error <= LIMIT, f"{what}: {error:.1e}"


def assert_same(found: Outputs, expected: Outputs) -> None:
    """Logits and K/V; a buffer's columns behind the last token are nobody's."""
    assert_close(found[0], expected[0], "logits")
    for index, (got, want) in enumerate(zip(found[1], expected[1], strict=True)):
        assert_close(got[:, :, : want.shape[2]], want, f"K/V {index}")
