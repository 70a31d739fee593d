"""What a run promises to those who use its student: the contract that its records, its student and its configuration come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from drivekd.camera_order import camera_names, camera_order, follows, named_sample
from drivekd.config import RunConfig
from drivekd.contract import (
    COLOURS,
    CONTRACT_FILE,
    CONTRACT_VERSION,
    DEFAULT_MAX_NEW_TOKENS,
    Contract,
    Coordinates,
    differences,
    read_contract,
)
from drivekd.data.batch import Collator
from drivekd.data.traces import Traces, traces_of
from drivekd.errors import CheckpointError, ConfigError, DataError
from drivekd.images import PREPROCESSING_VERSION
from drivekd.log import logger
from drivekd.processor import prompt_digest
from drivekd.sample import CAPABILITIES, Capability, Sample
from drivekd.tags import coordinate_style, has_tags

HEADROOM = 1.25  # of the longest answer: one that is not in the records may be longer
ROUND_TO, LEAST = 8, 16  # tokens
MAX_READ_BYTES = 4_000_000_000  # of pictures that are read once for their traces


def settled_cameras(config: RunConfig, samples: Sequence[Sample]) -> tuple[str, ...]:
    """The cameras of a run in the order in which its prompts have them; () where nothing names them.

    data.cameras, else the order that the student's checkpoint and the teachers were trained with and the records' others, else
    the records'. Warns once where records have other orders, or where some name no camera. Raises ConfigError: teachers, student
    and data.cameras contradict each other.
    """
    orders = {sample.source: camera_names(sample) for sample in samples}
    named = {source: names for source, names in orders.items() if names}
    known, source = _known_cameras(config)
    cameras = known if config.data.cameras else camera_order(named.values(), known)
    if len(named) == len(orders):  # a teacher may know more cameras than this run shows
        cameras = tuple(name for name in cameras if any(name in names for names in set(named.values())))
    if cameras:
        _warn(cameras, source or "the records", named, next((one for one, names in orders.items() if not names), None))
    return cameras


def in_order(samples: Iterable[Sample], cameras: Sequence[str]) -> list[Sample]:
    """The samples with their pictures in one order, by name. Raises DataError: a camera that is none of them."""
    return [named_sample(sample, cameras) for sample in samples]


def _known_cameras(config: RunConfig) -> tuple[tuple[str, ...], str]:
    """The order in which data.cameras or the models' own contracts have cameras, and who says it first."""
    stated = [("data.cameras", tuple(config.data.cameras))] if config.data.cameras else []
    models = {"student.checkpoint": config.student.checkpoint, **{f"teachers.{k}": v for k, v in config.teachers.paths().items()}}
    for key, path in models.items():
        contract = read_contract(path)
        if contract is not None and contract.cameras:
            stated.append((f"{key} ({path / CONTRACT_FILE})", contract.cameras))
    for (source, cameras), (other, theirs) in combinations(stated, 2):
        common = [name for name in theirs if name in cameras]
        if not follows(common, cameras):
            raise ConfigError(
                f"{other} has the cameras {', '.join(theirs)}, {source} has {', '.join(cameras)}: in another order. A model "
                "knows a camera by its place; use models trained in one order, or set data.cameras to theirs"
            )
    if config.data.cameras or not stated:
        return (stated[0][1], stated[0][0]) if stated else ((), "")
    return camera_order(cameras for _, cameras in stated), stated[0][0]


def _warn(cameras: Sequence[str], source: str, named: Mapping[str, tuple[str, ...]], unnamed: str | None) -> None:
    other = next((one for one, names in named.items() if not follows(names, cameras)), None)
    if other is not None:
        count = sum(not follows(names, cameras) for names in named.values())
        like = next((one for one, names in named.items() if follows(names, cameras)), None)
        where = f" ({like})" if like is not None and source == "the records" else ""
        logger.warning(
            "cameras come in more than one order: %s has %s; %s%s: %s. The pictures of %d records are put into that order, "
            "by name (data.cameras sets another one)",
            *(other, ", ".join(named[other]), source, where, ", ".join(cameras), count),
        )
    if unnamed is not None and source == "the records":
        logger.warning(
            "%s names no camera, others do: where it has %d pictures they are taken for %s, place by place; give it meta.cameras",
            *(unnamed, len(cameras), ", ".join(cameras)),
        )


def run_contract(
    config: RunConfig, collate: Collator, positions: int, cameras: tuple[str, ...], samples: Sequence[Sample]
) -> Contract:
    """The contract without the digests of its data.

    positions: of the student, prompt and answer together. samples: labelled and of validation, in the order of `cameras`.

    Raises DataError: two files write tags in different ways; a sample that the student has not enough positions for.
    """
    processor, prompts = collate.processor, config.prompts
    texts = {"perception": prompts.perception, "reasoning": prompts.reasoning, "planning": prompts.planning}
    return Contract(
        format_version=CONTRACT_VERSION,
        preprocessing=PREPROCESSING_VERSION,
        family=processor.model_type,
        tokenizer=prompt_digest(processor.prompts),
        tile_px=processor.images.tile_px,
        tiles=str(processor.images.tiling),
        colours=COLOURS,
        mean=processor.images.mean,
        std=processor.images.std,
        cameras=cameras,
        coordinates=_coordinates(samples),
        prompts=texts,
        variables=dict(prompts.variables),
        note=prompts.note,
        structured_instruction="" if config.data.structured == "none" else prompts.structured_instruction,
        max_new_tokens=dict[str, int](_budgets(config, positions, collate, samples).items()),
        data={},
    )


def with_data(contract: Contract, inputs: Mapping[str, str]) -> Contract:
    """The contract with the digests of the records that a run learns from. inputs: of all that it reads, by key."""
    start = "data."
    return replace(contract, data={key.removeprefix(start): value for key, value in inputs.items() if key.startswith(start)})


def training_traces(samples: Sequence[Sample]) -> Traces:
    """Traces of what a run learns from, the contents of its pictures among them where reading them all takes seconds."""
    pictures = {image for sample in samples for image in sample.images}
    size_bytes = sum(picture.stat().st_size for picture in pictures if picture.is_file())
    if size_bytes > MAX_READ_BYTES:
        logger.info("traces of the data are names alone: reading %.0f GB of pictures once more would take long", size_bytes / 1e9)
    return traces_of(samples, contents=size_bytes <= MAX_READ_BYTES)


def check_same_contract(directory: Path, now: Contract) -> None:
    """What a checkpoint of a run says, against the run that goes on from it. Raises CheckpointError naming every difference."""
    before = read_contract(directory)
    if before is None:
        raise CheckpointError(f"--resume: {directory / CONTRACT_FILE} is missing: an older drivekd began this run; start it anew")
    if changed := differences(replace(before, data={}), replace(now, data={})):
        raise CheckpointError(
            f"--resume: {directory / CONTRACT_FILE} says otherwise than this run, {'; '.join(changed)}. Start a new run for that"
        )


def answer_budgets(longest: Mapping[Capability, int], room: int) -> dict[Capability, int]:
    """Tokens that an answer may have, by capability, from those of the longest one in the records, its end of turn counted.

    A quarter more, rounded up to whole eights, 16 at least, never beyond the room that the model's positions leave. A capability
    without records gets what the largest of the others has.
    """
    budgets = {name: max(LEAST, math.ceil(tokens * HEADROOM / ROUND_TO) * ROUND_TO) for name, tokens in longest.items()}
    default = max(budgets.values(), default=DEFAULT_MAX_NEW_TOKENS)
    return {name: max(1, min(budgets.get(name, default), room)) for name in CAPABILITIES}


def _budgets(config: RunConfig, positions: int, collate: Collator, samples: Sequence[Sample]) -> dict[Capability, int]:
    longest: dict[Capability, int] = {}
    longest_prompt = 0
    for sample in samples:
        if sample.answer is not None:
            prefix, question, answer = collate.lengths(sample)
            if prefix + question + answer > positions:
                raise DataError(
                    f"{sample.source}: {len(sample.images)} pictures of {collate.processor.chat.tokens_per_image} tokens, "
                    f"question and answer make {prefix + question + answer} tokens; the student has {positions} positions. Show "
                    "fewer cameras, or make their pictures smaller (data.tiles, data.camera_size_px)"
                )
            longest[sample.capability] = max(longest.get(sample.capability, 0), answer)
            longest_prompt = max(longest_prompt, prefix + question)
    return answer_budgets(longest, positions - longest_prompt) | config.prompts.max_new_tokens


def _coordinates(samples: Iterable[Sample]) -> Coordinates:
    """How the records write tags, decided once for each file."""
    texts: dict[str, list[str]] = {}
    for sample in samples:
        texts.setdefault(sample.source.rpartition(", record ")[0], []).extend((sample.question, sample.answer or ""))
    styles = {file: coordinate_style(found) for file, found in texts.items() if any(map(has_tags, found))}
    if len(set(styles.values())) > 1:
        (one, style), (other, another) = (
            next((file, style) for file, style in styles.items() if style == wanted) for wanted in sorted(set(styles.values()))
        )
        raise DataError(
            f"{one} writes tags {style}, {other} writes them {another}: one model cannot learn both. Convert one of them: "
            "drivekd data convert"
        )
    return next(iter(styles.values()), "none")
