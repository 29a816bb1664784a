"""What the circuit tools take as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from lens_attr.circuits.pairs import Pairs
from lens_attr.errors import InputError
from lens_attr.graph.tokens import Text
from lens_attr.targets import LogitDiff, Target, sample_inputs
from lens_attr.types import Sample

Data = Sequence[Sample] | Pairs | tuple[Text, Target]
"""Samples, pairs (their clean prompts are read), or texts (or token ids) with their target."""


def inputs_of(model: Any, data: Data) -> tuple[Text, Target]:
    """Texts and target of a data set.

    Raises:
        InputError: neither samples nor pairs nor a (texts, target) pair.
    """
    if isinstance(data, Pairs):
        clean, _, target = data.inputs(model)
        return clean, target
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Target):
        return cast("tuple[Text, Target]", data)
    if not isinstance(data, list | tuple) or not all(isinstance(item, Sample) for item in data):
        raise InputError(
            "data must be a list of la.Sample, or a pair (texts, target), or la.circuits.Pairs; "
            f"got {type(data).__name__}."
        )
    return sample_inputs(model, cast("Sequence[Sample]", data))


def contrastive_inputs_of(model: Any, data: Data) -> tuple[Text, LogitDiff]:
    """As `inputs_of`, for measures that need an answer and a foil.

    Raises:
        InputError: the target has no foil.
    """
    texts, target = inputs_of(model, data)
    if not isinstance(target, LogitDiff):
        raise InputError(
            "accuracy needs an answer and a foil: give samples, or a la.LogitDiff target."
        )
    return texts, target
