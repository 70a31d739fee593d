"""Decode speed of an exported bundle against onnxruntime-genai's own int4 build of the same language model, on a CPU.

    python -m benchmarks.export.export --work DIR --size internvl3-1b --precision int4      # makes checkpoint and bundle
    python -m benchmarks.runtime.decode --work DIR --bundle DIR/bundle-internvl3-1b-int4 --checkpoint DIR/internvl3-1b \
        --peer-python PEER_VENV/bin/python                                                # decode_peer.py says how to make it

Every engine is a process of its own: a bundle's is its decoder.gqa with all memory bound by hand (numpy and onnxruntime alone),
the peer's is onnxruntime-genai's loop. All are loaded, then they take turns of greedy steps on the same prompt, so that a slow
minute of the machine hits all alike; the order turns round at every turn. The first steps of a turn are slow, while the other
engine's threads still spin: turns of four steps measure little else. A repeat is a fresh set of processes, loaded in
the other order: where the weights come to lie in memory moves a process's speed by some percent for as long as it lives. The
first token is part of the prompt's seconds. CPU milliseconds, summed over threads, tell a slow engine from a busy machine.

The ratio is the first peer's seconds over an engine's, above 1 that engine is faster: the median over neighbouring turns of a
repeat, then the median over repeats, with the smallest and largest repeat. "of p10" is the ratio of tenth percentiles: steps that
nothing else of the machine disturbed. Without a peer the bundles alone are timed. Agreement of the logits behind the prompt
(cosine) shows that all compute the same model; two int4 roundings of it differ by some percent. More engines, as they lie:

    python -m benchmarks.runtime.decode --work DIR --bundle BUNDLE --engine genai:DIR/genai/k_quant:PEER_VENV/bin/python \\
        --engine llama:DIR/llama-q4_0.gguf:PEER_VENV/bin/python
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, print_about, write_rows
from benchmarks.runtime.engine_process import HUGE_PAGES, EngineProcess, cosine
from drivekd.tables import print_table

HEADER = ["prompt", "engine", "tok/s", "ms a token p50", "p10", "p95", "CPU ms", "ratio", "min - max", "of p10", "of CPU"]
HEADER += ["prompt s", "RSS, MB", "peak, MB", "cosine"]
WARM_UP = 8  # tokens
WORKER = "benchmarks.runtime.decode_worker"
Start = tuple[str, str, Path, str]  # label, engine, folder, interpreter


def main() -> int:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    engines = [(path.name, "bound", path, sys.executable) for path in arguments.bundle]
    if arguments.peer_python is not None:
        from benchmarks.runtime.decode_peer import make_peer

        peer = make_peer(arguments.checkpoint, arguments.work / "peer", arguments.peer_python)
        engines.append(("genai", "genai", peer, str(arguments.peer_python)))
    engines += arguments.engine
    rows = [row for length in arguments.prompts for row in _prompt_rows(length, engines, arguments)]
    _report(rows, arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for the peer's model; kept, and taken up again")
    add("--bundle", type=Path, nargs="*", default=[], help="bundles with a gqa decoder")
    add("--checkpoint", type=Path, help="what the bundles were exported from; the peer is built from it")
    add("--peer-python", type=Path, help="interpreter of the peer's environment; without it the bundles alone are timed")
    add("--engine", type=_engine, action="append", default=[], help="NAME:MODEL:PYTHON: any peer of decode_worker.py as it lies")
    add("--prompts", type=lambda text: [int(part) for part in text.split(",")], default=[256, 1700], help="prompt lengths")
    add("--tokens", type=int, default=64, help="steps a repeat")
    add("--turn", type=int, default=32, help="steps that an engine takes before the next one's turn")
    add("--repeats", type=int, default=6, help="sets of processes")
    add("--threads", type=int, default=2)
    add("--huge-pages", action="store_true", help=f"every engine with GLIBC_TUNABLES={HUGE_PAGES}")
    add("--out", type=Path, help="append one JSON line a row")
    arguments = parser.parse_args()
    if arguments.peer_python is not None and arguments.checkpoint is None:
        parser.error("--peer-python needs --checkpoint")
    return arguments


def _engine(text: str) -> Start:
    name, model, python = text.split(":")
    return f"{name} {Path(model).stem}", name, Path(model), python


# --- measuring --------------------------------------------------------------------------------------------------------


def _prompt_rows(length: int, engines: Sequence[Start], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an engine; fresh processes each repeat."""
    prompt = np.random.default_rng(length).integers(300, 600, length).tolist()  # words of every tokenizer of ours
    repeats = []
    for number in range(arguments.repeats):
        repeats.append(_processes(prompt, engines[::-1] if number % 2 else engines, arguments))
        times = ", ".join(f"{label} {1e3 * statistics.median(found['steps']):.1f}" for label, found in repeats[-1].items())
        print(f"prompt {length}, {number + 1}/{arguments.repeats}: ms a token {times}", file=sys.stderr)
    return [
        _row(length, label, [one[label] for one in repeats], _peer_runs(engines, repeats), arguments) for label, *_ in engines
    ]


def _processes(prompt: Sequence[int], engines: Sequence[Start], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    with ExitStack() as stack:
        workers = [stack.enter_context(_process(start, arguments)) for start in engines]
        for worker in workers:  # pages, pools, packed weights
            worker.ask(prompt=prompt[:WARM_UP], room=WARM_UP)
            worker.ask(steps=WARM_UP)
        return _repeat(prompt, workers, arguments)


def _process(start: Start, arguments: argparse.Namespace) -> EngineProcess:
    label, engine, folder, python = start
    command: list[str | Path] = [python, "-m", WORKER, engine, folder, "--threads", str(arguments.threads)]
    return EngineProcess(label, command, arguments.threads, huge_pages=arguments.huge_pages)


def _peer_runs(engines: Sequence[Start], repeats: Sequence[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of the first peer, which every ratio is against."""
    first = [label for label, engine, *_ in engines if engine != "bound"][:1]
    return [one[label] for one in repeats for label in first]


def _repeat(prompt: Sequence[int], workers: Sequence[EngineProcess], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By label: seconds of the prompt and of each step, CPU seconds of all steps, tokens, memory behind them."""
    found = {}
    for worker in workers:
        read = worker.ask(prompt=prompt, room=arguments.tokens)
        one = {"prompt_s": read["seconds"][0], "steps": [], "cpu_s": 0.0, "tokens": read["tokens"]}
        found[worker.label] = {**one, "logits": worker.logits(arguments.work), "loaded": worker.loaded}
    order = list(workers)
    for start in range(0, arguments.tokens, arguments.turn):
        for worker in order:
            taken = worker.ask(steps=min(arguments.turn, arguments.tokens - start))
            one = found[worker.label]
            one["steps"] += taken["seconds"]
            one["cpu_s"] += taken["cpu_s"]
            one["tokens"] += taken["tokens"]
            one["rss_mb"], one["peak_mb"] = taken["rss_mb"], taken["peak_mb"]
        order.reverse()
    return found


def _row(
    length: int, label: str, ours: Sequence[dict[str, Any]], peers: Sequence[dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One engine's repeats beside the peer's, which may be none."""
    steps = [second for one in ours for second in one["steps"]]
    row = {
        "prompt": length,
        "engine": label,
        "tokens_per_s": 1 / statistics.median(steps),
        "p50_ms": 1e3 * statistics.median(steps),
        "p10_ms": 1e3 * float(np.percentile(steps, 10)),
        "p95_ms": 1e3 * float(np.percentile(steps, 95)),
        "cpu_ms": 1e3 * statistics.median(one["cpu_s"] / len(one["steps"]) for one in ours),
        "prompt_s": statistics.median(one["prompt_s"] for one in ours),
        "rss_mb": statistics.median(one["rss_mb"] - one["loaded"]["bare_mb"] for one in ours),  # beyond interpreter and numpy
        "peak_mb": statistics.median(one["peak_mb"] - one["loaded"]["bare_mb"] for one in ours),
        "load_s": statistics.median(one["loaded"]["load_s"] for one in ours),
        "timed_steps": len(steps),
        "versions": ours[0]["loaded"]["versions"],
    }
    if peers:
        row |= _against(peers, ours, arguments.turn)
        row["cosine"] = cosine(peers[0]["logits"], ours[0]["logits"])
    return row


def _against(peers: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], turn: int) -> dict[str, float]:
    """How many times faster ours is, repeat by repeat."""
    pairs = list(zip(peers, ours, strict=True))
    ratios = [float(np.median(_turns(peer, turn) / _turns(one, turn))) for peer, one in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_p10": statistics.median(_p10(peer) / _p10(one) for peer, one in pairs),
        "cpu_ratio": statistics.median(peer["cpu_s"] / one["cpu_s"] for peer, one in pairs),
        "prompt_ratio": statistics.median(peer["prompt_s"] / one["prompt_s"] for peer, one in pairs),
        "equal_tokens": float(np.mean([np.equal(peer["tokens"], one["tokens"]).mean() for peer, one in pairs])),
    }


def _turns(one: dict[str, Any], turn: int) -> np.ndarray[Any, Any]:
    """Seconds a step of each turn."""
    return np.asarray([statistics.median(one["steps"][start : start + turn]) for start in range(0, len(one["steps"]), turn)])


def _p10(one: dict[str, Any]) -> float:
    """A step that nothing else of the machine disturbed."""
    return float(np.percentile(one["steps"], 10))


# --- the table --------------------------------------------------------------------------------------------------------


def _report(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The table for people, then one JSON line a row; the lines go to --out, too."""
    machine = about(arguments.threads) | {"repeats": arguments.repeats, "huge_pages": arguments.huge_pages}
    print_about(machine)
    for label, versions in {row["engine"]: row["versions"] for row in rows}.items():
        print(label, ", ".join(f"{name} {number}" for name, number in versions.items()))
    print_table(f"greedy decoding, {arguments.tokens} steps, {arguments.repeats} repeats", HEADER, [_cells(row) for row in rows])
    print(write_rows((row | machine for row in rows), arguments.out), end="")


def _cells(row: dict[str, Any]) -> list[str]:
    spread = f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}" if "ratio" in row else ""
    numbers = [f"{row[key]:.1f}" for key in ("tokens_per_s", "p50_ms", "p10_ms", "p95_ms", "cpu_ms")]
    ratios = [f"{row['ratio']:.2f}", spread, f"{row['ratio_p10']:.2f}", f"{row['cpu_ratio']:.2f}"] if spread else [""] * 4
    memory = [f"{row['prompt_s']:.2f}", f"{row['rss_mb']:,.0f}", f"{row['peak_mb']:,.0f}"]
    return [str(row["prompt"]), row["engine"], *numbers, *ratios, *memory, f"{row['cosine']:.4f}" if "cosine" in row else ""]


if __name__ == "__main__":
    raise SystemExit(main())
