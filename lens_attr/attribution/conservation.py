"""Where relevance is lost between the target and the input, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance

REST = "rest of the block"
"""Where the joints that are followed do not tell attention from MLP: in post-norm and parallel
blocks."""

SOFTMAX_APART = (
    'the softmax is a part of its own with record=["pattern", "scores"], where attention is in the '
    "graph"
)


@dataclass(frozen=True, repr=False)
class Conservation(Shown):
    """Target = relevance of the input + what was lost on the way.

    A conserving method (LRP without biases) loses nothing. Losses are signed: relevance that
    goes to a bias, or that a rule halves or a softmax adds, has to be somewhere, and here it is.

    Attributes:
        target_value: the explained number, less that of the baseline where the method has one.
        total: relevance of the whole input: tokens, and position (and type) embeddings.
        parts: loss by part of the model; ``parts[...].sum()`` over the columns is the gap.
        layers: loss by block and part, [batch, layer] each: ``"attention"`` and ``"mlp"`` with
            their norms, their ``"... output bias"``, or the ``"rest of the block"`` where the two
            cannot be told apart (post-norm BERT, parallel attention and MLP). Where the result was
            made with ``record=["pattern", "scores"]``, ``"softmax"`` is apart from attention: what
            arrives at the pattern less what arrives at the scores, so it includes what a rule at
            the pattern takes (LRP: everything).
        unit: unit of all of them.
    """

    target_value: Float[Tensor, " batch"]
    total: Float[Tensor, " batch"]
    parts: dict[str, Float[Tensor, " batch"]]
    layers: dict[str, Float[Tensor, "batch layer"]]
    unit: str

    @property
    def gap(self) -> Float[Tensor, " batch"]:
        """target - total: what the input does not account for."""
        return self.target_value - self.total

    @property
    def relative_gap(self) -> Float[Tensor, " batch"]:
        """|gap| / |target|; infinite where the target is 0 and the gap is not."""
        return self.gap.abs() / self.target_value.abs()

    def to_pandas(self, example: int = 0) -> pd.DataFrame:
        """One row per block and part, top of the model first: layer, part, lost, unit."""
        rows: list[tuple[int | None, str, float]] = []
        for name, lost in self.parts.items():
            if name not in self.layers:
                rows.append((None, name, float(lost[example])))
        n_layers = next(iter(self.layers.values())).shape[1] if self.layers else 0
        for layer in reversed(range(n_layers)):
            for name, lost in self.layers.items():
                rows.append((layer, name, float(lost[example, layer])))
        frame = pd.DataFrame(rows, columns=["layer", "part", "lost"])
        return frame.assign(layer=frame["layer"].astype("Int64"), unit=self.unit)

    @property
    def headline(self) -> str:
        """The sum of the first example."""
        return str(self).splitlines()[0]

    def glance(self) -> Glance:
        """The sums of every example, and for the first one what each block lost in each part."""
        _, *others = str(self).splitlines()
        table = pd.DataFrame({name: lost[0].tolist() for name, lost in self.layers.items()})
        table.insert(0, "block", range(len(table)))
        return Glance(self.headline, notes=others, table=table.iloc[::-1])

    @property
    def _hints(self) -> list[str]:
        has_attention = bool({"attention", REST} & self.layers.keys())
        return [SOFTMAX_APART] if has_attention and "softmax" not in self.layers else []

    def __str__(self) -> str:
        lines = []
        for example in range(len(self.total)):
            target, total = float(self.target_value[example]), float(self.total[example])
            where = ", ".join(f"{name} {float(v[example]):+.3f}" for name, v in self.parts.items())
            lines.append(
                f"target {target:.3f} = input {total:.3f} + lost {target - total:+.3f} ({where})"
            )
        return "\n".join([*lines, *self._hints])


def conservation_of(relevance: Relevance) -> Conservation:
    """Follow the summed relevance from the target down to the embeddings.

    Raises:
        InputError: the method records no flow.
    """
    flow = relevance.flow
    if "stream" not in flow:
        raise InputError(f"method {relevance.method!r} does not trace relevance through layers.")
    stream, total = flow["stream"], flow["embedding"]
    layers = _with_softmax_apart(_lost_per_layer(flow), relevance.records)
    target = relevance.target_value.to(stream)
    if "baseline_value" in relevance.extra:
        target = target - relevance.extra["baseline_value"].to(stream)
    parts = {"final norm and unembedding": target - stream[:, -1]}
    parts |= {name: lost.sum(dim=1) for name, lost in layers.items()}
    parts["embedding norm"] = stream[:, 0] - total
    return Conservation(target, total, parts, layers, relevance.unit)


def _lost_per_layer(flow: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "batch layer"]]:
    """What each block loses, split where the block is sequential (norm, attention, norm, MLP)."""
    before, after = flow["stream"][:, :-1], flow["stream"][:, 1:]
    ends = {"attention": ("z", "attn_out"), "mlp": ("mlp_post", "mlp_out")}
    biases = {
        f"{name} output bias": flow[end] - flow[start]
        for name, (start, end) in ends.items()
        if {start, end} <= set(flow)
    }
    if len(biases) < len(ends) or not {"resid_mid", "mlp_in"} & set(flow):
        return {REST: after - before - sum(biases.values())} | biases
    past_mlp = after - flow["mlp_out"]
    into_mlp = flow["mlp_in"] if "mlp_in" in flow else flow["resid_mid"] - past_mlp
    into_attention = before - (into_mlp + past_mlp - flow["attn_out"])
    return {
        "attention": flow["z"] - into_attention,
        "attention output bias": biases["attention output bias"],
        "mlp": flow["mlp_post"] - into_mlp,
        "mlp output bias": biases["mlp output bias"],
    }


def _with_softmax_apart(
    layers: dict[str, Tensor], records: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "batch layer"]]:
    """What the softmax of each layer loses, taken out of the part that holds the attention."""
    if not {"pattern", "scores"} <= set(records):
        return layers
    pattern, scores = (records[role].flatten(2).sum(dim=2) for role in ("pattern", "scores"))
    (holder,) = {"attention", REST} & layers.keys()
    apart = {holder: layers[holder] - (pattern - scores), "softmax": pattern - scores}
    return apart | {name: lost for name, lost in layers.items() if name != holder}
