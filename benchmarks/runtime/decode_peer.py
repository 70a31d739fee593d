"""onnxruntime-genai's own int4 build of a checkpoint's language model: the peer of `decode.py`.

    python -m benchmarks.runtime.decode_peer --checkpoint DIR/internvl3-1b --out DIR/peer --python PEER_VENV/bin/python

The peer lives in an environment of its own; make it once:

    python3.11 -m venv PEER_VENV
    PEER_VENV/bin/pip install torch==2.13.0 transformers==5.23.0 numpy onnx==1.23.2 onnx_ir onnxruntime-genai==0.18.0

onnxruntime-genai has no InternVL, so the language model is saved as the Qwen2ForCausalLM that it is, with the same weights and
tokenizer, and built with the builder's defaults: int4, blocks of 32, symmetric, accuracy level 4, GroupQueryAttention.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

from safetensors.torch import load_file, save_file

PREFIXES = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."}  # InternVL's names -> Qwen2ForCausalLM's
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def make_peer(checkpoint: Path, out: Path, python: Path, options: tuple[str, ...] = ()) -> Path:
    """The peer's model directory out/genai, made unless it is there already. options: KEY=VALUE for the builder.

    checkpoint: of the InternVL family, one shard. python: the interpreter of the peer's environment.
    """
    built = out / "genai"
    if not (built / "genai_config.json").exists():  # the builder writes it behind the model
        language = save_language_model(checkpoint, out / "language")
        command = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(language), "-o", str(built)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(out / "cache")]
        subprocess.run([*command, *(["--extra_options", *options] if options else [])], check=True)
        shutil.rmtree(language)
    return built


def save_language_model(checkpoint: Path, folder: Path) -> Path:
    """Write the language model of an InternVL checkpoint as a Qwen2ForCausalLM checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    weights = load_file(checkpoint / "model.safetensors")
    named = {
        new + name.removeprefix(old): value
        for name, value in weights.items()
        for old, new in PREFIXES.items()
        if name.startswith(old)
    }
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    text = {**config["text_config"], "architectures": ["Qwen2ForCausalLM"], "dtype": config["dtype"]}
    (folder / "config.json").write_text(json.dumps(text, indent=2), encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copy(checkpoint / name, folder / name)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the peer's environment")
    parser.add_argument("--options", nargs="*", default=[], help="KEY=VALUE for the builder")
    arguments = parser.parse_args()
    print(make_peer(arguments.checkpoint, arguments.out, arguments.python, tuple(arguments.options)))


if __name__ == "__main__":
    main()
