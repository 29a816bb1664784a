"""Integrated gradients and its relatives: clipped (IGCG), and with random baselines (GradSHAP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_attr.attribution.completeness import incomplete, remedy
from lens_attr.attribution.embeddings import (
    Baseline,
    baseline_embedding,
    baseline_rows,
    describe_baseline,
    is_zero,
    masked_sum,
    refuse_bad_baseline,
)
from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.paths import (
    MOST_STEPS,
    Quadrature,
    average_gradient,
    between,
    chunks,
    nodes,
    value_and_gradients,
)
from lens_attr.attribution.perturbation import (
    Inputs,
    PerturbationExplainer,
    model_function,
    read_inputs,
    value_at,
)
from lens_attr.attribution.scoring import refuse_non_finite
from lens_attr.errors import InputError, checked_count, refuse_no_number
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.rules import ClampGradient, RuleSet
from lens_attr.rules.clamp import refuse_no_interval
from lens_attr.rules.session import Session
from lens_attr.targets import Resolved


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(PerturbationExplainer):
    """``(x - x0) . integral of dF/dx over the straight path from x0 to x`` (Sundararajan 2017).

    ``tokens`` [batch, pos]. Sums to F(x) - F(x0), up to the error of the quadrature:
    ``extra["completeness_gap"]`` [batch] is the sum minus that difference,
    ``extra["baseline_value"]`` [batch] is F(x0). Where the embeddings pass a norm with nothing
    added to them (Llama from a zero baseline, BERT with ``embeddings="full"``), F does not depend
    on their scale, so that all change lies next to zero and the gap stays large for thousands of
    steps: use a token as the baseline. The target stays the same along the path: a top logit is
    that of the token on top at x.

    Cost: ``steps`` forwards and backwards, and 2 forwards for F(x) and F(x0). Further targets
    cost ``steps`` backwards each.

    Attributes:
        steps: number of gradients.
        quadrature: where on the path they are taken, see `paths.Quadrature`.
    """

    steps: int = 50
    quadrature: Quadrature = "gauss_legendre"

    def __post_init__(self) -> None:
        super().__post_init__()
        nodes(self.quadrature, self.steps)

    def forwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """See `Explainer.forwards`."""
        return 1 + self.calls(self.steps, batch, targets) + self.calls(1, batch, targets)

    def backwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """See `Explainer.backwards`."""
        return self.calls(self.steps, batch, targets) * len(targets)

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """The forwards of the path serve every target. See `Explainer.explain_many`."""
        inputs = read_inputs(graph, batch, targets, self.embeddings, self.baseline)
        function = model_function(graph, batch, inputs.targets, self.embeddings)
        size = self.rows_per_call(batch, targets)
        mask, step = batch.attention_mask, inputs.end - inputs.start

        def keep(gradient: Tensor, example: Tensor) -> Tensor:
            return masked_sum(step[example] * self._change(gradient), mask[example])

        rules = self._rules
        together = self.backwards_at_once(graph, self.steps, batch, targets, rules)
        with Session(graph, rules, strict=True, lowered=True):
            tokens = average_gradient(
                function,
                inputs.start,
                inputs.end,
                *nodes(self.quadrature, self.steps),
                size,
                keep,
                together,
            )
        baseline_values = value_at(function, inputs.start, size)
        each = zip(tokens, inputs.values, baseline_values, inputs.labels, strict=True)
        return [self._explained(*parts) for parts in each]

    def _explained(
        self,
        tokens: Float[Tensor, "batch pos"],
        value: Float[Tensor, " batch"],
        baseline_value: Float[Tensor, " batch"],
        labels: list[str],
    ) -> Explained:
        refuse_non_finite("relevance", tokens)
        gap = tokens.sum(dim=1) - (value - baseline_value)
        return Explained(
            tokens=tokens,
            target_value=value,
            labels=labels,
            extra={"baseline_value": baseline_value, "completeness_gap": gap},
            notices=incomplete("the relevance", value, baseline_value, gap, self._remedy()),
        )

    @property
    def _rules(self) -> RuleSet:
        """What modifies the backward passes."""
        return RuleSet()

    def _change(self, gradient: Tensor) -> Tensor:
        """What modifies the gradient that arrives at the embeddings."""
        return gradient

    def _remedy(self) -> str:
        return remedy("steps", self.steps, self.baseline)


@dataclass(frozen=True, kw_only=True)
class ClippedIntegratedGradients(IntegratedGradients):
    """IGCG: integrated gradients with clipped gradients (comparison of the AIEG paper, 2025).

        tokens [batch, pos] = sum_d (x - x0)_d . integral of (dF/dx)_d under the clamp

    The results and the baseline are those of `IntegratedGradients`.

    The paper clips the recurrence dh_t / dh_(t-1) of a recurrent network to
    [theta_minus, theta_plus], against exploding gradients. A transformer has no such recurrence,
    so there is no exact counterpart. ``where="blocks"`` clamps what comes nearest: the gradient
    handed down from block to block (`la.rules.ClampGradient`). ``where="input"`` is the weaker
    reading, which clamps the gradient that arrives at the embeddings; the default bound never
    binds there, so it equals integrated gradients. With infinite bounds both are integrated
    gradients exactly; where the clamp acts, the sum is no longer F(x) - F(x0), and
    ``extra["completeness_gap"]`` [batch] says by how much.

    Cost: ``steps`` forwards and backwards, and 2 forwards. Further targets cost ``steps`` backwards
    each.

    Attributes:
        theta_minus: smallest entry of the gradient.
        theta_plus: largest entry of the gradient.
        where: ``"blocks"`` or ``"input"``.
    """

    theta_minus: float = -inf
    theta_plus: float = 1e6
    where: Literal["blocks", "input"] = "blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where not in ("blocks", "input"):
            raise InputError(f"where must be 'blocks' or 'input', got {self.where!r}.")
        refuse_no_interval("theta_minus", self.theta_minus, "theta_plus", self.theta_plus)

    @property
    def _rules(self) -> RuleSet:
        clamp = ClampGradient(low=self.theta_minus, high=self.theta_plus)
        return RuleSet((clamp,) if self.where == "blocks" else (), name="ig_clipped")

    def _change(self, gradient: Tensor) -> Tensor:
        if self.where == "blocks":
            return gradient
        return gradient.clamp(self.theta_minus, self.theta_plus)

    def _remedy(self) -> str:
        return f"{super()._remedy()} Where the clamp acts, a gap is its price."


@dataclass(frozen=True)
class Draws:
    """The random choices of GradSHAP, one per sample, the same for every example.

    Drawn on the CPU from a generator of their own, so they depend on nothing but the seed: not on
    the device, the other texts of the batch, or how the samples are batched.
    """

    alpha: Float[Tensor, " sample"]
    baseline: Int[Tensor, " sample"]
    noise_seed: Int[Tensor, " sample"]

    @staticmethod
    def make(n_samples: int, n_baselines: int, seed: int) -> Draws:
        """Uniform alphas, and baselines drawn with replacement."""
        generator = torch.Generator().manual_seed(seed)
        return Draws(
            torch.rand(n_samples, generator=generator, dtype=torch.float64),
            torch.randint(n_baselines, (n_samples,), generator=generator),
            torch.randint(2**62, (n_samples,), generator=generator),
        )

    def noise(
        self, sample: int, real: Bool[Tensor, " pos"], width: int
    ) -> Float[Tensor, "pos width"]:
        """Standard normal noise on the real tokens of one example, in their order; else 0."""
        generator = torch.Generator().manual_seed(int(self.noise_seed[sample]))
        drawn = torch.randn(int(real.sum()), width, generator=generator)
        noise = torch.zeros(len(real), width, device=real.device)
        noise[real] = drawn.to(real.device)
        return noise


@dataclass(frozen=True, kw_only=True)
class GradientShap(PerturbationExplainer):
    """GradSHAP: ``E[(x - x0) . dF/dx at x0 + alpha (x - x0)]`` (Lundberg & Lee 2017).

    The expectation over random baselines x0 and alphas uniform in [0, 1], as a mean over
    ``n_samples``: ``tokens`` [batch, pos], with ``extra["standard_error"]`` [batch, pos]. Sums, in
    expectation, to F(x) - E[F(x0)]: ``extra["baseline_value"]`` [batch] is the mean of F(x0) over
    the samples, ``extra["completeness_gap"]`` [batch] the sum of the tokens minus F(x) less that
    mean, and ``extra["completeness_standard_error"]`` [batch] how far chance alone may put it from
    its expectation, which is 0. The same seed gives the same result on every device and for every
    batch size; torch's global random state is neither read nor changed.

    Cost: ``n_samples`` forwards and backwards, and ``n_samples + 1`` forwards for F(x0) and F(x).
    Further targets cost ``n_samples`` backwards each.

    Attributes:
        n_samples: number of (x0, alpha) pairs, at least 2.
        seed: of the samples.
        noise: standard deviation of the normal noise added to every baseline, as a multiple of
            the root mean square of the text's embedding entries; 0 for none.
        baselines: several baselines to draw from, each as ``baseline`` would be given, instead of
            the one.
    """

    per_token: ClassVar = ("standard_error",)

    n_samples: int = 50
    seed: int = 0
    noise: float = 0.1
    baselines: Sequence[Baseline] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("n_samples", self.n_samples, least=2, most=MOST_STEPS)
        checked_count("seed", self.seed, least=0, most=2**63 - 1)
        refuse_no_number("noise", self.noise, least=0)
        if self.baselines is None:
            return
        several = isinstance(self.baselines, Sequence) and not isinstance(self.baselines, str)
        if not several or not self.baselines:
            raise InputError(
                "baselines must be a list of one or more tokens, ids or tensors, got "
                f"{type(self.baselines).__name__}: write [...], or list(tensor) for its rows."
            )
        if self.baseline is not None:
            raise InputError("give baseline or baselines, not both.")

    @property
    def keep_width(self) -> bool:
        """The standard error has positions."""
        return True

    @property
    def prefix_exact(self) -> bool:
        """Noise is drawn for a whole text, and as strong as its embeddings are large."""
        return self.noise == 0

    def refuse(self, graph: ModelGraph, batch: TokenBatch) -> None:
        """Every baseline must be one that fits the embeddings of the whole batch."""
        for baseline in self._baselines():
            refuse_bad_baseline(graph, baseline, batch)

    def rows(self, index: Sequence[int], n: int) -> GradientShap:
        """Baselines with a batch axis are cut with the batch."""
        if self.baselines is None:
            return replace(self, baseline=baseline_rows(self.baseline, index, n))
        return replace(self, baselines=[baseline_rows(one, index, n) for one in self.baselines])

    def describe(self) -> dict[str, Any]:
        """Every option; tensors by their shape."""
        several = self.baselines
        each = None if several is None else [describe_baseline(one) for one in several]
        return super().describe() | {"baselines": each}

    def _baselines(self) -> list[Baseline]:
        return [self.baseline] if self.baselines is None else list(self.baselines)

    def forwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """See `Explainer.forwards`."""
        return 1 + 2 * self.calls(self.n_samples, batch, targets)

    def backwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """See `Explainer.backwards`."""
        return self.calls(self.n_samples, batch, targets) * len(targets)

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """The forwards of the samples serve every target. See `Explainer.explain_many`."""
        inputs = read_inputs(graph, batch, targets, self.embeddings, None)
        each = zip(*self._samples(graph, batch, inputs), inputs.values, inputs.labels, strict=True)
        return [self._explained(*parts) for parts in each]

    def _explained(
        self,
        samples: Float[Tensor, "sample batch pos"],
        at_baselines: Float[Tensor, "sample batch"],
        value: Float[Tensor, " batch"],
        labels: list[str],
    ) -> Explained:
        tokens, baseline_value = samples.mean(dim=0), at_baselines.mean(dim=0)
        refuse_non_finite("relevance", tokens)
        gaps = samples.sum(dim=2) - (value - at_baselines)
        gap = gaps.mean(dim=0)
        return Explained(
            tokens,
            value,
            labels,
            extra={
                "standard_error": self._standard_error(samples),
                "baseline_value": baseline_value,
                "completeness_gap": gap,
                "completeness_standard_error": self._standard_error(gaps),
            },
            notices=incomplete("the relevance", value, baseline_value, gap, self._remedy()),
        )

    def _standard_error(self, samples: Tensor) -> Tensor:
        """Of the mean over the samples, the first axis."""
        return samples.std(dim=0) / self.n_samples**0.5

    def _remedy(self) -> str:
        zero = next(filter(is_zero, self._baselines()), self._baselines()[0])
        return (
            'Its standard error is r.extra["completeness_standard_error"]. '
            f"{remedy('samples', self.n_samples, zero)}"
        )

    def _samples(
        self, graph: ModelGraph, batch: TokenBatch, inputs: Inputs
    ) -> tuple[Float[Tensor, "target sample batch pos"], Float[Tensor, "target sample batch"]]:
        """(x - x0) . gradient, and F(x0), of every sample."""
        end, mask = inputs.end, batch.attention_mask
        function = model_function(graph, batch, inputs.targets, self.embeddings)
        starts = self._starts(graph, batch, inputs)
        alphas = starts.draws.alpha.to(end.device)
        found = end.new_zeros(len(inputs.targets), self.n_samples, *mask.shape)
        at_baselines = found.new_zeros(found.shape[:3])
        size = self.rows_per_call(batch, inputs.targets)
        together = self.backwards_at_once(graph, self.n_samples, batch, inputs.targets)
        for sample, example in chunks(self.n_samples, len(batch), size, end.device):
            start, here = starts(sample, example), end[example]
            with torch.no_grad():
                at_baselines[:, sample, example] = function(start, example).to(found)
            point = between(start, here, alphas[sample])
            _, gradients = value_and_gradients(function, point, example, together)
            for own, gradient in zip(found, gradients, strict=True):
                own[sample, example] = masked_sum((here - start) * gradient, mask[example])
        return found, at_baselines

    def _starts(self, graph: ModelGraph, batch: TokenBatch, inputs: Inputs) -> RandomBaselines:
        end, mask = inputs.end, batch.attention_mask
        each = [baseline_embedding(graph, one).to(end).expand_as(end) for one in self._baselines()]
        return RandomBaselines(
            draws=Draws.make(self.n_samples, len(each), self.seed),
            baselines=each,
            spread=self.noise * _root_mean_square(end, mask),
            end=end,
            mask=mask,
        )


@dataclass(frozen=True)
class RandomBaselines:
    """The random baseline of every (sample, example), made when it is needed.

    Attributes:
        draws: the random choices.
        baselines: what is drawn from.
        spread: standard deviation of the noise, per example.
        end: the embeddings themselves, which stay on padding.
        mask: True on real tokens.
    """

    draws: Draws
    baselines: list[Tensor]
    spread: Float[Tensor, " batch"]
    end: Float[Tensor, "batch pos d_model"]
    mask: Bool[Tensor, "batch pos"]

    def __call__(
        self, sample: Int[Tensor, " row"], example: Int[Tensor, " row"]
    ) -> Float[Tensor, "row pos d_model"]:
        """One baseline per row."""
        pairs = zip(sample.tolist(), example.tolist(), strict=True)
        start = torch.stack([self._one(s, b) for s, b in pairs])
        return torch.where(self.mask[example][..., None], start, self.end[example])

    def _one(self, sample: int, example: int) -> Float[Tensor, "pos d_model"]:
        centre = self.baselines[int(self.draws.baseline[sample])][example]
        noise = self.draws.noise(sample, self.mask[example], centre.shape[-1])
        return centre + self.spread[example] * noise.to(centre)


def _root_mean_square(
    embedding: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Over the entries of an example's real tokens."""
    squares = masked_sum(embedding.square(), mask).sum(dim=1)
    return (squares / (mask.sum(dim=1) * embedding.shape[-1])).sqrt()
