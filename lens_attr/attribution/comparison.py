"""`Comparison`: several methods on one text and one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lens_attr import display
from lens_attr.attribution.relevance import Relevance
from lens_attr.attribution.special_tokens import Also, Policy
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, SavedResultError

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """The relevance of every method for the same input and target, by method name."""

    results: Mapping[str, Relevance]

    def __getitem__(self, method: str) -> Relevance:
        return self.results[method]

    @property
    def headline(self) -> str:
        """What was explained, of the first example."""
        first = next(iter(self.results.values()))
        explained = f"{first.target[0]} = {display.number(float(first.target_value[0]))}"
        return explained + (f", first of {len(first)} examples" if len(first) > 1 else "")

    def glance(self) -> Glance:
        """The first example, once per method."""
        texts = []
        for name, result in self.results.items():
            text = result.coloured_text()
            total = display.number(sum(text.values))
            texts.append(replace(text, heading=f"{name}: adds up to {total} {result.unit}"))
        return Glance(self.headline, texts)

    def with_special_tokens(self, policy: Policy, also: Also = None) -> Comparison:
        """Every result under one policy, see `Relevance.with_special_tokens`."""
        each = self.results.items()
        return Comparison({name: r.with_special_tokens(policy, also) for name, r in each})

    def to_pandas(self, example: int = 0) -> pd.DataFrame:
        """One row per token, one column per method, for one example."""
        first = next(iter(self.results.values()))
        columns = {name: r.real_tokens(example).tolist() for name, r in self.results.items()}
        return pd.DataFrame({"str_token": first.real_str_tokens(example), **columns})

    def plot(self, **options: Any) -> go.Figure:
        """The text once per method, coloured by relevance."""
        return display.figure_of("comparison", self, **options)

    def save(self, directory: str | Path) -> Path:
        """Write every result into a folder of its own in ``directory``, named after its method.

        Raises:
            InputError: nothing to save, or a name that is no name of a folder.
        """
        directory = Path(directory)
        if not self.results:
            raise InputError("the comparison holds no method.")
        for name in self.results:
            if name in ("", ".", "..") or Path(name).name != name:
                raise InputError(f"{name!r} cannot name a folder: rename it in the comparison.")
        for name, result in self.results.items():
            result.save(directory / name)
        return directory

    @staticmethod
    def load(directory: str | Path) -> Comparison:
        """Read what `save` wrote, in the order of the methods' names.

        Raises:
            SavedResultError: no result there, or one that is truncated or altered.
        """
        found = sorted(path.parent for path in Path(directory).glob("*/relevance.json"))
        if not found:
            raise SavedResultError(f"no folder in {directory} holds a saved Relevance.")
        return Comparison({path.name: Relevance.load(path) for path in found})
