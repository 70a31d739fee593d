"""The README of an Edge-LLM kit: commands with this bundle's numbers in them.

Sources: Edge-LLM's quick start, installation and input format of 0.11.0 (nvidia.github.io/TensorRT-Edge-LLM/0.11.0), the entry
points and extras of its wheel, and its InternViT runner.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from drivekd.images import ImageSettings
from drivekd.runtime.bundle.manifest import Manifest

EDGELLM_VERSION = "0.11.0"
ROUND_TO = 256  # engine limits are rounded up to whole steps, for questions of other lengths than the golden ones


def kit_readme(manifest: Manifest, bundle: str, golden: dict[str, NDArray[Any]], images: list[str]) -> str:
    """The text of README.md. bundle: the directory's name."""
    longest = max(len(ids) for name, ids in golden.items() if name.startswith("prompt_ids."))
    per_image = manifest.chat.tokens_per_image
    values = {
        "bundle": bundle,
        "version": EDGELLM_VERSION,
        "family": manifest.model.family,
        "precision": manifest.precision,
        "warning": _precision_warning(manifest),
        "capabilities": ", ".join(manifest.prompts),
        "num_images": len(images),
        "longest": longest,
        "input_len": _rounded(longest),
        "kv_capacity": _rounded(longest + len(golden["tokens"])),
        "per_image": per_image,
        "all_images": per_image * len(images),
        "family_note": _family_note(manifest),
    }
    return TEMPLATE.format(**values)


def _rounded(length: int) -> int:
    return -(-length // ROUND_TO) * ROUND_TO


def _precision_warning(manifest: Manifest) -> str:
    """The golden tokens are this bundle's: an fp16 engine differs from int4 ones by right."""
    if all(graph.precision in ("fp32", "fp16") for graph in manifest.graphs.values()):
        return ""
    return (
        f"\n**The bundle is {manifest.precision}: its golden tokens are those of quantized weights, from which a faithful fp16 "
        "engine differs.** Write the kit from an fp32 bundle of the same checkpoint to judge one.\n"
    )


def _family_note(manifest: Manifest) -> str:
    if isinstance(manifest.images, ImageSettings):
        tile = "" if manifest.chat.tokens_per_image == 256 else _SMALL_TILE.format(per_image=manifest.chat.tokens_per_image)
        return _INTERNVL + tile
    return _QWEN


_INTERNVL = """\
- `--minImageTokens` above the tokens of one tile makes Edge-LLM add a thumbnail to every image: twice the image tokens, other
  answers. Version 0.4 always adds it; it cannot pass."""
_SMALL_TILE = """
- Edge-LLM's InternVL runner was written for tiles of 256 tokens; this model has {per_image}. The sources read until 0.11 have the
  number in the code."""
_QWEN = """\
- Edge-LLM resizes Qwen2.5-VL's images to between `--minImageTokens` and `--maxImageTokensPerImage` tokens. Both are this bundle's
  own number, and the PNG files have its size, so nothing is resized."""

TEMPLATE = """\
# {bundle} on TensorRT Edge-LLM {version}

Written by `drivekd export {bundle} --kit edgellm`. The commands are for Edge-LLM **{version}**, from its documentation and
sources. **They were not run on a device.** When one fails, trust Edge-LLM's own documentation of your version.
{warning}
| | |
|---|---|
| model | {family}, bundle in {precision} |
| asked | {capabilities}: {num_images} image(s), then the question |
| longest prompt | {longest} tokens, {per_image} of them for each image |

`checkpoint/` is what Edge-LLM exports (it takes no ONNX of ours), with its chat template. `input.json` asks for the golden frames
in `images/`. `expected.json` holds what the bundle answered, token by token, and the prompts as token ids.

## 1. Export, on an x86 computer (no GPU needed), in Edge-LLM's own environment

```bash
python3.12 -m venv edgellm && . edgellm/bin/activate
pip install "tensorrt-edgellm[export]=={version}"
tensorrt-edgellm-export checkpoint onnx
```

This makes `onnx/llm` and `onnx/visual` in fp16. Not in drivekd's environment: it pins other versions of transformers and onnx.

## 2. Build the runtime, on the device

```bash
git clone --branch v{version} --depth 1 https://github.com/NVIDIA/TensorRT-Edge-LLM.git
cd TensorRT-Edge-LLM && git submodule update --init --recursive && mkdir -p build && cd build
cmake .. -DCMAKE_BUILD_TYPE=Release -DTRT_PACKAGE_DIR=/usr -DENABLE_CUTE_DSL=ALL \\
    -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64_linux_toolchain.cmake \\
    -DEMBEDDED_TARGET=jetson-orin -DCUDA_CTK_VERSION=12.6
make -j$(nproc)
export EDGELLM=$(realpath ..) EDGELLM_PLUGIN_PATH=$(realpath libNvInfer_edgellm_plugin.so)
```

JetPack 6.2 on Orin: as above; JetPack 7.2 on Orin: `-DCUDA_CTK_VERSION=13.2`; others, DRIVE among them: Edge-LLM's installation
guide. An unset `EDGELLM_PLUGIN_PATH` is looked up below the current directory, and then the engine finds no plugins.

## 3. Build the engines, on the device, in this folder

```bash
$EDGELLM/build/examples/llm/llm_build --onnxDir onnx/llm --engineDir engines/llm \\
    --maxBatchSize 1 --maxInputLen {input_len} --maxKVCacheCapacity {kv_capacity}
$EDGELLM/build/examples/multimodal/visual_build --onnxDir onnx/visual --engineDir engines \\
    --minImageTokens {per_image} --maxImageTokens {all_images} --maxImageTokensPerImage {per_image}
```

## 4. Run, in this folder: the image paths in `input.json` start here

```bash
$EDGELLM/build/examples/llm/llm_inference --engineDir engines/llm --multimodalEngineDir engines \\
    --inputFile input.json --outputFile out.json
```

## 5. Judge, where drivekd is

```bash
drivekd check {bundle} --outputs out.json
```

Exit code 0: at least 99 % of the golden tokens agree. Exit code 1: not; the table names the first token that differs, what was
expected and what was found. Token ids are compared where `out.json` has them, else the text.

## When it fails

- At the first token of every answer: the prompts differ. Compare `formatted_complete_request` in `out.json` with `prompt_ids` in
  `expected.json`; a wrong chat template or number of image tokens shows there.
{family_note}
- Late, at a small margin: fp16 against {precision}. The margin of a token is the distance of the golden run's two best logits.
"""
