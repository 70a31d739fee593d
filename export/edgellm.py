"""A job for NVIDIA's TensorRT Edge-LLM whose answers `drivekd check BUNDLE --outputs` can judge.

KIT/
  README.md        every command, for Edge-LLM's version EDGELLM_VERSION
  checkpoint/      the Hugging Face checkpoint that Edge-LLM exports itself (it does not take our ONNX); a LoRA is merged
  images/          the golden frames as PNG files, in the tile's size
  input.json       one request a capability, in the bundle's order, for its llm_inference
  expected.json    the golden tokens, their margins, and the prompts as token ids

The formats were read from Edge-LLM's documentation, its released C++ sources and the wheel of 0.11.0. Nothing of it was run on a
device.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drivekd.errors import CheckpointError, ExportError, UsageError
from drivekd.files import refuse_non_empty, weight_files, whole_directory
from drivekd.hf_checkpoint import write_processor, write_promised
from drivekd.processor import parse_tokenizer
from drivekd.runtime.bundle.reader import Bundle, read_bundle
from drivekd.runtime.parity.golden import GOLDEN_FILE, load_golden
from drivekd.runtime.parity.limits import MIN_AGREEMENT, TIE_MARGIN
from drivekd.runtime.parity.referee import golden_questions, until_end

from .edgellm_readme import EDGELLM_VERSION, kit_readme
from .source.checkpoint import CheckpointSource, load_weights, locate_checkpoint, weights_sha256

CHECKPOINT_DIR = "checkpoint"


def write_edgellm_kit(bundle: Path, checkpoint: Path, out: Path | None = None, *, link: bool = False) -> Path:
    """Write the kit for a verified bundle and what it was exported from (checkpoint, run or adapter); returns its directory.

    out: default BUNDLE-edgellm beside the bundle. link: point to the checkpoint instead of copying it; an adapter is always
    merged and written.
    Raises BundleError, CheckpointError (not whole), UsageError (other weights than the bundle's, `out` is not empty), ExportError
    (disk full). Nothing is left half-written.
    """
    bundle, checkpoint = Path(bundle), Path(checkpoint)
    out = bundle.with_name(f"{bundle.name}-edgellm") if out is None else Path(out)
    refuse_non_empty(out, "name another --out or remove it")
    read = read_bundle(bundle)
    if GOLDEN_FILE not in read.files:
        raise ExportError(f"{bundle}: {GOLDEN_FILE} is missing, so there is nothing to judge by; export the bundle again")
    if read.manifest.images.tiling.is_grid:
        raise ExportError(
            f"{bundle}: each camera is {read.manifest.images.tiling} tiles, which no option of Edge-LLM {EDGELLM_VERSION} asks "
            "for (it cuts by an image's own shape); a kit is written for one tile a camera"
        )
    found = locate_checkpoint(checkpoint)
    _check_weights(checkpoint, found, read)
    golden = load_golden(read.files[GOLDEN_FILE], str(bundle))
    needed = 0 if link else sum(path.stat().st_size for path in found.checkpoint.path.iterdir() if path.is_file())
    with whole_directory(out, needed_bytes=needed, error_type=ExportError) as staging:
        _place_checkpoint(found, staging / CHECKPOINT_DIR, link=link)
        images = _write_images(golden["images"], staging)
        _write_json(staging / "input.json", edgellm_input(read, images, num_tokens=len(golden["tokens"])))
        _write_json(staging / "expected.json", _expected(read, golden))
        (staging / "README.md").write_text(kit_readme(read.manifest, bundle.name, golden, images), encoding="utf-8")
    return out


def edgellm_input(bundle: Bundle, images: list[str], *, num_tokens: int) -> dict[str, Any]:
    """The requests as Edge-LLM's llm_inference reads them: greedy, one capability after the other.

    num_logprobs: versions 0.9 and 0.10 write no token ids, but those of the likeliest tokens when asked.
    """
    pictures = [{"type": "image", "image": name} for name in images]
    questions = golden_questions(bundle.manifest)
    return {
        "batch_size": 1,
        "temperature": 0.0,
        "top_k": 1,
        "top_p": 1.0,
        "max_generate_length": num_tokens,
        "num_logprobs": 1,
        "apply_chat_template": True,
        "add_generation_prompt": True,
        "enable_thinking": False,
        "requests": [
            {"messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]}
            for text in questions.values()
        ],
    }


def _check_weights(checkpoint: Path, source: CheckpointSource, bundle: Bundle) -> None:
    if not weight_files(source.checkpoint.path):
        raise CheckpointError(f"{source.checkpoint.path}: no *.safetensors weights found")
    found, expected = weights_sha256(*source.directories), bundle.manifest.model.weights_sha256
    if found != expected:
        raise UsageError(
            f"{checkpoint} holds other weights (sha256 {found[:16]}...) than {bundle.path} was exported from "
            f"({expected[:16]}...); the engine's answers would be judged by another model's"
        )


def _place_checkpoint(source: CheckpointSource, target: Path, *, link: bool) -> None:
    """A copy of the directory's own files: training state and the like lie in folders below."""
    if source.adapter is not None:
        load_weights(source).save_pretrained(target)
        if source.contract is None:
            return write_processor(source.checkpoint, target)
        return write_promised(source.checkpoint, target, source.contract)
    if link:
        return target.symlink_to(source.checkpoint.path.resolve(), target_is_directory=True)
    target.mkdir()
    for path in sorted(source.checkpoint.path.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _write_images(images: NDArray[np.uint8], folder: Path) -> list[str]:
    """Images [N, H, W, 3] as PNG files, which lose nothing; returns their names below `folder`."""
    (folder / "images").mkdir()
    names = [f"images/camera_{index}.png" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    return names


def _expected(bundle: Bundle, golden: dict[str, NDArray[Any]]) -> dict[str, Any]:
    manifest = bundle.manifest
    tokenizer = parse_tokenizer(bundle.files["tokenizer.json"], str(bundle.path))
    answers = {}
    for row, (name, question) in enumerate(golden_questions(manifest).items()):
        tokens = until_end(golden["tokens"][:, row].tolist(), manifest.generation.end_of_turn_id)
        answers[name] = {
            "question": question,
            "prompt_ids": golden[f"prompt_ids.{name}"].tolist(),
            "tokens": tokens,
            "margins": [round(float(margin), 6) for margin in golden["margins"][: len(tokens), row]],
            "text": tokenizer.decode(tokens, skip_special_tokens=True),
        }
    return {
        "bundle": bundle.digest,
        "precision": manifest.precision,
        "weights_sha256": manifest.model.weights_sha256,
        "edgellm_version": EDGELLM_VERSION,
        "min_agreement": MIN_AGREEMENT,
        "tie_margin": TIE_MARGIN,
        "end_of_turn_id": manifest.generation.end_of_turn_id,
        "answers": answers,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
