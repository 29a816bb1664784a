"""What is done about workers that die: try again, then in smaller batches, then without a row."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from lens_attr.errors import LensAttrError
from lens_attr.runs.shards import Course, ShardFiles
from lens_attr.runs.worker import Setup, Work

TRIES = 3
"""Workers that may die over one row, or before they explain any."""

CHANCE = 2
"""Workers that may die over one batch before it is halved. One death can have any reason, and a
batch that was halved rounds otherwise."""


class Queue:
    """The shards to do, those that a dead worker left behind first."""

    def __init__(self, works: Iterable[Work], setup: Setup) -> None:
        self._works = iter(works)
        self._setup = setup
        self._again: deque[Work] = deque()
        self._deaths: Counter[tuple[int, tuple[int, ...]]] = Counter()

    def next(self) -> Work | None:
        """None when nothing is left to hand out."""
        work = self._again.popleft() if self._again else next(self._works, None)
        if work is not None:
            self._setup.files(work.planned.shard).forget()
        return work

    def put_back(self, work: Work) -> None:
        """The worker died over this one: do it otherwise if others died at the same place.

        Raises:
            LensAttrError: `TRIES` of them did before they explained anything of it.
        """
        self._learn(work)
        self._again.append(work)

    def _learn(self, work: Work) -> None:
        files = self._setup.files(work.planned.shard)
        course = files.noted()
        batch = course.batches[course.at] if course else []
        self._deaths[work.planned.shard, tuple(batch)] += 1
        deaths = self._deaths[work.planned.shard, tuple(batch)]
        if course is None:
            if deaths >= TRIES:
                raise LensAttrError(
                    f"{TRIES} workers died before they explained any of the rows "
                    f"{work.planned.start} to {work.planned.stop - 1}: is there memory for as many "
                    "models as workers?"
                )
        elif len(batch) > 1 and deaths >= CHANCE:
            course.halve()
            _keep(files, course)
        elif len(batch) == 1 and deaths >= TRIES:
            course.give_up(f"{TRIES} workers died over this row alone, probably out of memory")
            _keep(files, course)


def _keep(files: ShardFiles, course: Course) -> None:
    try:
        files.keep(course)
    except OSError as error:
        raise LensAttrError(
            f"workers died, and what to do otherwise cannot be written down: {error}. Make room "
            "and start again."
        ) from error
