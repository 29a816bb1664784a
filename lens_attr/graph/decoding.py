"""Generating text, one forward per token: deterministic, and the same on every backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.errors import NonFiniteError
from lens_attr.graph.model import ModelGraph


def end_ids(graph: ModelGraph) -> set[int]:
    """What ends a text: the tokenizer's end, and those of the generation settings, if any."""
    inner = getattr(graph.model, "original_model", None)
    settings = getattr(inner, "generation_config", None)
    found = [
        getattr(graph.tokenizer, "eos_token_id", None),
        getattr(settings, "eos_token_id", None),
    ]
    flat = [one for entry in found for one in (entry if isinstance(entry, list) else [entry])]
    return {int(one) for one in flat if one is not None}


def decode(
    graph: ModelGraph,
    prompt: Sequence[int],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """The tokens that continue a prompt, without end: the caller stops.

    Args:
        graph: the model.
        prompt: ids that it reads first.
        temperature: 0 takes the most likely token, above that tokens are drawn from
            ``softmax(logits / temperature)``.
        generator: what draws, on the CPU.

    Raises:
        NonFiniteError: NaN or infinite logits.
    """
    ids = list(prompt)
    while True:
        token = _next(graph, ids, temperature, generator)
        ids.append(token)
        yield token


@torch.no_grad()
def _next(
    graph: ModelGraph, ids: Sequence[int], temperature: float, generator: torch.Generator | None
) -> int:
    row = torch.tensor([list(ids)], device=graph.device)
    last = torch.tensor([len(ids) - 1], device=graph.device)
    logits = graph.logits_at(row, None, last)[0].double()
    _refuse_non_finite(logits)
    if temperature == 0:
        return int(logits.argmax())
    chances = (logits.cpu() / temperature).softmax(dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator))


@torch.no_grad()
def runners_up(graph: ModelGraph, ids: Sequence[int], start: int) -> list[int]:
    """The most likely token besides the one that stands there, of every token from ``start`` on.

    One forward; only the positions that predict those tokens are unembedded.
    """
    row = torch.tensor([list(ids)], device=graph.device)
    (unembed_in,) = graph.points("unembed_in")
    with ExitStack() as stack:
        unembed_in.on_forward(lambda stream: stream[:, start - 1 : -1], stack)
        logits: Float[Tensor, "pos d_vocab"] = graph.forward(row, None)[0].clone()
    _refuse_non_finite(logits)
    logits.scatter_(1, row[0, start:, None], -torch.inf)
    return logits.argmax(dim=-1).tolist()


def _refuse_non_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError(
            "NaN or infinite logits while generating: check the weights, or use a wider dtype "
            "(dtype='float32' in la.load)."
        )
