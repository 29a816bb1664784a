"""Path methods and occlusion, literally and one step at a time, on Hugging Face models.

Shares no code with lens_attr and does not use TransformerLens: the embeddings go in through
``inputs_embeds``, and only autograd does the differentiating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]
"""Embeddings [pos, d_model] to a number."""


def word_embeddings(model: Any, ids: Sequence[int]) -> Tensor:
    return model.get_input_embeddings()(torch.tensor(ids)).detach()


def score(model: Any, position: int, answer: int, foil: int) -> Score:
    """logit(answer) - logit(foil) of one text without padding."""

    def of(embeddings: Tensor) -> Tensor:
        logits = model(inputs_embeds=embeddings[None]).logits[0, position]
        return logits[answer] - logits[foil]

    return of


def gradient(function: Score, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        function(leaf).backward(inputs=[leaf])
        return leaf.grad


def places(rule: str, n: int) -> list[tuple[float, float]]:
    if rule == "left":
        return [(k / n, 1 / n) for k in range(n)]
    if rule == "right":
        return [((k + 1) / n, 1 / n) for k in range(n)]
    if rule == "midpoint":
        return [((2 * k + 1) / (2 * n), 1 / n) for k in range(n)]
    x, w = np.polynomial.legendre.leggauss(n)
    return [(float(a + 1) / 2, float(b) / 2) for a, b in zip(x, w, strict=True)]


def integrated_gradients(
    function: Score,
    x: Tensor,
    x0: Tensor,
    rule: str,
    n: int,
    change: Callable[[Tensor], Tensor] = lambda g: g,
) -> Tensor:
    total = torch.zeros_like(x)
    for alpha, weight in places(rule, n):
        total += weight * change(gradient(function, x0 + alpha * (x - x0)))
    return ((x - x0) * total).sum(-1)


def occlusion(function: Score, x: Tensor, x0: Tensor) -> Tensor:
    drops = []
    for i in range(len(x)):
        changed = x.clone()
        changed[i] = x0[i]
        drops.append(function(x) - function(changed))
    return torch.stack(drops).detach()


def aieg(function: Score, x: Tensor, x0: Tensor, n: int, attention: Tensor) -> dict[str, Tensor]:
    """By the formulas of the design, k from 0 to N."""
    points = [x0 + k / n * (x - x0) for k in range(n + 1)]
    outputs = [float(function(point).detach()) for point in points]
    factors = [0.0]
    for k in range(1, n + 1):
        above = abs(outputs[k] - outputs[k - 1])
        below = abs(outputs[k]) + abs(outputs[k - 1])
        factors.append(above / below if below else 0.0)
    total = sum(factors[k] * gradient(function, points[k]) for k in range(1, n + 1)) / n
    scores = ((x - x0) * total).sum(-1)
    positive = torch.where(scores > 0, scores, 0.0)
    shares = positive / positive.sum() if positive.sum() > 0 else positive
    return {
        "output": torch.tensor(outputs, dtype=x.dtype),
        "emphasis": torch.tensor(factors, dtype=x.dtype),
        "emphasised": scores,
        "emphasised_normalised": shares,
        "relevance": shares * attention,
    }


def mean_attention(model: Any, ids: Sequence[int], row: int) -> Tensor:
    """Over layers and heads, of one query."""
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True)
    return torch.stack(out.attentions)[:, 0, :, row].mean(dim=(0, 1))


@contextmanager
def clamped(blocks: Sequence[nn.Module], low: float, high: float) -> Iterator[None]:
    """The gradient at the input of every block, clamped."""

    def at_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        hidden = args[0].view_as(args[0])
        hidden.register_hook(lambda g: g.clamp(low, high))
        return (hidden, *args[1:]), kwargs

    handles = [b.register_forward_pre_hook(at_input, with_kwargs=True) for b in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
