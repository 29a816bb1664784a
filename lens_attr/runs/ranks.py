"""One of several processes that a launcher (torchrun, srun) started on the same job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lens_attr.errors import InputError

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
"""Variables of torchrun and of srun. ``SLURM_NTASKS`` is not among them: a batch script that
starts one process has it too."""


@dataclass(frozen=True)
class Share:
    """Which part of the shards this process does: every ``world``-th, from ``rank``."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def includes(self, shard: int) -> bool:
        """Whether a shard is this process's."""
        return shard % self.world == self.rank

    def device(self, wanted: str | None) -> str | None:
        """A GPU of its own, where several processes share a machine with GPUs; see `own_gpu`."""
        return own_gpu(wanted, self.local_rank) if self.world > 1 else None


def own_gpu(wanted: str | None, number: int) -> str | None:
    """Which GPU is the ``number``-th process's, if the job wants one (or says nothing).

    None where the job's own device holds: the CPU, or one GPU for all.
    """
    if wanted not in (None, "cuda") or not torch.cuda.is_available():
        return None
    return f"cuda:{number % torch.cuda.device_count()}"


def share(environment: Mapping[str, str] = os.environ) -> Share:
    """The share that the launcher gave this process; everything where there is no launcher.

    Raises:
        InputError: its variables make no sense.
    """
    for rank, world, local in LAUNCHERS:
        if rank in environment and world in environment:
            values = [environment.get(name, "0") for name in (rank, world, local)]
            if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
                raise InputError(f"{rank}={values[0]} and {world}={values[1]} are no rank of one.")
            return Share(*map(int, values))
    return Share()
