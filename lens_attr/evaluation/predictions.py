"""What the model predicts on each sample: which are answered correctly, and what is explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.errors import InputError
from lens_attr.evaluation.tasks import TokenSample
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch, continuation, pad_rows
from lens_attr.targets import Logit, LogitDiff, Target


@dataclass(frozen=True)
class Prediction:
    """The logits of one sample at its explained position.

    Attributes:
        answer: logit of the answer's token.
        foil: logit of the foil's.
        foil_id: the foil; where the answer competes with the whole vocabulary, the token of the
            highest other logit.
        top_id: the token of the highest logit.
        correct: the answer is above its foil.
    """

    answer: float
    foil: float
    foil_id: int
    top_id: int
    correct: bool


def by_length(samples: Sequence[TokenSample], size: int) -> Iterator[list[TokenSample]]:
    """Batches of samples of similar length, so that little of them is padding."""
    ordered = sorted(samples, key=lambda one: (len(one), one.index))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def padded(graph: ModelGraph, samples: Sequence[TokenSample]) -> TokenBatch:
    """Samples as one batch."""
    return pad_rows(graph, [one.token_ids for one in samples])


def positions(graph: ModelGraph, samples: Sequence[TokenSample], batch: TokenBatch) -> Tensor:
    """The explained positions, as indices into the padded rows."""
    width = batch.token_ids.shape[1]
    shift = [0 if graph.is_masked_model else width - len(one) for one in samples]
    found = [one.position + by for one, by in zip(samples, shift, strict=True)]
    return torch.tensor(found, device=batch.token_ids.device)


@torch.no_grad()
def logits_of(graph: ModelGraph, samples: Sequence[TokenSample]) -> Float[Tensor, "sample d_vocab"]:
    """The logits of one batch at the explained positions."""
    batch = padded(graph, samples)
    where = positions(graph, samples, batch)
    return graph.logits_at(batch.token_ids, batch.padding_mask, where)


def predict(
    graph: ModelGraph, samples: Sequence[TokenSample], batch_size: int
) -> dict[int, Prediction]:
    """Every sample's prediction, by its index. The samples must have an answer."""
    found: dict[int, Prediction] = {}
    for batch in by_length(samples, batch_size):
        logits = logits_of(graph, batch).double().cpu()
        for one, row in zip(batch, logits, strict=True):
            found[one.index] = _prediction(one, row)
    return found


def _prediction(one: TokenSample, logits: Float[Tensor, " d_vocab"]) -> Prediction:
    assert one.answer is not None
    foil = one.foil
    if foil is None:
        others = logits.clone()
        others[one.answer] = -torch.inf
        foil = int(others.argmax())
    answer_logit, foil_logit = float(logits[one.answer]), float(logits[foil])
    return Prediction(
        answer_logit, foil_logit, foil, int(logits.argmax()), answer_logit > foil_logit
    )


def stand_in(graph: ModelGraph, token: str | None) -> int:
    """The id of what takes a token's place; None: the space, for a masked model its mask.

    Raises:
        InputError: it is not one token.
    """
    if token is None and graph.is_masked_model:
        return int(graph.tokenizer.mask_token_id)
    string = " " if token is None else token
    try:
        ids = continuation(graph, string)
    except InputError:
        ids = graph.tokenizer(string, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(
            f"{string!r} is {len(ids)} tokens for this tokenizer: name one token that takes the "
            "place of others (token=, or --token)."
        )
    return ids[0]


def target_of(
    samples: Sequence[TokenSample], predictions: dict[int, Prediction], contrastive: bool
) -> Target:
    """What is explained: answer - foil, or the highest logit among the task's candidates."""
    pairs = [(one, predictions[one.index]) for one in samples]
    answers = [one.answer for one, _ in pairs if one.answer is not None]
    foils = [prediction.foil_id for _, prediction in pairs]
    if contrastive:
        return LogitDiff(answers, foils)
    return Logit(
        [a if p.correct else f for a, f, (_, p) in zip(answers, foils, pairs, strict=True)]
    )
