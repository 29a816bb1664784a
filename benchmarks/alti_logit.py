"""ALTI-Logit: time beside gradient x input, and peak memory against the length of the text.

    python benchmarks/alti_logit.py                    # GPT-2-small shape, about 5 minutes
    python benchmarks/alti_logit.py --xl               # and GPT-2-xl at T = 256 (needs 3 GiB)

Random weights in float32, since neither depends on their values. Times are medians of interleaved
runs in one process. Memory is the growth of the process's peak resident set during one call, in a
process of its own (read from /proc, so Linux only), beside that of a bare forward.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

import lens_attr as la
from lens_attr.graph import resolve

SHAPES = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
METHODS = ("alti_logit", "gradient_x_input")
RESULTS = Path(__file__).parent / "results"


def build(shape: str, seed: int) -> Any:
    """A model of this shape with random weights, on the backend that every version has."""
    torch.manual_seed(seed)
    config = GPT2Config(**SHAPES[shape], n_positions=2048)
    config._attn_implementation = "eager"
    with tempfile.TemporaryDirectory() as directory:
        config.architectures = ["GPT2LMHeadModel"]
        config.save_pretrained(directory)
        original = (
            one_block_many_times(config).eval()
            if shape == "gpt2-xl"
            else GPT2LMHeadModel(config).eval()
        )
        return TransformerBridge.boot_transformers(directory, hf_model=original, device="cpu")


def one_block_many_times(config: GPT2Config) -> GPT2LMHeadModel:
    """Every block with the parameters of the first, so that a large shape needs little memory.

    What a call allocates beyond the parameters is the same.
    """
    depth, config.n_layer = config.n_layer, 1
    model = GPT2LMHeadModel(config)
    first = model.transformer.h[0]
    shared = {id(one): one for one in (*first.parameters(), *first.buffers())}
    for layer in range(1, depth):
        block = copy.deepcopy(first, dict(shared))
        block.attn.layer_idx = layer
        model.transformer.h.append(block)
    model.config.n_layer = depth
    return model


def explain(model: Any, ids: torch.Tensor, method: str) -> None:
    """One call; ``"forward"`` is what every method runs first: logits at the last position."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "forward":
            with torch.no_grad():
                resolve(model).logits_at(ids, None, torch.tensor([-1]))
        else:
            la.attribute(model, ids, la.LogitDiff(12, 13), method)


def random_ids(length: int) -> torch.Tensor:
    return torch.randint(0, 50_000, (1, length))


def timed(length: int, runs: int, seed: int) -> dict[str, list[float]]:
    """Seconds of every run, the methods in turn, after one run of each that does not count."""
    model, ids = build("gpt2", seed), random_ids(length)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for run in range(runs + 1):
        for method in METHODS:
            start = time.perf_counter()
            explain(model, ids, method)
            if run:
                seconds[method].append(time.perf_counter() - start)
    return seconds


def growth(shape: str, length: int, method: str, seed: int, threads: int) -> dict[str, float]:
    """MiB by which one call raises the peak of this (fresh) process, and its seconds."""
    torch.set_num_threads(threads)
    model, ids = build(shape, seed), random_ids(length)
    explain(model, random_ids(8), method)  # what is allocated once and kept
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    start = time.perf_counter()
    explain(model, ids, method)
    return {"mib": _status("VmHWM") - before, "seconds": time.perf_counter() - start}


def _status(name: str) -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) / 1024


def memory(
    pool: ProcessPoolExecutor, shape: str, length: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Growth of every method at one length, and what ALTI-Logit needs beyond the forward."""
    row: dict[str, Any] = {"shape": shape, "tokens": length}
    for method in ("forward", *METHODS):
        job = pool.submit(growth, shape, length, method, options.seed, options.threads)
        row[method] = job.result()
    row["beyond the forward, MiB"] = row["alti_logit"]["mib"] - row["forward"]["mib"]
    return row


def machine(threads: int) -> dict[str, Any]:
    """Where and with what it ran."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    libraries = ("torch", "transformer-lens", "transformers")
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "threads": threads,
        "python": platform.python_version(),
        "dtype": "float32",
        "versions": {"lens_attr": la.__version__}
        | {name: importlib.metadata.version(name) for name in libraries},
    }


def table(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    times = found["time"]
    lines = [
        "# ALTI-Logit: time and memory",
        "",
        f"`python benchmarks/alti_logit.py`, {found['date']}. {found['machine']['cpu']}, "
        f"{found['machine']['threads']} thread(s), float32, TransformerBridge; "
        + ", ".join(f"{name} {v}" for name, v in found["machine"]["versions"].items())
        + f"; random weights, seed {found['seed']}.",
        "",
        f"Time at T = {times['tokens']}, GPT-2-small shape, {times['runs']} interleaved runs:",
        "",
        "| method | median, s | fastest to slowest, s |",
        "|---|---|---|",
    ]
    for method in METHODS:
        runs = times[method]
        spread = f"{min(runs):.2f} to {max(runs):.2f}"
        lines.append(f"| {method} | {statistics.median(runs):.2f} | {spread} |")
    lines += [
        "",
        f"ALTI-Logit takes {times['ratio']:.2f} times as long as gradient x input.",
        "",
        "Growth of the peak resident memory during one call, in MiB (time: ALTI-Logit's):",
        "",
        "| shape | T | forward | ALTI-Logit | beyond the forward | gradient x input | time, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["memory"]:
        cells = [row[m]["mib"] for m in ("forward", "alti_logit")]
        cells += [row["beyond the forward, MiB"], row["gradient_x_input"]["mib"]]
        shown = " | ".join(f"{cell:.0f}" for cell in cells)
        seconds = f"{row['alti_logit']['seconds']:.1f}"
        lines.append(f"| {row['shape']} | {row['tokens']} | {shown} | {seconds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--time-at", type=int, default=200, help="tokens")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--xl", action="store_true", help="also GPT-2-xl at T = 256")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cells = [("gpt2", length) for length in options.lengths]
    cells += [("gpt2-xl", 256)] if options.xl else []
    # A process per measurement: what one leaves allocated must not hide the next one's growth.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        rows = []
        for shape, length in cells:
            rows.append(memory(pool, shape, length, options))
            print(json.dumps(rows[-1]), flush=True)
    seconds = timed(options.time_at, options.runs, options.seed)
    medians = {method: statistics.median(runs) for method, runs in seconds.items()}
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(options.threads),
        "seed": options.seed,
        "time": {
            "tokens": options.time_at,
            "runs": options.runs,
            "ratio": medians["alti_logit"] / medians["gradient_x_input"],
            **seconds,
        },
        "memory": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "alti_logit.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "alti_logit.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
