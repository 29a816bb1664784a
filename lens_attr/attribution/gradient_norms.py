"""Gradient norms: how strongly the explained number reacts to each token, in any direction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lens_attr.attribution.embeddings import InputEmbeddings, masked_sum
from lens_attr.attribution.explainer import Explained, Explainer
from lens_attr.attribution.jacobian import at_once, each_gradient
from lens_attr.attribution.recording import Recorder
from lens_attr.attribution.scoring import labels_of, refuse_non_finite, target_values
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved


@dataclass(frozen=True, kw_only=True)
class GradientNorm(Explainer):
    """A norm of the true gradient: sensitivity, never negative, and conserving nothing.

    ``tokens`` [batch, pos]: the gradient at the token embedding, which is also the one at token +
    position. ``head_tokens`` [batch, layer, pos, head]: the gradient at z; the three poolings of
    head relevance are then the same (LRPx, Arras et al. 2025).

    Cost: 1 forward and 1 backward; further targets cost 1 backward each.
    """

    per: ClassVar[str]
    """The unit of the result, ``{}`` standing for that of the target."""

    @staticmethod
    @abstractmethod
    def size(gradient: Tensor) -> Tensor:
        """What one entry of the gradient counts."""

    def backwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """One for each target. See `Explainer.backwards`."""
        return len(targets)

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """One forward for all, and one backward each. See `Explainer.explain_many`."""
        points = graph.points("z")
        sizes_only = lambda _, gradient: self._size(gradient)  # noqa: E731
        recorder = Recorder(batch.padding_mask, sizes_only, lowered=True)
        for point in points:
            recorder.want(point, "per head", lambda sizes: sizes.sum(dim=-1))
        inputs = InputEmbeddings()

        def read(gradient: Tensor) -> dict[str, Any]:
            heads = torch.stack([recorder.get(point, "per head") for point in points], dim=1)
            tokens = masked_sum(self._size(gradient), batch.attention_mask)
            return {"tokens": tokens, "head_tokens": heads, "heads_relu_dim": heads.sum(dim=2)}

        together = at_once(graph, batch.token_ids.shape, targets)
        with torch.enable_grad(), ExitStack() as stack:
            inputs.attach(graph, stack)
            stack.enter_context(recorder)
            scored = target_values(graph, batch, targets)
            values = [value for value, _ in scored]
            found = list(
                each_gradient(values, inputs.leaf, read, before=recorder.clear, at_once=together)
            )
        explained = zip(targets, scored, found, strict=True)
        return [self._explained(target, *pair, parts) for target, pair, parts in explained]

    def _explained(
        self, target: Resolved, value: Tensor, logits: Tensor, parts: dict[str, Any]
    ) -> Explained:
        refuse_non_finite("relevance", parts["tokens"])
        return Explained(
            target_value=value.detach(),
            labels=labels_of(target, logits),
            unit=self.per.format(target.unit),
            **parts,
        )

    def _size(self, gradient: Tensor) -> Tensor:
        return self.size(gradient.to(torch.promote_types(gradient.dtype, torch.float32)))


@dataclass(frozen=True, kw_only=True)
class GradientL1(GradientNorm):
    """``sum_d |dF / dx_d|`` for each token [batch, pos] (Li et al. 2016, arXiv 1506.01066).

    ``head_tokens`` [batch, layer, pos, head] is ``sum_d |dF / dz_d|`` (LRPx, Arras et al. 2025).

    Cost: 1 forward and 1 backward; further targets cost 1 backward each.
    """

    per = "|d {}| per unit of embedding"

    @staticmethod
    def size(gradient: Tensor) -> Tensor:
        """See `GradientNorm`."""
        return gradient.abs()


@dataclass(frozen=True, kw_only=True)
class GradientL2(GradientNorm):
    """``sum_d (dF / dx_d)^2`` for each token [batch, pos] (LRPx, Arras et al. 2025).

    The squared l2 norm, which LRPx calls l2. ``head_tokens`` [batch, layer, pos, head] is
    ``sum_d (dF / dz_d)^2``.

    Cost: 1 forward and 1 backward; further targets cost 1 backward each.
    """

    per = "(d {} per unit of embedding)^2"

    @staticmethod
    def size(gradient: Tensor) -> Tensor:
        """See `GradientNorm`."""
        return gradient.square()
