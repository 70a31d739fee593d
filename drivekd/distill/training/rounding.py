"""`student.quantization`: the student computes with the weights that its bundle will have.

Equations: docs/method.md, "Quantization-aware distillation".

What trains keeps fp32 masters. Each of its linear layers multiplies with the rounded master, made once a step, and gets a
parameter `log_scales` beside `weight`, which trains as any other. With LoRA the master is the sum of base and adapter. What is
frozen is rounded when it is loaded, so that features of a frozen vision tower are the bundle's. The embedding's rows are rounded
as they are looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from drivekd.config import LoraConfig, QuantizationConfig
from drivekd.distill.training.sharding import placed
from drivekd.errors import ConfigError
from drivekd.hf_checkpoint import Checkpoint
from drivekd.quantization.form import WeightForm, block_scales, stored
from drivekd.quantization.linears import HEAD, check_patterns, forms_of, linear_layers, matmul_name
from drivekd.quantization.rounded_model import round_embedding, round_layer, untie_head
from drivekd.quantization.scales import SCALES_FILE, check_scales, read_scales
from drivekd.quantization.straight_through import Known, known, straight_through, trained_scales

ADAPTER = "default"
LOG_SCALES = "log_scales"


def adapted_weight(weight: Tensor, up: Tensor, down: Tensor, lora: LoraConfig) -> Tensor:
    """W + (alpha / rank) B A, [out, in], in fp32: what an adapted layer is when it is merged."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight + lora.alpha / lora.rank * (up @ down)


class Rounding:
    """What of a student computes in fewer bits. forms: of every layer, by its name in the graphs.

    active: whether what trains is rounded now; what is frozen always is. holding: whether layers keep what they have rounded.
    most_bytes: of rounded weights that were held at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: QuantizationConfig,
        source: Checkpoint,
        *,
        lora: LoraConfig | None,
        compute_dtype: torch.dtype,
    ) -> None:
        """Round what is frozen, prepare what trains: call it when parameters are marked, on the host, before sharding.

        Scales are those of the checkpoint's weight_scales.safetensors where there is one. Raises ConfigError for a pattern that
        names nothing, and for a file of other forms; CheckpointError for a damaged one.
        """
        layers = linear_layers(model)
        names = list(dict.fromkeys(map(matmul_name, layers)))
        for key in ("exclude", "int8"):
            check_patterns(f"student.quantization.{key}", getattr(config, key), names)
        inputs = {name: layer.weight[0].numel() for name, layer in layers.items()}  # type: ignore[index]
        main = WeightForm(4 if config.precision == "int4" else 8, config.block)
        self.forms = forms_of(inputs, main, exclude=config.exclude, int8=config.int8)
        self.active = config.last_steps == 0
        self.holding = False
        self.most_bytes = 0
        self._frozen: dict[str, Tensor] = {}
        self._layers: dict[str, _RoundedLayer] = {}
        self._given = _given_scales(source, self.forms)
        if self._given:
            check_scales(source.path, self._given, self.forms, layers)
        hosts = {host.base_layer: host for host in model.modules() if isinstance(host, LoraLayer)}
        for name, form in self.forms.items():
            host: Any = hosts.get(layers[name], layers[name])
            if host is not layers[name] or host.weight.requires_grad:
                self._layers[name] = _RoundedLayer(host, form, self, lora, compute_dtype)
                self._layers[name].start(self._given.get(name))
            else:
                self._round_frozen(model, name, layers[name], form)
        embedding: Any = model.get_input_embeddings()
        trains = embedding.weight.requires_grad
        round_embedding(model, config.block, (lambda: self.active) if trains else lambda: True)

    def _round_frozen(self, model: PreTrainedModel, name: str, layer: Any, form: WeightForm) -> None:
        scales = self._given.get(name)
        self._frozen[name] = first_scales(layer.weight.flatten(1), form) if scales is None else scales
        if name == HEAD:
            untie_head(model)
        round_layer(layer, self._frozen[name], form)

    @property
    def masters(self) -> list[nn.Module]:
        """The linear layers whose frozen weight is a part of what is rounded: it must stay fp32."""
        return [layer.linear for layer in self._layers.values() if layer.linear is not layer.host]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, what trains is rounded once and kept: no parameter may change before the end."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
            self.most_bytes = max(self.most_bytes, sum(layer.num_bytes for layer in self._layers.values()))
            for layer in self._layers.values():
                layer.known = None

    def begin(self) -> None:
        """From now on what trains is rounded, too, with scales of its weights as they are now, where no checkpoint gave any."""
        self.active = True
        for name, layer in self._layers.items():
            if name not in self._given:
                layer.start(None)

    def scales(self, trained: Mapping[str, Tensor], names: Mapping[nn.Parameter, str], device: torch.device) -> dict[str, Tensor]:
        """The scales that are computed with now, by layer. trained: whole tensors by parameter name; device: that of training."""
        found = dict(self._frozen)
        for name, layer in self._layers.items() if self.active else ():
            key = names[layer.log_scales]
            if key in trained:  # one process has them
                found[name] = trained_scales(trained[key].to(device))
        return {name: found[name] for name in self.forms if name in found}


class _RoundedLayer:
    """A linear layer (or a convolution whose windows do not overlap) that trains. host: what is called, peft's layer around it
    where there is one; linear: what holds weight and bias."""

    def __init__(
        self, host: Any, form: WeightForm, rounding: Rounding, lora: LoraConfig | None, compute_dtype: torch.dtype
    ) -> None:
        self.host = host
        self.form = form
        self.known: Known | None = None
        self._rounding, self._lora, self._dtype = rounding, lora, compute_dtype
        self._adapted = isinstance(host, LoraLayer)
        self.linear: Any = host.base_layer if self._adapted else host
        shape = block_scales(self.linear.weight.detach().flatten(1), form)
        host.register_parameter(LOG_SCALES, nn.Parameter(torch.zeros_like(shape)))
        self._plain = host.forward
        host.forward = self._forward

    @property
    def log_scales(self) -> nn.Parameter:
        """Looked up: sharding makes new parameters."""
        parameter: nn.Parameter = self.host.log_scales
        return parameter

    @property
    def num_bytes(self) -> int:
        """What is kept of this step."""
        return 0 if self.known is None else self.known.weight.nbytes

    @torch.no_grad()
    def start(self, given: Tensor | None) -> None:
        """Set the scales: those given, or of the master as it is."""
        scales = first_scales(self._master(whole=True), self.form) if given is None else given
        self.log_scales.copy_(placed(scales.log().to(self.log_scales.device), self.log_scales))

    def _master(self, *, whole: bool = False) -> Tensor:
        """What is rounded, [out, in]; with gradients where they are on."""
        take = _whole if whole else _as_it_is
        weight = take(self.linear.weight).flatten(1)
        if not self._adapted:
            return weight
        assert self._lora is not None
        up, down = take(self.host.lora_B[ADAPTER].weight), take(self.host.lora_A[ADAPTER].weight)
        return adapted_weight(weight, up, down, self._lora)

    def _forward(self, inputs: Tensor) -> Tensor:
        if not self._rounding.active:
            plain: Tensor = self._plain(inputs)
            return plain
        weight = self._weight()
        if isinstance(self.linear, nn.Linear):
            return F.linear(inputs, weight, self.linear.bias)
        output: Tensor = self.linear._conv_forward(inputs, weight.view_as(self.linear.weight), self.linear.bias)
        return output

    def _weight(self) -> Tensor:
        if self._rounding.holding and self.known is None:
            with torch.no_grad():
                self.known = known(self._master(), self.log_scales, self.form, self._dtype)
        if not self._adapted:
            return straight_through(self._master(), self.log_scales, self.form, self.known)
        # else autograd would keep every sum of base and adapter until its backward pass
        result: Tensor = checkpoint(self._through, use_reentrant=False, preserve_rng_state=False)
        return result

    def _through(self) -> Tensor:
        return straight_through(self._master(), self.log_scales, self.form, self.known)


def first_scales(weight: Tensor, form: WeightForm) -> Tensor:
    """Those of rounding to the nearest, as an export without anything else takes them."""
    return stored(block_scales(weight.detach().float(), form))


def _given_scales(source: Checkpoint, forms: Mapping[str, WeightForm]) -> dict[str, Tensor]:
    """The checkpoint's own scales. Raises ConfigError naming the first layer whose form is another one."""
    scales, given = read_scales(source.path)
    for layer in sorted(given.keys() | forms.keys()) if given else ():
        if given.get(layer) != forms.get(layer):
            raise ConfigError(
                f"student.quantization asks for {_told(forms.get(layer))} for {layer}, but {source.path / SCALES_FILE} has "
                f"{_told(given.get(layer))}; give the settings that the checkpoint was quantized with, or remove that file to "
                "begin with scales of the weights"
            )
    return scales


def _told(form: WeightForm | None) -> str:
    return "float" if form is None else f"int{form.bits} in blocks of {form.block}"


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
