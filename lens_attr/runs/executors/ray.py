"""A Ray cluster: one that runs already, or one started on this machine for the job."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from lens_attr.errors import InputError, LensAttrError
from lens_attr.runs.executors.local import TRIES
from lens_attr.runs.worker import Answers, Setup, Work, Worker


def on_ray(works: Iterable[Work], setup: Setup) -> Answers:
    """Do the shards in Ray actors that load the model once; Ray restarts those that die.

    Every machine of the cluster must have lens_attr and see the data's ``out`` directory.

    Raises:
        InputError: Ray is not installed.
        LensAttrError: what a worker raised, or a shard that its workers died over.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=setup.job.address, include_dashboard=False, log_to_driver=False)
    try:
        yield from _spread(ray, iter(works), setup)
    finally:
        if ours:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            "executor: ray needs Ray: pip install 'lens_attr[ray]', or use executor: local."
        ) from error


def _spread(ray: Any, works: Iterator[Work], setup: Setup) -> Answers:
    """Keep every actor busy with one shard."""
    gpus = 1 if (setup.job.device or "").startswith("cuda") or torch.cuda.is_available() else 0
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=TRIES, max_task_retries=TRIES)(
        Worker
    )
    team = [actor.remote(setup) for _ in range(setup.job.workers)]
    busy = {
        member.do.remote(work): (member, work)
        for member, work in zip(team, islice(works, len(team)), strict=False)
    }
    while busy:
        (ready,), _ = ray.wait(list(busy), num_returns=1)
        member, work = busy.pop(ready)
        try:
            answer = ray.get(ready)
        except ray.exceptions.RayActorError as error:
            raise LensAttrError(
                f"the workers died over rows {work.planned.start} to {work.planned.stop - 1}, "
                f"probably out of memory, or could not start: {error}"
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        following = next(works, None)
        if following is not None:
            busy[member.do.remote(following)] = (member, following)
        yield work, answer
