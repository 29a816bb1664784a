"""Tasks as a model's tokens: spans are mapped exactly, on every kind of tokenizer, or dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer

import lens_attr as la
from lens_attr import evaluation
from lens_attr.errors import InputError
from lens_attr.evaluation import tasks
from lens_attr.evaluation.tasks.edits import same_rivals
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import character_spans, encode_prompt
from lens_attr.runs import bench_self_repair
from lens_attr.types import Sample

DEMO = ("demo-gpt2", "demo-llama", "demo-bert")


@pytest.fixture(scope="module")
def graphs() -> dict[str, Any]:
    return {name: resolve(la.load(name, device="cpu")) for name in DEMO}


def without_weights(tokenizer: Any, architecture: str) -> ModelGraph:
    """As much of a model as reading a text takes."""

    def to_tokens(text: str, truncate: bool) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor([[tokenizer.bos_token_id, *ids]])

    cfg = SimpleNamespace(architecture=architecture, n_ctx=512)
    model = SimpleNamespace(cfg=cfg, tokenizer=tokenizer, to_tokens=to_tokens)
    return ModelGraph(model, "TransformerBridge")


def reader(shared: Path, kind: str) -> Any:
    folder = shared / "tokenizers"
    if kind == "byte-level BPE":
        return without_weights(GPT2Tokenizer.from_pretrained(folder / "gpt2"), "GPT2LMHeadModel")
    if kind == "WordPiece":
        tokenizer = BertTokenizer.from_pretrained(folder / "bert-base-uncased")
        return without_weights(tokenizer, "BertForMaskedLM")
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    return without_weights(tokenizer, "LlamaForCausalLM")


KINDS = ("byte-level BPE", "WordPiece", "SentencePiece")


def sample(text: str, truth: str, answer: str = " are", foil: str = " is", **more: Any) -> Sample:
    start = text.index(truth)
    return Sample(text, answer, foil, ((start, start + len(truth)),), "sva", **more)


def one(graph: Any, made: Sample) -> tasks.TokenSample:
    found = small_view(graph, made)
    assert not found.dropped, found.dropped
    return found.samples[0]


def small_view(graph: Any, made: Sample) -> tasks.View:
    return tasks.view(graph, tasks.Task(made.task or "mine", [made]))


def words(graph: Any, one: tasks.TokenSample, mask: tuple[bool, ...]) -> str:
    """The characters under a mask of tokens, in the text that the model read."""
    text = one.sample.text
    return "".join(text[slice(*s)] for s, m in zip(one.spans, mask, strict=True) if m and s)


# --- real tokenizers


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("the photographers near the old cabinet", "photographers"),
        ("yesterday , the ombudswomen's cat", "ombudswomen"),
        ("in Zürich the naïve façades", "façades"),
        ("a 😀 and the boxes", "boxes"),
        ("Katherine can't help", "Katherine"),
        ("two  spaces  before  keys", "keys"),
    ],
)
def test_a_word_is_mapped_to_all_its_pieces(shared: Path, kind: str, text: str, truth: str) -> None:
    graph = reader(shared, kind)
    found = one(graph, sample(text, truth, " xx", " yy"))
    assert "".join(dict.fromkeys(words(graph, found, found.inside))) == "".join(
        dict.fromkeys(truth)
    )
    assert text[found.spans[found.inside.index(True)][0] :].startswith(truth)
    assert found.special[0] and not any(
        a and b for a, b in zip(found.inside, found.special, strict=True)
    )


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_a_span_inside_a_token_is_dropped_and_counted(shared: Path, kind: str) -> None:
    found = small_view(reader(shared, kind), sample("the cat and the", "e", " xx", " yy"))
    assert not found.samples
    assert found.dropped == {"the ground truth starts or ends inside a token": 1}


@pytest.mark.shared
@pytest.mark.parametrize("kind", KINDS)
def test_characters_that_are_several_tokens_stay_whole(shared: Path, kind: str) -> None:
    graph = reader(shared, kind)
    text = "the 😀 cat"
    ids = encode_prompt(graph, text)
    found = character_spans(graph, text, ids)
    emoji = [span for span in found if span == (4, 5)]
    assert len(emoji) >= 1 and found[0] is None
    assert len(one(graph, sample(text, "😀", " xx", " yy")).token_ids) >= len(ids)


# --- the demo models


@pytest.mark.parametrize("name", DEMO)
@pytest.mark.parametrize("task", tasks.GENERATED)
def test_every_generated_sample_is_mapped_to_exactly_its_word(
    graphs: dict[str, Any], name: str, task: str
) -> None:
    made = tasks.built_in(task, 60)
    found = tasks.view(graphs[name], made)
    assert len(found.samples) == 60 and not found.dropped
    for one in found.samples:
        ((start, end),) = one.sample.truth
        assert words(graphs[name], one, one.inside) == one.sample.text[start:end]
        ids, _ = la.sample_inputs(graphs[name].model, [one.sample])
        assert list(one.token_ids) == encode_prompt(graphs[name], ids[0])


@pytest.mark.parametrize("name", DEMO)
def test_the_context_of_a_question_ends_before_it(graphs: dict[str, Any], name: str) -> None:
    made = one(graphs[name], tasks.built_in("qa", 1).samples[0])
    read = words(graphs[name], made, made.context)
    assert read.endswith(".") and "Q" not in read
    assert not any(c and s for c, s in zip(made.context, made.special, strict=True))
    assert made.foil is None


def test_special_tokens_are_those_that_stand_for_no_word(graphs: dict[str, Any]) -> None:
    text = sample("the keys", "keys", suffix=" here .")
    masked, causal = one(graphs["demo-bert"], text), one(graphs["demo-gpt2"], text)
    assert [i for i, s in enumerate(causal.special) if s] == [0]
    assert causal.position == len(causal) - 1
    last = len(masked) - 1
    assert [i for i, s in enumerate(masked.special) if s] == [0, masked.position, last]


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_every_backend_reads_cls_and_sep(backend: str) -> None:
    model = la.load("demo-bert", backend=backend, device="cpu")
    ids = encode_prompt(resolve(model), "the keys [MASK] here .")
    tokenizer = model.tokenizer
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert tokenizer.padding_side == "right"


def test_unknown_words_are_words(graphs: dict[str, Any]) -> None:
    found = one(graphs["demo-bert"], sample("the 語 keys", "語"))
    assert found.token_ids[found.inside.index(True)] == graphs["demo-bert"].tokenizer.unk_token_id
    assert not found.special[found.inside.index(True)]


# --- answers of several tokens


@pytest.mark.parametrize("name", DEMO)
def test_shared_pieces_are_appended_and_counted(graphs: dict[str, Any], name: str) -> None:
    graph = graphs[name]
    plain = sample("the keys", "keys", " qzrvx", " qzrwx", suffix=" .")
    found = small_view(graph, plain)
    made, bare = found.samples[0], one(graph, replace(plain, answer=" are", foil=" is"))
    assert found.shared_pieces == 1 and found.several_pieces == 1 and made.shared > 0
    assert len(made) == len(bare) + made.shared
    assert made.position == bare.position + made.shared
    assert made.answer != made.foil
    at = bare.position if graph.is_masked_model else bare.position + 1
    assert made.token_ids[:at] == bare.token_ids[:at]
    assert made.token_ids[at + made.shared :] == bare.token_ids[at:]
    assert not any(made.inside[at : at + made.shared] + made.special[at : at + made.shared])


@pytest.mark.parametrize("name", DEMO)
def test_an_answer_that_starts_with_the_foil_is_dropped(graphs: dict[str, Any], name: str) -> None:
    for answer, foil in ((" are", " are"), (" qzrvx", " qz")):
        found = small_view(graphs[name], sample("the keys", "keys", answer, foil))
        if found.samples:  # a tokenizer may well split the two differently from the start
            assert found.samples[0].shared == 0 and answer != foil
        else:
            assert list(found.dropped) == [
                "answer and foil are the same tokens, or one starts with the other"
            ]
    assert not small_view(graphs[name], sample("the keys", "keys", " are", " are")).samples


# --- what cannot be judged


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Sample("the keys", " are", " is"), "no ground truth"),
        (sample("the keys " * 200, "keys"), "longer than the 128 tokens"),
        (sample("the keys ", "keys", "are", "is"), "no continuation of the prompt"),
        (Sample("the keys", " are", " is", ((4, 8),), context=(0, 3)), "outside the context"),
    ],
)
def test_other_samples_are_dropped_with_the_reason(
    graphs: dict[str, Any], made: Sample, reason: str
) -> None:
    made = replace(made, answer=made.answer if made.answer != "are" else "s")
    found = small_view(graphs["demo-gpt2"], made)
    assert not found.samples
    assert any(reason in key for key in found.dropped), found.dropped


def test_a_text_that_holds_the_mask_is_dropped(graphs: dict[str, Any]) -> None:
    found = small_view(graphs["demo-bert"], sample("the [MASK] keys", "keys"))
    assert list(found.dropped) == ["the text itself holds [MASK]"]


def test_spans_outside_their_text_are_refused() -> None:
    with pytest.raises(InputError, match=r"span \(4, 40\) of sample 0 of task 'sva'"):
        tasks.Task("sva", [Sample("the keys", " are", " is", ((4, 40),))])


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'sva'"):
        tasks.built_in("svaa", 3)


def test_an_answer_without_a_foil_competes_with_the_vocabulary(graphs: dict[str, Any]) -> None:
    """And takes no other sample's foil away."""
    made = [sample("the keys", "keys"), sample("the old keys", "keys", foil="")]
    task = tasks.Task("mine", made)
    with_foil, without = tasks.view(graphs["demo-gpt2"], task).samples
    assert with_foil.foil is not None and without.foil is None
    assert [one.foil for one in same_rivals(task, made)] == [" is", ""]
    for questions in (tasks.built_in("qa", 2), tasks.Task("qa", made)):
        seen = tasks.view(graphs["demo-gpt2"], questions).samples
        assert [one.foil for one in seen] == [None, None]
        assert not any(one.foil for one in same_rivals(questions, questions.samples))


def test_a_smaller_task_is_the_start_of_a_larger_one() -> None:
    assert tasks.built_in("ra", 5).samples == tasks.built_in("ra", 9).samples[:5]


# --- what every measure takes

MEASURES = {
    "plausibility": evaluation.bench,
    "deletion": evaluation.bench_deletion,
    "faithfulness": evaluation.bench_faithfulness,
    "stability": evaluation.bench_stability,
    "speed": evaluation.bench_speed,
    "self-repair": bench_self_repair,
}
TWICE = [tasks.built_in("sva", 2), tasks.built_in("sva", 2, seed=1)]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": TWICE}, r"of different names, got \['sva', 'sva'\]"),
        ({"tasks": []}, "one or more"),
        ({"tasks": "svv"}, "no built-in task; did you mean 'sva'"),
        ({"tasks": "sva", "n": 0}, "n must be a whole number of at least 1, got 0"),
    ],
    ids=["one name twice", "none", "unknown", "no sample"],
)
def test_every_measure_refuses_tasks_that_it_would_lose(
    measure: str, given: dict[str, Any], message: str
) -> None:
    model = tiny.model("gpt2", "bridge")
    with pytest.raises(la.InputError, match=message):
        MEASURES[measure](model, **given)


def test_every_measure_takes_tasks_by_name() -> None:
    (named,), made = tasks.tasks_of("sva", 3, 1), tasks.built_in("sva", 3, 1)
    assert (named.name, named.samples) == (made.name, made.samples)
