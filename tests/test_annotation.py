"""Plain sentences with a choice become samples; parser and coreference are optional."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lens_attr.errors import InputError
from lens_attr.evaluation import tasks
from lens_attr.evaluation.tasks.annotation import (
    Annotators,
    fastcoref,
    parsing,
    read_choices,
    spacy_parser,
)
from lens_attr.evaluation.tasks.pairs import read_blimp, read_linzen
from lens_attr.evaluation.tasks.rows import Bad, LeftOut
from lens_attr.types import Sample

KEYS = "The keys to the cabinet [are|is] old."
KING = "The king who the women liked hurt [himself|themselves]."
FREE = "The keys to the cabinet [have|has] moved."


@dataclass
class Word:
    """What is read of a spaCy token."""

    idx: int
    text: str
    dep_: str
    head: Any = None


def doc(text: str, *arcs: tuple[str, int]) -> list[Word]:
    """A parsed text: for each word its relation and the index of its head."""
    words, at = [], 0
    for piece, (dep, _) in zip(text.split(), arcs, strict=True):
        words.append(Word(text.index(piece, at), piece.strip("."), dep))
        at = words[-1].idx + len(piece)
    for word, (_, head) in zip(words, arcs, strict=True):
        word.head = words[head]
    return words


PARSES = {
    "The keys to the cabinet are old.": [
        ("det", 1), ("nsubj", 5), ("prep", 1), ("det", 4), ("pobj", 2), ("ROOT", 5), ("acomp", 5),
    ],
    "The keys to the cabinet have moved.": [
        ("det", 1), ("nsubj", 6), ("prep", 1), ("det", 4), ("pobj", 2), ("aux", 6), ("ROOT", 6),
    ],
    "The king who the women liked hurt himself.": [
        ("det", 1), ("nsubj", 6), ("dobj", 5), ("det", 4), ("nsubj", 5), ("relcl", 1), ("ROOT", 6),
        ("dobj", 6),
    ],
    "Are they old.": [("ROOT", 0), ("nsubj", 0), ("acomp", 0)],
}  # fmt: skip


def stand_in(clusters: Sequence[Sequence[tuple[int, int]]] = ()) -> Annotators:
    return Annotators(lambda: lambda text: doc(text, *PARSES[text]), lambda: lambda text: clusters)


def rows(tmp_path: Path, *lines: str, clusters: Any = ()) -> list[Any]:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return list(read_choices(path, stand_in(clusters)))


def test_the_subject_decides_the_verb(tmp_path: Path) -> None:
    (found,) = rows(tmp_path, KEYS)
    assert found == Sample(
        "The keys to the cabinet", " are", " is", ((4, 8),), "sva", " old.",
        source="sentences.txt line 1",
    )  # fmt: skip


def test_the_subject_of_an_auxiliary_is_that_of_its_verb(tmp_path: Path) -> None:
    (found,) = rows(tmp_path, FREE)
    assert [found.text[a:b] for a, b in found.truth] == ["keys"]


def test_the_antecedent_is_the_head_of_the_mention_before_the_pronoun(tmp_path: Path) -> None:
    mentions = [[(13, 22)], [(0, 28), (34, 41)]]
    (found,) = rows(tmp_path, KING, clusters=mentions)
    assert found.task == "ra" and found.truth == ((4, 8),) and found.answer == " himself"
    (missing,) = rows(tmp_path, KING, clusters=[[(13, 22), (0, 8)]])
    assert missing == LeftOut("no antecedent found before the choice")


def test_goldbergs_five_columns_are_annotated(tmp_path: Path) -> None:
    """The form in which the sentences were published."""
    path = tmp_path / "lgd.tsv"
    cells = ("The keys to the cabinet ***mask*** old.", "are", "is")
    path.write_text("\t".join(["1", cells[0].replace("***mask***", "are"), *cells]))
    (found,) = read_linzen(path, stand_in())
    assert found == Sample(
        "The keys to the cabinet", " are", " is", ((4, 8),), "sva", " old.",
        source="Linzen lgd.tsv line 1", tags={"attractors": "1", "truth": "parsed"},
    )  # fmt: skip
    nothing = Annotators(lambda: lambda text: [], lambda: lambda text: [])
    (missing,) = read_linzen(path, nothing)
    assert missing == LeftOut("the subject is not annotated; nor does a parser find the subject")


def test_pairs_whose_rule_finds_nothing_are_annotated(tmp_path: Path) -> None:
    """A name of two words is none of the rule's noun phrases."""
    path = tmp_path / "blimp.jsonl"
    good = "Harvard University likes itself."
    row = {"sentence_good": good, "sentence_bad": "Harvard University likes himself.",
           "UID": "anaphor_gender_agreement"}  # fmt: skip
    path.write_text(json.dumps(row))
    arcs = [("compound", 1), ("nsubj", 2), ("ROOT", 2), ("dobj", 2)]
    parser = Annotators(
        lambda: lambda text: doc(text, *arcs), lambda: lambda _: [[(0, 18), (25, 31)]]
    )
    (found,) = read_blimp(path, parser)
    assert isinstance(found, Sample) and found.tags["truth"] == "parsed"
    assert [found.text[a:b] for a, b in found.truth] == ["University"]


def test_a_parser_that_is_missing_is_asked_once(tmp_path: Path) -> None:
    path, asked = tmp_path / "lgd.tsv", []

    def missing() -> Any:
        asked.append(1)
        raise InputError("not installed")

    row = "1\tx\tThe keys ***mask*** old.\tare\tis\n"
    path.write_text(3 * row)
    found = list(read_linzen(path, Annotators(missing, missing)))
    assert found == 3 * [LeftOut("the subject is not annotated; not installed")]
    assert len(asked) == 1


def test_a_subject_behind_its_verb_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("So [are|is] they old.")
    parse = [("advmod", 1), ("ROOT", 1), ("nsubj", 1), ("acomp", 1)]
    annotators = Annotators(lambda: lambda text: doc(text, *parse), lambda: lambda text: [])
    (found,) = read_choices(path, annotators)
    assert found == LeftOut("no subject found before the choice")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("The keys are old.", "has 0 choices"),
        ("The [a|b] keys [are|is] old.", "has 2 choices"),
        ("[Are|Is] they old.", "needs text before the choice"),
        ("The keys [are|are] old.", "two different words"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, reason: str) -> None:
    first, second = rows(tmp_path, KEYS, line)
    assert isinstance(first, Sample)
    assert isinstance(second, Bad) and second.line == 2 and reason in second.reason


def test_a_missing_extra_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spacy", "fastcoref"):
        monkeypatch.setitem(sys.modules, name, None)
    for find in (spacy_parser, fastcoref):
        find.cache_clear()
        with pytest.raises(InputError, match=r"pip install 'lens-attr\[spacy\]'"):
            find()
    path = tmp_path / "sentences.txt"
    path.write_text(KEYS)
    with pytest.raises(InputError, match="finding subjects needs spaCy"):
        tasks.read(path, "choices")


def test_a_pipeline_without_a_parser_is_refused() -> None:
    spacy = pytest.importorskip("spacy")
    with pytest.raises(InputError, match="no dependency parser"):
        parsing(spacy.blank("en"))


def test_a_missing_pipeline_says_how_to_get_it() -> None:
    pytest.importorskip("spacy")
    with pytest.raises(InputError, match="python -m spacy download no_such_pipeline"):
        spacy_parser("no_such_pipeline")


def test_real_spacy_docs_are_read(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    from spacy.tokens import Doc

    vocab = spacy.blank("en").vocab

    def parse(text: str) -> Any:
        made = ["The", "keys", "to", "the", "cabinet", "are", "old", "."]
        spaces = [True] * 6 + [False, False]
        heads = [1, 5, 1, 4, 2, 5, 5, 5]
        deps = ["det", "nsubj", "prep", "det", "pobj", "ROOT", "acomp", "punct"]
        parsed = Doc(vocab, words=made, spaces=spaces, heads=heads, deps=deps)
        assert parsed.text == text
        return parsed

    path = tmp_path / "sentences.txt"
    path.write_text(KEYS)
    (found,) = read_choices(path, Annotators(lambda: parse, lambda: lambda text: []))
    assert isinstance(found, Sample) and found.truth == ((4, 8),)


def test_annotated_samples_can_be_kept_as_jsonl(tmp_path: Path) -> None:
    (sample,) = rows(tmp_path, KEYS)
    path = tmp_path / "kept.jsonl"
    fields = ("text", "answer", "foil", "truth", "task", "suffix", "source")
    path.write_text(json.dumps({name: getattr(sample, name) for name in fields}))
    assert tasks.read(path)["sva"].samples == [sample]
