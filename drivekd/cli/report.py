"""`drivekd report`: one self-contained HTML page about a training run, curves as inline SVG."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

from drivekd.errors import DataError
from drivekd.files import write_whole
from drivekd.log import read_metrics

SMOOTHING_STEPS = 20

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
svg{{width:100%;height:auto}} pre{{background:#f4f4f4;padding:1rem;overflow-x:auto}} td{{padding:.1rem 1rem .1rem 0}}</style>
</head>
<body><h1>{title}</h1><p>{summary}</p>{figures}
<h2>Versions</h2><table>{versions}</table><h2>Configuration</h2><pre>{config}</pre></body></html>
"""


def write_run_report(run_directory: Path) -> Path:
    """Write RUN_DIR/report.html from metrics.jsonl, config.yaml and versions.json. Raises DataError when they are missing."""
    metrics_file = run_directory / "metrics.jsonl"
    if not metrics_file.is_file():
        raise DataError(f"{run_directory}: no metrics.jsonl; expected a run directory of `drivekd train`")
    records = read_metrics(metrics_file)
    if not records:
        raise DataError(f"{metrics_file}: no complete record yet")
    figures = [
        _figure("Loss by term, raw and smoothed over 20 steps", records, "loss", log_scale=True),
        _figure("Gradient norm by term", records, "gradient_norm", log_scale=True),
        _figure("Cosine of each signal's gradient with its anchor (below 0: a conflict)", records, "conflict_cosine"),
    ]
    last = records[-1]
    page = _PAGE.format(
        title=html.escape(f"Run {run_directory.resolve().name}"),
        summary=f"{last['step']} steps, {sum(r['tokens'] for r in records):,} tokens, "
        f"{sum(r['seconds'] for r in records) / 60:.1f} minutes in steps.",
        figures="".join(figures),
        versions="".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in _versions(run_directory)),
        config=html.escape((run_directory / "config.yaml").read_text(encoding="utf-8")),
    )
    target = run_directory / "report.html"
    write_whole(target, page)
    return target


def _versions(run_directory: Path) -> list[tuple[str, str]]:
    return list(json.loads((run_directory / "versions.json").read_text(encoding="utf-8")).items())


def _figure(title: str, records: list[dict[str, Any]], key: str, *, log_scale: bool = False) -> str:
    """One chart of a nested quantity; nothing when the run never recorded it."""
    from matplotlib.figure import Figure

    names = sorted({name for record in records for name in record.get(key, {})})
    if not names:
        return ""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name in names:
        points = [(record["step"], record[key][name]) for record in records if name in record.get(key, {})]
        steps, values = zip(*points, strict=True)
        (line,) = axes.plot(steps, values, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=line.get_color(), label=name)
    if log_scale and any(record[key][name] > 0 for record in records for name in record.get(key, {})):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.legend(fontsize="small")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return f"<h2>{html.escape(title)}</h2>{svg[svg.index('<svg') :]}"


def _smooth(values: tuple[float, ...]) -> list[float]:
    return [sum(values[max(0, i - SMOOTHING_STEPS + 1) : i + 1]) / min(i + 1, SMOOTHING_STEPS) for i in range(len(values))]
