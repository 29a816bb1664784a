"""How much faster pruning and patching are than the obvious loops, at GPT-2-small shape.

    python benchmarks/circuits.py [--backend hooked] [--layers 12] [--rows 4] [--repeats 3]

Random weights, 50 257 tokens. Pruning is compared with one full forward per step and checked to
give the same accuracy at every step; the head sweep with `transformer_lens.patching`, and checked
to give the same numbers. Seconds are processor time of one thread, median (lowest-highest); the two
sides take turns. The limit is what the head sweep could gain if both sides spent all their time in
matrix products with weights, at the same speed: below the patched head nothing runs, of its block
the output projection and the MLP, of the last block queries, keys and values and the scored
position, and one position is unembedded.

Writes benchmarks/results/circuits.md and .json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from torch import Tensor
from transformer_lens import patching

import lens_attr as la
from lens_attr.circuits import Ranking, patch, prune, random_ranking

RESULTS = Path(__file__).parent / "results"
AIMS = {"prune": 2.5, "head patching": 3.0}


@dataclass(frozen=True)
class Row:
    """One comparison: seconds of both sides, medians and extremes over the repeats."""

    what: str
    backend: str
    ours: list[float]
    theirs: list[float]
    equal: str
    limit: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    def cells(self) -> list[str]:
        """The row of the table."""
        spread = lambda s: f"{statistics.median(s):.2f} ({min(s):.2f}-{max(s):.2f})"  # noqa: E731
        aim = AIMS[self.what]
        ratio = f"{self.ratio:.2f}"
        return [
            self.what,
            self.backend,
            spread(self.theirs),
            spread(self.ours),
            ratio,
            f"{aim}",
            "" if self.limit is None else f"{self.limit:.2f}",
            self.equal,
        ]


def saved_model(directory: Path, layers: int) -> Path:
    """GPT-2 small with random weights, as a folder that every backend loads."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=layers, n_ctx=1024)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    words = {"<|endoftext|>": 50256, "<unk>": 0}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **end)
    fast.save_pretrained(directory)
    return directory


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, which other load on the machine hardly touches, and result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def interleaved(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> Any:
    """Seconds of both in turn, and their last results."""
    seconds: tuple[list[float], list[float]] = ([], [])
    results = []
    for _ in range(repeats):
        results = []
        for run, times in zip((ours, theirs), seconds, strict=True):
            took, result = timed(run)
            times.append(took)
            results.append(result)
    return seconds, results


@torch.no_grad()
def obvious_pruning(model: Any, ids: Tensor, pair: Tensor, ranking: Ranking) -> np.ndarray:
    """Accuracy after every step, one full forward each."""

    def remove(heads: list[int], z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, heads] = 0
        return z

    accuracy = []
    for step in range(ranking.scores.size + 1):
        gone: dict[int, list[int]] = {}
        for layer, head in ranking.order[:step]:
            gone.setdefault(layer, []).append(head)
        hooks = [(f"blocks.{at}.attn.hook_z", partial(remove, heads)) for at, heads in gone.items()]
        logits = model.run_with_hooks(ids, fwd_hooks=hooks)[:, -1]
        accuracy.append(float((logits.gather(1, pair).diff(dim=1) < 0).float().mean()))
    return np.array(accuracy)


def prune_row(model: Any, ids: Tensor, pair: Tensor, repeats: int) -> Row:
    """Pruning every head, one at a time."""
    ranking = random_ranking(model.cfg.n_layers, model.cfg.n_heads, 0)
    target = la.LogitDiff(pair[:, 0].tolist(), pair[:, 1].tolist())
    (ours, theirs), (curve, wanted) = interleaved(
        lambda: prune(model, (ids, target), ranking),
        lambda: obvious_pruning(model, ids, pair, ranking),
        repeats,
    )
    same = int((curve.accuracy == wanted).sum())
    equal = f"{same} of {len(wanted)} accuracies identical"
    return Row("prune", type(model).__name__, ours, theirs, equal)


def patch_row(model: Any, clean: Tensor, corrupted: Tensor, pair: Tensor, repeats: int) -> Row:
    """Patching every head."""
    target = la.LogitDiff(pair[:, 0].tolist(), pair[:, 1].tolist())

    def metric(logits: Tensor) -> Tensor:
        return -logits[:, -1].gather(1, pair).diff(dim=1).mean()

    @torch.no_grad()
    def theirs() -> Tensor:
        _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
        sweep = patching.get_act_patch_attn_head_out_all_pos
        return torch.as_tensor(sweep(model, corrupted, cache, metric))

    (ours, loop), (result, wanted) = interleaved(
        lambda: patch(model, clean, corrupted, target), theirs, repeats
    )
    error = float((result.metric - wanted).abs().max())
    equal = f"largest difference {error:.0e}"
    return Row(
        "head patching", type(model).__name__, ours, loop, equal, limit_of_patching(model, clean)
    )


def limit_of_patching(model: Any, ids: Tensor) -> float:
    """Multiplications by weights per cell of the loop, over those that no sweep can avoid."""
    cfg, length = model.cfg, ids.shape[1]
    square = cfg.d_model**2
    qkv, rest, unembed = 3 * square, square + 2 * cfg.d_model * cfg.d_mlp, cfg.d_model * cfg.d_vocab
    loop = length * (cfg.n_layers * (qkv + rest) + unembed)
    last = length * qkv + rest
    cells = [rest + unembed]  # of the last block
    for above in range(1, cfg.n_layers):
        between = (above - 1) * length * (qkv + rest)
        cells.append(length * rest + between + last + unembed)
    return loop / statistics.mean(cells)


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader must know to judge the numbers."""
    versions = {
        n: importlib.metadata.version(n) for n in ("torch", "transformer-lens", "transformers")
    }
    return {
        "shape": f"GPT-2 small, random weights, {arguments.layers} layers, d_vocab 50257, "
        f"{arguments.rows} prompts of {arguments.length} tokens",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "repeats": arguments.repeats,
        "python": platform.python_version(),
        "versions": versions | {"lens_attr": la.__version__},
    }


def write(rows: list[Row], facts: dict[str, Any]) -> None:
    """The table and the raw numbers, beside those of other versions and backends."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "circuits.json"
    runs = json.loads(path.read_text()) if path.exists() else {}
    name = f"TransformerLens {facts['versions']['transformer-lens']}, {rows[0].backend}"
    runs[name] = {"facts": facts, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
    path.write_text(json.dumps(runs, indent=1) + "\n")
    header = [
        "what",
        "backend",
        "obvious loop, s",
        "lens_attr, s",
        "times faster",
        "aim",
        "limit",
        "equal?",
    ]
    lines = [
        "# Pruning and patching against the obvious loops",
        "",
        __doc__.split("\n\n")[2].strip(),
    ]
    for name, run in sorted(runs.items()):
        told = [Row(**{k: v for k, v in row.items() if k != "ratio"}) for row in run["rows"]]
        lines += [
            "",
            f"## {name}",
            "",
            f"| {' | '.join(header)} |",
            "|---" * len(header) + "|",
        ]
        lines += [f"| {' | '.join(row.cells())} |" for row in told]
        lines += ["", "; ".join(f"{key}: {value}" for key, value in run["facts"].items())]
    (RESULTS / "circuits.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("layers", 12), ("rows", 4), ("length", 24), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=("hooked", "bridge"), default="bridge")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(0, 50257, shape, generator=generator)  # noqa: E731
    clean, corrupted = (
        draw(arguments.rows, arguments.length),
        draw(arguments.rows, arguments.length),
    )
    pair = draw(arguments.rows, 2)
    with tempfile.TemporaryDirectory() as directory:
        folder = saved_model(Path(directory), arguments.layers)
        model = la.load(folder, arguments.backend, torch.float32, "cpu")
    rows = [
        prune_row(model, clean, pair, arguments.repeats),
        patch_row(model, clean, corrupted, pair, arguments.repeats),
    ]
    print(*(" | ".join(row.cells()) for row in rows), sep="\n")
    write(rows, machine(arguments))


if __name__ == "__main__":
    main()
