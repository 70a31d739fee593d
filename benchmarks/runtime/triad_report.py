"""What turns say: one flat row an engine and table, printed for people and as JSON lines."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.machine import about, print_about, write_rows
from benchmarks.runtime.engine_process import turn_ratios
from drivekd.tables import print_table

Row = dict[str, Any]

STAGES = ("prefill", "questions", "decode")
TITLES = {
    "frame": "{images} encoded images -> three answers of {tokens} tokens, {frames} frames",
    "decode": "decoding behind a kept frame, {answers} answers of {turn} tokens",
    "forced": "three written answers as one batch, {frames} times",
}
FRAME_HEADER = ["engine", "s a frame p50", "min", "prefill", "questions", "decode", "CPU s", "tokens"]
FRAME_HEADER += ["times ours", "min - max", "RSS, MB", "peak, MB", "cosine"]
DECODE_HEADER = ["engine", "ms a call p50", "min", "tok/s", "around", "around, CPU ms", "beyond bound"]
DECODE_HEADER += ["peer's / this", "min - max", "bound's / this", "RSS, MB"]
FORCED_HEADER = ["engine", "tokens", "forced", "calls", "tokens, none forced", "calls", "saved", "s", "s, none forced"]
FORCED_HEADER += ["times", "min - max"]


def report(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """One table, then one JSON line a row; the lines go to --out first, whatever becomes of the rest."""
    machine = about(arguments.threads) | {"huge_pages": arguments.huge_pages}
    name = rows[0]["table"]
    found = [SUMMARIES[name](row) | {"versions": row["versions"]} for row in rows]
    lines = write_rows((row | machine for row in found), arguments.out)
    print_about(machine)
    for versions in {json.dumps(row["versions"]): row["versions"] for row in found}.values():
        print(", ".join(f"{package} {number}" for package, number in versions.items()))
    title = TITLES[name].format(**vars(arguments))
    print_table(title, HEADERS[name], [CELLS[name](row) for row in found])
    print(lines, end="", flush=True)


def _median(turns: Sequence[Row], value: Callable[[Row], float]) -> float:
    return statistics.median(map(value, turns))


# --- frame ------------------------------------------------------------------------------------------------------------


def frame_summary(row: Row) -> Row:
    """Seconds of whole frames; ratio: how many times ours the engine takes, turn by turn."""
    turns, ours = row["turns"], row["ours"]
    stages = [turn["stages"] for turn in turns]
    return {
        "table": "frame",
        "engine": row["engine"],
        "prompt": turns[0]["prompt"],
        "seconds": [turn["seconds"] for turn in turns],
        "p50_s": _median(turns, lambda turn: turn["seconds"]),
        "min_s": min(turn["seconds"] for turn in turns),
        **{f"{name}_s": statistics.median(one.get(name, 0.0) for one in stages) for name in STAGES},
        "cpu_s": _median(turns, lambda turn: turn["cpu_s"]),
        "lengths": turns[-1].get("lengths"),
        "counts": turns[-1].get("counts"),
        **turn_ratios([turn["seconds"] for turn in turns], [turn["seconds"] for turn in ours]),
        **{key: row[key] for key in ("rss_mb", "peak_mb", "cosine") if key in row},
    }


def _frame_cells(row: Row) -> list[str]:
    seconds = [f"{row[key]:.2f}" for key in ("p50_s", "min_s", "prefill_s", "questions_s", "decode_s", "cpu_s")]
    lengths = ", ".join(map(str, row["lengths"])) if row["lengths"] else "all"
    memory = [f"{row[key]:,.0f}" for key in ("rss_mb", "peak_mb")]
    ratio = [f"{row['ratio']:.2f}", f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}"]
    return [row["engine"], *seconds, lengths, *ratio, *memory, f"{row['cosine']:.4f}" if "cosine" in row else ""]


# --- decode -----------------------------------------------------------------------------------------------------------


def decode_summary(row: Row) -> Row:
    """Milliseconds of a call of decoding: the engine and everything around it.

    around: share that was not within that very engine call; around_cpu_ms: the calling thread's CPU milliseconds there, which
    others on the machine do not move. beyond_bound: 1 - the hand-bound call / this. ratio: the peer's over this, turn by turn;
    None without a peer.
    """
    turns, calls_ms = row["turns"], [_call_ms(turn) for turn in row["turns"]]
    bound_ms = [_call_ms(turn) for turn in row["bound"]]
    of_bound = turn_ratios(bound_ms, calls_ms)
    return {
        "table": "decode",
        "engine": row["engine"],
        "calls_ms": calls_ms,
        "p50_ms": statistics.median(calls_ms),
        "min_ms": min(calls_ms),
        "tokens_per_s": 1 / _median(turns, lambda turn: turn["decode_s"] / turn["decoded"]),
        "around": _median(turns, lambda turn: 1 - turn["engine_s"] / turn["decode_s"]) if "engine_s" in turns[0] else None,
        "around_cpu_ms": _median(turns, _around_cpu_ms) if "engine_s" in turns[0] else None,
        "of_bound": of_bound["ratio"],
        "beyond_bound": 1 - of_bound["ratio"],
        "counts": turns[-1].get("counts"),
        "cpu_ms": _median(turns, lambda turn: 1e3 * turn["cpu_s"] / turn["steps"]),
        **(turn_ratios([_call_ms(turn) for turn in row["peer"]], calls_ms) if row["peer"] else {"ratio": None}),
        **{key: row[key] for key in ("rss_mb", "peak_mb")},
    }


def _call_ms(turn: Row) -> float:
    return 1e3 * float(turn["decode_s"]) / int(turn["steps"])


def _around_cpu_ms(turn: Row) -> float:
    return 1e3 * float(turn["around_cpu_s"]) / int(turn["steps"])


def _decode_cells(row: Row) -> list[str]:
    numbers = [f"{row[key]:.1f}" for key in ("p50_ms", "min_ms", "tokens_per_s")]
    around = [f"{row['around']:.1%}", f"{row['around_cpu_ms']:.2f}"] if row["around"] is not None else ["", ""]
    ratio = [f"{row['ratio']:.2f}", f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}"] if row["ratio"] is not None else ["", ""]
    return [
        row["engine"],
        *numbers,
        *around,
        f"{row['beyond_bound']:.1%}",
        *ratio,
        f"{row['of_bound']:.2f}",
        f"{row['rss_mb']:,.0f}",
    ]


# --- forced -----------------------------------------------------------------------------------------------------------


def forced_summary(row: Row) -> Row:
    """calls: engine calls of decoding, the questions' own not counted. every: the same text with every token chosen."""
    turns, every = row["skipping"], row["every"]
    seconds, every_s = [turn["decode_s"] for turn in turns], [turn["decode_s"] for turn in every]
    return {
        "table": "forced",
        "engine": row["engine"],
        "lengths": turns[-1]["lengths"],
        "forced": turns[-1]["forced"],
        "calls": turns[-1]["steps"],
        "every_lengths": every[-1]["lengths"],
        "every_calls": every[-1]["steps"],
        "saved": 1 - turns[-1]["steps"] / every[-1]["steps"],
        "decode_s": statistics.median(seconds),
        "every_s": statistics.median(every_s),
        **turn_ratios(every_s, seconds),
    }


def _forced_cells(row: Row) -> list[str]:
    counts = [", ".join(map(str, row[key])) for key in ("lengths", "forced", "every_lengths")]
    calls = [str(row["calls"]), str(row["every_calls"])]
    times = [f"{row['decode_s']:.2f}", f"{row['every_s']:.2f}", f"{row['ratio']:.2f}"]
    spread = f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}"
    return [row["engine"], *counts[:2], calls[0], counts[2], calls[1], f"{row['saved']:.1%}", *times, spread]


HEADERS = {"frame": FRAME_HEADER, "decode": DECODE_HEADER, "forced": FORCED_HEADER}
SUMMARIES: dict[str, Callable[[Row], Row]] = {"frame": frame_summary, "decode": decode_summary, "forced": forced_summary}
CELLS: dict[str, Callable[[Row], list[str]]] = {"frame": _frame_cells, "decode": _decode_cells, "forced": _forced_cells}
