"""Every preset beside plain gradient x input: backward alone, and end to end.

``end to end`` is `la.attribute`, heads and flow recorded, on both sides of the comparison, and
``backward`` the time that the same calls spend in autograd. ``backward, nothing recorded`` is the
backward of the rules alone. Logits are computed at the explained position only, but for the
gradient "as one writes it by hand", which unembeds every position. ``products of matrices`` are
counted, not timed: what a machine would take that does nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import lens_attr as la
from benchmarks.harness import (
    GPT2,
    LLAMA,
    TARGET,
    Options,
    Row,
    Shape,
    build,
    interleaved,
    newest_backend,
    replaced,
    seconds_of,
    setting,
)
from lens_attr.attribution.embeddings import InputEmbeddings
from lens_attr.graph import resolve
from lens_attr.rules import PRESETS, preset
from lens_attr.rules.session import Session

METHODS = {"gradient": "gradient_x_input"} | {name: name for name in PRESETS if name != "gradient"}
AIMED = ("gradient", "lrp", "attnlrp", "gim")
GRADIENT, BY_HAND = "gradient x input", "gradient x input by hand, all logits"
BY_HAND_AIM = 0.8


def aim(method: str, length: int) -> float | None:
    """Of a preset's time beside gradient x input."""
    long = length >= 512
    aims = {"attnlrp": 1.0, "gim": 1.15 if long else 1.05, "lrp": 0.8 if long else 0.9}
    return aims.get(method)


@dataclass(frozen=True)
class Cell:
    """One model and input."""

    shape: Shape
    backend: str
    batch: int
    length: int
    runs: int
    layers: int | None = None
    methods: tuple[str, ...] = tuple(METHODS)

    @property
    def setting(self) -> str:
        return setting(self.shape, self.backend, self.batch, self.length, self.layers)


def gpt2_cells(options: Options) -> list[Cell]:
    """GPT-2-small shape, small before large."""
    newest = newest_backend()
    if options.quick:
        return [Cell(GPT2, newest, 1, 128, 3, layers=2)]
    found = [Cell(GPT2, newest, *sizes) for sizes in ((1, 128, 8), (1, 512, 6), (8, 128, 4))]
    found += [Cell(GPT2, newest, 8, 512, 3, methods=AIMED)]
    bridge = [Cell(GPT2, "bridge", *sizes) for sizes in ((1, 128, 8), (1, 512, 6))]
    return found + (bridge if newest == "hooked" else [])


def llama_cells(options: Options) -> list[Cell]:
    """Llama-3.2-1B shape: four layers, and all of them for the smallest input."""
    newest = newest_backend()
    small = Cell(LLAMA, newest, 1, 128, 8, 1 if options.quick else 4)
    if options.quick:
        return [small]
    return [
        small,
        Cell(LLAMA, newest, 1, 512, 6, 4, AIMED),
        Cell(LLAMA, newest, 8, 128, 4, 4, AIMED),
        Cell(LLAMA, newest, 8, 512, 2, 4, AIMED),
        Cell(LLAMA, newest, 1, 128, 4, methods=AIMED),
    ]


def rows(options: Options) -> Iterator[Row]:
    """The cells of `gpt2_cells`."""
    yield from _each(gpt2_cells(options), options)


def llama_rows(options: Options) -> Iterator[Row]:
    """The same at Llama-3.2-1B shape, four layers of it, and in full depth at B = 1, T = 128."""
    yield from _each(llama_cells(options), options)


def _each(cells: list[Cell], options: Options) -> Iterator[Row]:
    """One model is kept for the cells that share it."""
    model, built = None, None
    for cell in cells:
        kind = (cell.shape, cell.backend, cell.layers)
        if kind != built:
            model = None  # before the next one takes memory
            model, built = build(options, *kind), kind
        yield from _measured(model, cell, options)


def _measured(model: Any, cell: Cell, options: Options) -> Iterator[Row]:
    ids, runs = options.ids(cell.batch, cell.length), options.runs or cell.runs
    backward: dict[str, list[float]] = {}
    calls = {
        name: partial(_end_to_end, model, ids, name, options, backward.setdefault(name, []))
        for name in cell.methods
    }
    by_hand = cell.shape is GPT2
    if by_hand:
        calls[BY_HAND] = partial(seconds_of, options, partial(gradient_by_hand, model, ids))
    whole = interleaved(calls, runs)
    backward = {name: times[-runs:] for name, times in backward.items()}
    pure = _backward_alone(model, ids, cell, options, runs) if by_hand and cell.batch == 1 else {}
    for name in cell.methods:
        if pure:
            yield _row(cell, name, "backward, nothing recorded", pure)
        yield _row(cell, name, "backward", backward, aimed=not pure)
        yield _row(cell, name, "end to end", whole)
        if by_hand:
            what = f"{name}: end to end"
            yield Row(what, cell.setting, whole[name], "s", BY_HAND, whole[BY_HAND], BY_HAND_AIM)
    if cell.batch == 1:
        products = {name: [products_of(model, ids, name)] for name in cell.methods}
        for name in cell.methods:
            yield _row(cell, name, "products of matrices, end to end", products, "GFLOP", False)


def _row(
    cell: Cell,
    name: str,
    what: str,
    found: dict[str, list[float]],
    unit: str = "s",
    aimed: bool = True,
) -> Row:
    against, base = (GRADIENT, found["gradient"]) if name != "gradient" else ("", [])
    most = aim(name, cell.length) if aimed else None
    return Row(f"{name}: {what}", cell.setting, found[name], unit, against, base, most)


def _end_to_end(
    model: Any, ids: torch.Tensor, name: str, options: Options, backward: list[float]
) -> float:
    """Seconds of a call; those it spends in autograd are added to ``backward``."""

    def watched(*args: Any, **switches: Any) -> Any:
        start = options.now()
        gradient = real(*args, **switches)
        backward.append(options.now() - start)
        return gradient

    real = torch.autograd.grad
    with replaced(torch.autograd, "grad", watched):
        return seconds_of(options, lambda: la.attribute(model, ids, TARGET, METHODS[name]))


def gradient_by_hand(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Gradient x input as one writes it by hand."""
    inputs = InputEmbeddings()
    with ExitStack() as stack:
        inputs.attach(resolve(model), stack)
        logits = model(ids)[:, -1]
        (grad,) = torch.autograd.grad((logits[:, 5] - logits[:, 6]).sum(), inputs.leaf)
    return (inputs.leaf.detach() * grad).sum(dim=-1)


def _backward_alone(
    model: Any, ids: torch.Tensor, cell: Cell, options: Options, runs: int
) -> dict[str, list[float]]:
    calls = {
        name: partial(backward_of, model, ids, name, partial(seconds_of, options))
        for name in cell.methods
    }
    return interleaved(calls, runs)


def backward_of(
    model: Any, ids: torch.Tensor, name: str, measure: Callable[[Callable[[], Any]], Any]
) -> Any:
    """``measure`` the backward of a preset, lowered, with nothing recorded."""
    graph, inputs = resolve(model), InputEmbeddings()
    position = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    with torch.enable_grad(), ExitStack() as stack:
        inputs.attach(graph, stack)
        stack.enter_context(Session(graph, preset(name), strict=True, lowered=True))
        logits = graph.logits_at(ids, None, position)
        value = (logits[:, 5] - logits[:, 6]).sum()
        return measure(lambda: torch.autograd.grad(value, inputs.leaf))


# ------------------------------------------------------------------------------ counted, not timed


class Products(TorchDispatchMode):
    """Counts the floating point operations of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=made)
        return made


def products_of(model: Any, ids: torch.Tensor, name: str) -> float:
    """GFLOP that the matrix products of a call take."""
    with Products() as run:
        la.attribute(model, ids, TARGET, METHODS[name])
    return run.operations / 1e9


class Launches(TorchDispatchMode):
    """Counts operations that start a kernel on a GPU; views start none."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def launches(model: Any, ids: torch.Tensor, name: str) -> int:
    """Operations in the backward of a preset."""

    def counted(call: Callable[[], Any]) -> int:
        with Launches() as run:
            call()
        return sum(run.counts.values())

    return backward_of(model, ids, name, counted)


def launch_rows(options: Options) -> Iterator[Row]:
    """What rules add to or take from the work list of a GPU; the same on every machine."""
    for shape in (GPT2, LLAMA):
        for backend in dict.fromkeys((newest_backend(), "bridge")):
            small = Shape(shape.title, 2, 256, 4, 1000, shape.key_value_heads and 2, 512)
            model, ids = build(options, small, backend), options.ids(1, 16)
            counts = {name: [float(launches(model, ids, name))] for name in METHODS}
            for name in METHODS:
                against, base = (GRADIENT, counts["gradient"]) if name != "gradient" else ("", [])
                where = f"{shape.title}, 2 layers, {backend}"
                yield Row(f"{name}: backward", where, counts[name], "operations", against, base)
