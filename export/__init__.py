"""From a checkpoint to a verified bundle: the whole way, `drivekd export`.

1. Checkpoint. export/source/source.py::load_source: a folder -> Source: the model in fp32 on the CPU, its processor, its
   prompts.
2. Reference. export/source/reference.py::take_reference: what that model makes of seeded tiles, uint8 [H, W, 3], and of the
   prompts: image embeddings, logits, tokens; export/source/layer_recording.py::record_layers: hidden states of every layer.
3. Graphs. export/graphs/graphs.py::write_graphs: one torch module a graph -> vision.onnx, pixels -> [N, T, D], and
   decoder.<dialect>.onnx, embeddings [B, T, D] and past K/V -> logits [B, V] and K/V.
4. Lowering, a part of 3. export/lowering/passes.py::run_passes: attention becomes one dialect's operators,
   export/lowering/gqa.py::attention_to_gqa or export/lowering/concat.py::attention_to_concat.
5. Parity. export/parity/measure.py::measure_parity: the graphs at work in the runtime against the reference -> rows;
   export/parity/table.py::parity_table: worst first. A row beyond its limit ends the export.
6. Quantize, unless all stays fp32. export/quantize/calibration.py::calibrate: camera images -> ranges of activations;
   export/quantize/convert.py::convert: an fp32 graph -> one in the plan's precision. When it is asked for,
   export/quantize/sensitivity.py::sensitivity says which layers lose most.
7. Parity again, of what was converted, with limits of its precision.
8. Bundle. runtime/parity/golden.py::record_golden: what a car's gate replays; export/exported.py::write_manifest: digests of
   every file; with an evaluation set export/parity/accuracy.py::accuracy_rows, whose table joins the manifest;
   runtime/check.py::check_bundle. Steps 1 to 8 are export/bundle.py::bundle_from_checkpoint, whole or not at all.
9. Engines, on the car. export/trt/engines.py::engines_from_bundle: graphs -> engines/<target>/.

Names that need torch are imported when they are asked for: `drivekd.export.trt.engines` runs on a car without torch.
"""

if __name__ != "drivekd.export":
    raise ImportError("import drivekd.export")

from typing import TYPE_CHECKING

from .parity.table import ParityRow, ParityTable
from .trt.engines import engines_from_bundle

if TYPE_CHECKING:
    from .bundle import bundle_from_checkpoint

__all__ = ["ParityRow", "ParityTable", "bundle_from_checkpoint", "engines_from_bundle"]


def __getattr__(name: str) -> object:
    if name == "bundle_from_checkpoint":
        from .bundle import bundle_from_checkpoint

        return bundle_from_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
