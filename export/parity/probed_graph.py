"""A bundle whose graphs also give their layers' outputs: values that are there anyway become outputs, no arithmetic changes."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import BundleError, UsageError
from drivekd.runtime.bundle.manifest import GraphSpec, TensorSpec
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.engine.ort import OrtRunner
from drivekd.runtime.engine.runner import Feed

if TYPE_CHECKING:
    import onnx


def require_onnx() -> None:
    """Raises UsageError when the export extra is not installed."""
    if importlib.util.find_spec("onnx") is None:
        raise UsageError("--bisect opens the graphs with onnx, which is not installed: pip install 'drivekd[export]'")


def layer_names(graph: str, num_layers: int) -> list[str]:
    """Value names of a graph's layer outputs, in order."""
    prefix = "vision.layers" if graph == "vision" else "layers"
    return [f"{prefix}.{layer}.output" for layer in range(num_layers)]


def load_graph(bundle: Bundle, graph: str) -> onnx.ModelProto:
    """The graph without its external weights."""
    import onnx

    return onnx.load_model_from_string(bundle.files[bundle.manifest.graphs[graph].file])


def with_outputs(bundle: Bundle, graph: str, names: Sequence[str], *, peaks: bool = False) -> Bundle:
    """The bundle whose `graph` gives these values as additional outputs `probe_name(name)`, in float32; in memory only.

    peaks: the largest magnitude of each alone. Raises BundleError when the graph has no value of that name.
    """
    import onnx

    model, spec = load_graph(bundle, graph), bundle.manifest.graphs[graph]
    known = {name for node in model.graph.node for name in node.output}
    if missing := [name for name in names if name not in known]:
        raise BundleError(
            f"{bundle.path}: {spec.file} has no value {missing[0]!r} ({len(missing)} of {len(names)} are missing), so its layers "
            "cannot be told apart; export the checkpoint again with this version"
        )
    for name in names:
        model.graph.node.extend(_probe_nodes(name, peaks))
        model.graph.output.append(onnx.helper.make_tensor_value_info(probe_name(name), onnx.TensorProto.FLOAT, None))
    outputs = (*spec.outputs, *(TensorSpec(probe_name(name), "float32", ()) for name in names))
    graphs = {**bundle.manifest.graphs, graph: dataclasses.replace(spec, outputs=outputs)}
    files = {**bundle.files, spec.file: model.SerializeToString()}
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, graphs=graphs), files=files)


def _probe_nodes(name: str, peak: bool) -> list[onnx.NodeProto]:
    """Through a Cast: the value may be float16, and what an output is must be stated."""
    from onnx import TensorProto, helper

    probe = probe_name(name)
    if not peak:
        return [helper.make_node("Cast", [name], [probe], name=probe, to=TensorProto.FLOAT)]
    wide, magnitude = f"{probe}.wide", f"{probe}.magnitude"
    return [
        helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT),
        helper.make_node("Abs", [wide], [magnitude], name=magnitude),
        helper.make_node("ReduceMax", [magnitude], [probe], name=probe, keepdims=0),
    ]


def probe_name(name: str) -> str:
    """The additional output that shows a value."""
    return f"{name}.probe"


def run_with_outputs(
    bundle: Bundle, graph: str, feeds: dict[str, Feed], names: Sequence[str], *, threads: int | None, peaks: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Run a graph once on onnxruntime's CPU; the values of these names as float32, or with `peaks` their largest magnitudes [].

    Raises BundleError, RunnerError.
    """
    with OrtRunner(with_outputs(bundle, graph, names, peaks=peaks), graph, threads=threads) as runner:
        outputs = runner.infer(feeds)
        return {name: outputs[probe_name(name)].numpy() for name in names}


def prefill_feeds(spec: GraphSpec, inputs_embeds: NDArray[np.float32], position_ids: NDArray[np.int64]) -> dict[str, Feed]:
    """Feeds of either decoder dialect that read one prompt, [S, D] and [A, S], with nothing before it."""
    length = len(inputs_embeds)
    sizes = {"batch": 1, "seq": length, "total": length, "past": 0, "capacity": length}
    values: dict[str, NDArray[Any]] = {
        "inputs_embeds": inputs_embeds[None],
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": position_ids[:, None] if len(position_ids) > 1 else position_ids,
        "seqlens_k": np.full(1, length - 1, np.int32),
    }
    feeds: dict[str, Feed] = {}
    for tensor in spec.inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.dims]
        fill = length if tensor.name == "total_sequence_length" else 0
        value = values.get(tensor.name)
        feeds[tensor.name] = np.full(shape, fill, tensor.dtype) if value is None else value
    return feeds
