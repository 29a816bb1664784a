"""Does this model's graph mean what its hook names say? Tested numerically on a few tokens."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange, repeat
from torch import Tensor

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph.model import ModelGraph
from lens_attr.graph.points import Activation, Point

LENGTH = 6
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Finding:
    """One identity that was tested.

    Attributes:
        claim: what should hold, e.g. ``"pattern = softmax(scores)"``.
        hook_point: where it was tested.
        holds: whether it did.
        error: largest difference, relative to the largest value.
    """

    claim: str
    hook_point: str
    holds: bool
    error: float


@dataclass(frozen=True)
class Trace:
    """Activations and true gradients at some points, by hook name."""

    values: dict[str, Tensor]
    grads: dict[str, Tensor]


def probe_tokens(graph: ModelGraph) -> Tensor:
    """A few different ids, the same on every backend."""
    length = min(LENGTH, graph.n_ctx)
    return (torch.arange(length, device=graph.device)[None] * 7 + 5) % graph.d_vocab


def probe_backward(graph: ModelGraph) -> None:
    """One forward and backward on the probe tokens; fires hooks, changes nothing else."""
    (embed,) = graph.points("embed")
    leaves: list[Tensor] = []

    def make_leaf(embedding: Tensor) -> Tensor:
        leaves.append(embedding.detach().requires_grad_())
        return leaves[-1]

    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        embed.on_forward(make_leaf, stack)
        logits = graph.forward(probe_tokens(graph), None)[:, -1].double()
        weights = torch.linspace(-1, 1, logits.shape[-1], device=logits.device).double()
        torch.autograd.grad((logits @ weights).sum(), leaves[-1])


def trace(graph: ModelGraph, points: list[Point]) -> Trace:
    """Activations and true gradients of the probe at ``points``."""
    found = Trace({}, {})

    def keep(where: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        where[name] = tensor.detach()

    with ExitStack() as stack:
        for point in points:
            point.on_forward(partial(keep, found.values, point.name), stack)
            point.on_backward(partial(keep, found.grads, point.name), stack)
        probe_backward(graph)
    return found


def preflight(graph: ModelGraph) -> list[Finding]:
    """Test what every rule assumes about the attention and MLP hook points of this model."""
    sites = graph.activations()
    around = [p for s in sites for p in (s.pre, s.post, s.up) if p is not None]
    roles = ("scores", "pattern", "z", "v") if graph.attention_in_graph else ()
    attention = [point for role in roles for point in graph.points(role)]
    found = trace(graph, [*attention, *around])
    findings = [_activation(graph, site, found) for site in sites]
    if graph.attention_in_graph:
        columns = zip(*(graph.points(role) for role in roles), strict=True)
        findings += [finding for points in columns for finding in _attention(graph, found, *points)]
    return findings


def _attention(
    graph: ModelGraph, found: Trace, scores: Point, pattern: Point, z: Point, v: Point
) -> list[Finding]:
    s, p = found.values[scores.name].double(), found.values[pattern.name].double()
    values = found.values[v.name].double()
    values = repeat(values, "b k h d -> b k (h g) d", g=graph.n_heads // values.shape[2])
    mixed = torch.einsum("bhqk,bkhd->bqhd", p, values)
    heads = found.values[z.name].double()
    heads = heads if heads.ndim == 4 else rearrange(heads, "b q (h d) -> b q h d", h=graph.n_heads)
    results = [
        _finding(graph, "pattern = softmax(scores)", pattern, p, s.softmax(dim=-1)),
        _finding(graph, "z = pattern @ v", z, heads, mixed),
    ]
    if pattern.name in found.grads and scores.name in found.grads:
        g = found.grads[pattern.name].double()
        vjp = p * (g - (p * g).sum(dim=-1, keepdim=True))
        claim = "grad(scores) = softmax backward of grad(pattern)"
        results.append(_finding(graph, claim, scores, found.grads[scores.name].double(), vjp))
    else:
        results.append(Finding("gradients pass through pattern", pattern.name, False, float("nan")))
    return results


def _activation(graph: ModelGraph, site: Activation, found: Trace) -> Finding:
    claim = "post = f(pre)" if site.up is None else "post = f(pre) * up"
    try:
        function = graph.activation_function()
    except UnsupportedModelError as error:
        return Finding(f"{claim} ({error})", site.post.name, False, float("nan"))
    expected = function(found.values[site.pre.name].double())
    if site.up is not None:
        expected = expected * found.values[site.up.name].double()
    return _finding(graph, claim, site.post, found.values[site.post.name].double(), expected)


def _finding(graph: ModelGraph, claim: str, point: Point, got: Tensor, expected: Tensor) -> Finding:
    error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return Finding(claim, point.name, error <= TOLERANCE.get(graph.dtype, 1e-4), error)
