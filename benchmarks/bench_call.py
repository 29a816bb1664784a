"""One call of `lens_attr.evaluation.bench`: AttnLRP on 1,000 sentences of subject-verb agreement.

Predictions, explanations in batches, baselines and bootstrap intervals on demo-gpt2, beside the 60
seconds that two cores may take (``--threads 2``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import lens_attr as la
from benchmarks.harness import Options, Row, interleaved, seconds_of
from lens_attr.evaluation import bench

MODEL, TASK, METHOD = "demo-gpt2", "sva", "attnlrp"
SAMPLES, QUICK = 1000, 20
SECONDS = 60.0
"""For all the samples."""


def rows(options: Options) -> Iterator[Row]:
    """Seconds of the call beside those it may take."""
    n = QUICK if options.quick else SAMPLES
    model = la.load(MODEL, device=options.device)
    call = partial(bench, model, TASK, [METHOD], n=n)
    runs = options.runs or 3
    times = interleaved({METHOD: partial(seconds_of, options, call)}, runs)[METHOD]
    allowed = SECONDS * n / SAMPLES
    yield Row(
        METHOD, f"{MODEL}, {n:,} x {TASK}", times, "s", f"{allowed:g} s", [allowed] * runs, 1.0
    )
