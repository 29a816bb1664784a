"""The explained number of a batch, and the refusal of values that are not finite."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.errors import InputError, NonFiniteError
from lens_attr.graph import ModelGraph
from lens_attr.graph.segments import Segments
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved


def target_value(
    graph: ModelGraph, batch: TokenBatch, target: Resolved
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch d_vocab"]]:
    """One forward: the explained number, and the logits at the explained position (detached).

    Raises:
        NonFiniteError: NaN or infinite logits.
        InputError: a metric that does not give one number per example.
    """
    mask = batch.padding_mask
    if target.full is None:
        logits = graph.logits_at(batch.token_ids, mask, target.position)
        value = target.score(logits, target)
    else:
        every = graph.forward(batch.token_ids, mask)
        value = target.full(every)
        logits = every[torch.arange(len(batch), device=every.device), target.position]
    refuse_non_finite("logits", logits)
    if not isinstance(value, Tensor) or value.shape != (len(batch),):
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the metric must give one number per example [{len(batch)}], got {shape}")
    return value, logits.detach()


def gradient_of(
    value: Float[Tensor, " batch"], leaf: Tensor, segments: Segments | None = None
) -> Tensor:
    """d value / d leaf, leaving every parameter's ``.grad`` alone.

    Args:
        value: what is differentiated, summed over the batch.
        leaf: where the gradient is read.
        segments: the forward of ``value`` in segments, if it was cut.

    Raises:
        InputError: the value does not depend on the logits.
    """
    if not value.requires_grad:
        raise InputError("the target does not depend on the logits, so there is no gradient.")
    if segments is not None:
        return segments.gradient(value.sum(), leaf)
    return torch.autograd.grad(value.sum(), leaf)[0]


def labels_of(target: Resolved, logits: Float[Tensor, "batch d_vocab"]) -> list[str]:
    """What is explained, in words, one per example."""
    return target.labels if target.relabel is None else target.relabel(logits)


def refuse_non_finite(what: str, values: Tensor) -> None:
    """Raise on NaN or infinity, naming the example.

    Raises:
        NonFiniteError: ...
    """
    bad = ~torch.isfinite(values).flatten(1).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"NaN or infinite {what} in example {int(bad.nonzero()[0])}: check the weights, or "
            "use a wider dtype (dtype='float32' in la.load)."
        )
