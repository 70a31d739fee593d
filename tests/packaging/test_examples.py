"""Every import that we promise shows how it is used, and what it shows is what happens."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

PURE = (
    "drivekd.camera_order.cameras_in_paths",
    "drivekd.data.answer_forms.options",
    "drivekd.data.answer_forms.several_letters",
    "drivekd.data.traces.traces_of",
    "drivekd.distill.losses.cross_entropy_per_sample",
    "drivekd.distill.losses.full_map_mse",
    "drivekd.distill.losses.full_map_mse_per_sample",
    "drivekd.distill.losses.logits_kl_per_sample",
    "drivekd.distill.losses.text_to_vision_mse",
    "drivekd.distill.losses.text_to_vision_mse_per_sample",
    "drivekd.distill.projection.agp_coefficients",
    "drivekd.distill.signals.group_layers",
    "drivekd.evaluate.extract.choice",
    "drivekd.evaluate.extract.yes_no",
    "drivekd.runtime.answers.answer.answer_fields",
    "drivekd.runtime.answers.answer.says_nothing",
    "drivekd.runtime.answers.ask.Ask",
    "drivekd.runtime.answers.ask.Sampling",
    "drivekd.structured.shape.fitting",
    "drivekd.structured.words.actions_of",
    "drivekd.structured.words.category_of",
    "drivekd.world.stated.stated_options",
)
OF_A_BUNDLE = (  # given: `bundle` and `checkpoint`, tiny ones; `image`, uint8 [40, 60, 3]; `out`, a path where nothing is
    "drivekd.export.bundle.bundle_from_checkpoint",
    "drivekd.runtime.answers.ask.Answering.answer",
    "drivekd.runtime.bench.bench_bundle",
    "drivekd.runtime.bundle.reader.read_bundle",
    "drivekd.runtime.check.check_bundle",
    "drivekd.runtime.load.load_bundle",
    "drivekd.runtime.resilience.ladder.Ladder",
    "drivekd.runtime.resilience.worker.WorkerSession",
    "drivekd.runtime.session.session.Session",
)
OF_ENGINES = (  # given: `bundle`, the smallest there is
    "drivekd.export.trt.engines.compile_ahead",
    "drivekd.export.trt.engines.engines_from_bundle",
    "drivekd.runtime.bundle.engine_record.verify_engine",
)
PROMISED = (*PURE, *OF_A_BUNDLE, *OF_ENGINES)
SEEN_IN = {  # what has no example of its own, and whose example shows one
    "Answer": "drivekd.runtime.answers.ask.Answering.answer",
    "AnswerSession": "drivekd.runtime.session.session.Session",
    "Answering": "drivekd.runtime.answers.ask.Answering.answer",
    "BenchReport": "drivekd.runtime.bench.bench_bundle",
    "CheckReport": "drivekd.runtime.check.check_bundle",
    "FinishReason": "drivekd.runtime.answers.ask.Answering.answer",
    "GREEDY": "drivekd.runtime.answers.ask.Sampling",
    "HealthSnapshot": "drivekd.runtime.resilience.worker.WorkerSession",
    "Manifest": "drivekd.runtime.bundle.reader.read_bundle",
    "ParityRow": "drivekd.export.bundle.bundle_from_checkpoint",
    "ParityTable": "drivekd.export.bundle.bundle_from_checkpoint",
    "Rung": "drivekd.runtime.resilience.ladder.Ladder",
    "WorkerSettings": "drivekd.runtime.resilience.worker.WorkerSession",
}
FACES = ("drivekd.runtime", "drivekd.export", "drivekd.export.trt", "drivekd.evaluate.extract")


def examples(dotted: str, given: dict[str, object]) -> list[doctest.DocTest]:
    """Those of a function, or of a class and its own methods."""
    found = pkgutil.resolve_name(dotted)
    module = sys.modules[found.__module__]
    tests = doctest.DocTestFinder().find(found, dotted, module=module, globs={**vars(module), **given})
    return [test for test in tests if test.examples]


def run(dotted: str, **given: object) -> None:
    said: list[str] = []
    for test in examples(dotted, given):
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert said == []


@pytest.mark.parametrize("dotted", PURE)
def test_a_pure_example_is_true(dotted: str) -> None:
    run(dotted)


@pytest.mark.numerics
@pytest.mark.parametrize("dotted", OF_A_BUNDLE)
def test_an_example_with_a_bundle_is_true(
    dotted: str, checkpoint: Path, bundle: Path, ready_graphs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    run(dotted, checkpoint=checkpoint, bundle=bundle, image=image, out=tmp_path / "bundle")


@pytest.mark.numerics
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX")
@pytest.mark.parametrize("dotted", OF_ENGINES)
def test_an_example_with_engines_is_true(dotted: str, tmp_path: Path) -> None:
    from small_bundle import write_small_bundle

    run(dotted, bundle=write_small_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize("face", FACES)
def test_every_promised_name_has_an_example(face: str) -> None:
    for name in importlib.import_module(face).__all__:
        where = [dotted for dotted in PROMISED if dotted.endswith(f".{name}")] or [SEEN_IN[name]]
        assert all(examples(dotted, {}) for dotted in where), name


@pytest.mark.parametrize("dotted", PROMISED)
def test_the_name_itself_is_the_one_with_the_example(dotted: str) -> None:
    assert examples(dotted, {}), f"{dotted} has no example"


def test_losses_are_all_promised() -> None:
    module = importlib.import_module("drivekd.distill.losses")
    public = {
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
    }
    assert public == {dotted.rpartition(".")[2] for dotted in PROMISED if dotted.startswith(f"{module.__name__}.")}


def test_no_example_is_left_out() -> None:
    shown = sum(
        path.read_text().count("    >>> ") > 0
        for folder in ("drivekd", "export", "runtime")
        for path in (ROOT / folder).rglob("*.py")
    )
    files = {str(sys.modules[test.globs["__name__"]].__file__) for dotted in PROMISED for test in examples(dotted, {})}
    assert len(files) == shown
