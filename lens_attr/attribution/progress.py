"""The one progress bar of attribution: it counts forwards, whatever the method is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from lens_attr.graph import ModelGraph

PATIENCE = 2.0
"""Seconds of work before a bar appears."""


@contextmanager
def watched(graph: ModelGraph, forwards: int, shown: bool | None) -> Iterator[None]:
    """A bar on stderr that moves on with every block that runs inside, gone at the end.

    Methods need not know of it: it reads the residual stream, as any forward hook may.

    Args:
        graph: the model.
        forwards: how many there will be.
        shown: None: on a terminal or in a notebook, once the work takes longer than `PATIENCE`
            seconds. True: at once. False: never.
    """
    console = Console(stderr=True)
    if shown is False or (shown is None and not (console.is_terminal or console.is_jupyter)):
        yield
        return
    points = graph.points("residual")[: graph.n_layers]
    with ExitStack() as stack:
        bar = _Bar(console, forwards * len(points), 0.0 if shown else PATIENCE, stack)
        for point in points:
            point.on_forward(bar.move_on, stack)
        yield


class _Bar:
    """Starts once its time has come, from the thread that works."""

    def __init__(self, console: Console, total: int, patience: float, stack: ExitStack) -> None:
        self._progress = Progress(console=console, transient=True)
        self._task = self._progress.add_task("explaining", total=total)
        self._due, self._stack, self._started = monotonic() + patience, stack, False

    def move_on(self, _: Tensor) -> None:
        """One more block has run."""
        if not self._started and monotonic() >= self._due:
            self._started = True
            self._stack.enter_context(self._progress)
        self._progress.advance(self._task)
