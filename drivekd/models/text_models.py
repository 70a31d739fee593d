"""Which text models a family may carry: InternVL's class takes any, but training and export know the layers of few.

A layer is  x + o_proj(attention(q_proj, k_proj, v_proj of input_layernorm(x))),  then  x + mlp(post_attention_layernorm(x)),
over embeddings as they are, with full attention and one table of rotary angles. Anything else would train, and be exported
wrongly or not at all: it is refused while config.json is read.
"""

from __future__ import annotations

from typing import Any

from drivekd.errors import CheckpointError
from drivekd.hf_checkpoint import Checkpoint

# Their angles are one table over positions. "dynamic" stretches angles behind max_position_embeddings only, where no bundle goes.
STATIC_ROPE = ("default", "linear", "dynamic", "yarn", "llama3")

_EXPERTS = "routes tokens to experts"
_QK_NORMS = "norms queries and keys by head"
_WIDE_GEMMA = "scales its embeddings, and its norms multiply by 1 + weight"
_REASONS = {
    "cohere": "runs attention and MLP side by side",
    "cohere2": "runs attention and MLP side by side",
    "exaone4": "norms behind its layers, not before them",
    "gemma": _WIDE_GEMMA,
    "gemma2": _WIDE_GEMMA,
    "gemma3": _WIDE_GEMMA,
    "gemma3_text": _WIDE_GEMMA,
    "glm4": "norms behind its layers as well",
    "gpt_oss": _EXPERTS,
    "granite": "multiplies embeddings, residuals and logits by constants",
    "llama4_text": _EXPERTS,
    "mixtral": _EXPERTS,
    "olmo2": "norms behind its layers, not before them",
    "phi3": "has one matrix for query, key and value",
    "qwen2_moe": _EXPERTS,
    "qwen3": _QK_NORMS,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": "has layers of linear attention",
    "smollm3": "has layers without rotary positions",
}


def check_text_model(checkpoint: Checkpoint, supported: tuple[str, ...]) -> None:
    """Judge text_config.model_type, before transformers makes anything of it. Raises CheckpointError with the reason."""
    text = checkpoint.config.get("text_config")
    name = text.get("model_type", supported[0]) if isinstance(text, dict) else supported[0]
    if name in supported:
        return
    reason = _REASONS.get(name, "has layers that this version does not know")
    raise CheckpointError(
        f"{checkpoint.path}: the text model is of type {name!r}, which {reason}; "
        f"{checkpoint.model_type} is trained and exported with {', '.join(supported)}"
    )


def check_layers(checkpoint: Checkpoint, text_config: Any) -> None:
    """Judge a supported text model's layers, as transformers reads them. Raises CheckpointError."""
    types = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    if types != {"full_attention"}:
        found = ", ".join(sorted(types))
        raise CheckpointError(f"{checkpoint.path}: the text model has layers of {found}; this version takes full_attention only")
    if (window := getattr(text_config, "sliding_window", None)) is not None:
        raise CheckpointError(
            f"{checkpoint.path}: the text model attends to its last {window} tokens only (text_config.sliding_window; "
            f"{text_config.model_type} has one unless it is null); this version takes full attention only"
        )
    rope_type = (text_config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in STATIC_ROPE:
        raise CheckpointError(
            f"{checkpoint.path}: rotary positions of type {rope_type!r} change with the prompt; "
            f"taken are {', '.join(STATIC_ROPE)}"
        )
