"""Is an attribution right? Plausibility on ground truth, and faithfulness by deletion."""

from lens_attr.evaluation import tasks
from lens_attr.evaluation.ablation import AblationTable, ablate
from lens_attr.evaluation.axes import AxesTable, bench_axes
from lens_attr.evaluation.benchmark import Settings, bench
from lens_attr.evaluation.comparing import compare_runs
from lens_attr.evaluation.context_length import bench_length, by_length_of_text
from lens_attr.evaluation.deletion import Deletion, bench_deletion
from lens_attr.evaluation.faithfulness import Faithfulness, bench_faithfulness
from lens_attr.evaluation.intervals import Interval, Paired, mean_interval, paired_test
from lens_attr.evaluation.plausibility import Plausibility, Ties, plausibility
from lens_attr.evaluation.published import Published, beside, read_published
from lens_attr.evaluation.results import BenchTable
from lens_attr.evaluation.speed import Speed, bench_speed
from lens_attr.evaluation.stability import Stability, bench_stability

__all__ = [
    "AblationTable",
    "AxesTable",
    "BenchTable",
    "Deletion",
    "Faithfulness",
    "Interval",
    "Paired",
    "Plausibility",
    "Published",
    "Settings",
    "Speed",
    "Stability",
    "Ties",
    "ablate",
    "bench",
    "bench_axes",
    "bench_deletion",
    "bench_faithfulness",
    "bench_length",
    "bench_speed",
    "bench_stability",
    "beside",
    "by_length_of_text",
    "compare_runs",
    "mean_interval",
    "paired_test",
    "plausibility",
    "read_published",
    "tasks",
]
