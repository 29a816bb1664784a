"""The page of ``lens-attr demo``: results in, sections out; no model is touched here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lens_attr.plots import heads, pruning
from lens_attr.report.page import Html, Page, Section
from lens_attr.report.texts import colour_key, explained_text

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance
    from lens_attr.circuits.results import PruningComparison, Ranking
    from lens_attr.types import Sample


@dataclass(frozen=True)
class Explanation:
    """One prediction, explained by several methods.

    Attributes:
        sample: the prediction.
        results: relevance by method name.
    """

    sample: Sample
    results: Mapping[str, Relevance]


@dataclass(frozen=True)
class ModelStory:
    """What the demo found about one model.

    Attributes:
        name: the model.
        backend: the class that holds it.
        explanations: some predictions.
        ranking: its heads, ranked by one of the methods.
        pruning: every method's ranking against random orders, on samples not ranked with.
        task: the task that heads were ranked and pruned on.
        n_rank: number of samples behind the ranking.
        refused: the reason, by name of a method that cannot explain this model.
    """

    name: str
    backend: str
    explanations: Sequence[Explanation]
    ranking: Ranking
    pruning: PruningComparison
    task: str
    n_rank: int
    refused: Mapping[str, str] = field(default_factory=dict)


INTRODUCTION = """
Which words made the model predict what it predicted, and which attention heads carried that?
Every text below is coloured by the answer of several attribution methods.

The models are tiny. They were trained on sentences made by a generator, so for each prediction
it is known which word decides it, and a good explanation should find that word.
"""

PRUNING = """
Attention heads are removed one at a time, the least relevant first. A good ranking keeps the
model accurate for longer than a random order does; the area under the curve sums that up. Heads
were ranked on {n_rank} samples, and the accuracy is measured on {n} other samples that played no
part in the ranking ({task}).
"""

HEADS = """
The relevance of every attention head, averaged over the samples that the ranking used. Heads
near zero are the ones that are removed first.
"""


def demo_page(stories: Sequence[ModelStory], footer: str = "") -> Page:
    """Assemble the demo's page, one section per model."""
    sections = [section for story in stories for section in _sections(story)]
    title = "lens_attr: which tokens and heads made the prediction?"
    return Page(title=title, prose=INTRODUCTION, sections=sections, footer=footer)


def _sections(story: ModelStory) -> list[Section]:
    n = story.pruning.curves[0].n
    task = "all three tasks" if story.task == "all" else f"task {story.task}"
    pruned = PRUNING.format(n_rank=story.n_rank, n=n, task=task)
    examples = [colour_key(), *map(_example, story.explanations), _refusals(story.refused)]
    summary = story.pruning.summary()
    return [
        Section(story.name, _setting(story), examples),
        Section(f"{story.name}: heads", HEADS, [heads(story.ranking)], level=3),
        Section(f"{story.name}: pruning", pruned, [pruning(story.pruning), summary], level=3),
    ]


def _setting(story: ModelStory) -> str:
    results = (r for explanation in story.explanations for r in explanation.results.values())
    token_only = any(r.metadata.get("embeddings") == "token" for r in results)
    explained = " Explained here are the word embeddings without their positions."
    return f"Held by {story.backend}.{explained if token_only else ''}"


def _example(explanation: Explanation) -> Html:
    sample = explanation.sample
    first = next(iter(explanation.results.values()), None)
    value = "" if first is None else f", {first.target[0]} = {float(first.target_value[0]):+.2f}"
    deciding = [sample.text[start:end] for start, end in sample.truth]
    heading = f"Why “{sample.answer.strip()}” rather than “{sample.foil.strip()}”?"
    facts = f"decided by: {', '.join(deciding)}{value}" if deciding else value.removeprefix(", ")
    label = (
        f'<div class="label"><b>{html.escape(heading)}</b><span>{html.escape(facts)}</span></div>'
    )
    return Html(f'<div class="example">{label}{explained_text(explanation.results).markup}</div>')


def _refusals(refused: Mapping[str, str]) -> Html:
    lines = (
        f'<p class="refused"><b>{html.escape(method)}</b> is not available on this model: '
        f"{html.escape(reason)}</p>"
        for method, reason in refused.items()
    )
    return Html("\n".join(lines))
