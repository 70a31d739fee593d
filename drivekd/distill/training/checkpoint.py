"""Checkpoints: what resuming needs, and models in the Hugging Face layout; safetensors and JSON, no pickle.

checkpoints/step-N
    model.safetensors, config.json, tokenizer.json, ...   the student as it is; with LoRA instead:
    trained.safetensors                                   what trains, by name: the base is not written again
    weight_scales.safetensors, trained.safetensors        with student.quantization: the scales that were computed with (see
                                                          drivekd/quantization/scales.py); their logarithms, which train
    contract.json                                         what eval, export and car hold themselves to; see drivekd/contract.py
    data_traces.safetensors                               hashes of what was trained on; see drivekd/data/traces.py
    optimizer.safetensors                                 AdamW's moments by parameter name
    training_state.json                                   TrainingState, the validations so far in it
final/ and best/ are made by `write_student`: a whole model, adapters merged, and with LoRA adapter/ besides, in peft's layout.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from drivekd.config import StudentConfig
from drivekd.contract import Contract, write_contract
from drivekd.data.traces import Traces
from drivekd.distill.training.sharding import placed
from drivekd.distill.training.student import merged, write_adapter
from drivekd.distill.weighting import TermState
from drivekd.errors import CheckpointError
from drivekd.files import TRACES_FILE, file_digest, remove_leftovers, whole_directory, write_whole_json
from drivekd.hf_checkpoint import Checkpoint, write_promised
from drivekd.log import logger
from drivekd.models import load_model
from drivekd.quantization.form import WeightForm
from drivekd.quantization.linears import HEAD
from drivekd.quantization.scales import write_scales

from .optimizer import OPTIMIZER_FILE, is_scale


@dataclass(frozen=True)
class Validations:
    """last: the newest loss (CE). best, best_step: that of the best validation, and when. without_gain: validations since then.
    last_accuracy, best_accuracy: the same where accuracy is measured; None where it is not."""

    last: float | None = None
    best: float | None = None
    best_step: int | None = None
    without_gain: int = 0
    last_accuracy: float | None = None
    best_accuracy: float | None = None

    def after(self, step: int, loss: float, accuracy: float | None = None) -> Validations:
        """With one more. A lower loss is better; with an accuracy, a higher one, or an equal one with a lower loss. Of equals the
        first stays."""
        if self.best is None or _rank(loss, accuracy) > _rank(self.best, self.best_accuracy):
            return Validations(loss, loss, step, 0, accuracy, accuracy)
        return replace(self, last=loss, last_accuracy=accuracy, without_gain=self.without_gain + 1)

    def exhausted(self, patience: int) -> bool:
        """Whether to stop early; patience 0 = never."""
        return 0 < patience <= self.without_gain


def _rank(loss: float, accuracy: float | None) -> tuple[float, float]:
    return (0.0 if accuracy is None else accuracy), -loss


STATE_FILE = "training_state.json"
TRAINED_FILE = "trained.safetensors"
LICENSE_NAMES = ("LICENSE", "NOTICE")  # what their names begin with; a derived model keeps them
_STEP_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class SavedStudent:
    """What a student's files are made from. trained: the whole of each tensor that trains, by name; model has the frozen ones.

    source: what training started from. scales, forms: of rounded layers, by their names in the graphs.
    """

    model: PreTrainedModel
    trained: Mapping[str, Tensor]
    source: Checkpoint
    config: StudentConfig
    contract: Contract
    traces: Traces
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    forms: Mapping[str, WeightForm] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What trains of a model as everyone knows it, without the scales' logarithms."""
        return {name: value for name, value in self.trained.items() if not is_scale(name)}

    @property
    def log_scales(self) -> dict[str, Tensor]:
        """The logarithms alone."""
        return {name: value for name, value in self.trained.items() if is_scale(name)}


@dataclass(frozen=True)
class TrainingState:
    """step: optimizer steps done. threads, torch: what bit-equality depends on. weighting: of dynamic weights.

    inputs: sha256 of the files that the run learns from, by key. files: sha256 of every other file of the checkpoint, by name.
    Data position, schedule and every draw of a random number are functions of seed and step.
    """

    step: int
    threads: int
    torch: str
    weighting: TermState
    inputs: dict[str, str]
    validations: Validations
    files: dict[str, str]


def write_student(directory: Path, student: SavedStudent) -> None:
    """Write a whole model, processor files and contract into an existing directory; what `drivekd export` and `eval` take.

    With LoRA the base is read again: what is merged into is the checkpoint that training started from, in fp32. What trains is
    written as its masters; with their scales they are rounded to the very weights that training computed with.
    """
    _write_small_files(directory, student)
    if student.scales:
        write_scales(directory, student.scales, student.forms)
    lora = student.config.lora
    if lora is None:
        student.model.save_pretrained(directory, state_dict={**_frozen(student), **student.weights})
        return
    base = load_model(student.source)
    with torch.no_grad():
        base.load_state_dict(merged(dict(base.named_parameters()), student.weights, lora), strict=False)
    base.save_pretrained(directory)
    if student.config.train == ["language_model"]:
        write_adapter(directory / "adapter", student.model, lora, student.source.path, student.trained)
        _write_promises(directory / "adapter", student)
        if student.scales:  # of the merged weights, which is what an export makes of an adapter
            write_scales(directory / "adapter", student.scales, student.forms)
    else:
        logger.info("%s: no adapter/, since adapters are not all that trained; the merged model has everything", directory)


def write_checkpoint(directory: Path, student: SavedStudent, moments: Mapping[str, Tensor], state: TrainingState) -> None:
    """Write checkpoints/step-N whole or not at all; state.files is filled in here. Raises DrivekdError when the disk is full.

    moments: `optimizer_tensors`, the whole of each.
    """
    with whole_directory(directory) as temporary:
        if student.config.lora is None:
            write_student(temporary, student)
            if student.log_scales:
                save_file(_savable(student.log_scales), temporary / TRAINED_FILE)
        else:
            save_file(_savable(student.trained), temporary / TRAINED_FILE)
            _write_promises(temporary, student)
        save_file(_savable(moments), temporary / OPTIMIZER_FILE)
        digests = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
        write_whole_json(temporary / STATE_FILE, asdict(state) | {"files": digests})


def newest_checkpoint(checkpoints: Path) -> tuple[Path, TrainingState]:
    """The newest complete checkpoint; a kill can only leave temporary directories, which are removed here.

    Raises CheckpointError when there is none, or the newest one is damaged.
    """
    remove_leftovers(checkpoints, "step-*")  # every process of a run looks here
    found = step_directories(checkpoints)
    if not found:
        raise CheckpointError(f"{checkpoints}: no complete checkpoint to resume from; run without --resume in a new folder")
    return found[-1], _read_state(found[-1])


def step_directories(checkpoints: Path) -> list[Path]:
    """checkpoints/step-N, oldest first."""
    if not checkpoints.is_dir():
        return []
    found = [(int(match[1]), path) for path in checkpoints.iterdir() if (match := _STEP_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def remove_old_checkpoints(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` (1 or more) of a run."""
    for path in step_directories(checkpoints)[:-keep]:
        shutil.rmtree(path)


@torch.no_grad()
def restore_weights(directory: Path, config: StudentConfig, names: Mapping[nn.Parameter, str]) -> None:
    """Put what trains back into the parameters, wherever they lie. Raises CheckpointError when it is of another student."""
    weights = dict[str, Tensor]() if config.lora is not None else dict(load_model(directory).named_parameters())
    if (directory / TRAINED_FILE).is_file():
        weights |= load_file(directory / TRAINED_FILE)
    for parameter, name in names.items():
        if name not in weights or weights[name].shape != parameter.shape:
            raise CheckpointError(
                f"{directory}: no weights for {name} of shape {list(parameter.shape)}; it is of another student"
            )
        parameter.copy_(placed(weights[name], parameter))


def _frozen(student: SavedStudent) -> dict[str, Tensor]:
    """A tied head that was rounded apart from the embedding is not of the model: its scales say what it is."""
    model = student.model
    tied = bool(model.config.tie_word_embeddings)
    names = {name: value for name, value in model.named_parameters() if name not in student.trained}
    return {name: value for name, value in names.items() if not (tied and name == f"{HEAD}.weight")}


def _write_small_files(directory: Path, student: SavedStudent) -> None:
    """All but weights and config.json."""
    write_promised(student.source, directory, student.contract)
    _write_promises(directory, student)
    for path in student.source.path.iterdir():
        if path.name.startswith(LICENSE_NAMES) and path.is_file():
            shutil.copyfile(path, directory / path.name)


def _write_promises(directory: Path, student: SavedStudent) -> None:
    """What whoever takes the weights must know of their training."""
    write_contract(directory, student.contract)
    student.traces.write(directory / TRACES_FILE)


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _read_state(directory: Path) -> TrainingState:
    path = directory / STATE_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        state = TrainingState(**fields | {"validations": Validations(**fields["validations"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove {directory} to resume from the one before") from error
    for name, digest in state.files.items():
        if not (directory / name).is_file() or file_digest(directory / name) != digest:
            raise CheckpointError(f"{directory / name}: damaged or missing; remove {directory} to resume from the one before")
    return state
