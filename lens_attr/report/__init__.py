"""Results as one HTML file that works offline and can be mailed around."""

from lens_attr.report.demo import Explanation, ModelStory, demo_page
from lens_attr.report.page import Html, Page, Section, write_page
from lens_attr.report.texts import colour_key, explained_text

__all__ = [
    "Explanation",
    "Html",
    "ModelStory",
    "Page",
    "Section",
    "colour_key",
    "demo_page",
    "explained_text",
    "write_page",
]
