"""What every attribution method is: a batch and a target in, relevance out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lens_attr.graph import VALUE_BIASES_FOLDED, ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved


@dataclass
class Explained:
    """Raw results of one batch.

    Attributes:
        tokens: relevance of each token, 0 on padding.
        target_value: the explained number.
        labels: what was explained, in words, one per example.
        head_tokens: relevance of each head at each position, where the method gives it.
        heads_relu_dim: the pooling that cannot be derived from ``head_tokens``.
        records: what the user asked to record.
        flow: summed relevance at the joints of every block, for `Relevance.check`.
        extra: the parts that belong to this method alone, batch first.
        unit: unit of ``tokens`` where it is not that of the target.
        metadata: facts about this call, such as how often each hook fired.
        notices: what the reader of the result must know.
    """

    tokens: Float[Tensor, "batch pos"]
    target_value: Float[Tensor, " batch"]
    labels: list[str]
    head_tokens: Float[Tensor, "batch layer pos head"] | None = None
    heads_relu_dim: Float[Tensor, "batch layer head"] | None = None
    records: dict[str, Tensor] = field(default_factory=dict)
    flow: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    unit: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Explainer(ABC):
    """One method with its options, which are its fields. Holds no model.

    Attributes:
        per_token: names of the parts in ``extra`` that have a position axis, the second.
    """

    per_token: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """Explain one batch by each of several targets, with what they share computed once.

        Equal to `explain` for each in turn, up to rounding. Works under ``no_grad``; leaves
        ``.grad``, hooks and flags untouched.

        Raises:
            NonFiniteError: NaN or infinite logits or relevance.
            RuleNotAppliedError, RuleConflictError, UnsupportedModelError: from the rules.
        """

    def explain(self, graph: ModelGraph, batch: TokenBatch, target: Resolved) -> Explained:
        """Explain one batch by one target, see `explain_many`."""
        return self.explain_many(graph, batch, [target])[0]

    def forwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """How many forwards `explain_many` takes, for the progress bar."""
        return 1

    def backwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """How many backwards `explain_many` takes, each for one target, for the progress bar."""
        return 0

    def refuse(self, graph: ModelGraph, batch: TokenBatch) -> None:  # noqa: B027
        """Raise where this method is not defined for a model, or an option not for the input.

        ``batch`` is everything that will be explained; `explain` sees some rows at a time.

        Raises:
            UnsupportedModelError: with the reason.
            InputError: an option that does not fit.
        """

    def processing_notices(self, processing: Sequence[str]) -> list[str]:
        """What to tell the reader about processed weights (see `ModelGraph.processing`).

        Unless a method says otherwise: folding a value bias into b_O moves it out of z, where head
        relevance is read.
        """
        if VALUE_BIASES_FOLDED not in processing:
            return []
        return [
            "the value biases of this model are folded into b_O: its head relevance differs from "
            "that of the raw weights (its token relevance does not). Load it with la.load to "
            "compare."
        ]

    @property
    def keep_width(self) -> bool:
        """Whether results other than ``tokens`` and ``head_tokens`` have a position axis.

        Then every row group keeps the padding of the whole batch, so that they can be joined.
        """
        return False

    @property
    def prefix_exact(self) -> bool:
        """Whether a position of a causal model is explained as if the text ended there.

        False where a method, or an option of it, reads what comes later.
        """
        return True

    def rows(self, index: Sequence[int], n: int) -> Explainer:
        """The options for some rows of a batch of ``n``."""
        return self

    def describe(self) -> dict[str, Any]:
        """Every option, for the metadata."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
