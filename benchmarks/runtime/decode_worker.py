"""One engine of `decode.py` in a process of its own: it answers JSON lines on stdin with JSON lines on stdout.

    {"prompt": [ids], "room": N}    a new sequence: read the prompt, take its first token; room for N more
    {"steps": n}                    n greedy steps, each reads the token of the step before
    {"save": FILE}                  write the logits behind the prompt as .npy, float32 [V]

A reply has seconds on the clock of each call, `cpu_s` of all threads, tokens, and resident memory. The first token is part of the
prompt's seconds. Needs numpy and onnxruntime, onnxruntime-genai or llama-cpp-python; no torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import memory_mb
from benchmarks.runtime.worker import work

LLAMA_CONTEXT = 4096  # tokens of prompt and answer


class Engine(Protocol):
    """A greedy decoder of one row. packages: whose versions a figure depends on. logits: behind the prompt, [V]."""

    packages: tuple[str, ...]
    logits: NDArray[np.float32]

    def start(self, prompt: Sequence[int], room: int) -> int:
        """Read a prompt from nothing; returns the first token."""
        ...

    def step(self) -> int:
        """Read the last token; returns the next."""
        ...


class BoundBundle:
    """A bundle's decoder.gqa with all memory bound by hand: K/V in place, inputs and logits in the same place at each step."""

    packages: tuple[str, ...] = ("onnxruntime", "numpy")

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        from drivekd.runtime.bundle.manifest import manifest_from_bytes
        from drivekd.runtime.decoder.embedding import EMBEDDING_FILE, embedding_from_bytes

        manifest = manifest_from_bytes((folder / "manifest.json").read_bytes(), str(folder))
        self._model, self._spec = manifest.model, manifest.graphs["decoder.gqa"]
        data = (folder / EMBEDDING_FILE).read_bytes()
        self._embedding = embedding_from_bytes(data, manifest.embedding, manifest.model, str(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(folder / self._spec.file), options, providers=providers)
        self._share: Callable[[Any], Any] = onnxruntime.OrtValue.ortvalue_from_numpy
        self.logits = np.empty(0, np.float32)

    def start(self, prompt: Sequence[int], room: int) -> int:
        self._kv = self._new_kv(len(prompt) + room)
        self._read, self._out = 0, np.empty((1, self._model.vocab_size), np.float32)
        self._bind(len(prompt))
        self._token = self._call(prompt)
        self.logits = self._out[0].copy()
        self._bind(1)
        return self._token

    def rewind(self, num_tokens: int, token: int) -> None:
        """Back to where num_tokens had been read and `token` was the last choice: what lies behind is written over."""
        self._read, self._token = num_tokens, token

    def step(self) -> int:
        self._token = self._call([self._token])
        return self._token

    def _new_kv(self, capacity: int) -> dict[str, NDArray[Any]]:
        """By past name; zeros, since what lies behind the tokens is multiplied by zero at most."""
        shape = (1, self._model.num_kv_heads, capacity, self._model.head_dim)
        past = [tensor for tensor in self._spec.inputs if tensor.name.startswith("past_key_values.")]
        return {tensor.name: np.zeros(shape, tensor.dtype) for tensor in past}

    def _bind(self, length: int) -> None:
        model = self._model
        self._inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.empty((1, length, model.hidden_size), np.float32),
            "seqlens_k": np.empty(1, np.int32),
            "total_sequence_length": np.empty(1, np.int32),
        }
        if model.rotary_axes > 1:
            self._inputs["position_ids"] = np.empty((model.rotary_axes, 1, length), np.int64)
        shared = {name: self._share(array) for name, array in {**self._inputs, **self._kv}.items()}
        outputs = {name.replace("past_key_values", "present"): shared[name] for name in self._kv}
        self._binding, self._held = self._session.io_binding(), (shared, self._share(self._out))
        for name, value in shared.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in {**outputs, "logits": self._held[1]}.items():
            self._binding.bind_ortvalue_output(name, value)

    def _call(self, tokens: Sequence[int]) -> int:
        past, self._read = self._read, self._read + len(tokens)
        self._inputs["inputs_embeds"][0] = self._embedding.rows(np.asarray(tokens, np.int64))
        self._inputs["seqlens_k"][0] = self._read - 1
        self._inputs["total_sequence_length"][0] = self._read
        if "position_ids" in self._inputs:
            self._inputs["position_ids"][:] = np.arange(past, self._read)
        self._session.run_with_iobinding(self._binding)
        return int(self._out[0].argmax())


def open_genai(folder: Path, threads: int) -> tuple[Any, Any]:
    """The package and a model that its builder made."""
    onnxruntime_genai: Any = import_module("onnxruntime_genai")  # only the peer's environment has it
    config = onnxruntime_genai.Config(str(folder))
    settings = {"intra_op_num_threads": threads, "log_severity_level": 3}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": settings}}}))
    return onnxruntime_genai, onnxruntime_genai.Model(config)


class Genai:
    """onnxruntime-genai's own loop over a model that its builder made."""

    packages: tuple[str, ...] = ("onnxruntime-genai", "onnxruntime", "numpy")

    def __init__(self, folder: Path, threads: int) -> None:
        self._genai, self._model = open_genai(folder, threads)
        self.logits = np.empty(0, np.float32)

    def start(self, prompt: Sequence[int], room: int) -> int:
        parameters = self._genai.GeneratorParams(self._model)
        length = len(prompt) + room + 1  # a sequence that ends takes no more steps
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False, past_present_share_buffer=True)
        self._generator = self._genai.Generator(self._model, parameters)
        self._generator.append_tokens(np.asarray(prompt, np.int32))
        token = self.step()
        self.logits = np.asarray(self._generator.get_output("logits"), np.float32).reshape(-1, self._vocabulary())[-1]
        return token

    def step(self) -> int:
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])

    def _vocabulary(self) -> int:
        return int(self._generator.get_output("logits").shape[-1])


def open_llama(model: Path, **settings: Any) -> Any:
    """llama.cpp on a GGUF file. settings: of llama_cpp.Llama.

    Without repacked weights: its AMX kernels end the process on a virtual machine that lists AMX and lacks it.
    """
    llama_cpp: Any = import_module("llama_cpp")  # only the peer's environment has it
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False
    llama_cpp.llama_cpp.llama_model_default_params = lambda: params  # what Llama starts from
    return llama_cpp.Llama(str(model), verbose=False, **settings)


class Llama:
    """llama.cpp's loop, through its Python binding."""

    packages: tuple[str, ...] = ("llama-cpp-python", "numpy")

    def __init__(self, model: Path, threads: int) -> None:
        self._llama = open_llama(model, n_ctx=LLAMA_CONTEXT, n_threads=threads, n_threads_batch=threads)
        self.logits = np.empty(0, np.float32)

    def start(self, prompt: Sequence[int], room: int) -> int:
        self._llama.reset()
        self._token = self._call(prompt)
        self.logits = self._behind().copy()
        return self._token

    def step(self) -> int:
        self._token = self._call([self._token])
        return self._token

    def _call(self, tokens: Sequence[int]) -> int:
        self._llama.eval(tokens)
        return int(self._behind().argmax())

    def _behind(self) -> NDArray[np.float32]:
        pointer = self._llama._ctx.get_logits_ith(-1)
        return np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),))


ENGINES: dict[str, Callable[[Path, int], Engine]] = {"bound": BoundBundle, "genai": Genai, "llama": Llama}


def serve(engine: Engine) -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "save" in asked:
            np.save(asked["save"], engine.logits)
            print(json.dumps({}), flush=True)
        elif "prompt" in asked:
            answer(partial(engine.start, asked["prompt"], asked["room"]), 1)
        else:
            answer(engine.step, asked["steps"])


def answer(call: Callable[[], int], count: int) -> None:
    """Print what `count` calls took and gave."""
    tokens, seconds, cpu_started_s = [], [], time.process_time()
    for _ in range(count):
        started_s = time.perf_counter()
        tokens.append(call())
        seconds.append(time.perf_counter() - started_s)
    cpu_s = time.process_time() - cpu_started_s
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "tokens": tokens, **memory_mb()}), flush=True)


def main() -> None:
    work(__doc__, ENGINES, lambda engine, folder, threads: ENGINES[engine](folder, threads), serve)


if __name__ == "__main__":
    main()
