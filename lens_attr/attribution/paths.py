"""Gradients along a straight path: quadrature and evaluation, for any function of a tensor.

Nothing here knows a transformer. The function is handed rows of points, and for each row the
example that it is a variant of, so that many points of several examples go through in one call. It
may give several numbers per row, one for each target, which then share that call: results have the
same axis of targets in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.attribution.jacobian import each_gradient
from lens_attr.errors import InputError, checked_count, did_you_mean

Function = Callable[[Tensor, Tensor], Tensor]
"""Points [row, ...] and the example each belongs to [row], to one number per row [row], or several
[target, row]."""

Keep = Callable[[Tensor, Tensor], Tensor]
"""The gradients of rows [row, ...] and the example each belongs to [row], to what is kept of each
[row, ...]."""

Quadrature = Literal["left", "right", "midpoint", "gauss_legendre"]
"""Where on the path the gradient is taken. The error falls as 1 / steps for ``"left"`` and
``"right"`` (the Riemann sum of the IG paper), as 1 / steps^2 for ``"midpoint"``, and faster than
any power for ``"gauss_legendre"`` where the function is smooth."""

MOST_STEPS, MOST_NODES = 1_000_000, 2_000
"""What a path is cut into at most; the second with Gauss-Legendre quadrature."""


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
    checked_count("steps", steps, most=MOST_STEPS)
    if quadrature == "gauss_legendre":
        if steps > MOST_NODES:
            raise InputError(
                f"steps must be at most {MOST_NODES} for Gauss-Legendre quadrature, whose nodes "
                f'come from a matrix of steps x steps, got {steps}: take quadrature="midpoint".'
            )
        places, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((places + 1) / 2), torch.from_numpy(weights / 2)
    offset = {"left": 0.0, "right": 1.0, "midpoint": 0.5}[quadrature]
    places = (torch.arange(steps, dtype=torch.float64) + offset) / steps
    return places, torch.full_like(places, 1 / steps)


def chunks(
    variants: int, examples: int, size: int, device: torch.device | None = None
) -> Iterator[tuple[Int[Tensor, " row"], Int[Tensor, " row"]]]:
    """Every (variant, example), variant by variant, ``size`` rows at a time."""
    for rows in torch.arange(variants * examples, device=device).split(size):
        yield rows // examples, rows % examples


def value_and_gradients(
    function: Function,
    point: Float[Tensor, "row ..."],
    example: Int[Tensor, " row"],
    at_once: int = 1,
) -> tuple[Float[Tensor, "*target row"], Iterator[Float[Tensor, "row ..."]]]:
    """One forward for all rows, and one backward for each target; works under ``no_grad``.

    The gradients come one target after the other, so that no more than ``at_once`` of them exist
    at a time (see `each_gradient`).
    """
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        value = function(leaf, example)
        each = value.reshape(-1, len(point)).unbind()
    found = each_gradient(each, leaf, lambda grad: {"leaf": grad}, at_once=at_once)
    return value.detach(), (one["leaf"] for one in found)


def between(
    start: Float[Tensor, "row ..."],
    end: Float[Tensor, "row ..."],
    alpha: Float[Tensor, " row"],
) -> Float[Tensor, "row ..."]:
    """start + alpha (end - start); exactly ``end`` at alpha = 1."""
    return torch.lerp(start, end, beside(alpha, end))


def average_gradient(
    function: Function,
    start: Float[Tensor, "example ..."],
    end: Float[Tensor, "example ..."],
    alphas: Float[Tensor, " step"],
    weights: Float[Tensor, " step"],
    size: int,
    keep: Keep = lambda gradient, _: gradient,
    at_once: int = 1,
) -> Float[Tensor, "*target example ..."]:
    """Weighted sum of what is kept of the gradients at ``start + alpha (end - start)``.

    One forward, and one backward for each target, for every ``size`` rows. Memory does not grow
    with the steps, and with the targets only by the result.

    Args:
        function: what is differentiated.
        start: where the path starts (alpha = 0).
        end: where it ends (alpha = 1).
        alphas: places on the path, see `nodes`.
        weights: of the gradients there.
        size: rows per call of ``function``.
        keep: what is added of every gradient; all of it unless told otherwise.
        at_once: how many backwards run as one, see `each_gradient`.
    """
    totals: list[Tensor] = []
    targets: Sequence[int] = ()
    alphas, weights = alphas.to(end.device), weights.to(end.device)
    for step, example in chunks(len(alphas), len(end), size, end.device):
        point = between(start[example], end[example], alphas[step])
        value, gradients = value_and_gradients(function, point, example, at_once)
        targets = value.shape[:-1]
        for k, gradient in enumerate(gradients):
            kept = keep(gradient, example)
            if k == len(totals):
                totals.append(kept.new_zeros(len(end), *kept.shape[1:]))
            totals[k].index_add_(0, example, beside(weights[step], kept) * kept)
    return torch.stack(totals).reshape(*targets, *totals[0].shape)


def beside(factor: Float[Tensor, " row"], rows: Float[Tensor, "row ..."]) -> Tensor:
    """One factor per row, shaped and typed to multiply ``rows``."""
    return factor.to(rows).view(-1, *[1] * (rows.ndim - 1))
