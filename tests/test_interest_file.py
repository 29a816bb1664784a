"""The word of interest of each text, from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import fast_load, good, models, run  # noqa: F401  (fixtures)

import lens_attr as la
from lens_attr.errors import InputError
from lens_attr.evaluation import tasks
from lens_attr.graph import resolve
from lens_attr.types import Sample

TEXTS = ("the old keys near the box are lost .", "the king saw the king again .", "the boy runs .")


@pytest.fixture
def texts() -> tasks.Task:
    return tasks.Task("notes", [Sample(text, "", "") for text in TEXTS])


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_words_occurrences_and_characters_are_places_in_the_text(
    tmp_path: Path, texts: tasks.Task
) -> None:
    path = write(
        tmp_path / "words.jsonl",
        {"text": TEXTS[0], "word": "box"},
        {"text": TEXTS[1], "word": "king", "occurrence": 2},
        {"text": TEXTS[2], "start": 4, "end": 7},
    )
    found = tasks.read_interest(path, [texts])
    assert [text[slice(*found[text])] for text in TEXTS] == ["box", "king", "boy"]
    assert found[TEXTS[1]] == (17, 21)


def test_the_word_is_predicted_from_what_stands_around_it(texts: tasks.Task) -> None:
    words = {TEXTS[0]: (22, 25), TEXTS[1]: (17, 21)}
    (one,) = tasks.paragraphs(resolve(la.load("demo-bert")), texts, interest=words)
    first = one.samples[0]
    assert (first.text, first.answer, first.suffix) == (
        "the old keys near the", " box", " are lost ."
    )  # fmt: skip
    assert len(one.samples) == 2
    assert one.left_out == {"the file names no word of interest for the text": 1}


def test_a_word_that_was_cut_off_is_left_out_and_counted(texts: tasks.Task) -> None:
    words = {TEXTS[0]: (22, 25), TEXTS[1]: (4, 8), TEXTS[2]: (4, 7)}
    graph = resolve(la.load("demo-gpt2"))
    (one,) = tasks.paragraphs(graph, texts, [4], interest=words)
    assert [sample.answer for sample in one.samples] == [" king", " boy"]
    assert one.left_out == {"the word of interest was cut off": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ({"word": "keys"}, "has no 'text'"),
        ({"text": "another", "word": "another"}, "no text of the data is 'another'"),
        ({"text": TEXTS[0], "word": "key"}, "the word 'key' does not stand in the text"),
        ({"text": TEXTS[1], "word": "king"}, "stands there 2 times: give 'occurrence'"),
        ({"text": TEXTS[1], "word": "king", "occurrence": 3}, "'occurrence' must be 1 to 2, got 3"),
        ({"text": TEXTS[0], "word": " "}, "'word' is empty"),
        ({"text": TEXTS[0], "word": "the", "occurrence": 1}, "nothing stands before"),
        ({"text": TEXTS[0], "start": 3, "end": 99}, "outside the text"),
        ({"text": TEXTS[0]}, "must be two integers"),
        ({"text": TEXTS[2], "word": "boy"}, "has a word of interest already"),
    ],
)
def test_wrong_rows_are_named_with_file_and_line(
    tmp_path: Path, texts: tasks.Task, row: Any, reason: str
) -> None:
    path = write(tmp_path / "words.jsonl", {"text": TEXTS[2], "word": "runs"}, row)
    with pytest.raises(InputError, match=r"words\.jsonl line 2: ") as raised:
        tasks.read_interest(path, [texts])
    assert reason in str(raised.value)


def test_no_file_and_an_empty_one_are_refused(tmp_path: Path, texts: tasks.Task) -> None:
    with pytest.raises(InputError, match="there is no file"):
        tasks.read_interest(tmp_path / "none.jsonl", [texts])
    with pytest.raises(InputError, match="is empty"):
        tasks.read_interest(write(tmp_path / "empty.jsonl"), [texts])


@pytest.mark.usefixtures("fast_load")
def test_the_command_explains_the_words_of_the_file(tmp_path: Path) -> None:
    data = write(tmp_path / "notes.tsv", "sentence\tlabel", *(f"{text}\t1" for text in TEXTS))
    words = write(tmp_path / "words.jsonl", {"text": TEXTS[0], "word": "box"})
    base = ["bench", "--deletion", "--data", data, "--methods", "lrp", "--interest-file", words]
    document = json.loads(good(*base, "--out", tmp_path / "out", "--json"))
    (facts,) = document["tasks"].values()
    assert facts["used"] == 1
    assert facts["left_out"] == {"the file names no word of interest for the text": 2}
    write(words, {"text": TEXTS[0], "word": "cat"})
    ran = run(*base, "--out", tmp_path / "other")
    assert ran.exit_code == 1 and f"{words} line 1: the word 'cat'" in ran.stderr
