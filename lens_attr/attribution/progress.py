"""The one progress bar of attribution: it counts passes through blocks, whatever the method is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from time import monotonic

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from lens_attr.graph import ModelGraph

PATIENCE = 2.0
"""Seconds of work before a bar appears."""


@contextmanager
def watched(graph: ModelGraph, passes: int, shown: bool | None) -> Iterator[None]:
    """A bar on stderr that moves on with all that runs inside, gone at the end.

    Methods need not know of it: of forwards it reads the residual stream block by block, as any
    forward hook may; of backwards `each_gradient` tells it.

    Args:
        graph: the model.
        passes: how many forwards and backwards there will be.
        shown: None: on a terminal or in a notebook, once the work takes longer than `PATIENCE`
            seconds. True: at once. False: never.
    """
    console = Console(stderr=True)
    if shown is False or (shown is None and not (console.is_terminal or console.is_jupyter)):
        yield
        return
    points = graph.points("residual")[: graph.n_layers]
    with ExitStack() as stack:
        bar = _Bar(console, passes, len(points), 0.0 if shown else PATIENCE, stack)
        stack.callback(_of_this_call.set, _of_this_call.get())
        _of_this_call.set(bar)
        for point in points:
            point.on_forward(bar.block_has_run, stack)
        yield


def backwards_done(number: int) -> None:
    """So many backwards through the whole model are done; the bar of this call moves on."""
    bar = _of_this_call.get()
    if bar is not None:
        bar.move_on(number * bar.blocks)


class _Bar:
    """Starts once its time has come, from the thread that works."""

    def __init__(
        self, console: Console, passes: int, blocks: int, patience: float, stack: ExitStack
    ) -> None:
        self.blocks = blocks
        self._progress = Progress(console=console, transient=True)
        self._task = self._progress.add_task("explaining", total=passes * blocks)
        self._due, self._stack, self._started = monotonic() + patience, stack, False

    def block_has_run(self, _: Tensor) -> None:
        """Forward hook."""
        self.move_on(1)

    def move_on(self, blocks: int) -> None:
        """So many more blocks have been passed, in either direction."""
        if not self._started and monotonic() >= self._due:
            self._started = True
            self._stack.enter_context(self._progress)
        self._progress.advance(self._task, blocks)


_of_this_call: ContextVar[_Bar | None] = ContextVar("bar", default=None)
"""Set inside `watched`, in the thread that called it, and nowhere else."""
