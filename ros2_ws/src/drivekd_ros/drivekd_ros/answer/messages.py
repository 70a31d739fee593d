"""Typed messages from answers. The only place that knows the fields of drivekd_msgs."""

from __future__ import annotations

from drivekd_msgs.msg import Answer as AnswerMessage
from drivekd_msgs.msg import Field, StageLatency
from std_msgs.msg import Header

from .pipeline import FrameAnswers, Session


def answer_messages(result: FrameAnswers, header: Header, session: Session) -> list[AnswerMessage]:
    """One message for each capability; `header` is the anchor image's, unchanged."""
    stages = [StageLatency(stage=name, latency_ms=float(ms)) for name, ms in result.stages_ms.items()]
    return [
        AnswerMessage(
            header=header,
            capability=capability,
            text=answer.text,
            fields=[Field(name=name, value=str(value)) for name, value in answer.fields.items()],
            valid=answer.valid,
            finish_reason=answer.finish_reason,
            tokens=answer.tokens,
            mean_logprob=float(answer.mean_logprob),
            cameras=list(result.frame_set.frames),
            camera_ages_ms=result.frame_set.ages_ms(),
            ego_speed_mps=float(result.speed.speed_mps),
            ego_speed_measured=result.speed.measured,
            stage_latencies=stages,
            bundle_digest=session.bundle_digest,
            backend=session.backend,
            advisory=True,
        )
        for capability, answer in result.answers.items()
    ]
