"""The demo language and the demo models: what every other test and the embedded default rest on."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
import torch

from lens_attr.demo import DEMO_MODELS, TASKS, generate, words
from lens_attr.demo.evaluate import Score, encode, first_token, load, score
from lens_attr.demo.grammar import is_heldout
from lens_attr.errors import InputError
from lens_attr.types import Sample

N = 400
AGREEMENT = ("sva", "ra")
SUBSETS = [(task, kind) for task in AGREEMENT for kind in (None, "none", "pp", "rc", "any")]
SUBSETS.append(("qa", None))

loaded = cache(lambda name: load(DEMO_MODELS[name]))


def accuracy(scores: list[Score]) -> float:
    return sum(s.margin > 0 for s in scores) / len(scores)


def combination(sample: Sample) -> tuple[str, ...]:
    return tuple(sample.tags["combination"].split())


def facts(sample: Sample) -> list[tuple[str, str]]:
    """The (object, place) pairs that a qa text states."""
    sentences = [part.split() for part in sample.text.split(" . ")[:-1]]
    return [(sentence[sentence.index("is") - 1], sentence[-1]) for sentence in sentences]


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, lens_attr.demo.grammar as g; g.generate('qa', 1);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("task", TASKS)
def test_generation_is_deterministic_and_prefix_stable(task):
    assert generate(task, 30, seed=3) == generate(task, 30, seed=3)
    assert generate(task, 10, seed=3) == generate(task, 30, seed=3)[:10]
    assert generate(task, 30, seed=3) != generate(task, 30, seed=4)
    assert generate(task, 0) == []


def test_generation_does_not_depend_on_the_process():
    """Pinned texts: a changed generator silently moves held-out combinations into training."""
    texts = [generate(task, 1, seed=0)[0].text for task in TASKS]
    assert texts == [
        "your actress that saw the child",
        "at noon , our duchesses who loved the small nun saved",
        "the mirror is in the station . the bell is in the office . Q where is the mirror A",
    ]


@pytest.mark.parametrize("task", TASKS)
def test_training_and_heldout_combinations_are_disjoint(task):
    train = {combination(sample) for sample in generate(task, 3000, split="train")}
    heldout = {combination(sample) for sample in generate(task, 1000, split="heldout")}
    assert not train & heldout
    assert all(is_heldout(task, key) for key in heldout)
    assert not any(is_heldout(task, key) for key in train)


def test_training_qa_texts_do_not_even_mention_a_heldout_combination():
    for sample in generate("qa", 500, split="train"):
        for (thing, place), (other, _) in itertools.permutations(facts(sample), 2):
            assert not is_heldout("qa", (thing, place, other))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_samples_are_well_formed(task, split):
    for sample in generate(task, N, split=split):
        assert sample.task == task and sample.source and sample.tags
        assert sample.text == " ".join(sample.text.split())
        assert sample.answer[0] == sample.foil[0] == " " and sample.answer != sample.foil
        assert sample.suffix.startswith(" ")


def test_sva_truth_is_the_head_noun_and_agrees_with_the_answer():
    number_of = {form: i for noun in words.NOUNS for i, form in enumerate(noun)}
    for sample in generate("sva", N):
        ((start, end),) = sample.truth
        noun = sample.text[start:end]
        nouns = [word for word in sample.text.split() if word in number_of]
        assert noun == nouns[0]
        assert sample.tags["number"] == ("singular", "plural")[number_of[noun]]
        third_person = sample.answer.endswith("s")  # is, was, has, does, runs
        assert third_person == (sample.tags["number"] == "singular")
        assert any(number_of[n] != number_of[noun] for n in nouns) == (
            sample.tags["conflict"] == "yes"
        )


def test_ra_truth_is_the_antecedent_and_agrees_with_the_answer():
    reflexive_of = (
        {one: " himself" for one, _ in words.MALE}
        | {one: " herself" for one, _ in words.FEMALE}
        | {many: " themselves" for _, many in words.PEOPLE}
    )
    for sample in generate("ra", N):
        ((start, end),) = sample.truth
        reflexives = [reflexive_of[w] for w in sample.text.split() if w in reflexive_of]
        assert reflexive_of[sample.text[start:end]] == sample.answer == reflexives[0]
        if sample.tags["conflict"] == "yes":
            assert sample.foil in reflexives[1:]


def test_qa_truth_is_the_place_of_the_asked_object():
    for sample in generate("qa", N):
        ((start, end),) = sample.truth
        stated = dict(facts(sample))
        thing = sample.text.split()[-2]
        assert sample.answer == f" {stated[thing]}" == f" {sample.text[start:end]}"
        assert sample.foil[1:] in set(stated.values()) - {stated[thing]}


def test_the_language_is_rich_enough():
    assert len(set(words.NOUNS)) == len(words.NOUNS) >= 50
    assert any(many != f"{one}s" and many != f"{one}es" for one, many in words.NOUNS)
    for task in AGREEMENT:
        tags = [sample.tags for sample in generate(task, N)]
        assert {t["attractor"] for t in tags} == {"none", "pp", "rc"}
        assert {t["number"] for t in tags} == {"singular", "plural"}
        seen = Counter((t["attractor"], t["conflict"]) for t in tags)
        assert min(seen["pp", "yes"], seen["pp", "no"], seen["rc", "yes"], seen["rc", "no"]) > 10
        assert len({len(sample.text.split()) for sample in generate(task, N)}) >= 8
    assert {sample.tags["facts"] for sample in generate("qa", N)} == {"2", "3", "4"}


def test_an_attractor_carries_no_hint():
    """The intervening noun's number is independent of the verb's, in both directions."""
    for number in ("singular", "plural"):
        samples = [
            sample
            for sample in generate("sva", 4000, split="train", attractor="rc")
            if sample.tags["number"] == number
        ]
        conflicts = sum(sample.tags["conflict"] == "yes" for sample in samples)
        assert conflicts / len(samples) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("attractor", ["none", "pp", "rc"])
def test_the_attractor_argument_selects_one_structure(attractor):
    for task in AGREEMENT:
        kinds = {sample.tags["attractor"] for sample in generate(task, 50, attractor=attractor)}
        assert kinds == {attractor}


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "svo", "n": 1},
        {"task": "sva", "n": -1},
        {"task": "sva", "n": 1, "split": "test"},
        {"task": "sva", "n": 1, "attractor": "adverb"},
        {"task": "qa", "n": 1, "attractor": "pp"},
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(InputError):
        generate(**arguments)


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_directory_is_complete_and_small(name):
    files = {path.name: path for path in DEMO_MODELS[name].rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert sum(path.stat().st_size for path in files.values()) < 3_000_000
    assert f"--model {name}" in files["README.md"].read_text()


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_architecture_has_four_layers_of_four_heads_or_more(name):
    config = loaded(name)[0].config
    assert config.num_hidden_layers >= 4 and config.num_attention_heads >= 4
    if name == "demo-llama":
        assert 1 < config.num_key_value_heads < config.num_attention_heads
    if name == "demo-gpt2":
        assert config.n_ctx == config.n_positions


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_tokenizer_gives_every_answer_one_token_and_splits_some_nouns(name):
    _, tokenizer = loaded(name)
    samples = [sample for task in TASKS for sample in generate(task, N)]
    for text in {side for sample in samples for side in (sample.answer, sample.foil)}:
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == 1
    assert tokenizer.pad_token_id is not None
    forms = [form for noun in words.NOUNS for form in noun]
    pieces = [tokenizer(f" {form}", add_special_tokens=False).input_ids for form in forms]
    assert 0.02 < sum(len(ids) > 1 for ids in pieces) / len(forms) < 0.5


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-llama"])
def test_causal_prompts_start_with_exactly_one_bos(name):
    _, tokenizer = loaded(name)
    ids, position = encode(tokenizer, generate("qa", 1)[0])
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert position == len(ids) - 1


@pytest.mark.parametrize("name", DEMO_MODELS)
@pytest.mark.parametrize(("task", "attractor"), SUBSETS)
def test_heldout_accuracy(name, task, attractor):
    scores = score(*loaded(name), generate(task, N, seed=7, attractor=attractor))
    assert accuracy(scores) >= 0.98
    if task != "sva":  # many verbs fit an sva prompt, so only these have one right word
        assert sum(s.top for s in scores) / N >= 0.97


@pytest.mark.parametrize("name", DEMO_MODELS)
@pytest.mark.parametrize("task", AGREEMENT)
def test_heldout_accuracy_where_the_attractor_conflicts(name, task):
    samples = generate(task, 2 * N, seed=8, attractor="any")
    samples = [sample for sample in samples if sample.tags["conflict"] == "yes"]
    assert accuracy(score(*loaded(name), samples)) >= 0.98


@pytest.mark.parametrize("name", DEMO_MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_swapping_answer_and_foil_gives_chance_reversed(name, task):
    """Negative control: the score can fail."""
    swapped = [
        dataclasses.replace(sample, answer=sample.foil, foil=sample.answer)
        for sample in generate(task, 100)
    ]
    assert accuracy(score(*loaded(name), swapped)) <= 0.02


@pytest.mark.parametrize("name", DEMO_MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_the_truth_word_decides(name, task):
    """Negative control: with the truth word replaced by a rival, the foil wins."""
    replaced = [replace_truth(sample) for sample in generate(task, 200, attractor="any")]
    assert accuracy(score(*loaded(name), replaced)) <= 0.03


def replace_truth(sample: Sample) -> Sample:
    """The same text with a truth word that calls for the foil instead."""
    ((start, end),) = sample.truth
    word = sample.text[start:end]
    if sample.task == "sva":
        swap = {a: b for one, many in words.NOUNS for a, b in ((one, many), (many, one))}[word]
    elif sample.task == "ra":
        swap = {" himself": "king", " herself": "queen", " themselves": "kings"}[sample.foil]
    else:  # exchange the two places
        other = sample.foil[1:]
        exchanged = [{word: other, other: word}.get(w, w) for w in sample.text.split()]
        return dataclasses.replace(sample, text=" ".join(exchanged))
    return dataclasses.replace(sample, text=sample.text[:start] + swap + sample.text[end:])


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-llama"])
def test_late_positions_are_trained(name):
    """The second of two joined texts is still answered: positions are not only known early on."""
    firsts, seconds = generate("qa", 100, seed=1), generate("sva", 100, seed=2)
    joined = [
        dataclasses.replace(second, text=f"{first.text}{first.answer} . {second.text}")
        for first, second in zip(firsts, seconds, strict=True)
    ]
    assert accuracy(score(*loaded(name), joined)) >= 0.9


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_batching_and_padding_do_not_change_a_score(name):
    model, tokenizer = loaded(name)
    samples = [*generate("sva", 3), *generate("qa", 3)]
    together = [s.margin for s in score(model, tokenizer, samples)]
    alone = [s.margin for s in score(model, tokenizer, samples, batch_size=1)]
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), atol=1e-4)
    assert first_token(tokenizer, " is") != first_token(tokenizer, " are")
