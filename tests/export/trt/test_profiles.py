"""Profiles: every bound is a call that the graph can take, and no larger than the model."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bundle import DECODER, VISION, small_files, small_manifest

from drivekd.errors import BundleError, ExportError
from drivekd.export.trt.commands import polygraphy_command, trtexec_command
from drivekd.export.trt.profiles import Limits, Profile, decoder_profiles, limits_of, vision_profiles
from drivekd.export.trt.sources import EngineSource, FreeMemory, build_memory_bytes, memory_line
from drivekd.runtime.bundle.manifest import GraphSpec, TensorSpec

MANIFEST = small_manifest(small_files())
BUNDLE = Path("my bundle")
SIZES = st.integers(1, 5000)
MROPE = dataclasses.replace(DECODER.inputs[2], dims=(3, "batch", "seq"))
QWEN_DECODER = dataclasses.replace(DECODER, inputs=(*DECODER.inputs[:2], MROPE, *DECODER.inputs[3:]))


@st.composite
def any_limits(draw: st.DrawFn) -> Limits:
    context = draw(SIZES)
    return Limits(draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(1, context)), context)


def free_dims(profile: Profile, spec: GraphSpec, bound: int) -> dict[str, int]:
    """Sizes of the free dims at one bound; the same name has one size in all inputs."""
    found: dict[str, int] = {}
    for tensor in spec.inputs:
        for dim, size in zip(tensor.dims, profile.shapes[tensor.name][bound], strict=True):
            if isinstance(dim, str):
                assert found.setdefault(dim, size) == size
            else:
                assert size == dim
    return found


@given(limits=any_limits())
@pytest.mark.parametrize("spec", [DECODER, QWEN_DECODER])
def test_every_bound_of_the_decoder_is_a_possible_call(spec: GraphSpec, limits: Limits) -> None:
    """TensorRT only warns of a profile that contradicts itself, and the engine fails in the car."""
    for profile in decoder_profiles(spec, limits):
        bounds = [free_dims(profile, spec, bound) for bound in range(3)]
        assert all(sizes["total"] == sizes["past"] + sizes["seq"] for sizes in bounds)
        for name in bounds[0]:
            assert bounds[0][name] <= bounds[1][name] <= bounds[2][name]


@given(limits=any_limits())
def test_prefill_takes_an_empty_cache_and_decode_every_branch(limits: Limits) -> None:
    prefill, decode = decoder_profiles(DECODER, limits)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert free_dims(prefill, DECODER, 0) == {"batch": 1, "seq": 1, "total": 1, "past": 0}
    largest = free_dims(prefill, DECODER, 2)
    assert (largest["batch"], largest["seq"], largest["past"]) == (1, limits.prompt, limits.context)
    assert {free_dims(decode, DECODER, bound)["seq"] for bound in range(3)} == {1}
    assert free_dims(decode, DECODER, 2)["batch"] == limits.branches
    assert free_dims(decode, DECODER, 2)["total"] <= max(limits.context, 2)


def test_vision_is_tuned_for_one_image_and_takes_a_frame() -> None:
    (profile,) = vision_profiles(VISION, Limits(6, 3, 100, 200))
    assert profile.shapes == {"pixel_values": ((1, 3, 2, 2), (1, 3, 2, 2), (6, 3, 2, 2))}


def test_a_graph_without_free_dims_has_no_profile() -> None:
    """Qwen2.5-VL's vision tower: one image of one size."""
    fixed = dataclasses.replace(VISION, inputs=(TensorSpec("pixel_values", "float32", (1, 3, 2, 2)),))
    assert vision_profiles(fixed, Limits(6, 3, 100, 200)) == ()


def test_another_dialects_dims_are_refused() -> None:
    cache = dataclasses.replace(DECODER.inputs[3], dims=("batch", 1, "capacity", 2))
    gqa = dataclasses.replace(DECODER, inputs=(*DECODER.inputs[:3], cache))
    with pytest.raises(BundleError, match=r"free dim 'capacity'.*concat"):
        decoder_profiles(gqa, Limits(1, 1, 64, 128))


@given(positions=st.integers(1, 9000), cameras=st.integers(0, 8), tokens=st.integers(1, 300), answer=st.integers(1, 500))
def test_limits_hold_the_frame_and_never_exceed_the_model(positions: int, cameras: int, tokens: int, answer: int) -> None:
    manifest = dataclasses.replace(
        MANIFEST,
        model=dataclasses.replace(MANIFEST.model, max_positions=positions),
        chat=dataclasses.replace(MANIFEST.chat, tokens_per_image=tokens),
        cameras=tuple(f"CAM_{index}" for index in range(cameras)),
        generation=dataclasses.replace(MANIFEST.generation, max_new_tokens={"planning": answer}),
    )
    limits = limits_of(manifest)
    assert limits.images == (cameras or 6)
    assert 1 <= limits.prompt <= limits.context <= positions
    if limits.context < positions:
        assert limits.prompt >= limits.images * tokens + len(manifest.prompts["planning"])
        assert (
            limits.context >= limits.prompt + max(manifest.generation.max_new_tokens.values()) - 64
        )  # both are rounded up to 64


# --- the same profiles as command lines -----------------------------------------------------------------------------


def source_of(spec: GraphSpec, limits: Limits) -> EngineSource:
    profiles = decoder_profiles(spec, limits)
    return EngineSource("decoder", "decoder.concat", spec, b"12", b"345", profiles)


@given(limits=any_limits())
def test_command_lines_state_the_very_shapes(limits: Limits) -> None:
    source = source_of(DECODER, limits)
    trtexec, polygraphy = trtexec_command(source, BUNDLE), polygraphy_command(source, BUNDLE)
    for index, profile in enumerate(source.profiles):
        part = trtexec.split("--profile=")[index + 1]
        for at, bound in enumerate(("min", "opt", "max")):
            stated = dict(item.split(":") for item in re.findall(rf"--{bound}Shapes=(\S+)", part)[0].split(","))
            assert {name: tuple(map(int, dims.split("x"))) for name, dims in stated.items()} == shapes_at(profile, at)
            words = re.findall(rf"--trt-{bound}-shapes (.*?)(?= --| -o )", polygraphy)[index].replace("'", "").split()
            stated = dict(word.split(":") for word in words)
            assert {name: tuple(map(int, dims[1:-1].split(","))) for name, dims in stated.items()} == shapes_at(profile, at)


def shapes_at(profile: Profile, at: int) -> dict[str, tuple[int, ...]]:
    return {name: shapes[at] for name, shapes in profile.shapes.items()}


def test_command_lines_survive_a_shell() -> None:
    words = shlex.split(trtexec_command(source_of(DECODER, Limits(1, 1, 64, 128)), BUNDLE))
    assert "--onnx=my bundle/decoder.concat.onnx" in words
    assert "--stronglyTyped" in words


# --- memory ---------------------------------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_it_is_tried() -> None:
    source = source_of(DECODER, Limits(1, 1, 64, 128))
    needed = build_memory_bytes(source)
    assert memory_line(source, FreeMemory(needed, 0)).endswith("are free")
    assert memory_line(source, FreeMemory(needed - 1, 1)).endswith("it will swap, which is slow")
    with pytest.raises(ExportError, match="add swap"):
        memory_line(source, FreeMemory(needed - 2, 1))
