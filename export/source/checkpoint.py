"""Where an export's weights are: a checkpoint, a drivekd run, or an adapter over its base.

CHECKPOINT/      config.json, *.safetensors, tokenizer: the Hugging Face layout
RUN/             config.yaml of `drivekd train`: its final/ is taken
ADAPTER/         adapter_config.json, adapter_model.safetensors in peft's layout: merged into the base that it names
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, PeftModel, PeftType, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from drivekd.contract import Contract
from drivekd.errors import CheckpointError
from drivekd.files import TRACES_FILE, file_digest, weight_files
from drivekd.hf_checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    RUN_CONFIG,
    Checkpoint,
    CheckpointFiles,
    refuse_adapter_beside_weights,
)
from drivekd.models import load_model

LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


@dataclass(frozen=True)
class CheckpointSource:
    """checkpoint: a whole model with its processor files. adapter: what is merged into it. origin: the manifest's `source`."""

    checkpoint: Checkpoint
    adapter: CheckpointFiles | None
    origin: dict[str, str]

    @property
    def files(self) -> list[CheckpointFiles]:
        """Of each directory, nearest to what was asked for first."""
        return [self.checkpoint.files] if self.adapter is None else [self.adapter, self.checkpoint.files]

    @property
    def contract(self) -> Contract | None:
        """The nearest one; None where training wrote none."""
        return next((files.contract for files in self.files if files.contract is not None), None)

    @property
    def traces(self) -> Path | None:
        """The nearest data_traces.safetensors; None where training left none."""
        return next((files.path / TRACES_FILE for files in self.files if files.has(TRACES_FILE)), None)

    @property
    def directories(self) -> list[Path]:
        """Those of `files`, in their order."""
        return [files.path for files in self.files]


def locate_checkpoint(path: Path) -> CheckpointSource:
    """Find and open the weights of a run, an adapter or a checkpoint directory. Raises CheckpointError saying what is wrong."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint directory")
    if (path / ADAPTER_CONFIG).is_file():
        adapter = CheckpointFiles(path)
        refuse_adapter_beside_weights(adapter)
        return CheckpointSource(Checkpoint.open(_base_of(adapter)), adapter, {"kind": "lora"})
    if (path / "trained.safetensors").is_file():
        raise CheckpointError(f"{path}: has what trains, without the base; take final/ of the run, which is written at its end")
    if (path / RUN_CONFIG).is_file() and not (path / "config.json").is_file():
        path = _final_of(path)
    origin = _origin(path)
    return CheckpointSource(Checkpoint.open(path), None, origin)


def _final_of(run: Path) -> Path:
    final = run / "final"
    if not (final / "config.json").is_file():
        raise CheckpointError(
            f"{run}: a run without final/: it has not ended. Continue it (drivekd train {run / RUN_CONFIG} --out {run} --resume) "
            "or name one of its folders checkpoints/step-N or best"
        )
    return final


def _origin(checkpoint: Path) -> dict[str, str]:
    path = checkpoint / RUN_CONFIG
    if not path.is_file():
        return {"kind": "checkpoint"}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not the configuration of a run ({error})") from error
    student = config.get("student") if isinstance(config, dict) else None
    adapted = isinstance(student, dict) and student.get("lora") is not None
    return {"kind": "lora" if adapted else "run", "training_sha256": file_digest(path)}


def _base_of(adapter: CheckpointFiles) -> Path:
    base = adapter.json(ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{adapter.path / ADAPTER_CONFIG}: base_model_name_or_path is missing; name the base's directory there"
        )
    for path in (Path(base), adapter.path / base):
        if path.is_dir():
            return path
    raise CheckpointError(
        f"{adapter.path}: its base {base} is not a directory here. Fetch it (hf download {base} --local-dir DIR) and put DIR "
        f"into base_model_name_or_path of {ADAPTER_CONFIG}"
    )


def load_weights(source: CheckpointSource) -> PreTrainedModel:
    """The model in fp32, adapter merged. Raises CheckpointError naming what is wrong."""
    model = load_model(source.checkpoint)
    return model if source.adapter is None else _merged(model, source.adapter)


@torch.no_grad()
def _merged(base: PreTrainedModel, adapter: CheckpointFiles) -> PreTrainedModel:
    if not adapter.has(ADAPTER_WEIGHTS):
        raise CheckpointError(
            f"{adapter.path}: {ADAPTER_WEIGHTS} is missing; an adapter needs its weights beside {ADAPTER_CONFIG}"
        )
    kind = adapter.json(ADAPTER_CONFIG).get("peft_type")
    if kind != PeftType.LORA.value:
        raise CheckpointError(f"{adapter.path / ADAPTER_CONFIG}: peft_type is {kind!r}; only LORA can be merged")
    try:
        # not LoraConfig.from_pretrained, which reads the file in the locale's encoding
        model = PeftModel(base, LoraConfig.from_peft_type(**adapter.json(ADAPTER_CONFIG)))
        found = set_peft_model_state_dict(model, load_file(adapter.path / ADAPTER_WEIGHTS))
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{adapter.path}: does not fit its base ({error})") from error
    missing = [name for name in found.missing_keys if "lora_" in name]
    if missing or found.unexpected_keys:
        what, names = ("missing", missing) if missing else ("unknown to the base", found.unexpected_keys)
        raise CheckpointError(f"{adapter.path / ADAPTER_WEIGHTS}: {len(names)} weights are {what}, first {names[0]}")
    merged = model.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def weights_sha256(*directories: Path) -> str:
    """sha256 over names and digests of the directories' safetensors files: which weights these are, wherever they lie."""
    total = hashlib.sha256()
    for directory in directories:
        for path in weight_files(directory):
            total.update(f"{path.name} {file_digest(path)}\n".encode())
    return total.hexdigest()


def stated_license(directories: Sequence[Path]) -> str:
    """What the nearest README.md's front matter or LICENSE file calls the licence; "" when none does."""
    for directory in directories:
        if name := _front_matter_license(directory / "README.md") or _first_line(directory):
            return name
    return ""


def _front_matter_license(readme: Path) -> str:
    """ "license: other" is explained by license_name (the Hub's model cards)."""
    if not readme.is_file():
        return ""
    opening, _, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    if opening.strip():
        return ""
    try:
        card = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return ""  # a card that nobody can read states no licence
    stated = card.get("license") if isinstance(card, dict) else None
    if stated == "other":
        stated = card.get("license_name", stated)
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")


def _first_line(directory: Path) -> str:
    for name in LICENSE_FILES:
        if (directory / name).is_file():
            lines = (directory / name).read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), "")
    return ""
