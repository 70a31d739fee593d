"""OpenGVLab's original layout of InternVL ("internvl_chat", as OpenGVLab/InternVL3-8B), read as transformers' `-hf` layout.

No code of the checkpoint is run. Its configuration, tokenizer and chat format become what OpenGVLab/InternVL3-8B-hf holds; its
weights are renamed by drivekd.models.internvl_weights. Only InternVL3's kind is read: a Qwen2 language model, pixel shuffle "v2"
and the vision tower's last layer; anything else is refused by name. Prompts are the -hf layout's: no system turn.

    vision_config   image_size, qkv_bias, qk_normalization, dropout, ...    InternVLVisionConfig's names below
    llm_config      a Qwen2Config
    downsample_ratio, select_layer, ps_version, force_image_size
    vocab.json, merges.txt, tokenizer_config.json: added_tokens_decoder     the "slow" tokenizer; there is no tokenizer.json
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from drivekd.errors import CheckpointError
from drivekd.images import ImageSettings

MODEL_TYPE = "internvl_chat"
IMAGE_TOKEN = "<IMG_CONTEXT>"
END_OF_TURN = "<|im_end|>"

# The -hf layout's chat format: one marker an image, a newline behind it, no system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)

# Qwen2's own split into words: contractions, letters with what stands before them, single digits, signs, line ends, spaces.
_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_VISION_NAMES = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm", "dropout": "projection_dropout"}
_VISION_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
_VISION_SAME = (
    *_VISION_NEEDED,
    *("hidden_act", "attention_dropout", "initializer_range", "norm_type", "layer_norm_eps", "num_channels"),
)
_TEXT_NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_TEXT_SAME = (
    *_TEXT_NEEDED,
    *("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "attention_dropout", "bos_token_id"),
)


def hf_config(config: Mapping[str, Any], tokenizer: Tokenizer, source: str) -> dict[str, Any]:
    """The -hf layout's config.json. Raises CheckpointError naming `source` on a kind that is not InternVL3's."""
    vision, text = (config.get(key) for key in ("vision_config", "llm_config"))
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise CheckpointError(f"{source}: expected vision_config and llm_config to be JSON objects")
    if missing := [*(key for key in _VISION_NEEDED if key not in vision), *(key for key in _TEXT_NEEDED if key not in text)]:
        raise CheckpointError(f"{source}: vision_config or llm_config lacks {', '.join(missing)}")
    _refuse_other_kinds(config, vision, text, source)
    ratio = config.get("downsample_ratio", 0.5)
    patches = vision["image_size"] // vision["patch_size"]
    tied = bool(text.get("tie_word_embeddings", False))  # False: Qwen2Config's default, which the file may leave out
    return {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "image_token_id": _token_id(tokenizer, IMAGE_TOKEN, source),
        "image_seq_length": int(patches * ratio) ** 2,
        "downsample_ratio": ratio,
        "tie_word_embeddings": tied,
        "vision_config": {key: vision[key] for key in _VISION_SAME if key in vision}
        | {ours: vision[theirs] for theirs, ours in _VISION_NAMES.items() if theirs in vision},
        "text_config": {key: text[key] for key in _TEXT_SAME if text.get(key) is not None}
        | {
            "model_type": "qwen2",
            "eos_token_id": _token_id(tokenizer, END_OF_TURN, source),
            "tie_word_embeddings": tied,
        },
    }


def _refuse_other_kinds(config: Mapping[str, Any], vision: dict[str, Any], text: dict[str, Any], source: str) -> None:
    expected = {
        "llm_config.architectures": (text.get("architectures", ["Qwen2ForCausalLM"]), ["Qwen2ForCausalLM"]),
        "ps_version": (config.get("ps_version"), "v2"),
        "select_layer": (config.get("select_layer", -1), -1),
        "force_image_size": (config.get("force_image_size") or vision["image_size"], vision["image_size"]),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise CheckpointError(
                f"{source}: {key} is {found!r}, expected {wanted!r}: of the internvl_chat layout drivekd reads InternVL3's kind "
                "alone; for others fetch the checkpoint in the -hf layout"
            )


def _token_id(tokenizer: Tokenizer, token: str, source: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise CheckpointError(f"{source}: the tokenizer beside it has no token {token!r}")
    return int(token_id)


def hf_preprocessor(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The -hf layout's preprocessor_config.json, of the -hf config.json and the original's CLIP-like file ({}: it has none)."""
    size_px = config["vision_config"]["image_size"]
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": preprocessor.get("image_mean", list(ImageSettings.mean)),
        "image_std": preprocessor.get("image_std", list(ImageSettings.std)),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": size_px, "width": size_px},
    }


def hf_tokenizer_config(tokenizer_config: Mapping[str, Any]) -> dict[str, Any]:
    """The -hf layout's tokenizer_config.json: the image tokens named, the template of the text-only model left out."""
    kept = {key: value for key, value in tokenizer_config.items() if key not in ("chat_template", "auto_map")}
    return kept | {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": IMAGE_TOKEN}


def qwen2_tokenizer(vocab: dict[str, Any], merges: str, added: dict[str, Any], source: str) -> Tokenizer:
    """The tokenizer in vocab.json, merges.txt and tokenizer_config.json's added_tokens_decoder. Raises CheckpointError."""
    pairs = [line.split(" ") for line in merges.splitlines() if line and not line.startswith("#version")]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise CheckpointError(f"{source}: merges.txt has a line that is not two tokens: {' '.join(wrong)!r}")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(first, second) for first, second in pairs], fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token_id, token in sorted((int(key), value) for key, value in added.items()):
        flags = {key: token[key] for key in ("lstrip", "rstrip", "single_word", "normalized") if key in token}
        tokenizer.add_tokens([AddedToken(token["content"], special=token.get("special", False), **flags)])
        if tokenizer.token_to_id(token["content"]) != token_id:
            raise CheckpointError(
                f"{source}: tokenizer_config.json gives {token['content']!r} the id {token_id}, vocab.json leaves it "
                f"{tokenizer.token_to_id(token['content'])}"
            )
    return tokenizer
