"""A Ray cluster: one that runs already, or one started on this machine for the job."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from lens_attr.errors import InputError, LensAttrError
from lens_attr.runs.executors.deaths import Queue
from lens_attr.runs.job import Job
from lens_attr.runs.worker import Answers, Setup, Work, Worker


def on_ray(works: Iterable[Work], setup: Setup) -> Answers:
    """Do the shards in Ray actors that load the model once; what becomes of those that die, see
    `Queue`.

    Every machine of the cluster must have lens_attr and see the data's ``out`` directory.

    Raises:
        InputError: Ray is not installed, there is no cluster at the address, or it is too small.
        LensAttrError: what a worker raised, or they die before they explain anything.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, setup.job.address)
    try:
        needs = _needs(setup.job)
        _refuse_too_many(setup.job.workers, needs, ray.cluster_resources())
        actor = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"])(Worker)
        yield from _spread(ray, actor, Queue(works, setup), replace(setup, watched=True))
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


def _connect(ray: Any, address: str | None) -> None:
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster at address {address!r}: {error} Start one with 'ray start --head', or "
            "leave address out and one is started on this machine for the job."
        ) from error


def _needs(job: Job) -> dict[str, int]:
    """Of one worker."""
    gpu = torch.cuda.is_available() if job.device is None else job.device.startswith("cuda")
    return {"CPU": 1, "GPU": int(gpu)}


def _refuse_too_many(workers: int, needs: dict[str, int], cluster: dict[str, float]) -> None:
    """Ray would wait for ever, and say nothing."""
    for name, each in needs.items():
        most = int(cluster.get(name, 0))
        if workers * each > most:
            raise InputError(
                f"{workers} workers need a {name} each, and the Ray cluster has {most}: set "
                "fewer workers, or start more nodes first."
            )


def _spread(ray: Any, actor: Any, queue: Queue, setup: Setup) -> Answers:
    """Keep every actor busy with one shard; another takes the place of one that died."""
    deadly = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
    busy: dict[Any, tuple[Any, Work]] = {}

    def give(member: Any) -> None:
        work = queue.next()
        if work is not None:
            busy[member.do.remote(work)] = member, work

    for _ in range(setup.job.workers):
        give(actor.remote(setup))
    while busy:
        (ready,), _ = ray.wait(list(busy), num_returns=1)
        member, work = busy.pop(ready)
        try:
            answer = ray.get(ready)
        except deadly as error:
            if getattr(error, "actor_init_failed", False):
                raise LensAttrError(f"a worker could not start: {error}") from error
            queue.put_back(work)
            ray.kill(member)  # it may only be out of reach, and would keep its place
            member = actor.remote(setup)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        else:
            yield work, answer
        give(member)
