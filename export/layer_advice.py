"""What to do about a layer that went wrong, in words and as the option that does it."""

from __future__ import annotations

from .parity.non_finite import NonFinite

# Operators of norms and of softmax: their intermediate sums leave fp16 first (DEPLOY: norm variance and softmax in fp32)
NORM_OPS = {"ReduceMean", "Pow", "Sqrt", "Reciprocal", "LayerNormalization", "SimplifiedLayerNormalization"}
NORM_OPS |= {"SkipSimplifiedLayerNormalization", "RMSNormalization", "ReduceSumSquare"}
SOFTMAX_OPS = {"Softmax", "Exp", "GroupQueryAttention", "Attention"}


def advice(graph: str, value: str, precision: str, fault: NonFinite | None) -> str:
    """A sentence about the first value beyond tolerance. fault: the node that gives NaN or infinity, if one does."""
    if graph == "embedding":
        return _about_embedding(precision)
    option = f"--set 'exclude=[{exclusion(value)}]'"
    if precision == "fp32":
        what = f"; node {fault.node} ({fault.op_type}) gives NaN or infinity" if fault else ""
        return (
            f"{graph} is fp32, so no rounding explains this: the graph computes something else than the model{what}. "
            "Another weight or operator than the checkpoint's: export again with this version, and report it if it stays"
        )
    if fault is not None:
        return f"{_island(fault, value, precision)}; export again with {option}"
    return f"{place(value)} loses too much in {precision}; leave it in higher precision: export again with {option}"


def exclusion(value: str) -> str:
    """The pattern of `exclude` for the MatMuls that make a value: "layers.7.output" -> "layers.7.*"."""
    if value.endswith(".output"):
        return f"{value.removesuffix('output')}*"
    return {"logits": "lm_head", "image_embeds": "projector.*"}[value]


def place(value: str) -> str:
    """A value in words."""
    if value.endswith(".output"):
        number = value.split(".")[-2]
        return f"{'vision layer' if value.startswith('vision.') else 'layer'} {number}"
    return {"logits": "the last norm or lm_head", "image_embeds": "the projector"}[value]


def _island(fault: NonFinite, value: str, precision: str) -> str:
    part = "norm" if fault.op_type in NORM_OPS else "softmax" if fault.op_type in SOFTMAX_OPS else None
    node = f"node {fault.node} ({fault.op_type}) gives NaN, infinity or more than 65,504, the largest fp16 number"
    if part is not None and precision == "fp16":
        return f"{part} of {place(value)} in fp32; {node}"
    return f"{place(value)} in fp32; {node}"


def _about_embedding(precision: str) -> str:
    if precision in ("fp32", "fp16"):
        return "embedding.safetensors does not hold the checkpoint's rows; export again with this version"
    return f"rows of the embedding lose too much in {precision}; export again with --set block=32 or in a higher precision"
