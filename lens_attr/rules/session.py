"""`Session`: rules installed on a model for a while, counted, and removed on every exit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any

from torch import Tensor

from lens_attr.errors import InputError, RuleConflictError, RuleNotAppliedError
from lens_attr.graph import ModelGraph, Point
from lens_attr.rules.core import Placement, Rule, RuleSet, Tape
from lens_attr.rules.lowered import install_lowered

IN_PLACE = "is a view and is being modified inplace"


class PointHook:
    """The one backward hook of a point: all its placements in order, counted.

    With no placements it only keeps the gradient for another point's rule.
    """

    def __init__(
        self,
        point: Point,
        placed: list[tuple[Rule, Placement]],
        tape: Tape,
        session: Session | None = None,
    ) -> None:
        self.point = point
        self.placed = placed
        self.tape = tape
        self.session = session
        self.calls = 0
        self.calls_per_backward = 1
        self.is_cut = False
        self.is_read = False

    def __call__(self, grad: Tensor) -> Tensor | None:
        if self.session is not None:
            self.session.refuse_if_closed(self.point)
            if self.session.suspended:
                return None
        self.calls += 1
        result = grad
        for rule, placement in self.placed:
            result = placement.transform(result, self.tape)
            _refuse_no_gradient(rule, self.point, result, grad)
        result = result.to(grad.dtype)
        if self.is_read:
            self.tape.record_grad(self.point, result)
        for _, placement in self.placed:
            for source in placement.values:
                self.tape.backward_done(source)
        return result if self.placed else None

    @property
    def fired(self) -> int:
        """How many backwards it acted in; once where it was cut."""
        return int(self.is_cut) or self.calls // self.calls_per_backward

    @property
    def is_zero(self) -> bool:
        """Whether the gradient leaving the point is zero whatever arrives, and nobody reads it."""
        factors = [placement.factor for _, placement in self.placed]
        return not self.is_read and 0.0 in factors and None not in factors[factors.index(0.0) :]

    def cut(self, activation: Tensor) -> Tensor:
        """The activation as a constant: its gradient is zero, and nobody computes it."""
        self.is_cut = True
        return activation.detach()


def _refuse_no_gradient(rule: Rule, point: Point, result: Any, grad: Tensor) -> None:
    if isinstance(result, Tensor) and result.shape == grad.shape:
        return
    got = f"shape {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
    raise InputError(
        f"{rule.name} returned {got} at {point.name}: a rule must return the gradient, "
        f"of shape {list(grad.shape)}."
    )


def point_hooks(
    graph: ModelGraph, rules: RuleSet, tape: Tape, session: Session | None = None
) -> tuple[list[PointHook], list[Point]]:
    """The backward hook of every point the rules need, and the points whose values they read."""
    by_point = rules.placements(graph, lowered=session is not None and session.lowered)
    hooks = {
        name: PointHook(placed[0][1].point, placed, tape, session)
        for name, placed in by_point.items()
    }
    values: dict[str, Point] = {}
    for placed in by_point.values():
        for _, placement in placed:
            values |= {point.name: point for point in placement.values}
            for point in placement.grads:
                hook = hooks.setdefault(point.name, PointHook(point, [], tape, session))
                hook.is_read = True
    return list(hooks.values()), list(values.values())


def _depth(point: Point) -> int:
    return -1 if point.layer is None else point.layer


class Session:
    """Context manager that installs a `RuleSet` on a model.

    A strict session (what ``la.attribute`` uses) raises on exit unless every hook fired. The
    context of ``rules.on(model)`` is lenient about layers that a partial forward never reached,
    but not about a rule that never acted anywhere. A lowered session installs the cheaper form
    of `lens_attr.rules.lowered`.
    """

    def __init__(
        self, graph: ModelGraph, rules: RuleSet, *, strict: bool, lowered: bool = False
    ) -> None:
        self.graph = graph
        self.rules = rules
        self.strict = strict
        self.lowered = lowered
        self.closed = False
        self.thread = get_ident()
        self.hooks: list[PointHook] = []
        self._tape = Tape()
        self._forward_ran = False
        self._was_suspended = False
        self._silenced_by: set[int] = set()
        self._entered = False
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        if self._entered:
            raise InputError("this context is entered already: make another with rules.on(model).")
        self.closed, self._forward_ran, self._was_suspended = False, False, False
        self.thread = get_ident()
        self._tape = Tape()
        self._stack.callback(self._tape.clear)
        self.hooks, values = point_hooks(self.graph, self.rules, self._tape, self)
        try:
            self._install(values)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closed = True
        self._stack.close()
        if kind is None:
            self.verify()
        elif isinstance(error, RuntimeError) and IN_PLACE in str(error):
            raise RuleConflictError(
                "a forward hook of yours edits an activation in place where a rule acts, which "
                "torch forbids: edit a copy and return it (`z = z.clone(); ...; return z`)."
            ) from error

    @property
    def suspended(self) -> bool:
        """Whether an inner context counts instead of this one."""
        return bool(self._silenced_by)

    @property
    def fired(self) -> dict[str, int]:
        """How often the backward reached each point with a rule; once where it was cut."""
        return {hook.point.name: hook.fired for hook in self.hooks if hook.placed}

    def clear_counts(self) -> None:
        """Count from zero, before another backward of the same forward."""
        for hook in self.hooks:
            hook.calls = 0

    def verify(self) -> None:
        """Raise if a rule did not act.

        Raises:
            RuleNotAppliedError: naming the points that stayed silent.
        """
        ruled = [hook for hook in self.hooks if hook.placed]
        silent = [hook for hook in ruled if not hook.fired]
        if self.strict and silent:
            self._raise_silent(silent)
        if not self.strict and ruled and not (self._forward_ran or self._was_suspended):
            raise RuleNotAppliedError(
                "no forward of the model ran inside this context, so no rule acted: hooks must "
                "precede the forward, so run it inside `with rules.on(model):`."
            )
        acted = {rule.name for hook in ruled if hook.fired for rule, _ in hook.placed}
        never = [h for h in silent if not acted & {rule.name for rule, _ in h.placed}]
        if acted and never:
            self._raise_silent(never)

    def refuse_upward_reads(self) -> None:
        """Block by block, a rule finds what its own block and those above it computed.

        Raises:
            InputError: naming the rule that reads a value of another part of the model.
        """
        for hook, rule, source in self._reads():
            if source.layer is not None and not 0 <= _depth(hook.point) <= source.layer:
                raise InputError(
                    f"{rule.name} at {hook.point.name} reads {source.name}, which is not computed "
                    "again until later when blocks are checkpointed. Use checkpoint=False."
                )

    def block_done(self, layer: int) -> None:
        """Let go of what no rule below block ``layer`` reads of it."""
        read = {True: set[str](), False: set[str]()}
        for hook, _, source in self._reads():
            read[_depth(hook.point) < layer].add(source.name)
        self._tape.forget(read[False] - read[True])

    def _reads(self) -> Iterator[tuple[PointHook, Rule, Point]]:
        for hook in self.hooks:
            for rule, placement in hook.placed:
                for source in (*placement.values, *placement.grads):
                    yield hook, rule, source

    def refuse_if_closed(self, point: Point) -> None:
        """A graph built inside the context must be differentiated inside it."""
        if self.closed:
            raise RuleNotAppliedError(
                f"the backward reached {point.name} after the context of {self.rules.name!r} was "
                "left, so its rules would be missing: call backward inside the context."
            )

    def _raise_silent(self, silent: list[PointHook]) -> None:
        places = ", ".join(hook.point.name for hook in silent[:4])
        more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
        names = sorted({rule.name for hook in silent for rule, _ in hook.placed})
        raise RuleNotAppliedError(
            f"no gradient arrived at {places}{more}, so {', '.join(names)} did nothing there. "
            "Either the target does not depend on these points, or this model computes them "
            "outside the autograd graph: run la.check(model, rules)."
        )

    def _install(self, values: list[Point]) -> None:
        self._stack.callback(self._left)
        self._entered = True
        self._suspend_outer()
        self._guard()
        for point in values:
            point.on_forward(partial(self._record, point), self._stack)
        if self.lowered:
            install_lowered(self.graph, self.hooks, self._stack)
        else:
            for hook in self.hooks:
                hook.point.on_backward(hook, self._stack)
        if not self.strict:
            self._watch_forwards()

    def _left(self) -> None:
        self._entered = False

    def _record(self, point: Point, activation: Tensor) -> None:
        if not self.suspended:
            self._tape.record_value(point, activation)

    def _suspend_outer(self) -> None:
        """The innermost context counts: silence the sessions already installed here."""
        hooks = [hook for point in self.graph.every_point for hook in point.own_hooks()]
        sessions = [found for h in hooks if (found := getattr(h, "session", None)) is not None]
        mine = [session for session in sessions if session.thread == self.thread]
        for outer in {id(session): session for session in mine}.values():
            self._stack.callback(outer._silenced_by.discard, id(self))
            outer._silenced_by.add(id(self))
            outer._was_suspended = True

    def _guard(self) -> None:
        """Make the backward hooks of others that stand on our points report their changes."""
        for hook in self.hooks:
            if hook.placed:
                hook.point.guard(partial(self._conflict, hook), self._stack)

    def _watch_forwards(self) -> None:
        """Notice that a forward ran, and guard hooks that were added inside the context."""

        def entering(_: Tensor) -> None:
            self._forward_ran = True
            self._guard()

        for point in self.graph.points("embed") + self.graph.points("residual"):
            point.on_forward(entering, self._stack)

    def _conflict(self, hook: PointHook) -> None:
        if self.suspended:
            return
        raise RuleConflictError(
            f"a backward hook of yours at {hook.point.name} changes the gradient where "
            f"{hook.placed[0][0].name} acts, and torch keeps only one of the two. Remove it "
            "(model.reset_hooks()), or write it as a rule: rules + la.rules.custom(...)."
        )
