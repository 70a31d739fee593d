"""Quantized language models of ours and of peers: perplexity and agreement against bits a weight, on the same weights and text.

    python -m benchmarks.export.quantized_peers --work DIR --gguf SmolLM2-135M-Instruct.Q4_1.gguf --records DRIVELM.json \\
        --shuffle 0 --genai-python PY --ort-python PY --nncf-python PY --llama-python PY --autoround-python PY \\
        --gptqmodel-python PY --modelopt-python PY --inc-python PY --out FILE

The weights are those of a GGUF file, dequantized: that fp32 model is the reference of every row. Held-out driving text and text
of another domain (`--other`) are scored; what a peer calibrates with is driving text alone. A peer lives in an environment of
its own, made as its `peer_*.py` says; the peer whose interpreter is not given is left out and named. Rows are kept in DIR/rows
and not computed anew: delete a file to have its row again. `--only genai,ours:int4` takes some peers or some of their variants.

"bits" counts all that is stored for the linears: values, scales, zero points; "fp16 scales" the same as if every scale had 16
bits, which a peer that keeps fp32 scales could do; "with head" adds the tied embedding where it is the head. "x fp32" is the
perplexity over that of fp32, "same" the share of tokens behind which both say the same next one. Seconds are of quantizing, on
a machine that may have been busy.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.export import (
    peer_autoround,
    peer_genai,
    peer_gptqmodel,
    peer_inc,
    peer_llama,
    peer_modelopt,
    peer_nncf,
    peer_ort,
    peer_ours,
)
from benchmarks.export.peer_row import Size, inputs_of, size_from_json
from benchmarks.machine import about, environment, print_about, write_rows
from drivekd.tables import print_table

ROOT = Path(__file__).parents[2]
HEADER = [
    "who",
    "form",
    "bits",
    "fp16 scales",
    "with head",
    "MB",
    "driving",
    "x fp32",
    "same",
    "other",
    "x fp32",
    "same",
    "s",
    "note",
]
REFERENCE = ("ours", "fp32")


@dataclass(frozen=True)
class Peer:
    """module: run by `python`, which is None where the caller gave none. variants: names of its rows."""

    name: str
    module: str
    variants: tuple[str, ...]
    python: Path | None


def main() -> None:
    arguments = _arguments()
    peers = _peers(arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    _write_inputs(arguments, peers)
    rows = [row for peer in peers if peer.python for name in _asked(peer, arguments.only) for row in _row(peer, name, arguments)]
    reference = next((row for row in rows if (row["peer"], row["variant"]) == REFERENCE), None)
    if reference is None:
        raise SystemExit("the fp32 row failed, which every other is compared with; its message is above")
    _report([row | compared(row, reference) for row in rows], arguments)
    for peer in peers:
        if peer.python is None:
            print(f"{peer.name}: not run, --{peer.name}-python is not given; {peer.module} says how to make its environment")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for checkpoint, models and rows; kept, and taken up again")
    add("--gguf", type=Path, required=True, help="weights and tokenizer, a llama")
    add("--records", type=Path, required=True, help="DriveLM's question-answer records")
    add("--other", type=Path, default=ROOT / "README.md", help="text of another domain")
    add(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="channels in a random order: blocks are not those that the file was quantized in",
    )
    for name in PEERS:
        add(f"--{name}-python", type=Path, help=f"interpreter of the environment of {name}")
    add("--only", type=lambda text: text.split(","), default=[], help="peers, or PEER:VARIANT; the fp32 reference is added")
    add("--threads", type=int, default=2)
    add("--out", type=Path, help="append one JSON line a row")
    return parser.parse_args()


PEERS: dict[str, Any] = {
    "genai": peer_genai,
    "ort": peer_ort,
    "nncf": peer_nncf,
    "llama": peer_llama,
    "autoround": peer_autoround,
    "gptqmodel": peer_gptqmodel,
    "modelopt": peer_modelopt,
    "inc": peer_inc,
}


def _peers(arguments: argparse.Namespace) -> list[Peer]:
    found = [Peer("ours", peer_ours.__name__, tuple(peer_ours.VARIANTS), Path(sys.executable))]
    for name, module in PEERS.items():
        found.append(Peer(name, module.__name__, tuple(module.VARIANTS), getattr(arguments, f"{name}_python")))
    return found


def _asked(peer: Peer, only: Sequence[str]) -> Iterator[str]:
    for name in peer.variants:
        if not only or peer.name in only or f"{peer.name}:{name}" in only or (peer.name, name) == REFERENCE:
            yield name


def _write_inputs(arguments: argparse.Namespace, peers: Sequence[Peer]) -> None:
    from benchmarks.export.peer_inputs import write_inputs

    write_inputs(arguments.work, arguments.gguf, arguments.records, arguments.other, arguments.shuffle)
    if any(peer.name == "llama" and peer.python for peer in peers):
        from benchmarks.export.peer_llama_inputs import write_llama_inputs

        write_llama_inputs(arguments.work, arguments.gguf, inputs_of(arguments.work))


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(peer: Peer, variant: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What the peer's process printed, now or before; nothing where it failed, which is said."""
    kept, log = (arguments.work / "rows" / f"{peer.name}-{variant}.{end}" for end in ("json", "log"))
    if not kept.exists():
        print(f"{peer.name} {variant} ...", file=sys.stderr, flush=True)
        kept.parent.mkdir(exist_ok=True)
        command = [str(peer.python), "-m", peer.module, "--work", str(arguments.work), "--variant", variant]
        variables = environment(arguments.threads) | {"PYTHONPATH": str(ROOT)}
        with log.open("w", encoding="utf-8") as messages:
            ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=messages, text=True, env=variables, encoding="utf-8")
        if ended.returncode:
            last = (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]
            print(f"{peer.name} {variant}: failed, {last} ({log})", file=sys.stderr, flush=True)
            return []
        kept.write_text(ended.stdout.strip().splitlines()[-1], encoding="utf-8")
    return [{"peer": peer.name, "variant": variant, **json.loads(kept.read_text(encoding="utf-8"))}]


def compared(row: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Bits a weight, and of each text: perplexity, how many times that of the reference, share of equal next tokens."""
    size, quality = size_from_json(row["size"]), {}
    for name, scores in row["scores"].items():
        expected = reference["scores"][name]
        quality[name] = {
            "perplexity": math.exp(scores["nll"]),
            "times": math.exp(scores["nll"] - expected["nll"]),
            "same": sum(map(int.__eq__, scores["tokens"], expected["tokens"])) / len(expected["tokens"]),
        }
    return {
        "bits": size.linears.bits(),
        "bits_fp16_scales": size.linears.bits(16),
        "bits_with_head": _whole(size),
        "texts": quality,
    }


def _whole(size: Size) -> float:
    parts = (size.linears, size.head)
    return sum(part.bits() * part.weights for part in parts) / sum(part.weights for part in parts)


# --- the table --------------------------------------------------------------------------------------------------------


def _report(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    machine = about(arguments.threads)
    print_about(machine)
    for versions in {json.dumps(row["versions"]) for row in rows}:
        print(", ".join(f"{name} {number}" for name, number in json.loads(versions).items()))
    weights = "as the file has them" if arguments.shuffle is None else f"channels shuffled, seed {arguments.shuffle}"
    print_table(f"{arguments.gguf.name}, {weights}", HEADER, [_cells(row) for row in rows])
    kept = [{key: value for key, value in row.items() if key != "scores"} | machine for row in rows]
    write_rows((row | {"gguf": arguments.gguf.name, "shuffle": arguments.shuffle} for row in kept), arguments.out)


def _cells(row: Mapping[str, Any]) -> list[str]:
    bits = [f"{row[key]:.2f}" for key in ("bits", "bits_fp16_scales", "bits_with_head")]
    file_mb = row["size"]["file_mb"]
    quality = [f"{text[key]:.3f}" for text in row["texts"].values() for key in ("perplexity", "times", "same")]
    return [row["who"], row["form"], *bits, f"{file_mb:.0f}" if file_mb else "", *quality, f"{row['seconds']:.0f}", row["note"]]


if __name__ == "__main__":
    main()
