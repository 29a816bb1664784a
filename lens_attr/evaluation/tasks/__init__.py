"""Tasks: samples with a known reason, built in or from files, and how a model reads them."""

from lens_attr.evaluation.tasks.documents import QA_TEMPLATE
from lens_attr.evaluation.tasks.files import Format, read
from lens_attr.evaluation.tasks.paragraphs import Interest, paragraphs
from lens_attr.evaluation.tasks.task import GENERATED, Task, built_in, joined
from lens_attr.evaluation.tasks.view import TokenSample, View, view

__all__ = [
    "GENERATED",
    "QA_TEMPLATE",
    "Format",
    "Interest",
    "Task",
    "TokenSample",
    "View",
    "built_in",
    "joined",
    "paragraphs",
    "read",
    "view",
]
