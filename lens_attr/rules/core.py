"""Rule, Placement, RuleSet: a rule is a backward hook, a preset is a short list of rules."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from lens_attr.errors import (
    InputError,
    RuleConflictError,
    RuleNotAppliedError,
    UnsupportedModelError,
    did_you_mean,
)
from lens_attr.graph import ModelGraph, Point, resolve

if TYPE_CHECKING:
    from lens_attr.rules.hooks import HookLists
    from lens_attr.rules.session import Session


class Tape:
    """Forward values and outgoing gradients of the points a rule asked for, during one pass."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._grads: dict[str, Tensor] = {}
        self._waiting: dict[str, list[tuple[Callable[[], object], Tensor]]] = {}

    def value(self, point: Point) -> Tensor:
        """The activation at ``point`` in the forward pass this backward belongs to.

        Raises:
            RuleNotAppliedError: it was not captured, or two forwards wait for their backward.
        """
        waiting = self._living(point)
        if len(waiting) > 1:
            raise RuleNotAppliedError(
                f"{point.name} ran forward {len(waiting)} times before this "
                "backward, so its value is ambiguous: run each backward before the next forward "
                "(or run the other forwards under torch.no_grad())."
            )
        if waiting:  # a later forward whose graph is gone may have come in between
            self._values[point.name] = waiting[0][1]
        return self.latest(point)

    def _living(self, point: Point) -> list[tuple[Callable[[], object], Tensor]]:
        """The forwards since the latest backward whose own backward can still come."""
        return [entry for entry in self._waiting.get(point.name, ()) if entry[0]() is not None]

    def latest(self, point: Point) -> Tensor:
        """The activation when ``point`` last fired, however often that was.

        For hooks that fire several times in one forward, always with the same value:
        HookedTransformer's ln1, for queries, keys and values.

        Raises:
            RuleNotAppliedError: it was not captured.
        """
        if point.name not in self._values:
            raise RuleNotAppliedError(
                f"the forward value of {point.name} was not captured: attach the forward hooks "
                "too, `with model.hooks(**rules.hooks(model))`, before the forward."
            )
        return self._values[point.name]

    def grad(self, point: Point) -> Tensor:
        """The gradient leaving ``point``, after the rules placed on it.

        Raises:
            RuleNotAppliedError: it was not kept.
        """
        if point.name not in self._grads:
            raise RuleNotAppliedError(
                f"the gradient at {point.name} was not kept: name the point among the `grads` of "
                "the Placement that reads it; it must come later in the forward."
            )
        return self._grads[point.name]

    def record_value(self, point: Point, activation: Tensor) -> None:
        """Keep an activation, if a backward can follow."""
        if activation.requires_grad:
            value = activation.detach()
            self._values[point.name] = value
            self._waiting[point.name] = [
                *self._living(point),
                (_graph_of(point, activation), value),
            ]

    def record_grad(self, point: Point, grad: Tensor) -> None:
        """Keep the gradient leaving a point."""
        self._grads[point.name] = grad

    def forget(self, names: Iterable[str]) -> None:
        """Let go of the tensors of some points."""
        for name in names:
            for kept in (self._values, self._grads, self._waiting):
                kept.pop(name, None)

    def clear(self) -> None:
        """Let go of every tensor: a session and its hooks refer to each other, and to this."""
        self._values.clear()
        self._waiting.clear()
        self._grads.clear()

    def backward_done(self, point: Point) -> None:
        """The backward of the forward that waited has reached ``point``."""
        self._waiting[point.name] = []


class _Alive:
    """Lives as long as the autograd node that holds it."""


def _graph_of(point: Point, activation: Tensor) -> Callable[[], object]:
    """Something that gives None once no backward can come any more: its graph is gone.

    A leaf has no node, and where hooks see a converted copy its node goes before the graph does;
    both count as alive.
    """
    alive = _Alive()
    node: Any = activation.grad_fn
    if node is None or point.converted:
        return lambda: alive
    metadata: Any = node.metadata  # a dict, which torch's types call a method
    metadata[_Alive] = alive
    return weakref.ref(alive)


Transform = Callable[[Tensor, Tape], Tensor]


@dataclass(frozen=True)
class Placement:
    """One rule at one point.

    Attributes:
        point: where the gradient is changed.
        transform: gradient in, gradient out; may read the tape.
        values: points whose forward activation the transform reads.
        grads: points whose outgoing gradient it reads (they lie later in the forward pass).
        replaces: the transform ignores the gradient it is given, so it must come first there.
        factor: what it multiplies the gradient by, if that is all it does.
        bypasses: what of the operation from ``point`` to ``grads[0]`` need not be differentiated
            (see `lens_attr.rules.lowered`): ``"all"``, where it reads nothing but ``point``, or
            the ``"branch"`` that begins there.
        lowered: another form with the same result that is cheaper to install.
    """

    point: Point
    transform: Transform
    values: tuple[Point, ...] = ()
    grads: tuple[Point, ...] = ()
    replaces: bool = False
    factor: float | None = None
    bypasses: Literal["all", "branch"] | None = None
    lowered: Placement | None = None


def scale(point: Point, factor: float) -> Placement:
    """Multiply the gradient at ``point`` by ``factor``."""
    return Placement(point, lambda grad, tape: grad * factor, factor=factor)


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A change of the gradient at some hook points. The forward pass never changes.

    Attributes:
        layers: blocks to act in; None for all, and for what lies outside the blocks.
        only: glob on the hook name, e.g. ``"*ln1*"``, to act at some of the points.
    """

    layers: Collection[int] | None = None
    only: str = "*"

    vectorised: ClassVar[bool] = False
    """Whether its transforms work under ``torch.vmap``: no edits in place, no branches on values,
    so that the backwards of several targets can run as one."""

    @property
    def name(self) -> str:
        """How tables and errors call this rule."""
        return type(self).__name__

    @abstractmethod
    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """Every point of the model where this rule acts."""

    def absent(self, graph: ModelGraph) -> bool:
        """Whether the model has nothing this rule is about (then it may act nowhere)."""
        return False

    def placements(self, graph: ModelGraph) -> list[Placement]:
        """`place`, narrowed to ``layers`` and ``only``.

        Raises:
            InputError: a layer the model does not have, or the embedding itself.
            UnsupportedModelError: a point that no gradient reaches on this backend.
            RuleNotAppliedError: no point is left, which would silently change nothing.
        """
        layers = () if self.layers is None else self.layers
        several = isinstance(layers, Collection) and not isinstance(layers, str)
        if not several or not all(type(one) is int for one in layers):
            raise InputError(f"layers must be several block numbers, got {self.layers!r}: [0, 1].")
        unknown = sorted(set(layers) - set(range(graph.n_layers)))
        if unknown:
            raise InputError(f"layers {unknown}: the model has layers 0 to {graph.n_layers - 1}.")
        everywhere = list(self.place(graph))
        leaves = {point.name for point in graph.points("embed")}
        if any(placement.point.name in leaves for placement in everywhere):
            raise InputError(
                f"{self.name} acts at {', '.join(leaves)}, where the gradient is read: nothing "
                "lies below it, so a rule there would change nothing. Change the result instead."
            )
        kept = [placement for placement in everywhere if self._selects(placement.point)]
        blind = [p.point.name for p in kept if not graph.sees_gradient(p.point)]
        if blind:
            raise UnsupportedModelError(
                f"{self.name} acts at {blind[0]}, but {graph.architecture} on {graph.backend} "
                "computes attention outside the autograd graph: no gradient ever reaches that "
                "point. Place the rule at q, k, v or z instead."
            )
        if kept or (not everywhere and self.absent(graph)):
            return kept
        raise RuleNotAppliedError(
            f"{self.name} matches no hook point of this {graph.architecture} on {graph.backend} "
            f"(layers={self.layers}, only={self.only!r}, {len(everywhere)} before that filter)."
        )

    def _selects(self, point: Point) -> bool:
        in_layers = self.layers is None or point.layer in self.layers
        return in_layers and fnmatchcase(point.name, self.only)

    def describe(self) -> dict[str, Any]:
        """Name and switches, for metadata."""
        switches = {f.name: getattr(self, f.name) for f in fields(self)}
        switches = {k: list(v) if k == "layers" and v else v for k, v in switches.items()}
        plain = {k: v for k, v in switches.items() if v is None or not callable(v)}
        return {"rule": self.name} | plain


@dataclass(frozen=True)
class RuleSet:
    """An ordered list of rules: a preset, or one of your own.

    ``rules + other`` appends a rule or a set; ``rules.without("GateSplit")`` and
    ``rules.replace("TemperedSoftmax", temperature=3.0)`` make ablations.
    """

    rules: tuple[Rule, ...] = ()
    name: str = "custom"

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __add__(self, other: Rule | RuleSet) -> RuleSet:
        more = (other,) if isinstance(other, Rule) else other.rules
        return RuleSet((*self.rules, *more), name=self.name)

    def without(self, name: str) -> RuleSet:
        """The same rules but one, by name.

        Raises:
            InputError: there is no such rule in this set.
        """
        self._index(name)
        kept = tuple(rule for rule in self.rules if rule.name != name)
        return RuleSet(kept, name=f"{self.name} without {name}")

    def replace(self, name: str, **switches: Any) -> RuleSet:
        """The same rules with switches of one changed, by name.

        Raises:
            InputError: there is no such rule, or it has no such switch.
        """
        index = self._index(name)
        known = [f.name for f in fields(self.rules[index])]
        for switch in set(switches) - set(known):
            raise InputError(f"{name} has no switch {switch!r}; {did_you_mean(switch, known)}")
        changed = replace(self.rules[index], **switches)
        return RuleSet((*self.rules[:index], changed, *self.rules[index + 1 :]), name=self.name)

    def _index(self, name: str) -> int:
        names = [rule.name for rule in self.rules]
        if name not in names:
            raise InputError(f"no rule {name!r} in {self.name}; {did_you_mean(name, names)}")
        return names.index(name)

    def placements(
        self, graph: ModelGraph, *, lowered: bool = False
    ) -> dict[str, list[tuple[Rule, Placement]]]:
        """Every placement, grouped by hook point and in order.

        Args:
            graph: the model.
            lowered: take the cheaper of two equal forms.

        Raises:
            RuleConflictError: two rules want to replace the gradient at one point, or one that
                replaces it comes after another.
        """
        by_point: dict[str, list[tuple[Rule, Placement]]] = {}
        for rule in self.rules:
            for placement in rule.placements(graph):
                placement = (placement.lowered or placement) if lowered else placement
                here = by_point.setdefault(placement.point.name, [])
                if placement.replaces and here:
                    raise RuleConflictError(
                        f"{rule.name} replaces the gradient at {placement.point.name}, which "
                        f"would undo {here[-1][0].name} there: put it first, or drop one."
                    )
                here.append((rule, placement))
        return by_point

    @property
    def vectorised(self) -> bool:
        """Whether every rule is, see `Rule`."""
        return all(rule.vectorised for rule in self.rules)

    def describe(self) -> list[dict[str, Any]]:
        """Every rule with its switches, for metadata."""
        return [rule.describe() for rule in self.rules]

    def on(self, model: Any) -> Session:
        """Context in which every backward through ``model`` follows these rules.

        Run the forward inside it as well. The innermost context counts; hooks, flags and weights
        are as before on every exit.

        Raises:
            UnsupportedModelError, RuleNotAppliedError, RuleConflictError: see the rules.
        """
        from lens_attr.rules.session import Session

        return Session(resolve(model), self, strict=False)

    def hooks(self, model: Any) -> HookLists:
        """``{"fwd_hooks": [...], "bwd_hooks": [...]}`` for ``model.hooks(**...)``."""
        from lens_attr.rules.hooks import hook_lists

        return hook_lists(resolve(model), self)

    def bwd_hooks(self, model: Any) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """The backward half of `hooks`; ``model.hooks(**rules.hooks(model))`` is the complete form.

        (hook name, function) pairs for ``model.hooks(bwd_hooks=...)`` or ``run_with_hooks``. They
        do alone where no rule reads forward values. The identity rule (of ``lrp``, ``attnlrp``,
        ...) and the tempered softmax (of ``gim``) do: without the forward hooks their backward
        raises and says so.
        """
        return self.hooks(model)["bwd_hooks"]
