"""Results as one HTML file that works offline and can be mailed around."""

from lens_attr.report.bench_figures import bench_figures
from lens_attr.report.page import Html, Page, Section, facts_list, write_page
from lens_attr.report.run_files import RunFiles, read_run, write_about
from lens_attr.report.run_report import run_page
from lens_attr.report.texts import Explanation, colour_key, explained_text, explained_texts

__all__ = [
    "Explanation",
    "Html",
    "Page",
    "RunFiles",
    "Section",
    "bench_figures",
    "colour_key",
    "explained_text",
    "explained_texts",
    "facts_list",
    "read_run",
    "run_page",
    "write_about",
    "write_page",
]
