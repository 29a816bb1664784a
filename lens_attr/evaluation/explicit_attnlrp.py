"""AttnLRP as it was published: relevance handed from layer to layer (Achtibat et al. 2024).

Not gradient x input under rules. Every operation has a rule of its own that divides the relevance
of its output by the output and multiplies by the input, so that all activations must be kept. It
shares no code with `lens_attr.rules`, is proved equal to it (see `speed`), and is what speed
is compared with. One text at a time, without padding.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.weights import (
    Norm,
    Reader,
    Rotation,
    attention_output,
    final_norm,
    mlp_output,
    readers,
    rotation,
    unembedding,
)

ARCHITECTURES = ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM")
"""Pre-norm blocks of attention and MLP, which is all that is written out here."""

KEPT: tuple[Role, ...] = (
    "embed",
    "pos_embed",
    "residual",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "z",
    "attn_out",
    "mlp_pre",
    "mlp_up",
    "mlp_post",
    "mlp_out",
)

Stream = Float[Tensor, "pos d_model"]
Heads = Float[Tensor, "pos head d_head"]
Rows = Float[Tensor, "head query key"]


@dataclass
class Clock:
    """Seconds by kind of operation.

    Attributes:
        running: whether anything is timed, which takes time too.
        seconds: so far.
    """

    running: bool = True
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def time(self, operation: str) -> Iterator[None]:
        """Add the time of the block."""
        start = now() if self.running else 0.0
        yield
        if self.running:
            self.seconds[operation] += now() - start


def now() -> float:
    """Seconds of this process's work; of a GPU, wall-clock seconds until its work is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@dataclass(frozen=True)
class Forward:
    """What a forward pass leaves behind for `ExplicitAttnLRP.relevance`.

    Attributes:
        values: activations by role, in order of the forward pass.
        turn: rotary positions, None where the model embeds them.
        logits: of the last position.
    """

    values: dict[str, list[Tensor]]
    turn: Rotation | None
    logits: Float[Tensor, " d_vocab"]

    def __getitem__(self, role: Role) -> list[Tensor]:
        return self.values[role]


def ratio(relevance: Tensor, output: Tensor) -> Tensor:
    """Relevance per unit of output; 0 where the output is 0."""
    return torch.where(output == 0, 0.0, relevance / output)


@dataclass(frozen=True)
class ExplicitAttnLRP:
    """The weights of a model, ready to hand relevance down.

    Attributes:
        graph: the model.
        layers: queries, keys, values and MLP of every block.
        out: W_O of every block.
        down: W_out of every MLP.
        final: the norm before the unembedding.
        unembed: W_U.
    """

    graph: ModelGraph
    layers: list[dict[str, Reader]]
    out: list[Float[Tensor, "head d_head d_model"]]
    down: list[Float[Tensor, "d_mlp d_model"]]
    final: Norm
    unembed: Float[Tensor, "d_model d_vocab"]

    @staticmethod
    def of(graph: ModelGraph) -> ExplicitAttnLRP:
        """Read the weights.

        Raises:
            UnsupportedModelError: blocks of another kind than `ARCHITECTURES`.
        """
        final = final_norm(graph)
        if graph.architecture not in ARCHITECTURES or final is None:
            known = ", ".join(ARCHITECTURES)
            raise UnsupportedModelError(
                f"explicit AttnLRP is written out for {known}, not for {graph.architecture}."
            )
        each = range(graph.n_layers)
        return ExplicitAttnLRP(
            graph,
            [{one.kind: one for one in readers(graph, layer)} for layer in each],
            [attention_output(graph, layer).weight for layer in each],
            [mlp_output(graph, layer) for layer in each],
            final,
            unembedding(graph)[0],
        )

    @torch.no_grad()
    def forward(self, token_ids: Int[Tensor, "1 pos"]) -> Forward:
        """An ordinary forward pass that keeps every activation."""
        values: dict[str, list[Tensor]] = {role: [] for role in KEPT}
        length = token_ids.shape[1]
        last = torch.tensor([length - 1], device=token_ids.device)
        with ExitStack() as stack:
            for role in KEPT:
                for point in self.graph.points(role):
                    point.on_forward(partial(_keep, values[role]), stack)
            logits = self.graph.logits_at(token_ids, None, last)
        return Forward(values, rotation(self.graph, 0, length), logits[0])

    @torch.no_grad()
    def relevance(
        self, kept: Forward, answer: int, foil: int, clock: Clock | None = None
    ) -> Float[Tensor, " pos"]:
        """Relevance of every token for logit(answer) - logit(foil) at the last position.

        Args:
            kept: what `forward` gave.
            answer: id of a token.
            foil: id of another.
            clock: takes the seconds of every operation.
        """
        clock = clock or Clock(running=False)
        with clock.time("unembedding"):
            relevance = self._unembedding(kept["residual"][-1], answer, foil)
        for layer in reversed(range(len(self.layers))):
            relevance = self._block(layer, relevance, kept, clock)
        with clock.time("embedding"):
            whole = kept["embed"][0] + sum(kept["pos_embed"])
            return (whole * ratio(relevance, kept["residual"][0])).sum(dim=-1)

    def explain(
        self, token_ids: Int[Tensor, "1 pos"], answer: int, foil: int
    ) -> Float[Tensor, " pos"]:
        """Forward and relevance."""
        return self.relevance(self.forward(token_ids), answer, foil)

    def _unembedding(self, stream: Stream, answer: int, foil: int) -> Stream:
        """The difference of two logits through the unembedding and the final norm."""
        normed = self.final(stream[-1])
        weight = self.unembed[:, answer] - self.unembed[:, foil]
        relevance = torch.zeros_like(stream)
        relevance[-1] = _norm(self.final, stream[-1], normed, normed * weight)
        return relevance

    def _block(
        self,
        layer: int,
        relevance: Stream,
        kept: Forward,
        clock: Clock,
    ) -> Stream:
        """From the stream after a block to the stream before it."""
        before, attention = kept["residual"][layer], kept["attn_out"][layer]
        between = before + attention
        with clock.time("residual"):
            per_unit = ratio(relevance, between + kept["mlp_out"][layer])
            to_mlp, past_mlp = kept["mlp_out"][layer] * per_unit, between * per_unit
        relevance = past_mlp + self._mlp(layer, between, to_mlp, kept, clock)
        with clock.time("residual"):
            per_unit = ratio(relevance, between)
            to_attention, past_attention = attention * per_unit, before * per_unit
        return past_attention + self._attention(layer, before, to_attention, kept, clock)

    def _mlp(
        self,
        layer: int,
        stream: Stream,
        relevance: Stream,
        kept: Forward,
        clock: Clock,
    ) -> Stream:
        """Identity rule at the activation, halves at gate times up."""
        reader, post = self.layers[layer]["mlp"], kept["mlp_post"][layer]
        assert reader.norm is not None
        with clock.time("linear"):
            relevance = post * (ratio(relevance, kept["mlp_out"][layer]) @ self.down[layer].mT)
        with clock.time("activation"):
            branches = [(kept["mlp_pre"][layer], relevance)]
            if kept["mlp_up"]:
                branches = [(x[layer], relevance / 2) for x in (kept["mlp_pre"], kept["mlp_up"])]
        with clock.time("norm"):
            normed = reader.norm(stream)
        with clock.time("linear"):
            relevance = normed * sum(
                ratio(r, out) @ p.weight[0].mT
                for (out, r), p in zip(branches, reader.projections, strict=True)
            )
        with clock.time("norm"):
            return _norm(reader.norm, stream, normed, relevance)

    def _attention(
        self,
        layer: int,
        stream: Stream,
        relevance: Stream,
        kept: Forward,
        clock: Clock,
    ) -> Stream:
        """Uniform rule at both products of attention, Taylor expansion at the softmax."""
        z, norm = kept["z"][layer], self.layers[layer]["q"].norm
        assert norm is not None
        with clock.time("linear"):
            per_unit = ratio(relevance, kept["attn_out"][layer])
            relevance = z * torch.einsum("td,hkd->thk", per_unit, self.out[layer])
        per_head = self._heads(layer, relevance, kept, clock)
        with clock.time("norm"):
            normed = norm(stream)
        with clock.time("linear"):
            relevance = normed * sum(
                torch.einsum("thk,hdk->td", ratio(r, kept[kind][layer]), self._weight(layer, kind))
                for kind, r in per_head.items()
            )
        with clock.time("norm"):
            return _norm(norm, stream, normed, relevance)

    def _weight(self, layer: int, kind: str) -> Float[Tensor, "head d_model d_head"]:
        return self.layers[layer][kind].projections[0].weight

    def _heads(
        self,
        layer: int,
        relevance: Heads,
        kept: Forward,
        clock: Clock,
    ) -> dict[Role, Heads]:
        """From z to queries, keys and values; grouped keys and values sum over their queries."""
        q, k, v = (kept[kind][layer] for kind in ("q", "k", "v"))
        pattern, scores = kept["pattern"][layer], kept["scores"][layer]
        group = q.shape[1] // k.shape[1]
        shared = v.repeat_interleave(group, dim=1)
        with clock.time("attention product"):
            per_z = ratio(relevance, kept["z"][layer])
            to_pattern = pattern * torch.einsum("qhd,khd->hqk", per_z, shared) / 2
            to_v = shared * torch.einsum("hqk,qhd->khd", pattern, per_z) / 2
        with clock.time("softmax"):
            visible = torch.where(pattern == 0, 0.0, scores)
            to_scores = visible * (to_pattern - pattern * to_pattern.sum(dim=-1, keepdim=True))
        keys = k.repeat_interleave(group, dim=1)
        with clock.time("rotation"):
            turned_q, turned_k = (_turned(x, kept.turn) for x in (q, keys))
        with clock.time("attention product"):
            per_score = ratio(to_scores, visible) * q.shape[-1] ** -0.5 / 2
            to_q = turned_q * torch.einsum("hqk,khd->qhd", per_score, turned_k)
            to_k = turned_k * torch.einsum("hqk,qhd->khd", per_score, turned_q)
        with clock.time("rotation"):
            to_q = _rotation(kept.turn, q, turned_q, to_q)
            to_k = _rotation(kept.turn, keys, turned_k, to_k)
        return {
            "q": to_q,
            "k": to_k.unflatten(1, (-1, group)).sum(dim=2),
            "v": to_v.unflatten(1, (-1, group)).sum(dim=2),
        }


def _turned(x: Heads, turn: Rotation | None) -> Heads:
    return x if turn is None else turn.turned(x)


def _rotation(turn: Rotation | None, x: Heads, out: Heads, relevance: Heads) -> Heads:
    """Through rotary positions, a linear map."""
    return relevance if turn is None else x * turn.turned(ratio(relevance, out), back=True)


def _keep(into: list[Tensor], activation: Tensor) -> None:
    into.append(activation.detach()[0])


def _norm(
    norm: Norm,
    x: Float[Tensor, "*pos d_model"],
    out: Float[Tensor, "*pos d_model"],
    relevance: Float[Tensor, "*pos d_model"],
) -> Float[Tensor, "*pos d_model"]:
    """Through a norm whose standard deviation is a constant."""
    return x * norm.transposed(ratio(relevance, out)) / norm.sigma(x)
