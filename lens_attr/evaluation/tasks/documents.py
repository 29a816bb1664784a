"""Questions (SQuAD json), labelled texts (SST-2, IMDB), and jsonl of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

from lens_attr.errors import InputError
from lens_attr.evaluation.tasks.rows import (
    Bad,
    LeftOut,
    Row,
    RowError,
    columns,
    json_lines,
    span_of,
    text_of,
)
from lens_attr.types import Sample

QA_TEMPLATE = "{context} Question: {question} Answer:"


def read_squad(path: Path, template: str = QA_TEMPLATE) -> Iterator[Row]:
    """SQuAD v1 or v2 json (Rajpurkar et al. 2016, 2018); the first answer of each question.

    Answers are a list of ``{"text": ..., "answer_start": ...}``, or two lists under these names, as
    Hugging Face's copy has them.

    Raises:
        InputError: not JSON, not UTF-8, or without a list ``data``; a template without its two
            fields.
    """
    if _fields(template) != {"context", "question"}:
        raise InputError(
            f"the template {template!r} must hold {{context}} and {{question}} and no other field."
        )
    text = _decoded(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno} is not JSON: {error.msg}.") from error
    articles = document.get("data") if isinstance(document, dict) else None
    if not isinstance(articles, list):
        raise InputError(f"{path} line 1 is no SQuAD file: it has no list 'data'.")
    line = 1
    for where, record, context in _questions(articles):
        if isinstance(record, RowError):
            yield Bad(line, f"{where}: {record}")
            continue
        line = _line_of(text, str(record.get("id", "")), line)
        try:
            yield _squad_row(record, context, template, f"SQuAD {path.name}")
        except RowError as error:
            yield Bad(line, f"question {record.get('id', where)!r}: {error}")


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    if not data.strip():
        raise InputError(f"{path} is empty.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {number} is not UTF-8.") from error


def _questions(articles: list[Any]) -> Iterator[tuple[str, dict[str, Any] | RowError, Any]]:
    """Where it stands, each question or what is wrong in its place, and its context."""
    for where, article in _objects(articles, "data"):
        if isinstance(article, RowError):
            yield where, article, None
            continue
        for inside, paragraph in _objects(article.get("paragraphs"), f"{where}.paragraphs"):
            if isinstance(paragraph, RowError):
                yield inside, paragraph, None
                continue
            for place, question in _objects(paragraph.get("qas"), f"{inside}.qas"):
                yield place, question, paragraph.get("context")


def _objects(many: Any, where: str) -> Iterator[tuple[str, dict[str, Any] | RowError]]:
    """Each object of what should be a list of them, with its place."""
    if not isinstance(many, list):
        yield where, RowError("is not a list")
        return
    for i, one in enumerate(many):
        is_object = isinstance(one, dict)
        yield f"{where}[{i}]", one if is_object else RowError(f"{one!r} is not an object")


def _line_of(text: str, identifier: str, otherwise: int) -> int:
    """The line of an identifier; where there is none, that of what was read before."""
    found = text.find(json.dumps(identifier)) if identifier else -1
    return otherwise if found < 0 else text.count("\n", 0, found) + 1


def _squad_row(record: dict[str, Any], context: Any, template: str, source: str) -> Row:
    if not isinstance(context, str):
        raise RowError("its paragraph has no 'context'")
    first = None if record.get("is_impossible") else _first_answer(record.get("answers"))
    if first is None:
        return LeftOut("the question has no answer")
    question = text_of(record, "question").strip()
    answer, start = text_of(first, "text"), first.get("answer_start")
    begin, end = span_of(context, start, _plus(start, len(answer)), "the answer's span")
    if context[begin:end] != answer:
        raise RowError(f"the answer {answer!r} does not stand at {begin} of its context")
    shift = len(template.partition("{context}")[0].format(question=question))
    return Sample(
        text=template.format(context=context, question=question),
        answer=f" {answer}",
        foil="",
        truth=((begin + shift, end + shift),),
        task="qa",
        source=f"{source} question {record.get('id', '')}",
        context=(shift, shift + len(context)),
        licence="CC BY-SA 4.0",
    )


def _first_answer(answers: Any) -> dict[str, Any] | None:
    """The first answer of either form; None where there is none.

    Raises:
        RowError: neither form.
    """
    if isinstance(answers, dict):
        names = ("text", "answer_start")
        for name in names:
            if not isinstance(answers.get(name), list):
                raise RowError(f"'answers' has no list {name!r}")
        rows = zip(*(answers[name] for name in names), strict=False)
        answers = [dict(zip(names, row, strict=True)) for row in rows]
    if not isinstance(answers, (list, type(None))):
        raise RowError("'answers' is no list")
    first = answers[0] if answers else None
    if not isinstance(first, (dict, type(None))):
        raise RowError(f"the answer {first!r} is not an object")
    return first


def _plus(start: Any, length: int) -> Any:
    return start + length if isinstance(start, int) else start


TEXT_COLUMNS = ("sentence", "review", "text")
LABEL_COLUMNS = ("label", "sentiment")


def read_labelled(path: Path) -> Iterator[Row]:
    """SST-2 or IMDB-style tsv: a header naming the columns, or two columns without one.

    The text is in ``sentence``, ``review`` or ``text``, the label in ``label`` or ``sentiment``.
    Without a header the label is the column that is a whole number in the first line.
    """
    text_at, label_at, width = -1, -1, 0
    for number, cells in columns(path):
        if isinstance(cells, Bad):
            yield cells
            continue
        if not width:
            text_at, label_at, has_header = _layout(cells, path)
            width = len(cells)
            if has_header:
                continue
        if len(cells) != width:
            yield Bad(number, f"has {len(cells)} columns, the first line has {width}")
        elif not cells[text_at]:
            yield Bad(number, "has no text")
        else:
            yield Sample(
                text=_unquoted(cells[text_at]),
                answer="",
                foil="",
                source=f"{path.name} line {number}",
                tags={"label": cells[label_at]} if label_at >= 0 else {},
            )


def _layout(cells: list[str], path: Path) -> tuple[int, int, bool]:
    """Columns of text and label, and whether this line is a header."""
    names = [_unquoted(cell).lower() for cell in cells]
    text_at = next((names.index(name) for name in TEXT_COLUMNS if name in names), None)
    if text_at is not None:
        label_at = next((names.index(name) for name in LABEL_COLUMNS if name in names), -1)
        return text_at, label_at, True
    numbers = [i for i, cell in enumerate(cells) if cell.lstrip("+-").isdecimal()]
    if len(cells) != 2 or len(numbers) != 1:
        raise InputError(
            f"{path} line 1: name the columns in a header (sentence, review or text; label or "
            "sentiment), or give a text and a whole number."
        )
    return 1 - numbers[0], numbers[0], False


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"').replace('\\"', '"') if quoted else cell


def read_own(path: Path) -> Iterator[Row]:
    """jsonl of one's own, one object per line.

    ``text``; ``answer`` (or ``target``); ``foil`` (left out: the answer competes with the whole
    vocabulary); ``truth``, a list of character spans ``[start, end]`` in ``text``; and optionally
    ``task``, ``suffix``, ``context`` (a span), ``source``, ``licence`` and ``tags``.
    """
    for number, record in json_lines(path):
        if isinstance(record, Bad):
            yield record
            continue
        try:
            yield sample_of(record, f"{path.name} line {number}")
        except RowError as error:
            yield Bad(number, str(error))


def sample_of(record: dict[str, Any], where: str) -> Sample:
    """The sample that a row of one's own jsonl describes.

    Raises:
        RowError: it is not what `read_own` documents.
    """
    text = text_of(record, "text")
    context, tags = record.get("context"), record.get("tags", {})
    if not text.strip():
        raise RowError("'text' is empty")
    if not isinstance(tags, dict):
        raise RowError("'tags' is not an object")
    return Sample(
        text=text,
        answer=text_of(record, "answer", "target", default=""),
        foil=text_of(record, "foil", default=""),
        truth=tuple(_pair(text, span, "truth") for span in _spans(record)),
        task=text_of(record, "task", default=""),
        suffix=text_of(record, "suffix", default=""),
        source=text_of(record, "source", default=where),
        tags={str(key): str(value) for key, value in tags.items()},
        context=None if context is None else _pair(text, context, "context"),
        licence=text_of(record, "licence", "license", default=""),
    )


def _spans(record: dict[str, Any]) -> list[Any]:
    spans = record.get("truth", [])
    if not isinstance(spans, list):
        raise RowError("'truth' is not a list of [start, end]")
    return spans


def _pair(text: str, span: Any, what: str) -> tuple[int, int]:
    if not isinstance(span, list) or len(span) != 2:
        raise RowError(f"'{what}' holds {span!r}, which is no [start, end]")
    return span_of(text, span[0], span[1], what)
