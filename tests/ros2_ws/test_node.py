"""The real node, real topics, a fake session: images in, texts and typed answers out, faults survived."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from drivekd.demo.ros_workspace import ChildProcess

pytestmark = pytest.mark.ros

StartNode = Callable[..., ChildProcess]


@pytest.fixture(scope="module")
def probe(messages: None, start_module_node: StartNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from probe import Context

    bundle = tmp_path_factory.mktemp("bundle")
    (bundle / "fake.json").write_text(json.dumps({"fail_on_red": True, "mute_on_white": True, "words": 3}))
    start_module_node(bundle, "ego_speed_mps:=4.0", "max_frame_age_ms:=1000.0")
    with Context() as probe:
        probe.until(lambda: bool(probe.answers), lambda: probe.show((0, 255, 0)))
        yield probe


def test_a_picture_becomes_three_texts_and_typed_answers_with_its_stamp(probe) -> None:
    answers = probe.answers_to((0, 0, 255))
    probe.until(lambda: all(answer.text in probe.texts[answer.capability] for answer in answers))
    assert {answer.capability for answer in answers} == {"perception", "reasoning", "planning"}
    for answer in answers:
        assert '"CAM_FRONT": [0, 0, 255]' in answer.text
        assert (answer.valid, answer.finish_reason, answer.tokens, answer.mean_logprob) == (True, "stop", 3, -0.5)
        assert [(field.name, field.value) for field in answer.fields] == [("final", answer.capability)]
        assert list(answer.cameras) == ["CAM_FRONT"]
        assert 0 <= answer.camera_ages_ms[0] < 1000
        assert (answer.ego_speed_mps, answer.ego_speed_measured) == (4.0, False)
        stages = {stage.stage: stage.latency_ms for stage in answer.stage_latencies}
        assert stages["vision"] == 1.5
        assert stages["total"] >= stages["image_decode"] >= 0
        assert (answer.bundle_digest, answer.backend, answer.advisory) == ("sha256:fake", "fake", True)


def test_an_answer_that_says_nothing_is_typed_only_and_marked(probe) -> None:
    answers = probe.answers_to((255, 255, 255))
    assert {(answer.valid, answer.finish_reason) for answer in answers} == {(False, "stop")}
    probe.answers_to((0, 0, 255))
    assert not any("null" in text.split(" ")[0] or text.startswith("{") for texts in probe.texts.values() for text in texts)


def test_a_measured_speed_at_the_frame_is_used(probe) -> None:
    from geometry_msgs.msg import TwistStamped

    def drive() -> None:
        header = probe.header()
        message = TwistStamped(header=header)
        message.twist.linear.x = 12.34
        probe.twist.publish(message)
        probe.spin_for(0.02)
        probe.show((0, 255, 0), header=header)

    probe.until(lambda: any(answer.ego_speed_measured for answer in probe.answers), drive)
    answer = next(answer for answer in probe.answers if answer.ego_speed_measured)
    assert answer.ego_speed_mps == pytest.approx(12.3)
    assert '"speed": 12.3' in answer.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoding": "16UC1"}, "malformed"),
        ({"step": 95}, "malformed"),
        ({"height": 25}, "malformed"),
        ({"width": 0, "step": 0}, "malformed"),
        ({"data": b""}, "malformed"),
    ],
)
def test_a_malformed_picture_is_counted_and_the_node_lives(probe, change: dict[str, object], reason: str) -> None:
    from sensor_msgs.msg import Image

    def dropped() -> int:
        return int(probe.diagnostics[-1].get(f"dropped {reason}", "0")) if probe.diagnostics else 0

    fields = {"height": 24, "width": 32, "encoding": "rgb8", "step": 96, "data": bytes(24 * 96), **change}
    probe.until(lambda: bool(probe.diagnostics))
    before = dropped()
    probe.cameras["CAM_FRONT"].publish(Image(header=probe.header(), **fields))
    probe.until(lambda: dropped() == before + 1)
    assert probe.diagnostics[-1]["level"] == "2"
    assert probe.answers_to((0, 255, 0))


def test_a_failing_engine_is_reported_and_the_next_frame_answered(probe) -> None:
    from probe import GREEN, RED

    probe.until(lambda: "dropped inference_failed" in probe.diagnostics[-1], lambda: probe.show(RED))
    assert "refused a red picture" in probe.diagnostics[-1]["message"]
    assert probe.answers_to(GREEN)
    probe.until(lambda: probe.diagnostics[-1]["level"] == "0", lambda: probe.show(GREEN))


def test_an_old_picture_is_dropped(probe) -> None:
    # Within the second of a restarted source it would be "out_of_order": 30 s is another source's clock.
    old = [probe.show((0, 255, 0), header=probe.header(age_ms=30_000 + number)) for number in range(3)]
    probe.until(lambda: "dropped too_old" in probe.diagnostics[-1])
    assert not [answer for answer in probe.answers if answer.header in old]


def test_diagnostics_name_rate_latency_backend_and_bundle(probe) -> None:
    probe.until(lambda: probe.diagnostics[-1]["level"] == "0", lambda: probe.show((0, 255, 0)))
    values = probe.diagnostics[-1]
    assert float(values["rate_hz"]) > 0
    assert 0 < float(values["latency_p50_ms"]) <= float(values["latency_p99_ms"])
    assert (values["backend"], values["bundle"], values["advisory"]) == ("fake", "sha256:fake", "true")


def test_parameters_have_descriptions_and_ranges(probe) -> None:
    from drivekd_ros.state.settings import SPECS
    from rcl_interfaces.srv import DescribeParameters

    client = probe.create_client(DescribeParameters, "/drivekd/describe_parameters")
    assert client.wait_for_service(10)
    future = client.call_async(DescribeParameters.Request(names=[spec.name for spec in SPECS]))
    probe.until(future.done)
    for spec, descriptor in zip(SPECS, future.result().descriptors, strict=True):
        assert descriptor.description.startswith(spec.description)
        assert bool(descriptor.floating_point_range) == isinstance(spec.default, float)
