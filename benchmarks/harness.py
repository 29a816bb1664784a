"""What the benchmarks share: models of real shapes with random weights, clocks, rows of one table.

Candidates are run in turn, so that whatever else the machine does hits all of them, and compared
run by run. On a GPU every reading of the clock waits for the device first.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import tokenizers
import torch
import transformers

import lens_attr as la
from lens_attr._version import versions
from lens_attr.evaluation.machine import machine as hardware
from lens_attr.graph import backend_class
from lens_attr.runs.memory import peak_of

TARGET = la.LogitDiff(5, 6)
MIB = 2**20
BACKENDS = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        quick: the smallest cells only, and few runs.
        runs: timed runs per candidate, where not the cell's own number.
        device: ``"cpu"`` or ``"cuda"``.
        clock: ``"wall"``, or ``"cpu"`` seconds of this process, for a machine that is not idle.
        seed: of weights and tokens.
    """

    quick: bool = False
    runs: int | None = None
    device: str = "cpu"
    clock: Literal["wall", "cpu"] = "wall"
    seed: int = 0

    def now(self) -> float:
        """Seconds, once the device has done all its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if self.clock == "wall" else time.process_time()

    def ids(self, batch: int, length: int) -> torch.Tensor:
        """Random token ids."""
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(10, 1000, (batch, length), generator=generator)
        return ids.to(self.device)


# ------------------------------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Row:
    """One measured number beside another.

    Attributes:
        what: what was measured.
        setting: model, backend, batch and length.
        values: one per run.
        unit: of the values.
        against: what they are compared with.
        base: its values, in the same runs.
        aim: the largest ratio that we want.
        note: what else the reader should know.
    """

    what: str
    setting: str
    values: list[float]
    unit: str = "s"
    against: str = ""
    base: list[float] = field(default_factory=list)
    aim: float | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Run by run."""
        return [v / b for v, b in zip(self.values, self.base, strict=True)] if self.base else []

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is within the aim."""
        return None if self.aim is None else float(np.median(self.ratios)) <= self.aim

    def cells(self) -> list[str]:
        """The row as it stands in the table."""
        aim = "" if self.aim is None else f"at most {self.aim:.2f}"
        verdict = {None: "", True: "yes", False: "**no**"}[self.met]
        measured = f"{_spread(self.values)} {self.unit}"
        ratio = _spread(self.ratios) if self.base else ""
        return [self.setting, self.what, measured, self.against, ratio, aim, verdict, self.note]


HEADER = ("setting", "what", "measured", "beside", "ratio", "aim", "met", "note")


def _spread(values: list[float]) -> str:
    """Median, and the quartiles where there is more than one run."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    digits = 2 if middle < 100 else 0
    shown = f"{middle:.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: list[Row]) -> str:
    """Rows in Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    return "\n".join(lines + [f"| {' | '.join(row.cells())} |" for row in rows])


# ----------------------------------------------------------------------------------- measuring


def interleaved(
    calls: Mapping[str, Callable[[], float]], runs: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """What every call returns, in turn, after one run of each that does not count.

    Every second run goes through them backwards: what one leaves behind in caches and on the heap
    falls on both its neighbours.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(-int(warm_up), runs):
        for name in list(calls)[:: -1 if run % 2 else 1]:
            value = calls[name]()
            if run >= 0:
                found[name].append(value)
    return found


def seconds_of(options: Options, call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = options.now()
    call()
    return options.now() - start


def peak(options: Options, call: Callable[[], Any]) -> float:
    """MiB of tensors alive at once during a call, beyond those that were there before."""
    if options.device != "cuda":
        return peak_of(call) / MIB
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


# -------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, the rest being what its family usually has."""

    title: str
    layers: int
    d_model: int
    heads: int
    vocabulary: int
    key_value_heads: int | None = None
    d_mlp: int | None = None

    @property
    def is_llama(self) -> bool:
        """Else it is a GPT-2."""
        return self.key_value_heads is not None


GPT2 = Shape("GPT-2 small", 12, 768, 12, 50_257)
LLAMA = Shape("Llama-3.2-1B", 16, 2048, 32, 128_256, key_value_heads=8, d_mlp=8192)


def newest_backend() -> str:
    """``"hooked"`` where it exists."""
    return "bridge" if backend_class("HookedTransformer") is None else "hooked"


def build(
    options: Options, shape: Shape, backend: str, layers: int | None = None, n_ctx: int = 1024
) -> Any:
    """A model of this shape with random weights."""
    torch.manual_seed(options.seed)
    make = _hooked if backend == "hooked" else _bridge
    return make(shape, layers or shape.layers, n_ctx, options.device)


def _hooked(shape: Shape, layers: int, n_ctx: int, device: str) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    family: dict[str, Any] = {"act_fn": "gelu_new", "normalization_type": "LN"}
    if shape.is_llama:
        family = {
            "act_fn": "silu",
            "normalization_type": "RMS",
            "gated_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": 64,
            "final_rms": True,
            "n_key_value_heads": shape.key_value_heads,
            "d_mlp": shape.d_mlp,
        }
    cfg = HookedTransformerConfig(
        n_layers=layers,
        d_model=shape.d_model,
        n_heads=shape.heads,
        d_head=64,
        d_vocab=shape.vocabulary,
        n_ctx=n_ctx,
        seed=0,
        device=device,
        **family,
    )
    return HookedTransformer(cfg).eval()


def _bridge(shape: Shape, layers: int, n_ctx: int, device: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    config = _config(shape, layers, n_ctx)
    config._attn_implementation = "eager"
    original = transformers.AutoModelForCausalLM.from_config(config).eval()
    with tempfile.TemporaryDirectory() as directory:
        config.architectures = [type(original).__name__]
        config.save_pretrained(directory)
        tokenizer().save_pretrained(directory)
        return TransformerBridge.boot_transformers(directory, hf_model=original, device=device)


def _config(shape: Shape, layers: int, n_ctx: int) -> Any:
    if not shape.is_llama:
        return transformers.GPT2Config(
            vocab_size=shape.vocabulary,
            n_embd=shape.d_model,
            n_layer=layers,
            n_head=shape.heads,
            n_positions=n_ctx,
        )
    return transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp or 4 * shape.d_model,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=n_ctx,
    )


@cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One that knows next to nothing: the benchmarks speak in ids."""
    words = {"<unk>": 0, "<|endoftext|>": 1}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **end)


def setting(shape: Shape, backend: str, batch: int, length: int, layers: int | None = None) -> str:
    """Model, backend, batch and length in words."""
    depth = f", {layers} layers" if layers else ""
    return f"{shape.title}{depth}, {BACKENDS[backend]}, B = {batch}, T = {length}"


# ------------------------------------------------------------------------------------- machine


def machine(options: Options) -> dict[str, Any]:
    """Where and with what it ran."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        **hardware(torch.device(options.device)),
        "clock": options.clock,
        "dtype": "float32",
        "allocator": {name: os.environ[name] for name in sorted(os.environ) if "MALLOC" in name},
        "python": platform.python_version(),
        "versions": versions(),
    }


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Look inside a call: ``owner.name`` is another function meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
