"""A float16 graph whose values float16 cannot hold is not exported: here onnxruntime's CPU would not even notice (non_finite.py).

Asked about are the recorded prompt and the first golden picture, with which every layer is compared.
"""

from __future__ import annotations

from drivekd.errors import ExportError
from drivekd.export.source.layer_values import LayerValues
from drivekd.images import RGBImage, pixel_values
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.engine.runner import Feed

from .bisect import advice, decoder_feeds
from .non_finite import HALF_LIMIT, first_non_finite, overflowing
from .probed_graph import layer_names


def refuse_overflow(bundle: Bundle, recorded: LayerValues, image: RGBImage, *, threads: int | None = None) -> None:
    """Raises ExportError naming the first layer within which a float16 value is beyond what float16 holds, and the way out.

    bundle: graphs on their way to one; its manifest need not be complete. image: of the tile's size.
    """
    for graph, spec in bundle.manifest.graphs.items():
        if graph == "vision":
            names = [*layer_names(graph, len(recorded.vision.layers)), "image_embeds"]
            feeds: dict[str, Feed] = {"pixel_values": pixel_values(image, bundle.manifest.images)[None]}
        else:
            names = [*layer_names(graph, len(recorded.decoder.layers)), "logits"]
            feeds = decoder_feeds(bundle, graph, recorded)
        value = overflowing(bundle, graph, names, feeds, threads=threads)
        if value is not None:
            fault = first_non_finite(bundle, graph, value, feeds, threads=threads)
            way = advice(graph, value, spec.precision, fault)
            if spec.precision in ("int8", "int4"):  # what is excluded from these is float16, too
                way = f"{way.partition('; export again')[0]}; export again with --set activations=fp32"
            raise ExportError(
                f"{graph} in {spec.precision} has values beyond {HALF_LIMIT:,}, where float16 becomes infinity, no bundle was "
                f"written: leave {way}"
            )
