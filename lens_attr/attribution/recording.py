"""Reading activation x arriving gradient at hook points during one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_attr.errors import InputError, RuleNotAppliedError
from lens_attr.graph import ROLES, ModelGraph, Point, Role
from lens_attr.rules.lowered import read_gradient

Reduce = Callable[[Tensor], Tensor]
Combine = Callable[[Tensor, Tensor], Tensor]
"""Activation and arriving gradient to what is reduced and kept."""

ALIASES: dict[str, Role] = {"neurons": "mlp_post"}
"""Names the field uses for roles."""

FLOW: tuple[Role, ...] = (
    "residual",
    "resid_mid",
    "mlp_in",
    "attn_out",
    "z",
    "mlp_out",
    "mlp_post",
)
"""Where the summed relevance is followed, for `Relevance.check`."""

PER_POSITION: tuple[str, ...] = ("residual",)
"""Recorded as one number per position; all others keep every dimension."""


@dataclass
class Probe:
    """One point whose activation x gradient is wanted, in one or more reductions.

    ``product`` may be another combination of the two, e.g. of the change of the activation.
    """

    point: Point
    mask: Bool[Tensor, "batch pos"] | None
    combine: Combine
    reduces: dict[str, Reduce] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)
    activation: Tensor | None = None

    def read_activation(self, activation: Tensor) -> None:
        """Forward hook."""
        self.activation = activation.detach()

    def read_both(self, activation: Tensor) -> Tensor | None:
        """Forward hook that reads the activation, and the gradient by a node in the graph."""
        self.read_activation(activation)
        return read_gradient(activation, self.read_gradient)

    def read_gradient(self, grad: Tensor) -> None:
        """Backward hook: sees the gradient that arrives, before any rule placed here."""
        assert self.activation is not None
        activation = self.activation
        if self.point.has_key_axis:  # a masked score is -inf and gets no gradient: it carries 0
            activation = activation.masked_fill(activation.isneginf(), 0.0)
        product = self._clean(self.combine(activation, grad))
        for key, reduce in self.reduces.items():
            partial_sum = self.results.get(key)
            value = reduce(product)
            self.results[key] = value if partial_sum is None else partial_sum + value

    def _clean(self, product: Tensor) -> Tensor:
        """Zero on padding, where activations may be anything (0 x NaN is NaN)."""
        if self.mask is None:
            return product
        if self.point.has_key_axis:
            pairs = self.mask[:, None, :, None] & self.mask[:, None, None, :]
            return torch.where(pairs, product, 0.0)
        if product.ndim >= 2 and product.shape[1] == self.mask.shape[1]:
            shape = (*self.mask.shape, *[1] * (product.ndim - 2))
            return torch.where(self.mask.view(shape), product, 0.0)
        return product


def product_of(activation: Tensor, grad: Tensor) -> Tensor:
    """activation x gradient in at least float32."""
    dtype = torch.promote_types(activation.dtype, torch.float32)
    return activation.to(dtype) * grad.to(dtype)


class Recorder:
    """Probes of one batch, attached for the duration of a ``with`` block.

    Backward hooks must be attached before those of the rules, the nodes of the lowered form (see
    `lens_attr.rules.lowered`) after theirs, so that both see the gradient that arrives.

    Args:
        mask: True on real tokens, None where nothing is padded.
        combine: what is recorded of activation and gradient; default: their product.
        lowered: put nodes into the graph instead of backward hooks.
    """

    def __init__(
        self,
        mask: Bool[Tensor, "batch pos"] | None,
        combine: Combine | None = None,
        *,
        lowered: bool = False,
    ) -> None:
        self.mask = mask
        self.combine = combine or product_of
        self.lowered = lowered
        self._probes: dict[str, Probe] = {}
        self._stack = ExitStack()

    def want(self, point: Point, key: str, reduce: Reduce) -> None:
        """Record ``reduce(activation x gradient)`` at a point under ``key``."""
        probe = self._probes.setdefault(point.name, Probe(point, self.mask, self.combine))
        probe.reduces[key] = reduce

    def __enter__(self) -> Recorder:
        try:
            for probe in self._probes.values():
                self._attach(probe)
        except BaseException:
            self._stack.close()
            raise
        return self

    def _attach(self, probe: Probe) -> None:
        if self.lowered:
            probe.point.on_forward(probe.read_both, self._stack)
        else:
            probe.point.on_forward(probe.read_activation, self._stack)
            probe.point.on_backward(probe.read_gradient, self._stack)

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def block_done(self, layer: int) -> None:
        """Let go of the activations of a block whose graph is gone."""
        for probe in self._probes.values():
            if probe.point.layer == layer:
                probe.activation = None

    def clear(self) -> None:
        """Forget what was recorded, before another backward of the same forward."""
        for probe in self._probes.values():
            probe.results.clear()

    def get(self, point: Point, key: str) -> Tensor:
        """What was recorded.

        Raises:
            RuleNotAppliedError: no gradient reached the point.
        """
        results = self._probes[point.name].results
        if key not in results:
            raise RuleNotAppliedError(
                f"no gradient arrived at {point.name}, so nothing can be recorded there: this "
                "model computes it outside the autograd graph, or the target does not depend on it."
            )
        return results[key]


@dataclass(frozen=True)
class Request:
    """One entry of ``record=``, resolved: a stacked role, or separate points."""

    key: str
    points: list[Point]
    stacked: bool
    reduce: Reduce


def resolve_requests(graph: ModelGraph, record: Sequence[str]) -> list[Request]:
    """Roles, hook names and globs to points.

    Raises:
        InputError: an entry that matches nothing.
    """
    if isinstance(record, str):
        record = [record]
    return [request for entry in record for request in _resolve(graph, entry)]


def _resolve(graph: ModelGraph, entry: str) -> list[Request]:
    role = ALIASES.get(entry, entry)
    points = graph.named(role)
    if role not in ROLES:
        return [Request(p.name, [p], False, _whole) for p in points]
    if not all(graph.sees_gradient(point) for point in points):
        raise InputError(
            f"{entry!r} cannot be recorded: {graph.architecture} on {graph.backend} computes "
            "attention outside the autograd graph, so no gradient reaches it."
        )
    if not points:
        raise InputError(f"{graph.architecture} on {graph.backend} has no {entry!r} hook point.")
    if role in ("norm_scale", "normalized"):  # one per norm, of different shapes
        return [Request(p.name, [p], False, _whole) for p in points]
    reduce = partial(torch.sum, dim=-1) if role in PER_POSITION else _whole
    return [Request(entry, points, len(points) > 1 or points[0].layer is not None, reduce)]


def _whole(product: Tensor) -> Tensor:
    return product


def per_example(product: Tensor) -> Tensor:
    """Everything of an example summed, [batch]."""
    return product.flatten(1).sum(dim=1)
