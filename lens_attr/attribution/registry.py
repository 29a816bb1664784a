"""The table of methods: everything the README, the docs and ``lens-attr methods`` say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lens_attr import rules
from lens_attr.attribution.aieg import AIEG
from lens_attr.attribution.alti import Alti
from lens_attr.attribution.alti_logit import AltiLogit
from lens_attr.attribution.attention import AttentionOnly, AttentionRollout
from lens_attr.attribution.deeplift import DeepLift
from lens_attr.attribution.explainer import Explainer
from lens_attr.attribution.gradient_norms import GradientL1, GradientL2
from lens_attr.attribution.gradients import preset_explainer
from lens_attr.attribution.integrated_gradients import (
    ClippedIntegratedGradients,
    GradientShap,
    IntegratedGradients,
)
from lens_attr.attribution.occlusion import Occlusion
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, did_you_mean
from lens_attr.rules.presets import SWITCHES


@dataclass(frozen=True)
class Method:
    """One attribution method.

    Attributes:
        name: what ``method=`` takes.
        summary: what it computes, in one line.
        defined_for: model families.
        target_aware: whether it explains one chosen number.
        conserves: whether the relevance sums to the target, and when.
        cost: in forwards and backwards per batch.
        source: where it was published.
        make: the explainer, from its options.
    """

    name: str
    summary: str
    defined_for: str
    target_aware: bool
    conserves: str
    cost: str
    source: str
    make: Callable[..., Explainer]

    def explainer(self, **options: Any) -> Explainer:
        """The method with some of its options set.

        Raises:
            InputError: an option it does not have, or a value it does not take.
        """
        if isinstance(self.make, type):
            known = [field.name for field in fields(self.make)]
            for option in options:
                if option not in known:
                    raise InputError(
                        f"{self.name} has no option {option!r}; {did_you_mean(option, known)}"
                    )
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items()}
        return self.make(**plain)

    def options(self) -> dict[str, Any]:
        """Every option and its default; those of a method made of rules include its switches."""
        explainer = self.make()
        found = {field.name: getattr(explainer, field.name) for field in fields(explainer)}
        rules = found.pop("rules", None)
        return found if rules is None else vars(SWITCHES[rules.name]) | found

    def to_markdown(self) -> str:
        """The facts as the method's page in the docs shows them."""
        options = (f"`{name}={default!r}`" for name, default in self.options().items())
        facts = {
            "name": f"`{self.name}`",
            "what it computes": self.summary,
            "defined for": self.defined_for,
            "explains a chosen target": "yes" if self.target_aware else "no, it knows no target",
            "sums to the target": self.conserves,
            "cost": self.cost,
            "source": self.source,
            "options": ", ".join(options) or "none",
        }
        rows = (f"| {name} | {value} |" for name, value in facts.items())
        return "\n".join(["| fact | |", "|---|---|", *rows])


EVERY_FAMILY = "every supported family"
ONE_PASS = "1 forward, 1 backward"
ONE_FORWARD = "1 forward"
ONE_FORWARD_AND_PAIRS = "1 forward; n_heads * d_model operations per block and pair of tokens"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "gradient_x_input",
            "embedding times the true gradient",
            EVERY_FAMILY,
            True,
            "no",
            ONE_PASS,
            "Denil et al. 2014; LRPx",
            partial(preset_explainer, rules.gradient),
        ),
        Method(
            "lrp",
            "constant norms, patterns and gates; identity rule at activations",
            EVERY_FAMILY,
            True,
            "yes, on models without biases",
            ONE_PASS,
            "Ali et al. 2022; LRPx (Arras et al. 2025)",
            partial(preset_explainer, rules.lrp),
        ),
        Method(
            "attnlrp",
            "LRP with relevance through the softmax; products shared equally",
            EVERY_FAMILY,
            True,
            "no (softmax)",
            ONE_PASS,
            "Achtibat et al. 2024, arXiv 2402.05602",
            partial(preset_explainer, rules.attnlrp),
        ),
        Method(
            "gim",
            "gradient with constant norms, halved products, softmax gradients at T = 2",
            "models whose pattern is in the autograd graph (not Bridge BERT, GPT-J, Neo, OPT)",
            True,
            "no",
            ONE_PASS,
            "Edin et al. 2025, arXiv 2505.17630",
            partial(preset_explainer, rules.gim),
        ),
        Method(
            "relp",
            "LRP's norms and activations, true attention gradient, gates halved",
            EVERY_FAMILY,
            True,
            "no",
            ONE_PASS,
            "Jafari et al. 2025",
            partial(preset_explainer, rules.relp),
        ),
        Method(
            "gradient_l1",
            "l1 norm of the gradient, per token and per head",
            EVERY_FAMILY,
            True,
            "no",
            ONE_PASS,
            "Li et al. 2016; LRPx",
            GradientL1,
        ),
        Method(
            "gradient_l2",
            "squared l2 norm of the gradient, per token and per head",
            EVERY_FAMILY,
            True,
            "no",
            ONE_PASS,
            "LRPx (Arras et al. 2025)",
            GradientL2,
        ),
        Method(
            "integrated_gradients",
            "gradients averaged on the way from a baseline, times the difference from it",
            EVERY_FAMILY,
            True,
            "yes, to F(x) - F(baseline), up to the reported gap",
            "steps + 2 forwards, steps backwards",
            "Sundararajan et al. 2017",
            IntegratedGradients,
        ),
        Method(
            "ig_clipped",
            "integrated gradients, every block's gradient clamped (IGCG)",
            EVERY_FAMILY,
            True,
            "as integrated_gradients, where the clamp does not act",
            "steps + 2 forwards, steps backwards",
            "baseline of the AIEG paper",
            ClippedIntegratedGradients,
        ),
        Method(
            "gradient_shap",
            "integrated gradients as a mean over random baselines and places, with standard error",
            EVERY_FAMILY,
            True,
            "in expectation, to F(x) - E[F(baseline)]; the gap is reported",
            "2 n_samples + 1 forwards, n_samples backwards",
            "Lundberg & Lee 2017",
            GradientShap,
        ),
        Method(
            "occlusion",
            "what the target loses when a token is replaced or removed",
            EVERY_FAMILY,
            True,
            "no",
            "1 forward per token, and 1",
            "Zeiler & Fergus 2014; Li et al. 2016",
            Occlusion,
        ),
        Method(
            "aieg",
            "integrated gradients weighted by emphasis factors, positive part, times attention",
            EVERY_FAMILY,
            True,
            "no",
            "steps + 2 forwards, steps backwards",
            "AIEG (ICLR 2025 submission)",
            AIEG,
        ),
        Method(
            "attention_only",
            "mean attention weight over blocks and heads",
            EVERY_FAMILY,
            False,
            "no (sums to 1)",
            ONE_FORWARD,
            "AIEG's NetAttention, without values",
            AttentionOnly,
        ),
        Method(
            "attention_rollout",
            "attention weights plus the residual connection, multiplied through the blocks",
            EVERY_FAMILY,
            False,
            "no (sums to 1)",
            ONE_FORWARD,
            "Abnar & Zuidema 2020, arXiv 2005.00928",
            AttentionRollout,
        ),
        Method(
            "alti",
            "how close each token's transformed vector comes to the output, through the blocks",
            EVERY_FAMILY,
            False,
            "no (sums to 1)",
            ONE_FORWARD_AND_PAIRS,
            "Ferrando et al. 2022, arXiv 2203.04212",
            Alti,
        ),
        Method(
            "alti_logit",
            "what each block's attention adds to the logit, traced back to the tokens by ALTI",
            "pre-norm models whose logits are not capped (not BERT, Gemma 2)",
            True,
            "yes, with the embedding, MLP and bias terms in `r.extra`",
            ONE_FORWARD_AND_PAIRS,
            "Ferrando et al. 2023, arXiv 2305.12535",
            AltiLogit,
        ),
        Method(
            "deeplift",
            "token embedding minus baseline, times secants in place of derivatives",
            "models whose pattern is in the autograd graph (not Bridge BERT, GPT-J, Neo, OPT)",
            True,
            "yes, to F(x) - F(baseline)",
            "1 forward, 1 backward, of twice the batch (input and baseline)",
            "Shrikumar et al. 2017, arXiv 1704.02685",
            DeepLift,
        ),
    )
}


class MethodTable(Shown):
    """The registry as a table: iterate it, index it by name, or turn it into pandas."""

    def __iter__(self) -> Iterator[Method]:
        return iter(METHODS.values())

    def __len__(self) -> int:
        return len(METHODS)

    def __getitem__(self, name: str) -> Method:
        return method(name)

    @property
    def headline(self) -> str:
        """How many there are."""
        return f"{len(self)} methods"

    def glance(self) -> Glance:
        """What each computes, where, and at what cost."""
        columns = ["name", "summary", "defined_for", "conserves", "cost"]
        return Glance(self.headline, table=self.to_pandas().reindex(columns=columns))

    def to_pandas(self) -> pd.DataFrame:
        """One row per method."""
        rows = [{k: v for k, v in asdict(m).items() if k != "make"} for m in self]
        return pd.DataFrame(rows)

    def to_markdown(self) -> str:
        """The table as it stands in the README."""
        columns = ("method", "what it computes", "defined for", "target-aware")
        columns = (*columns, "sums to the target", "cost per batch", "source")
        rows = [columns, ("---",) * len(columns)]
        for m in self:
            aware = "yes" if m.target_aware else "no"
            kept = (m.conserves, m.cost, m.source)
            rows.append((f"`{m.name}`", m.summary, m.defined_for, aware, *kept))
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.to_pandas().to_string(index=False)


def method(name: str) -> Method:
    """A method by name.

    Raises:
        InputError: unknown name.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; {did_you_mean(name, METHODS)}")
    return METHODS[name]
