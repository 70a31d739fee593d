"""From curves to layers, each pick with the numbers that speak for it (docs/choosing-layers.md, "How layers are picked").

perception   the layer with the highest similarity within the first quarter
planning     the last layer before the final one that is more similar than both its neighbours
reasoning    the longest run of layers whose neighbours' states have a cosine above .85
signal       attention or hidden states, whichever differs less from sample to sample at the picked layers

Where a rule finds nothing, the paper's layers are taken (0; second to last; all but the last), and the reason says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from drivekd.sample import Capability

from .curves import Curves

SignalName: TypeAlias = Literal["attention", "hidden"]
RUN_COSINE = 0.85  # docs/choosing-layers.md; InternVL3-8B's middle layers have .86 to .96


@dataclass(frozen=True)
class LayerPick:
    """layers: 0-based, ascending, at least one."""

    layers: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class CapabilityPick:
    """What to distil for one capability; teacher_layers are empty where it has no teacher."""

    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    signal: SignalName
    reason: str

    def to_json(self) -> dict[str, object]:
        return {
            "student_layers": list(self.student_layers),
            "teacher_layers": list(self.teacher_layers),
            "signal": self.signal,
            "reason": self.reason,
        }


def pick(capability: Capability, student: Curves, teacher: Curves | None) -> CapabilityPick:
    """Layers of both models; the signal is the teacher's, since its signal is what there is to learn."""
    models: Mapping[str, Curves] = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
    picks = {who: _pick_layers(capability, curves) for who, curves in models.items()}
    who = "teacher" if teacher is not None else "student"
    signal, why = pick_signal(models[who], picks[who].layers, who)
    reasons = [f"{name}: {found.reason}" for name, found in picks.items()]
    if teacher is None:
        reasons.append("no teacher")
    teacher_layers = picks["teacher"].layers if teacher is not None else ()
    return CapabilityPick(picks["student"].layers, teacher_layers, signal, "; ".join([*reasons, why]))


def _pick_layers(capability: Capability, curves: Curves) -> LayerPick:
    if capability == "reasoning":
        return longest_run(curves.adjacent_cosine)
    if not curves.similarity:
        paper = [0] if capability == "perception" else [_second_to_last(curves.depth)]
        return _fallback(paper, "similarity needs two samples")
    return first_quarter_peak(curves.similarity) if capability == "perception" else last_local_peak(curves.similarity)


def first_quarter_peak(similarity: Sequence[float]) -> LayerPick:
    """The first layer of the highest similarity among the first max(1, L // 4)."""
    quarter = range(max(1, len(similarity) // 4))
    best = max(quarter, key=lambda layer: similarity[layer])
    return LayerPick(
        (best,), f"layer {best} has the first quarter's ({spans(quarter)}) highest similarity, {similarity[best]:.3f}"
    )


def last_local_peak(similarity: Sequence[float]) -> LayerPick:
    """The last layer that is strictly more similar than the one before and the one behind it; the final layer is none."""
    for layer in range(len(similarity) - 2, 0, -1):
        before, here, after = similarity[layer - 1 : layer + 2]
        if before < here > after:
            numbers = f"{here:.3f} between {before:.3f} and {after:.3f}"
            return LayerPick((layer,), f"layer {layer} is similarity's last local peak before the final layer, {numbers}")
    return _fallback([_second_to_last(len(similarity))], "no layer's similarity is above both its neighbours'")


def longest_run(adjacent: Sequence[float]) -> LayerPick:
    """The first of the longest runs of layers joined by adjacent[l] > .85, the cosine between the outputs of layers l - 1 and l.

    adjacent[0] joins embeddings and layer 0, hence no two layers. A run has at least two.
    """
    runs = [[0]]
    for layer in range(1, len(adjacent)):
        if adjacent[layer] > RUN_COSINE:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    run = max(runs, key=len)
    if len(run) < 2:
        highest = f"; the highest is {max(adjacent[1:]):.3f}" if len(adjacent) > 1 else ""
        return _fallback(range(max(1, len(adjacent) - 1)), f"no two layers have an adjacent cosine above {RUN_COSINE}{highest}")
    inside = [adjacent[layer] for layer in run[1:]]
    numbers = f"{min(inside):.3f} to {max(inside):.3f}" if len(inside) > 1 else f"{inside[0]:.3f}"
    return LayerPick(tuple(run), f"layers {spans(run)} are the longest run of adjacent cosines above {RUN_COSINE}, {numbers}")


def pick_signal(curves: Curves, layers: Sequence[int], who: str) -> tuple[SignalName, str]:
    """The less dispersed of attention and hidden states, mean over these layers; equal or unknown: attention, as in the paper."""
    if not curves.attention_dispersion:
        return "attention", "signal attention, the paper's: dispersion needs two samples"
    attention, hidden = (
        sum(values[layer] for layer in layers) / len(layers) for values in (curves.attention_dispersion, curves.hidden_dispersion)
    )
    signal: SignalName = "hidden" if hidden < attention else "attention"
    return (
        signal,
        f"signal {signal}: the {who}'s dispersion there is {attention:.3f} for attention, {hidden:.3f} for hidden states",
    )


def spans(layers: Sequence[int]) -> str:
    """Ascending layers for a person: "0-3, 7"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _second_to_last(depth: int) -> int:
    return max(0, depth - 2)


def _fallback(layers: Sequence[int], why: str) -> LayerPick:
    return LayerPick(tuple(layers), f"{'layer' if len(layers) == 1 else 'layers'} {spans(layers)} as in the paper, since {why}")
