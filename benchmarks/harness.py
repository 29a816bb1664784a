"""What the benchmarks share: models of real shapes with random weights, and honest timing.

Times are CPU seconds of the process (so a busy machine does not distort them), taken in interleaved
runs: every candidate once, then every candidate again. Results are medians with their spread.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import lens_attr as la
from lens_attr.evaluation.machine import machine as hardware
from lens_attr.graph import backend_class

RESULTS = Path(__file__).parent / "results"

GPT2_SMALL: dict[str, Any] = {"n_layers": 12, "d_model": 768, "n_heads": 12, "d_vocab": 50_257}
LLAMA_1B: dict[str, Any] = {
    "n_layers": 16,
    "d_model": 2048,
    "n_heads": 32,
    "n_key_value_heads": 8,
    "d_mlp": 8192,
    "d_vocab": 128_256,
}


def hooked(shape: Mapping[str, Any], n_layers: int | None = None, n_ctx: int = 1024) -> Any:
    """A HookedTransformer of this shape (transformer-lens 3.9)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    llama = "n_key_value_heads" in shape
    family: dict[str, Any] = {"act_fn": "gelu_new", "normalization_type": "LN"}
    if llama:
        family = {
            "act_fn": "silu",
            "normalization_type": "RMS",
            "gated_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": 64,
            "final_rms": True,
        }
    sizes = dict(shape) | {"n_layers": n_layers or shape["n_layers"]}
    cfg = HookedTransformerConfig(d_head=64, n_ctx=n_ctx, seed=0, device="cpu", **sizes, **family)
    return HookedTransformer(cfg).eval()


def bridge(shape: Mapping[str, Any], n_layers: int | None = None, n_ctx: int = 1024) -> Any:
    """A TransformerBridge of this shape."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    layers = n_layers or shape["n_layers"]
    if "n_key_value_heads" in shape:
        config = LlamaConfig(
            vocab_size=shape["d_vocab"],
            hidden_size=shape["d_model"],
            intermediate_size=shape["d_mlp"],
            num_hidden_layers=layers,
            num_attention_heads=shape["n_heads"],
            num_key_value_heads=shape["n_key_value_heads"],
            max_position_embeddings=n_ctx,
            attn_implementation="eager",
        )
        original: Any = LlamaForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=shape["d_vocab"],
            n_embd=shape["d_model"],
            n_layer=layers,
            n_head=shape["n_heads"],
            n_positions=n_ctx,
            attn_implementation="eager",
        )
        original = GPT2LMHeadModel(config)
    return TransformerBridge.boot_transformers(
        config._name_or_path or "random", hf_model=original.eval(), device="cpu"
    )


def newest_backend() -> Callable[..., Any]:
    """`hooked` where it exists, else `bridge`."""
    return bridge if backend_class("HookedTransformer") is None else hooked


def interleaved(candidates: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """CPU seconds of every candidate, in turn, after one run of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(runs + 1):
        for name, call in candidates.items():
            start = time.process_time()
            call()
            if run:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], against: str) -> dict[str, dict[str, float]]:
    """Median time and, run by run, the ratio to one candidate: median, lowest and highest."""
    found = {}
    for name, times in seconds.items():
        each = [t / base for t, base in zip(times, seconds[against], strict=True)]
        found[name] = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(each),
            "low": min(each),
            "high": max(each),
        }
    return found


def machine() -> dict[str, Any]:
    """Where and with what it ran."""
    libraries = ("torch", "transformer-lens", "transformers")
    versions = {name: importlib.metadata.version(name) for name in libraries}
    return {
        **hardware(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"lens_attr": la.__version__} | versions,
    }


def describe(found: Mapping[str, Any]) -> str:
    """One line under the title of a results page."""
    where = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return f"{where['date']}, {where['cpu']}, {where['threads']} thread(s), float32; {versions}."


def write(name: str, found: Mapping[str, Any], page: str) -> None:
    """``results/NAME.json`` and ``results/NAME.md``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(page)
    print(page)
