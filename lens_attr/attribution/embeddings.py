"""The embeddings a method explains: read, made the leaf of the graph, or put in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.explainer import Explainer
from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.tokens import TokenBatch, continuation
from lens_attr.targets import Resolved
from lens_attr.types import whole_number

Embeddings = Literal["full", "token"]
"""``"full"``: token + position (+ type) embedding; ``"token"``: the token's alone."""

Baseline = str | int | Tensor | None
"""None or ``"zero"``, ``"pad"``, a token string or id, or a tensor broadcast to [batch, pos,
d_model]. The words themselves, where they follow another, are ``" zero"`` and ``" pad"``."""

ZERO, PAD = "zero", "pad"

EMBEDDING_ROLES: tuple[Role, ...] = ("embed", "pos_embed", "type_embed")


@dataclass(frozen=True, kw_only=True)
class EmbeddingExplainer(Explainer):
    """A method that weighs the input embedding, or its difference from a baseline.

    Attributes:
        embeddings: which part of the embedding is explained.
        baseline: what the embedding is compared with.
    """

    embeddings: Embeddings = "full"
    baseline: Baseline = None

    def __post_init__(self) -> None:
        if self.embeddings not in get_args(Embeddings):
            raise InputError(f"embeddings must be 'full' or 'token', got {self.embeddings!r}.")

    def refuse(self, graph: ModelGraph, batch: TokenBatch) -> None:
        """The baseline must be one, and a tensor must fit the embeddings of the whole batch."""
        refuse_bad_baseline(graph, self.baseline, batch)

    def backwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """One for each target. See `Explainer.backwards`."""
        return len(targets)

    @property
    def keep_width(self) -> bool:
        """A baseline tensor may have positions of its own."""
        return isinstance(self.baseline, Tensor)

    def rows(self, index: Sequence[int], n: int) -> EmbeddingExplainer:
        """A baseline with a batch axis is cut with the batch."""
        return replace(self, baseline=baseline_rows(self.baseline, index, n))

    def describe(self) -> dict[str, Any]:
        """Every option; a baseline tensor by its shape."""
        return super().describe() | {"baseline": describe_baseline(self.baseline)}


class InputEmbeddings:
    """The embeddings of one forward; the token embedding becomes the leaf of the graph."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def attach(self, graph: ModelGraph, stack: ExitStack) -> None:
        """Read them in every forward until ``stack`` closes."""
        (embed,) = graph.points("embed")
        embed.on_forward(self._make_leaf, stack)
        for role in EMBEDDING_ROLES[1:]:
            for point in graph.points(role):
                point.on_forward(partial(self._keep, role), stack)

    def _make_leaf(self, embedding: Tensor) -> Tensor:
        self._parts["embed"] = embedding.detach().requires_grad_()
        return self._parts["embed"]

    def _keep(self, role: str, embedding: Tensor) -> None:
        self._parts[role] = embedding.detach()

    @property
    def leaf(self) -> Float[Tensor, "batch pos d_model"]:
        """The token embedding, which requires grad."""
        return self._parts["embed"]

    def embedding(self, which: Embeddings) -> Float[Tensor, "batch pos d_model"]:
        """What is explained: the token embedding, or the sum of all parts."""
        token = self.leaf.detach()
        if which == "token":
            return token
        others = [part for role, part in self._parts.items() if role != "embed"]
        return torch.stack([token, *(part.expand_as(token) for part in others)]).sum(dim=0)


@contextmanager
def replaced_embedding(
    graph: ModelGraph, embedding: Float[Tensor, "batch pos d_model"], which: Embeddings
) -> Iterator[None]:
    """Forwards inside read ``embedding`` instead of their own.

    Args:
        graph: the model.
        embedding: takes the place of the token embedding; with ``which="full"`` of the whole sum,
            so position and type embeddings are zero meanwhile.
        which: what ``embedding`` stands for.
    """
    with ExitStack() as stack:
        (embed,) = graph.points("embed")
        embed.on_forward(lambda _: embedding, stack)
        for role in EMBEDDING_ROLES[1:] if which == "full" else ():
            for point in graph.points(role):
                point.on_forward(torch.zeros_like, stack)
        yield


def masked_sum(
    product: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """Summed over the last axis, 0 on padding (where activations may be anything)."""
    return torch.where(mask, product.sum(dim=-1), 0.0)


def baseline_embedding(graph: ModelGraph, baseline: Baseline) -> Tensor:
    """What is subtracted from the embedding: zero, a token's embedding, or a given tensor.

    Raises:
        InputError: several tokens, or an id out of range.
    """
    if is_zero(baseline):
        return torch.zeros((), device=graph.device, dtype=graph.dtype)
    if isinstance(baseline, Tensor):
        return baseline.to(graph.device, graph.dtype)
    return graph.token_embedding(_baseline_id(graph, baseline))


def is_zero(baseline: Baseline) -> bool:
    """Whether nothing is subtracted."""
    return baseline is None or (isinstance(baseline, str) and baseline == ZERO)


def baseline_rows(baseline: Baseline, index: Sequence[int], n: int) -> Baseline:
    """A baseline for some rows of a batch of ``n``: cut where it has a batch axis."""
    if isinstance(baseline, Tensor) and baseline.shape[:-2] == (n,):
        return baseline[list(index)]
    return baseline


def describe_baseline(baseline: Baseline) -> str | int | None:
    """A baseline for the metadata: a tensor by its shape."""
    return f"tensor {list(baseline.shape)}" if isinstance(baseline, Tensor) else baseline


def refuse_bad_baseline(graph: ModelGraph, baseline: Baseline, batch: TokenBatch) -> None:
    """Raise unless it is zero, one token, or finite numbers that fit the whole batch.

    Raises:
        InputError: saying what it should be.
    """
    embedding = baseline_embedding(graph, baseline)
    if not isinstance(baseline, Tensor):
        return
    if baseline.is_complex() or not bool(embedding.isfinite().all()):
        raise InputError("a baseline tensor must hold finite real numbers, and no NaN.")
    wanted = (*batch.token_ids.shape, graph.cfg.d_model)
    try:
        fits = torch.broadcast_shapes(baseline.shape, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits or baseline.ndim == 0 or baseline.shape[-1] != wanted[-1]:
        raise InputError(
            f"a baseline tensor must be [d_model], [pos, d_model] or [batch, pos, d_model]; "
            f"{list(baseline.shape)} does not fit the input {list(wanted)}."
        )


def _baseline_id(graph: ModelGraph, baseline: Any) -> int:
    if isinstance(baseline, str) and baseline == PAD:
        return _own_pad_id(graph)
    if isinstance(baseline, str):
        try:
            ids = continuation(graph, baseline)
        except InputError as error:
            raise InputError(f"baseline={baseline!r} is no token: {error}") from error
        if len(ids) != 1:
            raise InputError(f"the baseline {baseline!r} is {len(ids)} tokens; give one, or an id.")
        return ids[0]
    token_id = whole_number(baseline)
    if token_id is None:
        raise InputError(
            "a baseline must be None, 'zero', 'pad', a token, an id or a tensor, got "
            f"{type(baseline).__name__}."
        )
    if not 0 <= token_id < graph.d_vocab:
        raise InputError(f"baseline id {token_id} is out of range 0 to {graph.d_vocab - 1}.")
    return token_id


def _own_pad_id(graph: ModelGraph) -> int:
    pad = getattr(graph.tokenizer, "pad_token_id", None)
    if pad is None:
        raise InputError("the tokenizer has no pad token: give the baseline as a token or an id.")
    return int(pad)
