"""A transformer whose every edge is explicit, with a mask on each: the oracle of edge scores.

Each receiver builds its own copy of the residual stream from the outputs of all earlier nodes; a
mask of 0 takes a node's own output, 1 that of the corrupted run. Presets are written with stop
gradients (``scale``), so the gradient of a mask at 0 is the edge score by definition, and a run
with masks of 1 is exact edge patching.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .model import Linear, Model, Norm, gelu_new, read_model, rotate, rotations, silu
from .rules import Rules

Edge = tuple[str, str]


@dataclass(frozen=True)
class Run:
    value: Tensor  # the explained number
    outputs: dict[str, Tensor]  # of every node, [pos, d]


class MaskedModel:
    """The model of a Hugging Face state dict."""

    def __init__(self, state_dict: Mapping[str, Tensor], config: Any) -> None:
        self.model: Model = read_model(state_dict, config)

    def edges(self) -> list[Edge]:
        found, before = [], ["input"]
        for i in range(len(self.model.layers)):
            heads = [f"a{i}.h{h}" for h in range(self.model.n_heads)]
            kvs = heads if self.model.group == 1 else [f"a{i}.kv{g}" for g in self._groups]
            ports = [f"{h}<q>" for h in heads] + [f"{kv}<{x}>" for kv in kvs for x in "kv"]
            found += [(u, port) for u in before for port in ports]
            before = [*before, *heads]
            found += [(u, f"m{i}") for u in before]
            before = [*before, f"m{i}"]
        return found + [(u, "logits") for u in before]

    @property
    def _groups(self) -> range:
        return range(self.model.n_kv_heads)

    def embedding(self, ids: Tensor) -> Tensor:
        x = self.model.embed[ids]
        return x if self.model.positions is None else x + self.model.positions[: len(ids)]

    def run(
        self,
        embedding: Tensor,
        direction: Tensor,
        other: Mapping[str, Tensor] | None = None,
        masks: Mapping[Edge, Tensor | float] | None = None,
        rules: Rules | None = None,
    ) -> Run:
        """logits[-1] . direction, with masks between own and ``other`` outputs on some edges."""
        m, rules, masks = self.model, rules or Rules(), masks or {}
        n = len(embedding)
        rotation = None
        if m.rope_theta is not None:
            rotation = rotations(n, m.head_dim, m.rope_theta, torch.float64)
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        outputs, constant = {"input": embedding}, torch.zeros_like(embedding)

        def read(port: str) -> Tensor:
            stream = constant
            for source, out in outputs.items():
                stream = stream + out
                if (source, port) in masks:
                    stream = stream + masks[source, port] * (other[source] - out)
            return stream

        for i, layer in enumerate(m.layers):
            new = {}
            for h in range(m.n_heads):
                g = h // m.group
                kv = f"a{i}.h{h}" if m.group == 1 else f"a{i}.kv{g}"
                q = head_of(layer.q, h, m.head_dim)(
                    _norm(layer.norm1, read(f"a{i}.h{h}<q>"), rules)
                )
                k = head_of(layer.k, g, m.head_dim)(_norm(layer.norm1, read(f"{kv}<k>"), rules))
                v = head_of(layer.v, g, m.head_dim)(_norm(layer.norm1, read(f"{kv}<v>"), rules))
                q, k = rotate(q[None], rotation)[0], rotate(k[None], rotation)[0]
                scores = (q @ k.T / math.sqrt(m.head_dim)).masked_fill(future, -math.inf)
                pattern = scale(softmax(scores, rules.temperature), rules.pattern)
                z = scale(pattern @ v, rules.z)
                rows = slice(h * m.head_dim, (h + 1) * m.head_dim)
                new[f"a{i}.h{h}"] = z @ layer.o.weight[rows]
            outputs |= new
            if layer.o.bias is not None:
                constant = constant + layer.o.bias
            outputs[f"m{i}"] = self._mlp(layer, _norm(layer.norm2, read(f"m{i}"), rules), rules)
        logits = m.unembed(_norm(m.final_norm, read("logits"), rules))
        return Run(logits[-1] @ direction, outputs)

    def _mlp(self, layer: Any, x: Tensor, rules: Rules) -> Tensor:
        pre = layer.pre(x)
        act = silu(pre) if layer.up is not None else gelu_new(pre)
        if rules.act == "identity":
            act = pre * (act / pre).detach()
        if layer.up is None:
            return layer.down(act)
        gate_factor, up_factor = rules.gate_factors
        return layer.down(scale(act, gate_factor) * scale(layer.up(x), up_factor))

    def mask_gradients(
        self, clean: Tensor, corrupted: Tensor, direction: Tensor, rules: Rules, steps: int = 1
    ) -> dict[Edge, float]:
        """d value / d mask at 0 on every edge, by autograd; averaged along the path (EAP-IG)."""
        good, bad = self.embedding(clean), self.embedding(corrupted)
        start = self.run(good, direction).outputs
        other = self.run(bad, direction).outputs
        total = dict.fromkeys(self.edges(), 0.0)
        for step in range(1, steps + 1):
            masks = {edge: torch.zeros((), dtype=good.dtype).requires_grad_() for edge in total}
            here = bad + step / steps * (good - bad)
            own = self.run(here, direction).outputs
            # The mask moves the edge by corrupted - clean, wherever on the path the run is.
            shifted = {name: own[name] + other[name] - start[name] for name in own}
            value = self.run(here, direction, shifted, masks, rules).value
            grads = torch.autograd.grad(value, list(masks.values()), allow_unused=True)
            for edge, grad in zip(masks, grads, strict=True):
                total[edge] += 0.0 if grad is None else float(grad) / steps
        return total

    def patched(
        self, clean: Tensor, corrupted: Tensor, direction: Tensor, edges: list[Edge]
    ) -> float:
        """The value of the clean run when these edges carry what the corrupted run writes."""
        other = self.run(self.embedding(corrupted), direction).outputs
        masks = dict.fromkeys(edges, 1.0)
        return float(self.run(self.embedding(clean), direction, other, masks).value)


def head_of(linear: Linear, head: int, width: int) -> Linear:
    columns = slice(head * width, (head + 1) * width)
    bias = None if linear.bias is None else linear.bias[columns]
    return Linear(linear.weight[:, columns], bias)


def scale(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient multiplied by a factor."""
    return x if factor == 1 else factor * x + (1 - factor) * x.detach()


def softmax(scores: Tensor, temperature: float) -> Tensor:
    """softmax(scores), with T times the gradient of softmax(scores / T)."""
    tempered = temperature * torch.softmax(scores / temperature, dim=-1)
    return torch.softmax(scores, dim=-1).detach() + tempered - tempered.detach()


def _norm(norm: Norm, x: Tensor, rules: Rules) -> Tensor:
    c = x - x.mean(-1, keepdim=True) if norm.centred else x
    sigma = torch.sqrt((c * c).mean(-1, keepdim=True) + norm.eps)
    if rules.norm == "frozen":
        sigma = sigma.detach()
    out = norm.weight * c / sigma
    return out if norm.bias is None else out + norm.bias
