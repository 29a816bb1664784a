"""What every benchmark shares: methods by name, batches, progress, resuming, the record."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from lens_attr._version import versions
from lens_attr.attribution import MethodTable, Relevance, attribute
from lens_attr.attribution.embeddings import Embeddings
from lens_attr.errors import InputError, Notice, UnsupportedModelError, give_notice
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.notes import Notes, merged, notes_of, shown, with_notes
from lens_attr.evaluation.predictions import by_length, padded
from lens_attr.evaluation.results import MODEL, SAMPLES, BenchTable
from lens_attr.evaluation.store import Store
from lens_attr.evaluation.tasks import TokenSample, View
from lens_attr.graph import ModelGraph
from lens_attr.graph.fingerprint import fingerprint
from lens_attr.rules import RuleSet
from lens_attr.targets import Target

Methods = str | Sequence[str | RuleSet]

BATCH = 64
COMPARED_AS = "compared_as"
"""In the metadata of a run with measures of its own: columns of the per-sample tables that can be
compared between runs, with the factor that makes each what the table shows."""

Scores = Float[NDArray[np.floating], " _"]
"""One per token of a sample; samples differ in length."""


@dataclass
class Run:
    """One model, its results so far, and how it is explained.

    Attributes:
        model: as the user gave it.
        graph: the same model.
        store: where rows go.
        options: of single methods, by name.
        embeddings: asked for, where a method has the choice.
        batch_size: samples explained at a time.
        advance: moves the progress bar by some samples.
        refused: the reason, by name of a method that is not defined for the model.
        notes: what the reader of the results must know, by method.
        samples: finished per-sample tables by (task, method).
    """

    model: Any
    graph: ModelGraph
    store: Store
    options: Mapping[str, Mapping[str, Any]]
    embeddings: Embeddings | None
    batch_size: int
    advance: Callable[[int], None]
    refused: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Notes] = field(default_factory=dict)
    samples: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    _said: Notes = field(init=False, default_factory=dict)

    def every_batch(
        self,
        task: str,
        name: str,
        samples: Sequence[TokenSample],
        rows_of: Callable[[list[TokenSample]], list[dict[str, Any]]],
    ) -> None:
        """Make the rows that are not there yet; a refused method is noted with its reason."""
        if name in self.refused:
            return
        done = set(self.store.read(task, name)["sample"])
        missing = [one for one in samples if one.index not in done]
        self.advance(len(samples) - len(missing))
        for batch in by_length(missing, self.batch_size):
            self._said.clear()
            try:
                rows = rows_of(batch)
            except UnsupportedModelError as error:
                self.refused[name] = str(error)
                return
            self.store.add(task, name, with_notes(pd.DataFrame(rows), self._said))
            self.advance(len(batch))
        self.samples[task, name] = table = self.store.close(task, name)
        self.note(name, notes_of(table))

    def note(self, name: str, notes: Mapping[str, int]) -> None:
        """Add to what the reader must know of a method."""
        self.notes[name] = merged([self.notes.get(name, {}), notes])

    def finish(
        self, rows: pd.DataFrame, tasks: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> BenchTable:
        """Everything that was found, written where the samples are; its notes become warnings."""
        notes = [line for name, own in self.notes.items() for line in shown(name, own)]
        table = BenchTable(
            rows=rows,
            samples=self.samples,
            refused=self.refused,
            tasks=tasks,
            metadata={**metadata, "notes": notes},
        )
        if self.store.folder is not None:
            table.save(self.store.folder)
        for note in notes:
            give_notice(note)
        return table

    def attribute(
        self,
        name: str,
        method: str | RuleSet,
        batch: Sequence[TokenSample],
        target: Target,
        **more: Any,
    ) -> Relevance:
        """Explain one batch; what the reader must know is noted."""
        tokens = padded(self.graph, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            result = attribute(
                self.model,
                tokens.token_ids,
                target,
                method,
                attention_mask=tokens.attention_mask,
                progress=False,
                **{**self._options(name, method), **more},
            )
        self._said |= dict.fromkeys(result.metadata["notices"], 1)
        return result

    def explain(
        self, name: str, method: str | RuleSet, batch: Sequence[TokenSample], target: Target
    ) -> tuple[list[Scores], list[float]]:
        """Scores of every token of each sample, and the explained numbers.

        The numbers are NaN for a method that does not explain the target.
        """
        result = self.attribute(name, method, batch, target)
        aware = not isinstance(method, str) or MethodTable()[method].target_aware
        values = result.target_value.double().tolist() if aware else [np.nan] * len(batch)
        return [result.real_tokens(i).double().numpy() for i in range(len(batch))], values

    def _options(self, name: str, method: str | RuleSet) -> dict[str, Any]:
        """The method's options, with the embeddings asked for where it can choose."""
        own = dict(self.options.get(name, {}))
        if self.embeddings is None or "embeddings" in own:
            return own
        if isinstance(method, str) and not has_embeddings(method):
            self._said["has no choice of embeddings"] = 1
            return own
        return {**own, "embeddings": self.embeddings}


def has_embeddings(method: str) -> bool:
    """Whether a method can explain full or partial embeddings."""
    return _takes(method, embeddings="token")


def has_records(method: str | RuleSet) -> bool:
    """Whether a method can keep relevance inside the model as well as at the tokens."""
    return isinstance(method, RuleSet) or _takes(method, record=())


def _takes(method: str, **options: Any) -> bool:
    try:
        MethodTable()[method].explainer(**options)
    except (InputError, TypeError):
        return False
    return True


def methods_by_name(methods: Methods) -> dict[str, str | RuleSet]:
    """The chosen methods by name.

    Raises:
        InputError: unknown or doubled.
    """
    table = MethodTable()
    if methods == "all":
        return {method.name: method.name for method in table}
    each = [methods] if isinstance(methods, str) else list(methods)
    names = [method if isinstance(method, str) else method.name for method in each]
    taken = [name for name in names if name in (*BASELINES, MODEL, SAMPLES)]
    if not names or len(set(names)) < len(names) or taken:
        raise InputError(
            f"methods must be one or more of different names, got {names}; "
            f"{', '.join(BASELINES)} are always there."
        )
    for method in each:
        if isinstance(method, str):
            table[method]
    return dict(zip(names, each, strict=True))


def metadata_of(
    graph: ModelGraph, settings: Any, options: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """What was run on what, for the record; ``settings`` is a dataclass."""
    return {
        "model": graph.describe() | fingerprint(graph),
        "settings": asdict(settings),
        "options": {name: dict(values) for name, values in options.items()},
        "command": command,
        "versions": versions("numpy", "pandas"),
    }


def fingerprint_of(metadata: Mapping[str, Any], views: Mapping[str, View]) -> dict[str, Any]:
    """Everything that results depend on, so that a run is not resumed as another."""
    samples = {
        name: hashlib.sha256(repr(one.task.samples).encode()).hexdigest()[:16]
        for name, one in views.items()
    }
    kept = {key: metadata[key] for key in ("model", "settings", "options", "versions")}
    return {**kept, "tasks": samples}


@contextmanager
def progress_bar(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with the time left; yields what moves it."""
    with Progress(console=Console(stderr=True), transient=True, disable=not shown) as progress:
        bar = progress.add_task("explaining", total=total)
        yield lambda done: progress.advance(bar, done)
