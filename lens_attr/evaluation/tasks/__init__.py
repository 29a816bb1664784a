"""Tasks: samples with a known reason, built in or from files, and how a model reads them."""

from lens_attr.evaluation.tasks.documents import QA_TEMPLATE
from lens_attr.evaluation.tasks.edits import (
    ALL_EDITS,
    SEGMENTATION,
    Pairs,
    distractors,
    edited,
    preceded,
    read_pairs,
)
from lens_attr.evaluation.tasks.files import Format, read
from lens_attr.evaluation.tasks.interest import read_interest
from lens_attr.evaluation.tasks.paragraphs import FUNCTION_WORDS, Interest, paragraphs
from lens_attr.evaluation.tasks.task import GENERATED, Task, Tasks, built_in, joined, tasks_of
from lens_attr.evaluation.tasks.view import TokenSample, View, text_read, view

__all__ = [
    "ALL_EDITS",
    "FUNCTION_WORDS",
    "GENERATED",
    "QA_TEMPLATE",
    "SEGMENTATION",
    "Format",
    "Interest",
    "Pairs",
    "Task",
    "Tasks",
    "TokenSample",
    "View",
    "built_in",
    "distractors",
    "edited",
    "joined",
    "paragraphs",
    "preceded",
    "read",
    "read_interest",
    "read_pairs",
    "tasks_of",
    "text_read",
    "view",
]
