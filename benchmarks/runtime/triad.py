"""Three answers a frame: a session on a bundle against onnxruntime-genai on the same language model, on a CPU.

    python -m benchmarks.export.export --work DIR --size internvl3-1b --precision int4      # makes checkpoint and bundle
    python -m benchmarks.runtime.triad --work DIR --bundle DIR/bundle-internvl3-1b-int4 --checkpoint DIR/internvl3-1b \
        --peer-python PEER_VENV/bin/python                                                # decode_peer.py says how to make it

Three tables, each from engines in processes of their own that take turns:

    frame    six images that are already encoded -> three answers of 48 tokens. A session reads system prompt and images once and
             decodes three answers as one batch; the peer reads the same prompt as text, three times ("three runs"), once and is
             rewound ("prefix kept"), or as a batch of three. The ratio is the peer's seconds over ours.
    decode   one more answer about a frame that is kept: milliseconds of an engine call of decoding, with everything of the
             runtime around it (streaming, deadline; grammar), against the peer's and against the same graph bound by hand.
             "around" is the share of decoding that was not within that process's own engine calls.
    forced   three written answers as compact JSON: engine calls and seconds of decoding with forced tokens read along, and with
             every token an engine call of its own, as decoding without a grammar would have it (triad_forced.py).

A peer that is not there, or cannot do what it is asked, is left out, and said so. Figures of small bundles mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runtime.engine_process import EngineEndedError, EngineProcess, cosine
from benchmarks.runtime.triad_contestants import PEER_MODES, WARM_UP, Contestant, Prompts, Start, open_contestants, start
from benchmarks.runtime.triad_report import report

TABLES = ("frame", "decode", "forced")
OURS = ("session", "bound")  # engines without which there is nothing to compare

Row = dict[str, Any]
Turns = dict[str, list[Row]]  # by label, turn after turn


def main() -> int:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        contestants, prompts = open_contestants(stack, arguments)
        if "frame" in arguments.only:
            report(_frame_rows(contestants, prompts, arguments), arguments)
        if "decode" in arguments.only:
            bound = stack.enter_context(start(Start("bound", arguments.bundle, sys.executable), arguments))
            apart = [Contestant("bound by hand", "bound", bound), *filter(_answers_apart, contestants)]
            report(_decode_rows(apart, prompts, arguments), arguments)
        if "forced" in arguments.only:
            report(_forced_rows(contestants[0].process, prompts, arguments), arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for the peer's model; kept, and taken up again")
    add("--bundle", type=Path, required=True)
    add("--checkpoint", type=Path, help="what the bundle was exported from; the peer is built from it")
    add("--peer-python", type=Path, help="interpreter of onnxruntime-genai's environment")
    add("--peer-modes", type=_some(PEER_MODES), default=list(PEER_MODES), help=f"comma-separated: {', '.join(PEER_MODES)}")
    add("--openvino-python", type=Path, help="interpreter of OpenVINO GenAI's environment")
    add("--openvino-model", type=Path, help="the language model as optimum-intel saved it")
    add("--only", type=_some(TABLES), default=TABLES, help=f"tables, comma-separated: {', '.join(TABLES)}")
    add("--images", type=int, default=6)
    add("--tokens", type=int, default=48, help="of each answer of a frame")
    add("--frames", type=int, default=3, help="turns of frame and forced")
    add("--answers", type=int, default=12, help="turns of decode")
    add("--turn", type=int, default=32, help="tokens of a turn of decode")
    add("--threads", type=int, default=2)
    add("--huge-pages", action="store_true", help="every engine with glibc's huge pages, as decode.py")
    add("--out", type=Path, help="append one JSON line a row")
    return parser.parse_args()


def _some(names: Collection[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: expected some of {', '.join(names)}")
        return text.split(",")

    return chosen


# --- measuring --------------------------------------------------------------------------------------------------------


def _take_turns(contestants: Sequence[Contestant], count: int, ask: Callable[[Contestant, int], Row], what: str) -> Turns:
    """`count` turns of each; the order turns round every time, so that neighbours stay neighbours.

    A peer whose process ends (out of memory, say) is left out from there; raises EngineEndedError when it is ours.
    """
    found: Turns = {contestant.label: [] for contestant in contestants}
    order = list(contestants)
    for number in range(count):
        for contestant in order:
            if contestant.process.running:
                _take_turn(contestant, number, ask, found)
        order = [contestant for contestant in reversed(order) if contestant.process.running]
        took = ", ".join(f"{c.label} {found[c.label][-1]['seconds']:.2f}" for c in contestants if c in order)
        print(f"{what} {number + 1}/{count}: seconds {took}", file=sys.stderr)
    return {contestant.label: found[contestant.label] for contestant in contestants if contestant in order}


def _take_turn(contestant: Contestant, number: int, ask: Callable[[Contestant, int], Row], found: Turns) -> None:
    try:
        found[contestant.label].append(ask(contestant, number))
    except EngineEndedError as error:
        if contestant.process.label in OURS:
            raise
        print(f"left out from here: {contestant.label}: {error}", file=sys.stderr)


def _frame_rows(contestants: Sequence[Contestant], prompts: Prompts, arguments: argparse.Namespace) -> list[Row]:
    logits: dict[str, np.ndarray[Any, Any]] = {}

    def ask(contestant: Contestant, number: int) -> Row:
        own = {"structured": 1, "batch": 2}.get(contestant.mode, 0)  # a cache would find its process's last frame kept
        frame = prompts.frame(arguments.images, arguments.tokens, seed=1000 + 3 * number + own)
        found = contestant.process.ask(frame=contestant.mode, **frame) | {"prompt": len(frame["prefix"])}
        if number == 0 and contestant.mode in ("free", "kept") and contestant.process.label != "openvino":  # it gives no logits
            logits[contestant.label] = contestant.process.logits(arguments.work)
        return found

    turns = _take_turns(contestants, arguments.frames, ask, "frame")
    return [
        {"table": "frame", "engine": c.label, "turns": turns[c.label], "ours": turns["drivekd"], **_about(turns[c.label], c)}
        | ({"cosine": cosine(logits["drivekd"], logits[c.label])} if c.label in logits else {})
        for c in contestants
        if c.label in turns
    ]


def _decode_rows(contestants: Sequence[Contestant], prompts: Prompts, arguments: argparse.Namespace) -> list[Row]:
    frame = prompts.frame(arguments.images, arguments.turn, seed=3000)
    question = _longest(contestants, frame)
    for contestant in contestants:
        if contestant.mode == "bound":
            contestant.process.ask(frame="bound", **{**frame, "questions": frame["questions"][question : question + 1]})
        elif contestant.mode == "kept":
            contestant.process.ask(frame="kept", **frame)

    def ask(contestant: Contestant, number: int) -> Row:
        return contestant.process.ask(answer=contestant.mode, question=question, tokens=arguments.turn)

    turns = _take_turns(contestants, arguments.answers, ask, "decode")
    peer = next((turns[c.label] for c in contestants if c.mode == "kept" and c.label in turns), None)
    bound = turns[contestants[0].label]
    return [
        {
            "table": "decode",
            "engine": c.label,
            "turns": turns[c.label],
            "peer": peer,
            "bound": bound,
            **_about(turns[c.label], c),
        }
        for c in contestants
        if c.label in turns
    ]


def _longest(contestants: Sequence[Contestant], frame: Row) -> int:
    """The question whose structured answer takes most steps: random weights may end one at once. Shows the session the frame."""
    (ours,) = (c.process for c in contestants if c.mode == "structured")
    ours.ask(frame="free", **frame)
    numbers = range(len(frame["questions"]))
    steps = [ours.ask(answer="structured", question=number, tokens=frame["tokens"])["steps"] for number in numbers]
    return max(numbers, key=steps.__getitem__)


def _answers_apart(contestant: Contestant) -> bool:
    """Whether its decoding can be timed without the question's own reading. OpenVINO's pipeline does not tell them apart."""
    timed = contestant.mode in ("free", "structured", "kept") and contestant.process.label != "openvino"
    return timed and contestant.process.running


def _forced_rows(session: EngineProcess, prompts: Prompts, arguments: argparse.Namespace) -> list[Row]:
    session.ask(frame="free", **prompts.frame(arguments.images, WARM_UP, seed=4000))
    turns: Turns = {"skipping": [], "every": []}
    for number in range(arguments.frames):
        for name in sorted(turns, reverse=bool(number % 2)):
            turns[name].append(session.ask(typical=name == "skipping"))
    return [{"table": "forced", "engine": "drivekd", "versions": session.loaded["versions"], **turns}]


def _about(turns: Sequence[Row], contestant: Contestant) -> Row:
    """Versions, and MB beyond interpreter and numpy. A process that is asked in several modes has one memory for all."""
    loaded = contestant.process.loaded
    memory = {key: statistics.median(turn[key] for turn in turns) - loaded["bare_mb"] for key in ("rss_mb", "peak_mb")}
    return memory | {"versions": loaded["versions"]}


if __name__ == "__main__":
    raise SystemExit(main())
