"""Words, sentences and spans: which tokens they are made of in every dialect, and their sums."""

from __future__ import annotations

from typing import Any

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_plots import relevance

import lens_attr as la
from lens_attr import spelling
from lens_attr.attribution.spans import THE_REST, SpanRelevance
from lens_attr.graph import resolve
from lens_attr.graph.tokens import character_spans
from lens_attr.graph.vocabulary import spelling_facts
from lens_attr.plots.token_text import in_line
from lens_attr.spelling import covering, find, grouped, occurrences, sentences, spell, words

TEXT = "The keys near the new cabinets were old.\nWho knows why? The librarian does!"

DIALECTS = {
    "byte-level BPE": (
        ["<|endoftext|>", "The", " ke", "ys", " to", " it", ".", "\n", "So", " "],
        "The keys to it.\nSo ",
        ["<|endoftext|>", "The", "keys", "to", "it.", "\n", "So", " "],
    ),
    "SentencePiece": (
        ["<s>", " ", "T", "he", " key", "s", " to", " it", "."],
        "The keys to it.",
        ["<s>", "The", "keys", "to", "it."],
    ),
    "WordPiece": (
        ["[CLS]", "the", "key", "##s", "[MASK]", "it", ".", "[SEP]"],
        "the keys it .",
        ["[CLS]", "the", "keys", "[MASK]", "it", ".", "[SEP]"],
    ),
    "whole words": (["<s>", "w5", "w9"], "w5 w9", ["<s>", "w5", "w9"]),
    "special token inside": (["a", " b", "</s>", "c"], "a b c", ["a", "b", "</s>", "c"]),
    "ids": (["[7]", "[21]"], "[7] [21]", ["[7]", "[21]"]),
}


def one(tokens: list[str], **changes: Any) -> la.Relevance:
    """Random relevance of one text, of which nothing but the strings is known."""
    return relevance([tokens])


@pytest.fixture(scope="module", params=["demo-gpt2", "demo-llama", "demo-bert"])
def model(request: pytest.FixtureRequest) -> Any:
    return la.load(request.param, device="cpu")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return la.load("demo-gpt2", device="cpu")


# -------------------------------------------------------------------------------- spelling


@pytest.mark.parametrize(("tokens", "text", "_words"), DIALECTS.values(), ids=list(DIALECTS))
def test_the_text_that_tokens_spell(tokens: list[str], text: str, _words: list[str]) -> None:
    spelled = spell(tokens)
    assert spelled.text == text
    for token, span in zip(tokens, spelled.spans, strict=True):
        if span is not None:
            assert spelled.text[slice(*span)] == token.strip().removeprefix("##")


@pytest.mark.parametrize(("tokens", "_text", "want"), DIALECTS.values(), ids=list(DIALECTS))
def test_the_words_that_tokens_make(tokens: list[str], _text: str, want: list[str]) -> None:
    result = one(tokens)
    found = result.words()
    assert found.strings() == want
    joined = [i for unit in found.units[0] for i in unit.tokens]
    assert joined == list(range(len(tokens)))


def test_without_a_hint_one_word_in_pieces_is_taken_for_two() -> None:
    """Why results carry what their tokenizer is like: the strings alone do not always tell."""
    pieces = one(["<s>", "ke", "ys"])
    assert pieces.words().strings() == ["<s>", "ke", "ys"]
    pieces.metadata["model"] = {"spelling": {"spaces": True, "special": []}}  # type: ignore[index]
    assert pieces.words().strings() == ["<s>keys"]
    pieces.metadata["model"]["spelling"]["special"] = [0]
    pieces.token_ids[0] = torch.tensor([0, 5, 6])
    assert pieces.words().strings() == ["<s>", "keys"]


def test_a_batch_knows_more_than_one_of_its_texts() -> None:
    both = relevance([["<s>", " the", " keys"], ["ke", "ys"]])
    assert both.words().strings(1) == ["keys"]
    assert both[1].words().strings() == ["ke", "ys"]


def test_the_facts_of_a_tokenizer(model: Any) -> None:
    tokenizer = model.tokenizer
    facts = spelling_facts(tokenizer)
    assert facts["spaces"] == (tokenizer.mask_token is None)
    special = tokenizer.convert_ids_to_tokens(facts["special"])
    first = "[CLS]" if tokenizer.mask_token else tokenizer.bos_token
    assert {tokenizer.pad_token, first} <= set(special)
    assert tokenizer.mask_token not in special
    assert "[UNK]" not in special and "<unk>" not in special
    assert spelling_facts(None) == {"spaces": False, "special": []}


def test_words_of_real_models(model: Any) -> None:
    found = la.attribute(model, TEXT, la.TopLogit(position=3), "gradient_x_input").words()
    special, *rest = found.strings()
    assert special in ("<|endoftext|>", "<s>", "[CLS]")
    want = TEXT.replace("\n", " \n ").split(" ")
    if special == "[CLS]":  # no line breaks, no letter case, punctuation apart
        assert rest[:9] == ["the", "keys", "near", "the", "new", "cabinets", "were", "old", "."]
    else:
        assert rest == want
        text, spans = found.texts[0], [u.span for u in found.units[0] if u.span]
        assert text == TEXT
        assert [text[slice(*span)] for span in spans] == TEXT.split()


def test_spans_are_those_of_the_tokenizer_itself(model: Any) -> None:
    """Characters of the spelled text against the offsets that the tokenizer reports."""
    if model.tokenizer.mask_token is not None:
        pytest.skip("WordPiece keeps no spaces")
    result = la.attribute(model, TEXT, la.TopLogit(), "gradient_x_input")
    ids = result.token_ids[0].tolist()
    want = character_spans(resolve(model), TEXT, ids)
    found = spell(result.real_str_tokens(), [span is None for span in want], True).spans
    words = [i for i, token in enumerate(result.real_str_tokens()) if token.strip()]
    assert [found[i] for i in words] == [want[i] for i in words]


@given(st.lists(st.sampled_from(["a", " b", "##c", "\n", " ", " the", "."]), max_size=9))
def test_every_token_is_in_one_word_and_spans_never_go_back(tokens: list[str]) -> None:
    spelled = spell(tokens)
    spans = [span for span in spelled.spans if span is not None]
    assert spans == sorted(spans) and all(0 <= a <= b <= len(spelled.text) for a, b in spans)
    groups = grouped(words(spelled.text), spelled.spans)
    assert sorted(i for group in groups for i in group) == list(range(len(tokens)))


def test_sentences_end_with_their_marks_or_the_line() -> None:
    text = 'One. Two?! "Three." four\nfive 3.14 six… \u72ac\u3002\u732b\u3002'
    found = [text[slice(*span)] for span in sentences(text)]
    assert found == [
        "One.",
        "Two?!",
        '"Three."',
        "four",
        "five 3.14 six…",
        "\u72ac\u3002",
        "\u732b\u3002",
    ]
    assert sentences("") == [] == sentences(" \n")


def test_looking_for_a_string() -> None:
    assert occurrences("the keys, the Keys", "keys") == [(4, 8)]
    assert occurrences("the keys , here", "KEYS, here") == [(4, 15)]
    assert occurrences("the keys", "locks") == []
    spelled = spell(["the", " key", "s", " the"])
    assert find(spelled, "the", -1) == (9, 12)
    assert covering(spelled.spans, 4, 8) == [1, 2]
    assert covering(spelled.spans, 5, 8) is None and covering(spelled.spans, 3, 4) is None


# ------------------------------------------------------------------------------------ sums


@pytest.mark.parametrize("cut", ["words", "sentences"])
def test_sums_are_conserved(model: Any, cut: str) -> None:
    texts = [TEXT, "the keys to the cabinet"]
    result = la.attribute(model, texts, la.TopLogit(position=2), "attnlrp")
    found: SpanRelevance = getattr(result, cut)()
    assert len(found) == 2 and found.head_scores is not None
    for i in range(2):
        assert torch.allclose(found.scores[i].sum(), result.real_tokens(i).sum(), atol=1e-5)
        heads = result.head_tokens[i].sum(dim=1)  # type: ignore[index]
        assert torch.allclose(found.head_scores[i].sum(dim=1), heads, atol=1e-5)
        assert len(found.strings(i)) < len(result.real_tokens(i))


def test_a_word_is_the_sum_of_its_pieces_and_of_nothing_else() -> None:
    result = one(["<s>", " ke", "ys", " to"])
    result.tokens[0] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert result.words().scores[0].tolist() == [1, 6, 8]
    heads = result.head_tokens
    assert heads is not None
    found = result.words().head_scores
    assert found is not None and torch.equal(found[0][:, 1], heads[0, :, 1] + heads[0, :, 2])


def test_methods_without_heads_have_none_by_word(gpt2: Any) -> None:
    result = la.attribute(gpt2, "the keys", la.TopLogit(), "occlusion")
    assert result.words().head_scores is None


def test_chosen_spans_and_the_rest(gpt2: Any) -> None:
    result = la.attribute(gpt2, TEXT, la.TopLogit(), "attnlrp")
    found = result.spans(["cabinets", (0, 8), "Who knows why?"])
    assert found.strings() == ["cabinets", "The keys", "Who knows why?", THE_REST]
    assert torch.allclose(found.scores[0].sum(), result.tokens.sum(), atol=1e-5)
    words = result.words()
    at = words.strings().index("cabinets")
    assert torch.equal(found.scores[0][0], words.scores[0][at])
    frame = found.to_pandas()
    assert frame["start"].tolist()[:2] == [22, 0] and frame["start"].isna().tolist()[-1]
    assert frame["tokens"].sum() == len(result.real_tokens())
    assert result.spans([(0, len(TEXT))]).strings()[1] == THE_REST  # BOS is left


def test_a_span_takes_the_token_of_its_own_space_along() -> None:
    """SentencePiece writes some words as a space and then the word; both ways of asking agree."""
    result = one(["<s>", " ", "T", "he", " key", "s", "\n", "Who", " ", "A"])
    words, spans = result.words(), result.spans(["The", "Who", "A"])
    for string in ("The", "Who", "A"):
        of_word, of_span = (each.strings().index(string) for each in (words, spans))
        assert words.units[0][of_word] == spans.units[0][of_span]
    assert spans.units[0][0].tokens == (1, 2, 3) and spans.units[0][1].tokens == (7,)


BAD_SPANS = {
    "absent": (["locks"], "'locks' occurs 0 times in the text"),
    "cuts a token": (["abinet"], "inside a token.*take 'cabinet', characters 8 to 15"),
    "span cuts a token": ([(9, 15)], r"the span \(9, 15\) starts or ends inside a token"),
    "beyond the text": ([(90, 95)], "holds no token: the text has 23 characters"),
    "several": (["the"], r"'the' occurs several times.*\(0, 3\).*\(19, 22\)"),
    "overlap": ([(0, 7), "old"], "overlaps another one"),
    "backwards": ([(5, 2)], "start < end"),
    "no list": ("old", "spans must be a list"),
    "nothing": ([], "spans must be a list"),
    "empty string": ([" "], "the string to look for is empty"),
    "neither": ([3], "must be a string or"),
}


@pytest.mark.parametrize(("wanted", "message"), BAD_SPANS.values(), ids=list(BAD_SPANS))
def test_spans_that_cannot_be_summed(wanted: Any, message: str) -> None:
    result = one(["<s>", "the", " old", " cabinet", " is", " the", "m"])
    with small.untyped(), pytest.raises(la.InputError, match=message):
        result.spans(wanted)


# --------------------------------------------------------------------------------- showing


def test_results_show_themselves() -> None:
    result = relevance([["<s>", " ke", "ys", "."], ["<s>", " no"]])
    found = result.words()
    assert repr(found) == "SpanRelevance(attnlrp by word, 2 examples, in logit)"
    assert "keys." in found._repr_html_()
    frame = found.to_pandas()
    assert frame["word"].tolist() == ["<s>", "keys.", "<s>", "no"]
    assert frame["example"].tolist() == [0, 0, 1, 1]
    assert found[1].strings() == ["<s>", "no"] and found[-1].target == result.target[1:]
    with pytest.raises(la.InputError, match="example 2 is out of range"):
        found[2]
    many = relevance([["<s>"]] * 10).words().glance()
    assert len(many.texts) == 8 and many.notes == ["... and 2 more"]


def test_the_figure_colours_every_word_of_a_sentence_alike() -> None:
    result = one(["A", " b", ".", " C", "d"])
    result.tokens[0] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (bars,) = result.sentences().plot().data
    assert list(bars.marker.color) == [6, 6, 9]
    assert list(bars.text) == ["A", "b.", "Cd"]
    assert "by sentence" in result.sentences().plot().layout.title.text


def test_wordpiece_words_stand_apart_in_texts_and_figures() -> None:
    assert in_line(["[CLS]", "the", "ke", "##ys"]) == [" [CLS]", " the", " ke", "##ys"]
    assert in_line(["<s>", " the", "m", "\n"]) == ["<s>", " the", "m", "↵"]
    markup = la.plots.html_tokens(["the", "ke", "##ys"], [1.0, 0.0, 0.0])
    assert "</span> <span" in markup and "</span><span" in markup
    assert spelling.word_starts(["a"], spaces=True) == [False]
