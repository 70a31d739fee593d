"""What `drivekd bench` prints: stages, the machine while it ran, and the figures of the paper with what differs."""

from __future__ import annotations

from typing import TypeAlias

from .bench import BenchReport

Table: TypeAlias = tuple[str, list[str], list[list[str]]]  # title, header, rows

# Drive-KD, arXiv 2601.21288, of its distilled InternVL3-1B
PAPER_TOKENS_PER_S, PAPER_TTFT_S, PAPER_MEMORY_GB = 45.7, 0.45, 4.1
NOT_STATED = "not stated"


def bench_tables(report: BenchReport) -> list[Table]:
    """Title, header and rows of each table."""
    return [_stages(report), _machine(report), _beside_paper(report)]


def _stages(report: BenchReport) -> Table:
    kind = "structured" if report.structured else "free text"
    changed = "" if report.changed == report.images else f", {report.changed} of them new a frame"
    title = (
        f"{report.frames} frames of {report.images} image(s){changed}, {kind}, after {report.warmup} warm-up, "
        f"{report.backend}, {report.device}"
    )
    rows = [list(row) for row in report.rows()]
    rows.append(["decode, all answers", f"{report.decode_tokens_per_s:.1f} tokens/s", "", ""])
    rows.append(["decode, one answer", _stream(report), "", ""])
    rows.append(["tokens a frame", f"{report.tokens_per_frame:.0f}", "", ""])
    rows += [
        [f"{name.replace('_', ' ')} a frame", f"{mean:.1f}".removesuffix(".0"), "", ""] for name, mean in report.counts.items()
    ]
    return title, ["stage", "p50 ms", "p95 ms", "p99 ms"], rows


def _machine(report: BenchReport) -> Table:
    rows = [
        ["start: verify, load, parity gate", f"{report.start_s:.1f} s"],
        ["memory, peak", f"{report.peak_rss_mb:.0f} MB, of which {report.start_rss_mb:.0f} MB before the bundle was opened"],
        *report.power.rows(),
    ]
    return "this machine meanwhile", ["", ""], rows


def _beside_paper(report: BenchReport) -> Table:
    """The paper names neither its GPU nor what its figures were measured with, so nothing here is a ratio."""
    ttft = report.stage("ttft")
    rows = [
        ["model", report.model, "InternVL3-1B, distilled"],
        ["device", f"{report.device}, {report.backend}", "a GPU without a name"],
        ["precision", report.precision, NOT_STATED],
        ["images, tokens of a prompt", f"{report.images}, {report.prompt_tokens}", NOT_STATED],
        ["answers at once", f"{report.answers}, as one batch", NOT_STATED],
        ["decode, one answer", _stream(report), f"{PAPER_TOKENS_PER_S} tokens/s"],
        ["decode, all answers", f"{report.decode_tokens_per_s:.1f} tokens/s", NOT_STATED],
        ["time to first token", f"{ttft.p50_ms / 1000:.3f} s (p50), of all answers", f"{PAPER_TTFT_S} s"],
        ["memory", f"{report.peak_rss_mb / 1000:.1f} GB of the process", f"{PAPER_MEMORY_GB} GB"],
    ]
    return "beside the paper's figures (other machine, other conditions: no ratio)", ["", "here", "paper"], rows


def _stream(report: BenchReport) -> str:
    if report.stream_tokens_per_s is None:
        forced = report.counts["tokens_forced"]
        return f"not comparable: a grammar forced {forced:.0f} of {report.tokens_per_frame:.0f} tokens"
    return f"{report.stream_tokens_per_s:.1f} tokens/s"
