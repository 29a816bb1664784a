"""Data sets at scale: jobs, batch plans, shards that survive a crash, local and Ray workers."""

from lens_attr.runs.job import Job
from lens_attr.runs.launch import RunReport, run
from lens_attr.runs.self_repair import SelfRepairRun, SelfRepairSettings, bench_self_repair
from lens_attr.runs.start import Preview, preview

__all__ = [
    "Job",
    "Preview",
    "RunReport",
    "SelfRepairRun",
    "SelfRepairSettings",
    "bench_self_repair",
    "preview",
    "run",
]
