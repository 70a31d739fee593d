"""The curves as pictures: one file a quantity, one panel a model, one line a capability, the picks marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drivekd.sample import Capability

from .curves import Curves
from .picks import RUN_COSINE, CapabilityPick
from .statistics import NUM_BINS

Measured: TypeAlias = Mapping[str, Mapping[Capability, Curves]]  # "student", "teacher" -> capability -> curves

COLOURS: Mapping[Capability, str] = {"perception": "tab:blue", "reasoning": "tab:orange", "planning": "tab:green"}
STYLES = ("-", "--")


@dataclass(frozen=True)
class Plot:
    """One PNG. fields: names of Curves -> what a legend adds to the capability; drawn solid, then dashed.

    ringed, shaded: the capabilities whose picks this quantity decides, and how they are marked. start, step: x of the first
    value, and between values. lines: horizontal guides.
    """

    file: str
    fields: Mapping[str, str]
    y_label: str
    x_label: str = "decoder layer (0 = first)"
    ringed: tuple[Capability, ...] = ()
    shaded: tuple[Capability, ...] = ()
    start: float = 0.0
    step: float = 1.0
    lines: tuple[float, ...] = ()


PLOTS = (
    Plot(
        "adjacent_cosine.png",
        {"adjacent_cosine": ""},
        "cosine of a layer's input and output",
        "between decoder layers (-0.5 = from the embeddings to layer 0)",
        shaded=("reasoning",),
        start=-0.5,
        lines=(RUN_COSINE,),
    ),
    Plot("vision_text_cosine.png", {"vision_text_cosine": ""}, "cosine of mean vision and mean text state"),
    Plot("similarity.png", {"similarity": ""}, "cosine between samples' text-to-vision maps", ringed=("perception", "planning")),
    Plot(
        "dispersion.png",
        {"attention_dispersion": "attention", "hidden_dispersion": "hidden states"},
        "dispersion between samples (1 - cosine)",
    ),
    Plot(
        "label_margin.png",
        {"label_margin_logit": ""},
        "right token ahead of the best wrong one (logits)",
        "position in the answer (% of its tokens)",
        start=50 / NUM_BINS,
        step=100 / NUM_BINS,
        lines=(0.0,),
    ),
)


def write_plots(measured: Measured, picks: Mapping[Capability, CapabilityPick], directory: Path) -> None:
    """One PNG for each of PLOTS, with a panel for each model."""
    for plot in PLOTS:
        figure = Figure(figsize=(5.5 * len(measured) + 0.5, 4.5), layout="constrained")
        panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
        for axes, (who, by_capability) in zip(panels, measured.items(), strict=True):
            _draw_panel(axes, plot, who, by_capability, picks)
        panels[0].set_ylabel(plot.y_label)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
        figure.savefig(directory / plot.file, dpi=120)


def _draw_panel(
    axes: Any, plot: Plot, who: str, by_capability: Mapping[Capability, Curves], picks: Mapping[Capability, CapabilityPick]
) -> None:
    for capability, curves in by_capability.items():
        chosen = picks[capability].student_layers if who == "student" else picks[capability].teacher_layers
        for (name, kind), style in zip(plot.fields.items(), STYLES, strict=False):
            _draw_line(axes, plot, capability, getattr(curves, name), f"{capability} {kind}".strip(), style)
        _mark(axes, plot, capability, chosen, curves.similarity)
    for height in plot.lines:
        axes.axhline(height, color="grey", lw=0.8, ls=":")
    marks = "ringed" if plot.ringed else "shaded" if plot.shaded else ""
    axes.set(title=f"{who} ({marks}: picked)" if marks else who, xlabel=plot.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _draw_line(axes: Any, plot: Plot, capability: Capability, values: Sequence[float | None], label: str, style: str) -> None:
    points = [(plot.start + plot.step * index, value) for index, value in enumerate(values) if value is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], style, marker=".", color=COLOURS[capability], label=label)


def _mark(axes: Any, plot: Plot, capability: Capability, chosen: Sequence[int], similarity: Sequence[float]) -> None:
    if capability in plot.ringed and similarity:
        axes.plot(chosen, [similarity[layer] for layer in chosen], "o", ms=11, mfc="none", mec=COLOURS[capability], mew=1.5)
    if capability in plot.shaded:
        axes.axvspan(chosen[0], chosen[-1], color=COLOURS[capability], alpha=0.12, lw=0)
