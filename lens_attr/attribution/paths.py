"""Gradients along a straight path: quadrature and evaluation, for any function of a tensor.

Nothing here knows a transformer. The function is handed rows of points, and for each row the
example that it is a variant of, so that many points of several examples go through in one call. It
may give several numbers per row, one for each target, which then share that call: results have the
same axis of targets in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.attribution.jacobian import each_gradient
from lens_attr.errors import InputError, did_you_mean

Function = Callable[[Tensor, Tensor], Tensor]
"""Points [row, ...] and the example each belongs to [row], to one number per row [row], or several
[target, row]."""

Quadrature = Literal["left", "right", "midpoint", "gauss_legendre"]
"""Where on the path the gradient is taken. The error falls as 1 / steps for ``"left"`` and
``"right"`` (the Riemann sum of the IG paper), as 1 / steps^2 for ``"midpoint"``, and faster than
any power for ``"gauss_legendre"`` where the function is smooth."""


def nodes(
    quadrature: Quadrature, steps: int
) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"]]:
    """Places in [0, 1] and their weights, which sum to 1 (float64).

    Raises:
        InputError: unknown quadrature, or no steps.
    """
    known = get_args(Quadrature)
    if quadrature not in known:
        raise InputError(f"unknown quadrature {quadrature!r}; {did_you_mean(quadrature, known)}")
    refuse_no_count("steps", steps)
    if quadrature == "gauss_legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2)
    offset = {"left": 0.0, "right": 1.0, "midpoint": 0.5}[quadrature]
    places = (torch.arange(steps, dtype=torch.float64) + offset) / steps
    return places, torch.full_like(places, 1 / steps)


def refuse_no_count(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``.

    Raises:
        InputError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def chunks(
    variants: int, examples: int, size: int, device: torch.device | None = None
) -> Iterator[tuple[Int[Tensor, " row"], Int[Tensor, " row"]]]:
    """Every (variant, example), variant by variant, ``size`` rows at a time."""
    for rows in torch.arange(variants * examples, device=device).split(size):
        yield rows // examples, rows % examples


def value_and_gradient(
    function: Function, point: Float[Tensor, "row ..."], example: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "*target row"], Float[Tensor, "*target row ..."]]:
    """One forward for all rows, and one backward for each target; works under ``no_grad``."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        value = function(leaf, example)
        each = value.reshape(-1, len(point)).unbind()
        found = [one["of leaf"] for one in each_gradient(each, leaf, lambda g: {"of leaf": g})]
    return value.detach(), torch.stack(found).reshape(*value.shape[:-1], *point.shape)


def between(
    start: Float[Tensor, "row ..."],
    end: Float[Tensor, "row ..."],
    alpha: Float[Tensor, " row"],
) -> Float[Tensor, "row ..."]:
    """start + alpha (end - start); exactly ``end`` at alpha = 1."""
    return torch.lerp(start, end, _beside(alpha, end))


def average_gradient(
    function: Function,
    start: Float[Tensor, "example ..."],
    end: Float[Tensor, "example ..."],
    alphas: Float[Tensor, " step"],
    weights: Float[Tensor, " step"],
    size: int,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "*target example ..."]:
    """Weighted sum of the gradients at ``start + alpha (end - start)``.

    One forward, and one backward for each target, for every ``size`` rows; memory does not grow
    with the steps.

    Args:
        function: what is differentiated.
        start: where the path starts (alpha = 0).
        end: where it ends (alpha = 1).
        alphas: places on the path, see `nodes`.
        weights: of the gradients there.
        size: rows per call of ``function``.
        change: applied to every gradient before it is added.
    """
    total: Tensor | None = None
    alphas, weights = alphas.to(end.device), weights.to(end.device)
    for step, example in chunks(len(alphas), len(end), size, end.device):
        point = between(start[example], end[example], alphas[step])
        _, gradient = value_and_gradient(function, point, example)
        gradient = gradient if change is None else change(gradient)
        if total is None:
            total = gradient.new_zeros(*gradient.shape[: -end.ndim], *end.shape)
        total.index_add_(-end.ndim, example, _beside(weights[step], point) * gradient)
    assert total is not None
    return total


def _beside(factor: Float[Tensor, " row"], rows: Float[Tensor, "row ..."]) -> Tensor:
    """One factor per row, shaped and typed to multiply ``rows``."""
    return factor.to(rows).view(-1, *[1] * (rows.ndim - 1))
