"""`PatchResult`: what every patched activation did to the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr import display
from lens_attr.attribution import storage
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, SavedResultError

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAME = "patching"
TENSORS = ("per_example", "unpatched", "other")
PLAIN = ("axes", "unit", "mode", "source", "target", "target_unit", "str_tokens")
LATER = ("clean_tokens", "position")
"""What results of earlier versions do not hold."""


@dataclass(frozen=True, repr=False)
class PatchResult(Shown):
    """The target of the patched run, for every cell (layer and head, layer and position, ...).

    Attributes:
        per_example: the target with one cell patched, in units of ``target_unit``.
        unpatched: the target of the run that is patched, nothing changed.
        other: the target of the other run, None where there is none.
        axes: names of the cells' axes, e.g. ``("layer", "head")``.
        unit: what is patched, e.g. ``"head"``.
        mode: ``"denoise"`` patches the corrupted run, ``"noise"`` the clean one.
        source: what is put in: ``"other"`` for the other run's activation, or ``"zero"``,
            ``"mean"``, ``"resample"``.
        target: what is measured, in words, one per example.
        target_unit: its unit, e.g. ``"logit"``.
        str_tokens: the tokens of the patched run, one list per example, without padding.
        clean_tokens: the tokens of the clean run, which an attribution must explain; empty where
            it is not known.
        position: the scored position in them, one per example; empty where it is not known.
        metadata: model, versions, options.
    """

    per_example: Float[Tensor, "example layer *cell"]
    unpatched: Float[Tensor, " example"]
    other: Float[Tensor, " example"] | None
    axes: tuple[str, ...]
    unit: str
    mode: str
    source: str
    target: list[str]
    target_unit: str = "logit"
    str_tokens: Sequence[Sequence[str]] = ()
    clean_tokens: Sequence[Sequence[str]] = ()
    position: Sequence[int] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.per_example)

    @property
    def metric(self) -> Float[Tensor, " layer *cell"]:
        """The patched target, mean over examples: what ``transformer_lens.patching`` returns."""
        return self.per_example.mean(dim=0)

    @property
    def effects(self) -> Float[Tensor, " layer *cell"]:
        """The patched target minus the unpatched one, mean over examples.

        Denoising: above zero where the clean activation restores the target. Noising: below zero
        where the target needs the activation.
        """
        return self.metric - self.unpatched.mean()

    @property
    def importance(self) -> Float[Tensor, " layer *cell"]:
        """The effects with the sign of an attribution: above zero where the clean activation
        raises the target. Denoising effects as they are, noising effects negated.
        """
        return self.effects if self.mode == "denoise" else -self.effects

    @property
    def normalised(self) -> Float[Tensor, " layer *cell"]:
        """The effects as a share of the way to the other run: 0 nothing, 1 all of it.

        Raises:
            InputError: there is no other run, or both runs have the same target.
        """
        if self.other is None:
            raise InputError("there is no other run to normalise by: give clean and corrupted.")
        gap = self.other.mean() - self.unpatched.mean()
        if gap == 0:
            raise InputError("both runs have the same target, so there is no share of the way.")
        return self.effects / gap

    @property
    def headline(self) -> str:
        """What was patched."""
        what = f"{self.mode} {self.unit}, source {self.source}"
        return f"{what}: {' x '.join(self.axes)}, {display.count(len(self), 'example')}"

    def glance(self) -> Glance:
        """The cells of largest effect."""
        return Glance(
            self.headline,
            table=self.to_pandas()
            .sort_values("effect", key=abs, ascending=False)
            .head(display.MOST_ROWS),
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row per cell: its axes, effect, metric, and the effect's standard error.

        The standard error is over examples, missing where there is one; ``str_token`` names the
        position where there is one example.
        """
        index = pd.MultiIndex.from_product([range(n) for n in self.metric.shape], names=self.axes)
        frame = index.to_frame(index=False)
        if len(self) == 1 and self.str_tokens:
            for axis in {"pos", "query"} & set(self.axes):
                frame["str_token"] = [self.str_tokens[0][pos] for pos in frame[axis]]
        values = {"effect": self.effects, "metric": self.metric, "std_error": self._std_error()}
        return frame.assign(**{name: value.flatten().tolist() for name, value in values.items()})

    def _std_error(self) -> Float[Tensor, " layer *cell"]:
        if len(self) == 1:
            return torch.full_like(self.metric, torch.nan)
        unpatched = self.unpatched.view(-1, *[1] * len(self.axes))
        return (self.per_example - unpatched).std(dim=0) / len(self) ** 0.5

    def plot(self, **options: Any) -> go.Figure:
        """Layer by head, or layer by position; see `lens_attr.plots.patching`."""
        return display.figure_of("patching", self, **options)

    def save(self, directory: str | Path) -> Path:
        """Write ``patching.safetensors`` and ``patching.json`` into ``directory``.

        Raises:
            InputError: ``directory`` is a file.
        """
        tensors = {name: getattr(self, name) for name in TENSORS}
        plain = {name: getattr(self, name) for name in (*PLAIN, *LATER)}
        return storage.write(
            Path(directory),
            NAME,
            {name: value.contiguous() for name, value in tensors.items() if value is not None},
            plain | {"metadata": dict(self.metadata)},
        )

    @staticmethod
    def load(directory: str | Path) -> PatchResult:
        """Read what `save` wrote.

        Raises:
            SavedResultError: missing, truncated, altered, or written by an unknown format.
        """
        tensors, plain = storage.read(Path(directory), NAME, (*PLAIN, "metadata"))
        if not {"per_example", "unpatched"} <= set(tensors):
            raise SavedResultError(f"{directory} is not a saved PatchResult.")
        fields = {name: plain[name] for name in (*PLAIN, *LATER, "metadata") if name in plain}
        fields["axes"] = tuple(fields["axes"])
        return PatchResult(**{name: tensors.get(name) for name in TENSORS}, **fields)
