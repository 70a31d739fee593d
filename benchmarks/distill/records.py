"""Records and images for `step.py`: made-up ones of an exact length, and frames that are asked many questions.

records.json   num_records records of S tokens, capabilities in turn, each about a frame of its own: what steps are timed on
frames.json    frames with many short questions: real DriveLM ones where a file is given, else made up; for packing
images/        coarse noise as JPEGs, for records that have no images
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.distill.models import WORDS, BenchmarkFolder, Recipe, write_models
from drivekd.data.writers.convert import convert_file
from drivekd.hf_checkpoint import load_processor
from drivekd.sample import CAMERAS, CAPABILITIES

CAMERA_PX = (800, 450)
ANSWER_SHARE = 0.15  # of a record's text
Record = dict[str, object]


def write_records(folder: BenchmarkFolder, recipe: Recipe) -> None:
    """Write records.json, frames.json and images/; the student's processor must be there."""
    (folder.path / "images").mkdir(exist_ok=True)
    _write_json(folder.records, _records(folder, recipe))
    _write_json(folder.frames, _drivelm_frames(folder, recipe) if recipe.drivelm else _made_up_frames(folder, recipe))


def make_benchmark(work: Path, recipe: Recipe) -> BenchmarkFolder:
    """Fill `work` with models and records, or take what a finished earlier call with the same recipe left there."""
    folder = BenchmarkFolder(work)
    stamp = work / "benchmark.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == recipe.to_json():
        return folder
    stamp.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    write_models(folder, recipe)
    write_records(folder, recipe)
    stamp.write_text(recipe.to_json(), encoding="utf-8")
    return folder


def _records(folder: BenchmarkFolder, recipe: Recipe) -> list[Record]:
    """num_records records of exactly `length` tokens, each about a frame of its own, capabilities in turn."""
    rng = np.random.default_rng([recipe.seed, 0])
    prompts = load_processor(folder.student).prompts
    size = recipe.size
    room = size.length - len(prompts.prefix(size.num_images)) - len(prompts.suffix("")) - 1  # 1: the end of turn
    records = []
    for number in range(recipe.num_records):
        answer_words = max(1, round(room * ANSWER_SHARE))
        question, answer = (_text(rng, words) for words in (room - answer_words, answer_words))
        images = _noise_images(folder, f"record-{number}", size.num_images, rng)
        records.append(_record(question, answer, images, CAPABILITIES[number % len(CAPABILITIES)], f"record-{number}"))
        length = len(prompts.prefix(size.num_images)) + len(prompts.suffix(question)) + len(prompts.answer(answer))
        assert length == size.length, f"a record has {length} tokens instead of {size.length}"
    return records


def _made_up_frames(folder: BenchmarkFolder, recipe: Recipe) -> list[Record]:
    """num_frames frames with short questions about all their images."""
    rng = np.random.default_rng([recipe.seed, 1])
    records = []
    for frame in range(recipe.size.num_frames):
        images = _noise_images(folder, f"frame-{frame}", recipe.size.num_images, rng)
        for number in range(recipe.questions or recipe.size.questions):
            capability = CAPABILITIES[number % len(CAPABILITIES)]
            records.append(_record(_text(rng, 12), _text(rng, 6), images, capability, f"frame-{frame}"))
    return records


def _drivelm_frames(folder: BenchmarkFolder, recipe: Recipe) -> list[Record]:
    """Real questions and answers; `num_frames` frames, `questions` of each. Images that are not there become noise."""
    assert recipe.drivelm is not None
    convert_file(recipe.drivelm, folder.frames)
    frames: dict[str, list[Record]] = {}
    for record in json.loads(folder.frames.read_text(encoding="utf-8")):
        if len(record["messages"]) == 2:  # labelled
            frames.setdefault(record["meta"]["frame"], []).append(record)
    kept = [record for frame in list(frames.values())[: recipe.size.num_frames] for record in _spread(frame, recipe.questions)]
    rng = np.random.default_rng([recipe.seed, 2])
    for record in kept:
        record["images"] = [_existing(folder, Path(str(image)), rng) for image in record["images"]]  # type: ignore[attr-defined]
    return kept


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """`count` of the records, evenly spaced, so that every kind of question keeps its share; 0 = all."""
    if not count or count >= len(records):
        return list(records)
    return [records[index * len(records) // count] for index in range(count)]


def _record(question: str, answer: str, images: Sequence[str], capability: str, frame: str) -> Record:
    return {
        "messages": [
            {"role": "user", "content": "<image>" * len(images) + question},
            {"role": "assistant", "content": answer},
        ],
        "images": list(images),
        "question_type": capability,
        "meta": {"frame": frame, "cameras": list(CAMERAS[: len(images)])},
    }


def _text(rng: np.random.Generator, num_words: int) -> str:
    """Words of one token each."""
    return " ".join(rng.choice(WORDS.split(), num_words))


def _noise_images(folder: BenchmarkFolder, name: str, count: int, rng: np.random.Generator) -> list[str]:
    """JPEGs of coarse noise below `images/`, as paths relative to the records."""
    return [_noise_image(folder, f"{name}-{number}.jpg", rng) for number in range(count)]


def _noise_image(folder: BenchmarkFolder, name: str, rng: np.random.Generator) -> str:
    coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    coarse.resize(CAMERA_PX, Image.Resampling.BICUBIC).save(folder.path / "images" / name, quality=90)
    return f"images/{name}"


def _existing(folder: BenchmarkFolder, image: Path, rng: np.random.Generator) -> str:
    if (folder.path / image).is_file():
        return str(image)
    if (folder.path / "images" / image.name).is_file():
        return f"images/{image.name}"
    return _noise_image(folder, image.name, rng)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
