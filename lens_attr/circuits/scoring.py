"""The target of many copies of the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.errors import InputError, NonFiniteError
from lens_attr.graph.partial import Unpadded
from lens_attr.targets import Resolved


@dataclass(frozen=True)
class Scorer:
    """Scores copies of some samples that share one length, sample by sample within a copy.

    Attributes:
        target: of the whole batch.
        samples: which of its rows.
        width: columns of the padded batch, which a target that reads all logits sees.
    """

    target: Resolved
    samples: Unpadded
    width: int

    def position(self, copies: int) -> Int[Tensor, " row"] | None:
        """The scored position of every row; None where the target reads all of them."""
        if self.target.full is not None:
            return None
        return self.samples.local(self.target.position[self.samples.index]).repeat(copies)

    def __call__(self, logits: Tensor, copies: int) -> Float[Tensor, "copy sample"]:
        """Logits of ``copies`` copies, at `position` or everywhere, to the target of each.

        Raises:
            InputError: the target is a function that gives no number per sample.
            NonFiniteError: NaN or infinite values.
        """
        index = self.samples.index
        if self.target.full is None:
            target = self.target.rows(index * copies)
            scores = target.score(logits, target).view(copies, len(index))
        else:
            scores = torch.stack([self._full(copy) for copy in logits.split(len(index))])
        if not bool(scores.isfinite().all()):
            raise NonFiniteError(f"{self.target.labels[0]} is NaN or infinite in some run.")
        return scores.double().cpu()

    def _full(self, logits: Float[Tensor, "sample pos d_vocab"]) -> Float[Tensor, " sample"]:
        """A function of all logits, which stand where the padded batch has them."""
        assert self.target.full is not None
        padded = logits.new_zeros(len(logits), self.width, logits.shape[-1])
        values = self.target.full(padded.index_copy(1, self.samples.columns, logits))
        if not isinstance(values, Tensor) or values.shape != (len(logits),):
            raise InputError(
                f"{self.target.labels[0]} must give one number per example, [{len(logits)}]; got "
                f"{list(values.shape) if isinstance(values, Tensor) else type(values).__name__}."
            )
        return values
