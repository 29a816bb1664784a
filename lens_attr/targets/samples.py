"""Samples (text, answer, foil) as inputs of `attribute`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lens_attr.errors import InputError
from lens_attr.graph import resolve
from lens_attr.targets.targets import LogitDiff
from lens_attr.types import Sample


def sample_inputs(model: Any, samples: Sequence[Sample]) -> tuple[list[str], LogitDiff]:
    """The texts of some samples, and one answer-against-foil pair for each.

    A masked model reads the text, its mask token, and what follows.

    Raises:
        InputError: no samples.
    """
    if not samples:
        raise InputError("there are no samples.")
    graph = resolve(model)
    if graph.is_masked_model:
        mask = graph.tokenizer.mask_token
        texts = [f"{sample.text} {mask}{sample.suffix}" for sample in samples]
    else:
        texts = [sample.text for sample in samples]
    return texts, LogitDiff([s.answer for s in samples], [s.foil for s in samples])
