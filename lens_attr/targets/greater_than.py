"""The greater-than task's number: probability of later years minus that of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch, continuation
from lens_attr.targets.resolved import Resolved
from lens_attr.targets.targets import Target, resolve_positions

N_YEARS = 100


@dataclass(frozen=True)
class GreaterThan(Target):
    """P(last two digits > year) - P(last two digits <= year) (Hanna et al. 2023, arXiv 2305.00586).

    The text ends in the first two digits of a year ("... from the year 1352 to the year 13"); the
    probabilities are of the hundred tokens "00" to "99". Whether a tokenizer would have merged all
    four digits is left open, as in the paper, which chooses years that it does not.

    Attributes:
        year: the last two digits of the first year, one per example.
    """

    year: Sequence[int]

    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """See `Target.resolve`.

        Raises:
            InputError: not one year from 0 to 99 for each example, or a tokenizer that does not
                write the last two digits as one token.
        """
        if len(self.year) != len(batch) or not all(0 <= one < N_YEARS for one in self.year):
            raise InputError(f"give one year from 0 to 99 for each of the {len(batch)} examples.")
        ids = _years(graph)
        position = resolve_positions(graph, batch, self.position)
        columns = torch.tensor([[*ids, year] for year in self.year], device=position.device)
        labels = [f"P(year > {year:02d}) - P(year <= {year:02d})" for year in self.year]
        return Resolved(position, _difference, labels, "probability", columns)


def _years(graph: ModelGraph) -> list[int]:
    found = [continuation(graph, f"{year:02d}") for year in range(N_YEARS)]
    split = next((year for year, pieces in enumerate(found) if len(pieces) > 1), None)
    if split is not None:
        raise InputError(
            f"this tokenizer writes {split:02d} as {len(found[split])} tokens: the greater-than "
            "task needs two digits in one."
        )
    return [pieces[0] for pieces in found]


def _difference(logits: Tensor, target: Resolved) -> Tensor:
    """``target.token_ids`` holds the hundred tokens, then the year."""
    assert target.token_ids is not None
    ids, year = target.token_ids[:, :N_YEARS], target.token_ids[:, N_YEARS:]
    probabilities = logits.softmax(dim=-1).gather(1, ids)
    later = torch.arange(N_YEARS, device=logits.device) > year
    return torch.where(later, probabilities, -probabilities).sum(dim=1)
