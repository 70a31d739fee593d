"""What is advised for a layer that is beyond tolerance: an option that export takes, for that layer alone."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from bisect_cases import CONCAT, VISION

from drivekd.export.parity import probed_graph
from drivekd.export.parity.bisect import advice, exclusion
from drivekd.export.parity.non_finite import NonFinite
from drivekd.runtime.bundle.reader import Bundle

pytestmark = pytest.mark.numerics

ADVICE: list[tuple[tuple[Any, ...], str]] = [
    (("decoder.gqa", "layers.7.output", "int4", None), r"layer 7 loses too much in int4; .*--set 'exclude=\[layers.7.\*\]'"),
    (("vision", "vision.layers.3.output", "int8", None), r"vision layer 3 loses .*--set 'exclude=\[vision.layers.3.\*\]'"),
    (("decoder.gqa", "logits", "int4", None), r"the last norm or lm_head loses .*exclude=\[lm_head\]"),
    (("vision", "image_embeds", "int8", None), r"the projector loses .*exclude=\[projector.\*\]"),
    (
        ("decoder.concat", "layers.7.output", "fp16", NonFinite("layers.7.input_layernorm.variance", "ReduceMean")),
        r"norm of layer 7 in fp32; node layers.7.input_layernorm.variance \(ReduceMean\) .* 65,504.*exclude=\[layers.7.\*\]",
    ),
    (
        ("decoder.concat", "layers.2.output", "fp16", NonFinite("layers.2.self_attn.softmax", "Softmax")),
        r"softmax of layer 2 in fp32; ",
    ),
    (
        ("decoder.concat", "layers.2.output", "fp32", NonFinite("layers.2.mlp.add", "Add")),
        r"fp32.* node layers.2.mlp.add \(Add\)",
    ),
    (("embedding", "rows of the prompt", "int4", None), "lose too much in int4"),
]


@pytest.mark.parametrize(("given", "said"), ADVICE)
def test_advice_names_the_option(given: tuple[Any, ...], said: str) -> None:
    assert re.search(said, advice(*given))


def test_the_suggested_option_is_one_that_export_takes() -> None:
    """The words behind "export again with", as a shell would split them, come out as the pattern."""
    from drivekd.export.settings import plan_from_options

    said = advice("decoder.gqa", "layers.7.output", "fp16", None)
    option, value = shlex.split(said.partition("export again with ")[2])
    assert option == "--set"
    assert plan_from_options("fp16", [value]).settings.exclude == ["layers.7.*"]


def test_exclusions_match_the_nodes_of_their_layer_alone(deep: Bundle) -> None:
    """The pattern that is suggested is one that export takes: it finds this layer's MatMuls, not those of layer 10 to 19."""
    from drivekd.quantization.linears import matching

    model = probed_graph.load_graph(deep, CONCAT)
    names = [node.name for node in model.graph.node]
    found = matching([exclusion("layers.1.output")], names)
    assert "layers.1.mlp.down_proj" in found
    assert all(name.startswith("layers.1.") for name in found)
    assert matching([exclusion("logits")], names)
    vision = [node.name for node in probed_graph.load_graph(deep, VISION).graph.node]
    assert "projector.linear_1" in matching([exclusion("image_embeds")], vision)
