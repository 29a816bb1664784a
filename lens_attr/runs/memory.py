"""How much memory a batch will need, measured on small ones before the run starts."""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lens_attr.attribution as attribution
from lens_attr.errors import InputError, NonFiniteError, Notice
from lens_attr.graph import ModelGraph
from lens_attr.runs.job import Job
from lens_attr.targets import TopLogit

SHARE = 0.7
"""Of the free memory a run uses; the rest is for workspaces and fragments we cannot see."""

MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Larger batches are no faster."""

SHORT, LONG, SEVERAL = 16, 64, 3
"""Lengths and batch size of the measured batches."""


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of every tensor made inside, on any device, without an allocator's help."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._seen_before(tensor)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._count(tensor)
        return result

    def _seen_before(self, tensor: Any) -> None:
        """Inputs made outside, such as weights, count nothing, nor do views of them."""
        if isinstance(tensor, Tensor):
            self._add(tensor, size=0)

    def _count(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            self._add(tensor, size=tensor.untyped_storage().nbytes())
            self.peak = max(self.peak, self._live)

    def _add(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = size
            self._live += size
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self._live -= self._known.pop(key, 0)


def peak_of(function: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once while ``function`` runs, its inputs not counted."""
    with PeakMemory() as memory:
        function()
    return memory.peak


@dataclass(frozen=True)
class Need:
    """Peak bytes of a batch: ``fixed + rows (per_token T + per_pair T^2)`` at length T.

    Attributes:
        model: bytes of the weights.
        fixed: whatever the batch.
        per_token: grows with the tokens (residual stream, MLPs).
        per_pair: grows with their square (attention patterns).
    """

    model: int
    fixed: float
    per_token: float
    per_pair: float

    def peak(self, rows: int, length: int) -> float:
        """Of one batch, the weights not counted."""
        return self.fixed + rows * (self.per_token * length + self.per_pair * length**2)

    def tokens_within(self, available: float, longest: int) -> int:
        """The most padded tokens whose batch fits, whatever its shape up to ``longest``."""
        each = self.per_token + self.per_pair * longest
        return max(1, int((available - self.fixed) / each)) if each else MOST_TOKENS["cuda"]


def bytes_of(model: Any) -> int:
    """Size of the weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def measure(model: Any, graph: ModelGraph, job: Job) -> Need | None:
    """Run the method on three small batches; None where they do not fit or are not finite.

    Raises:
        UnsupportedModelError, ...: the method is not defined for this model.
    """
    long = min(LONG, graph.n_ctx)
    short = min(SHORT, max(long // 2, 1))
    try:
        _explain(model, graph, job, 1, long)  # the first use of a model allocates more
        peaks = [
            peak_of(lambda rows=rows, length=length: _explain(model, graph, job, rows, length))
            for rows, length in ((1, short), (1, long), (SEVERAL, long))
        ]
    except NonFiniteError:
        return None
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
    return _fit(bytes_of(model), short, long, *peaks)


def _fit(weights: int, short: int, long: int, one_short: int, one: int, several: int) -> Need:
    row_long = max((several - one) / (SEVERAL - 1), 1.0)
    fixed = max(one - row_long, 0.0)
    row_short = max(one_short - fixed, 1.0)
    curvature = (row_long / long - row_short / short) / max(long - short, 1)
    per_pair = max(curvature, 0.0)
    return Need(weights, fixed, max(row_long / long - per_pair * long, 0.0), per_pair)


def _explain(model: Any, graph: ModelGraph, job: Job, rows: int, length: int) -> None:
    ids = torch.arange(rows * length, device=graph.device).view(rows, length) * 7 + 5
    target = TopLogit(position=length - 1)
    options = dict(job.options)
    ids = ids % graph.d_vocab
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # of texts that are nobody's
        attribution.attribute(model, ids, target, job.method, progress=False, **options)


def budget(job: Job, need: Need | None, free: float, device: torch.device, longest: int) -> int:
    """Padded tokens per batch: the job's own, or what fits into ``free`` bytes.

    Raises:
        InputError: the weights alone are larger than the job's ``memory``.
    """
    most = MOST_TOKENS["cuda" if device.type == "cuda" else "cpu"]
    if job.tokens_per_batch is not None:
        return job.tokens_per_batch
    if need is None:
        return min(most, SEVERAL * longest)
    if free <= 0:
        raise InputError(
            f"memory is {job.memory}, but the weights alone take {need.model / 1e6:,.1f} MB."
        )
    return min(most, need.tokens_within(free, longest))


def available(job: Job, model_bytes: int, device: torch.device) -> float:
    """Bytes that the batches of one worker may use: what ``memory`` leaves beside the weights,
    else this worker's share of what is free (the weights are loaded already)."""
    if job.memory_bytes is not None:
        return float(job.memory_bytes - model_bytes)
    if device.type == "cuda":
        return SHARE * torch.cuda.mem_get_info(device)[0]
    return SHARE * (free_memory() - (job.workers - 1) * model_bytes) / job.workers


def free_memory() -> float:
    """Free memory of this machine, or of the control group this process lives in."""
    found = [_meminfo(), _control_group()]
    known = [value for value in found if value is not None]
    return min(known) if known else 4e9


def _meminfo() -> float | None:
    text = _read(Path("/proc/meminfo"))
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return 1024.0 * int(match[1]) if match else None


def _control_group() -> float | None:
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    used = _read(Path("/sys/fs/cgroup/memory.current")).strip()
    return float(int(limit) - int(used)) if limit.isdigit() and used.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
