"""Task files: every format, and what happens to rows that are wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lens_attr.errors import InputError
from lens_attr.evaluation import tasks
from lens_attr.evaluation.tasks.annotation import spacy_parser
from lens_attr.evaluation.tasks.english import other_number
from lens_attr.evaluation.tasks.files import detect
from lens_attr.types import Sample

MASK = "***mask***"


def write(folder: Path, name: str, *rows: object) -> Path:
    """A file of lines; what is no string is written as JSON."""
    path = folder / name
    text = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def deciding(sample: Sample) -> str:
    ((start, end),) = sample.truth
    return sample.text[start:end]


def blimp(good: str, bad: str, paradigm: str, **more: Any) -> dict[str, Any]:
    return {"sentence_good": good, "sentence_bad": bad, "UID": paradigm, "pairID": "7"} | more


# --- BLiMP


@pytest.mark.parametrize(
    ("good", "bad", "paradigm", "word"),
    [
        ("Some girls like themselves.", "Some girls like himself.", "anaphor_number", "girls"),
        ("A lot of men like themselves.", "A lot of men like herself.", "anaphor_number", "men"),
        ("Susan hurt herself.", "Susan hurt himself.", "anaphor_gender", "Susan"),
        ("The niece of most senators has left.", "The niece of most senators have left.",
         "distractor_agreement_relational_noun", "niece"),
        ("A lot of boys who saw Ann hug.", "A lot of boys who saw Ann hugs.",
         "distractor_agreement_relative_clause", "boys"),
        ("That art gallery has closed.", "That art gallery have closed.",
         "regular_plural_subject_verb_agreement_1", "gallery"),
    ],
)  # fmt: skip
def test_blimp_words_that_decide(
    tmp_path: Path, good: str, bad: str, paradigm: str, word: str
) -> None:
    paradigm += "_agreement" if paradigm.startswith("anaphor") else ""
    (task,) = tasks.read(write(tmp_path, "b.jsonl", blimp(good, bad, paradigm))).values()
    (sample,) = task.samples
    assert deciding(sample) == word
    assert sample.text + sample.answer + sample.suffix == good
    assert sample.text + sample.foil + sample.suffix == bad
    assert sample.licence == "CC BY 4.0" and sample.tags["pair"] == "7"
    assert sample.source == "BLiMP b.jsonl line 1"


def test_blimp_pairs_that_differ_in_the_subject_get_the_verb_in_the_other_number(
    tmp_path: Path,
) -> None:
    row = blimp(
        "The skirts have twisted.",
        "The skirt have twisted.",
        "regular_plural_subject_verb_agreement_2",
        two_prefix_word="have",
    )
    (task,) = tasks.read(write(tmp_path, "b.jsonl", row)).values()
    (sample,) = task.samples
    assert (sample.text, sample.answer, sample.foil) == ("The skirts", " have", " has")
    assert (deciding(sample), sample.suffix) == ("skirts", " twisted.")


def test_blimp_rows_that_no_rule_covers_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "b.jsonl",
        blimp("Who left?", "Whom left?", "wh_island"),
        blimp("Harvard University likes itself.", "Harvard University likes himself.",
              "anaphor_gender_agreement"),
        blimp("The cat likes itself.", "The cat of Ann likes itself.", "anaphor_gender_agreement"),
        blimp("The cat likes itself.", "The cat likes himself.", "anaphor_gender_agreement"),
    )  # fmt: skip
    (task,) = tasks.read(path).values()
    assert len(task.samples) == 1
    assert sorted(task.left_out.values()) == [1, 1, 1]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "task", "kept"),
    [
        ("anaphor_gender_agreement", "ra", 990),
        ("anaphor_number_agreement", "ra", 990),
        ("distractor_agreement_relational_noun", "sva", 1000),
        ("distractor_agreement_relative_clause", "sva", 1000),
        ("regular_plural_subject_verb_agreement_1", "sva", 1000),
        ("regular_plural_subject_verb_agreement_2", "sva", 1000),
    ],
)
def test_real_blimp(shared: Path, name: str, task: str, kept: int) -> None:
    (found,) = tasks.read(shared / "data" / "blimp" / f"{name}.jsonl").values()
    assert found.name == task
    assert len(found.samples) >= kept
    assert len(found.samples) + sum(found.left_out.values()) == 1000


@pytest.mark.parametrize(
    ("verb", "other"),
    [
        ("runs", "run"), ("try", "tries"), ("tries", "try"), ("pass", "passes"),
        ("passes", "pass"), ("watches", "watch"), ("plays", "play"), ("is", "are"),
        ("hasn't", "haven't"), ("don't", "doesn't"), ("goes", "go"), ("fix", "fixes"),
        ("loses", "lose"), ("lies", "lie"), ("lie", "lies"),
    ],
)  # fmt: skip
def test_verbs_in_the_other_number(verb: str, other: str) -> None:
    assert other_number(verb) == other


# --- Linzen, Goldberg, Marvin & Linzen


def test_linzen_counts_words_from_one(tmp_path: Path) -> None:
    header = "sentence\torig_sentence\tverb_pos\tsubj_index\tverb_index\tn_diff_intervening"
    row = "x\tThe keys to the cabinet are on the table .\tVBP\t2\t6\t1"
    (task,) = tasks.read(write(tmp_path, "agr.tsv", header, row)).values()
    (sample,) = task.samples
    assert (sample.text, sample.answer, sample.foil) == ("The keys to the cabinet", " are", " is")
    assert deciding(sample) == "keys" and sample.suffix == " on the table ."
    assert task.name == "sva" and sample.tags == {"attractors": "1"}


def test_goldberg_has_the_subject_in_a_sixth_column_or_needs_a_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    spacy_parser.cache_clear()
    masked = f"The keys to the cabinet {MASK} here ."
    five = f"1\tThe keys to the cabinet are here .\t{masked}\tare\tis"
    (task,) = tasks.read(write(tmp_path, "lgd.tsv", five, f"{five}\t2")).values()
    (sample,) = task.samples
    assert deciding(sample) == "keys" and sample.foil == " is"
    ((reason, count),) = task.left_out.items()
    assert reason.startswith("the subject is not annotated; ") and count == 1
    assert "pip install 'lens-attr[spacy]'" in reason


@pytest.mark.parametrize(
    ("kind", "good", "bad", "word"),
    [
        ("simple_agrmt", "the author laughs", "the author laugh", "author"),
        ("prep_anim", "the author next to the guards smiles", "the author next to the guards smile",
         "author"),
        ("sent_comp", "the mechanics said the author laughs", "the mechanics said the author laugh",
         "author"),
        ("obj_rel_within_anim", "the author that the guards like laughs",
         "the author that the guards likes laughs", "guards"),
        ("reflexive_sent_comp", "the mechanics said the author hurt himself",
         "the mechanics said the author hurt themselves", "author"),
    ],
)  # fmt: skip
def test_marvin_linzen(tmp_path: Path, kind: str, good: str, bad: str, word: str) -> None:
    path = write(tmp_path, "ml.tsv", f"{kind}\tsing_plur\t{good}\t{bad}", f"npi\tx\t{good}\t{bad}")
    (task,) = tasks.read(path).values()
    (sample,) = task.samples
    assert deciding(sample) == word
    assert (sample.text + sample.answer) in good and (sample.text + sample.foil) in bad
    assert task.name == ("ra" if "reflexive" in kind else "sva")
    assert task.left_out == {"no rule finds the deciding word of npi": 1}


# --- SQuAD


def squad(folder: Path, *questions: dict[str, Any], context: str = "Ann lives in Rome.") -> Path:
    document = {"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path = folder / "q.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path


def asked(text: str, start: Any, **more: Any) -> dict[str, Any]:
    answers = [{"text": text, "answer_start": start}]
    return {"id": f"id-{text}", "question": "Where? ", "answers": answers} | more


def test_squad_becomes_a_prompt_with_the_span_in_its_context(tmp_path: Path) -> None:
    path = squad(tmp_path, asked("Rome", 13), {"id": "no", "question": "?", "is_impossible": True})
    (task,) = tasks.read(path).values()
    (sample,) = task.samples
    assert sample.text == "Ann lives in Rome. Question: Where? Answer:"
    assert deciding(sample) == "Rome" and sample.answer == " Rome" and not sample.foil
    assert sample.context == (0, 18) and task.open_vocabulary
    assert task.left_out == {"the question has no answer": 1}
    assert task.template == tasks.QA_TEMPLATE


def test_another_template_moves_the_spans_along(tmp_path: Path) -> None:
    template = "Q: {question}\nC: {context}\nA:"
    (task,) = tasks.read(squad(tmp_path, asked("Rome", 13)), template=template).values()
    (sample,) = task.samples
    assert sample.text == "Q: Where?\nC: Ann lives in Rome.\nA:"
    assert deciding(sample) == "Rome"
    assert sample.text[slice(*sample.context)] == "Ann lives in Rome."  # type: ignore[misc]
    with pytest.raises(InputError, match="must hold"):
        tasks.read(squad(tmp_path, asked("Rome", 13)), template="{context}")


@pytest.mark.shared
def test_real_squad(shared: Path) -> None:
    (task,) = tasks.read(shared / "data" / "squad" / "dev-v2.0-sample.json").values()
    assert len(task.samples) == 129 and task.left_out == {"the question has no answer": 143}
    assert all(deciding(sample) == sample.answer[1:] for sample in task.samples)


# --- labelled texts and jsonl of one's own


@pytest.mark.parametrize(
    "rows",
    [
        ("sentence\tlabel", "a fine film\t1"),
        ("id\tsentiment\treview", '"7"\t1\t"a fine film"'),
        ("a fine film\t1",),
        ("1\ta fine film",),
    ],
)
def test_labelled_texts(tmp_path: Path, rows: tuple[str, ...]) -> None:
    (task,) = tasks.read(write(tmp_path, "t.tsv", *rows)).values()
    (sample,) = task.samples
    assert (sample.text, sample.tags, task.name) == ("a fine film", {"label": "1"}, "t")


def test_own_samples_may_say_everything(tmp_path: Path) -> None:
    row = {
        "text": "the keys", "target": " are", "foil": " is", "truth": [[4, 8]], "task": "sva",
        "suffix": " .", "context": [0, 8], "source": "me", "licence": "CC0", "tags": {"k": 1},
    }  # fmt: skip
    (task,) = tasks.read(write(tmp_path, "mine.jsonl", row)).values()
    assert task.samples == [
        Sample("the keys", " are", " is", ((4, 8),), "sva", " .", "me", {"k": "1"}, (0, 8), "CC0")
    ]


def test_tasks_of_one_file_are_told_apart(tmp_path: Path) -> None:
    rows = [{"text": "a b", "answer": " c", "task": name} for name in ("one", "two", "one")]
    found = tasks.read(write(tmp_path, "m.jsonl", *rows))
    assert {name: len(task.samples) for name, task in found.items()} == {"one": 2, "two": 1}
    assert list(tasks.read(write(tmp_path, "m.jsonl", {"text": "a"}), task="x")) == ["x"]


# --- malformed files

GOOD = {"text": "the keys", "answer": " are", "foil": " is", "truth": [[4, 8]]}
BLIMP_GOOD = blimp("Ann saw herself.", "Ann saw himself.", "anaphor_gender_agreement")
LINZEN_HEADER = "orig_sentence\tsubj_index\tverb_index"

MALFORMED = [
    ("m.jsonl", (GOOD, "{oops"), "line 2: not JSON"),
    ("m.jsonl", (GOOD, "[1]"), "line 2: not a JSON object"),
    ("m.jsonl", (GOOD, GOOD | {"truth": [[4, 80]]}), "line 2: 'truth'|line 2: truth"),
    ("m.jsonl", (GOOD, GOOD | {"truth": [[4]]}), r"line 2: 'truth' holds \[4\]"),
    ("m.jsonl", (GOOD, {"answer": " x"}), "line 2: has no 'text'"),
    ("m.jsonl", (GOOD, GOOD | {"foil": 3}), "line 2: 'foil' is not a string"),
    ("b.jsonl", (BLIMP_GOOD, BLIMP_GOOD | {"sentence_bad": 1}), "line 2: 'sentence_bad'"),
    ("b.jsonl", (BLIMP_GOOD, BLIMP_GOOD | {"sentence_bad": "Ann saw herself."}), "line 2: the two"),
    ("l.tsv", (LINZEN_HEADER, "a b c\t1\t3", "a b c\t1"), "line 3: has 2 columns, the header"),
    ("l.tsv", (LINZEN_HEADER, "a b c\t1\t3", "a b c\t1\t9"), "line 3: word index '9' is outside"),
    ("t.tsv", ("sentence\tlabel", "fine\t1", "bad"), "line 3: has 1 columns"),
]


@pytest.mark.parametrize(("name", "rows", "message"), MALFORMED)
def test_malformed_rows_stop_the_run_and_are_skipped_on_request(
    tmp_path: Path, name: str, rows: tuple[object, ...], message: str
) -> None:
    path = write(tmp_path, name, *rows)
    with pytest.raises(InputError, match=message) as raised:
        tasks.read(path)
    assert str(path) in str(raised.value) and "--skip-bad" in str(raised.value)
    (task,) = tasks.read(path, skip_bad=True).values()
    assert len(task.samples) == 1
    assert [key.startswith("malformed: line") for key in task.left_out] == [True]


def test_rows_malformed_in_the_same_way_are_one_reason(tmp_path: Path) -> None:
    rows = ["bad", "fine\t0\tx", *["worse"] * 6]
    path = write(tmp_path, "t.tsv", "sentence\tlabel", "fine\t1", *rows)
    (task,) = tasks.read(path, skip_bad=True).values()
    first = "malformed: lines 3, 4, 5, 6, 7, ...: has 1 columns, the first line has 2"
    assert task.left_out == {first: 8}
    own = write(tmp_path, "m.jsonl", GOOD, {"answer": "x"}, GOOD | {"foil": 3})
    (task,) = tasks.read(own, skip_bad=True).values()
    assert task.left_out == {
        "malformed: line 2: has no 'text'": 1, "malformed: line 3: 'foil' is not a string": 1,
    }  # fmt: skip


def test_tables_without_a_header_are_no_marvin_linzen_pairs(tmp_path: Path) -> None:
    rows = [f"{i}\tThe film is fine.\t{i % 2}" for i in range(4)]
    with pytest.raises(InputError, match=r"t\.tsv line 1 and 3 more name no kind .*simple_agrmt"):
        tasks.read(write(tmp_path, "t.tsv", *rows))
    pair = "the author laughs\tthe author laugh"
    path = write(tmp_path, "t.tsv", f"simple_agrmt\t{pair}", f"npi_across\t{pair}", *rows)
    (task,) = tasks.read(path).values()
    assert len(task.samples) == 1
    assert task.left_out == {
        "no rule finds the deciding word of npi_across": 1,
        "no rule finds the deciding word of rows whose first column names no kind": 4,
    }


def test_answers_that_are_not_in_the_context_are_named(tmp_path: Path) -> None:
    path = squad(tmp_path, asked("Rome", 13), asked("Paris", 13), asked("Oslo", 99))
    with pytest.raises(InputError) as raised:
        tasks.read(path)
    text = str(raised.value)
    line = path.read_text().splitlines().index('       "id": "id-Paris",') + 1
    assert f"line {line}: question 'id-Paris': the answer 'Paris' does not stand at 13" in text
    assert "(99, 103) is empty or outside the text of 18 characters" in text
    (task,) = tasks.read(path, skip_bad=True).values()
    assert len(task.samples) == 1


@pytest.mark.parametrize("name", ["e.jsonl", "e.tsv", "e.json"])
def test_empty_files_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, "", "  ")
    with pytest.raises(InputError, match="is empty"):
        tasks.read(path, skip_bad=True)


def test_wrong_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.tsv"
    path.write_bytes("sentence\tlabel\nfine\t1\ncaf\xe9\t0\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.tsv line 3: not UTF-8 \(byte 0xe9\)"):
        tasks.read(path)
    assert len(tasks.read(path, skip_bad=True)["latin"].samples) == 1
    document = tmp_path / "latin.json"
    document.write_bytes(b'{"data":\n"caf\xe9"}')
    with pytest.raises(InputError, match=r"latin\.json line 2 is not UTF-8"):
        tasks.read(document)
    wide = tmp_path / "wide.jsonl"
    wide.write_bytes(json.dumps(GOOD).encode("utf-16"))
    with pytest.raises(InputError, match=r"wide\.jsonl holds no good row; line 1"):
        tasks.read(wide, skip_bad=True)


def test_broken_squad_files_are_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2 is not JSON"):
        tasks.read(write(tmp_path, "q.json", '{"data":', "oops}"))
    for text in ("[1]", "{}", '{"data": {}}', '{"data": null}', "3"):
        with pytest.raises(InputError, match=r"q\.json line 1 is no SQuAD file: .* list 'data'"):
            tasks.read(write(tmp_path, "q.json", text))


QUESTION = {"id": "q1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 13}]}
PARAGRAPH = {"context": "Ann lives in Rome.", "qas": [QUESTION]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], r"line \d+: data\[1\]: 1 is not an object"),
        ([{"paragraphs": None}], r"data\[1\]\.paragraphs: is not a list"),
        ([{}], r"data\[1\]\.paragraphs: is not a list"),
        ([{"paragraphs": ["text"]}], r"data\[1\]\.paragraphs\[0\]: 'text' is not an object"),
        ([{"paragraphs": [PARAGRAPH | {"qas": {}}]}], r"paragraphs\[0\]\.qas: is not a list"),
        ([{"paragraphs": [PARAGRAPH | {"qas": ["?"]}]}], r"qas\[0\]: '\?' is not an object"),
        ([{"paragraphs": [PARAGRAPH | {"context": 3}]}], "question 'q1': its paragraph has no"),
        *(
            ([{"paragraphs": [PARAGRAPH | {"qas": [QUESTION | {"answers": answers}]}]}], message)
            for answers, message in (
                ("Rome", "question 'q1': 'answers' is no list"),
                (["Rome"], "question 'q1': the answer 'Rome' is not an object"),
                ({"text": "Rome"}, "question 'q1': 'answers' has no list 'text'"),
                ({"text": ["Rome"]}, "question 'q1': 'answers' has no list 'answer_start'"),
                ([{"text": 1}], "question 'q1': 'text' is not a string"),
                ([{"text": "Rome"}], "question 'q1': the answer's span must be two integers"),
            )
        ),
    ],
)
def test_squad_files_of_another_shape_are_malformed_rows(
    tmp_path: Path, data: list[Any], message: str
) -> None:
    document = {"data": [{"paragraphs": [PARAGRAPH]}, *data]}
    path = write(tmp_path, "q.json", json.dumps(document, indent=1))
    with pytest.raises(InputError, match=message) as raised:
        tasks.read(path)
    assert f"{path} line " in str(raised.value)
    (task,) = tasks.read(path, skip_bad=True).values()
    assert len(task.samples) == 1 and sum(task.left_out.values()) == 1


def test_answers_may_be_lists_under_their_names(tmp_path: Path) -> None:
    """As in Hugging Face's copy of SQuAD."""
    named = {"text": ["Rome", "in Rome"], "answer_start": [13, 10]}
    path = squad(tmp_path, QUESTION | {"answers": named},
                 QUESTION | {"answers": {"text": [], "answer_start": []}})  # fmt: skip
    (task,) = tasks.read(path).values()
    (found,) = task.samples
    assert deciding(found) == "Rome" and found.answer == " Rome"
    assert task.left_out == {"the question has no answer": 1}


def test_a_byte_order_mark_and_windows_lines_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(GOOD) + "\r\n").encode() * 2)
    assert len(tasks.read(path)["bom"].samples) == 2


def test_formats_are_told_by_ending_and_first_line(tmp_path: Path) -> None:
    cases = {
        "blimp": ("a.jsonl", BLIMP_GOOD),
        "own": ("b.jsonl", GOOD),
        "linzen": ("c.tab", LINZEN_HEADER),
        "marvin-linzen": ("d.tsv", "simple_agrmt\tx\ta b\ta c"),
        "labelled": ("e.tsv", "sentence\tlabel"),
        "squad": ("f.json", "{}"),
    }
    assert {detect(write(tmp_path, *case)) for case in cases.values()} == set(cases)
    with pytest.raises(InputError, match=r"cannot tell the format of g\.dat"):
        tasks.read(write(tmp_path, "g.dat", "x"))
    with pytest.raises(InputError, match="did you mean 'blimp'"):
        tasks.read(write(tmp_path, "g.dat", "x"), "blim")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no file"):
        tasks.read(tmp_path / "nowhere.jsonl")
