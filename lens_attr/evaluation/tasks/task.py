"""`Task`: samples of one kind with their source, and how they are judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lens_attr.demo import TASKS as GENERATED
from lens_attr.demo import generate
from lens_attr.errors import InputError, checked_count, did_you_mean
from lens_attr.types import Sample

OPEN_VOCABULARY = ("qa",)
"""Tasks whose answers compete with every token, whatever foil they have: correct means argmax, the
foil is the runner-up. In other tasks a sample without a foil is judged so, and no other one."""

GENERATOR_LICENCE = "MIT"


@dataclass(frozen=True)
class Task:
    """Samples of one kind.

    Attributes:
        name: ``"sva"``, ``"ra"``, ``"qa"``, or what you call it.
        samples: independent of any tokenizer.
        source: where they come from.
        left_out: how many rows of the source are no sample, by reason.
        template: how a question and its context become a prompt; empty where there is none.
    """

    name: str
    samples: Sequence[Sample]
    source: str = ""
    left_out: Mapping[str, int] = field(default_factory=Counter)
    template: str = ""

    def __post_init__(self) -> None:
        for i, sample in enumerate(self.samples):
            spans = [*sample.truth, *([sample.context] if sample.context else [])]
            for start, end in spans:
                if not 0 <= start < end <= len(sample.text):
                    raise InputError(
                        f"span ({start}, {end}) of sample {i} of task {self.name!r} is empty or "
                        f"outside its text of {len(sample.text)} characters."
                    )

    @property
    def open_vocabulary(self) -> bool:
        """Whether every answer competes with every token, its own foil notwithstanding."""
        return self.name in OPEN_VOCABULARY

    def first(self, n: int) -> Task:
        """At most ``n`` of its samples."""
        return replace(self, samples=self.samples[:n])

    def facts(
        self, dropped: Mapping[str, int], used: int, why_none: str = "", **more: Any
    ) -> dict[str, Any]:
        """An entry of `BenchTable.tasks`: what became of the samples.

        Args:
            dropped: how many were not used, by reason.
            used: how many were.
            why_none: if none was, unless the source is empty or all were dropped.
            **more: what else the reader should know.
        """
        facts = {
            "source": self.source,
            "licences": sorted({sample.licence for sample in self.samples}),
            "read": len(self.samples),
            "left_out": dict(self.left_out),
            "dropped": {reason: count for reason, count in dropped.items() if count},
            **more,
            "used": used,
        }
        if used:
            return facts
        nothing = why_none or "every sample was dropped"
        return facts | {"empty": nothing if self.samples else "the source holds no sample"}


def built_in(name: str, n: int, seed: int = 0, attractor: str | None = None) -> Task:
    """Held-out sentences of the project's generator.

    Args:
        name: ``"sva"`` subject-verb agreement, ``"ra"`` reflexive anaphora, ``"qa"`` questions.
        n: how many.
        seed: which.
        attractor: see `lens_attr.demo.generate`.

    Raises:
        InputError: unknown task.
    """
    if name not in GENERATED:
        raise InputError(
            f"{name!r} is no built-in task; {did_you_mean(name, GENERATED)} Other tasks need a "
            "file (--data, or tasks.read)."
        )
    samples = [_completed(s) for s in generate(name, n, seed, "heldout", attractor)]
    return Task(name, samples, f"lens_attr generator, split heldout, seed {seed}")


Tasks = str | Task | Sequence[str | Task]
"""Tasks, or names of built-in ones; one or several."""


def tasks_of(tasks: Tasks, n: int, seed: int) -> list[Task]:
    """The first ``n`` samples of each task; names become built-in tasks.

    Raises:
        InputError: no task, two of one name, or ``n`` is no whole number of at least 1.
    """
    n = checked_count("n", n)
    each = [tasks] if isinstance(tasks, (str, Task)) else list(tasks)
    found = [built_in(task, n, seed) if isinstance(task, str) else task.first(n) for task in each]
    names = [task.name for task in found]
    if not names or len(set(names)) < len(names):
        raise InputError(f"tasks must be one or more of different names, got {names}.")
    return found


def joined(tasks: Sequence[Task]) -> dict[str, Task]:
    """Tasks by name; those of one name become one."""
    found: dict[str, Task] = {}
    for task in tasks:
        if task.name in found:
            first = found[task.name]
            task = Task(
                task.name,
                [*first.samples, *task.samples],
                f"{first.source}, {task.source}",
                Counter(first.left_out) + Counter(task.left_out),
                first.template or task.template,
            )
        found[task.name] = task
    return found


def _completed(sample: Sample) -> Sample:
    """With its licence, and for a question the span of the facts before it."""
    question = sample.text.rfind(" Q where is the ") if sample.task == "qa" else -1
    context = (0, question) if question > 0 else None
    return replace(sample, licence=GENERATOR_LICENCE, context=context)
