"""Figures of results: plotly figures, or HTML for coloured text. No model is ever needed.

``result.plot()`` calls these by name; they can also be called directly.
"""

from lens_attr.plots.ablation_bars import ablation
from lens_attr.plots.agreement_scatter import agreement
from lens_attr.plots.attention_map import attention
from lens_attr.plots.axes_bars import axes
from lens_attr.plots.benchmark_bars import benchmark
from lens_attr.plots.circuit_graph import circuit
from lens_attr.plots.faithfulness_curves import faithfulness
from lens_attr.plots.figure_files import export
from lens_attr.plots.generation_matrix import generation
from lens_attr.plots.head_map import heads
from lens_attr.plots.head_token_map import head_tokens
from lens_attr.plots.layer_curves import layer_faithfulness
from lens_attr.plots.palette import shade
from lens_attr.plots.patch_map import nodes, patching
from lens_attr.plots.path_figures import (
    gradient_distance,
    output_emphasis,
    path_emphasis,
    path_output,
    path_parts,
)
from lens_attr.plots.pruning_curves import pruning
from lens_attr.plots.score_map import score_map
from lens_attr.plots.self_repair_scatter import self_repair
from lens_attr.plots.self_repair_thresholds import self_repair_thresholds
from lens_attr.plots.sweep_curves import deletion_sweep, length_curves
from lens_attr.plots.template import DARK, LIGHT
from lens_attr.plots.token_figures import comparison, relevance, spans
from lens_attr.plots.token_html import html_tokens
from lens_attr.plots.token_text import readable, shares

__all__ = [
    "DARK",
    "LIGHT",
    "ablation",
    "agreement",
    "attention",
    "axes",
    "benchmark",
    "circuit",
    "comparison",
    "deletion_sweep",
    "export",
    "faithfulness",
    "generation",
    "gradient_distance",
    "head_tokens",
    "heads",
    "html_tokens",
    "layer_faithfulness",
    "length_curves",
    "nodes",
    "output_emphasis",
    "patching",
    "path_emphasis",
    "path_output",
    "path_parts",
    "pruning",
    "readable",
    "relevance",
    "score_map",
    "self_repair",
    "self_repair_thresholds",
    "shade",
    "shares",
    "spans",
]
