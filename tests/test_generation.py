"""Generated text explained: every row is the explanation of its prefix; sums, words, figures."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import small
import tiny
import torch
from tiny import EXACT, error
from typer.testing import CliRunner

import lens_attr as la
from lens_attr.attribution.generation import Generation
from lens_attr.cli import app
from lens_attr.graph import resolve
from lens_attr.graph.decoding import end_ids, runners_up

pytestmark = pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")

PROMPT = "w5 w9 w12"
GENERATED = [20, 33, 7, 41]
IG: dict[str, Any] = {"baseline": " w9", "steps": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "gim": {"temperature": 3.0},
    "integrated_gradients": IG,
    "ig_clipped": IG,
    "gradient_shap": {"baseline": " w9", "n_samples": 3},
    "aieg": IG,
    "deeplift": {"baseline": " w9"},
}
METHODS = {method.name: (method.name, OPTIONS.get(method.name, {})) for method in la.methods()}
READ_LATER_TOKENS: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient_shap": METHODS["gradient_shap"],
    "occlusion by windows": ("occlusion", {"window": 3}),
    "removal by windows": ("occlusion", {"window": 2, "baseline": "remove"}),
    "attention_only of the token": ("attention_only", {"row": "token"}),
    "aieg of the token": ("aieg", {**IG, "row": "token"}),
}
CONFIGURATIONS = METHODS | READ_LATER_TOKENS
REPEATED = [5, 9, 5, 12]
"""Each is in the prompt, and one of them comes again."""
TARGETS = {"logit": la.Logit, "log_prob": la.LogProb}

every_causal = pytest.mark.parametrize("name", small.CAUSAL)
one_per_backend = pytest.mark.parametrize("name", small.GPT2)


def explain(name: str, dtype: str = EXACT, **options: Any) -> Generation:
    options = {"generated": GENERATED} | options
    if "max_new_tokens" in options:
        del options["generated"]
    with tiny.precision(dtype):
        return la.attribute_generation(small.model(name, dtype), PROMPT, **options)


def equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    """To 1e-10 of the largest value; zeros (AIEG where nothing is positive) exactly."""
    return float((got - want).abs().max()) <= 1e-10 * float(want.abs().max())


def demo(text: str = "the keys near the cabinets", **options: Any) -> Generation:
    options = {"generated": " were in the new newspapers ."} | options
    return la.attribute_generation(la.load("demo-gpt2", device="cpu"), text, **options)


@pytest.fixture(scope="module")
def story() -> Generation:
    """A prompt and a continuation with words of several tokens."""
    return demo()


# ------------------------------------------------------------------------- rows are prefixes


@every_causal
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_row_is_the_explanation_of_its_prefix(name: str, configuration: str) -> None:
    method, options = CONFIGURATIONS[configuration]
    generated = REPEATED if options.get("row") == "token" else GENERATED
    result = explain(name, method=method, generated=generated, **options)
    model, ids = small.model(name, EXACT), result.relevance.token_ids[0]
    with tiny.precision(EXACT):
        for i, token in enumerate(generated):
            prefix = ids[None, : result.n_prompt + i]
            want = la.attribute(model, prefix, la.Logit(token), method, **options)
            row = result[i]
            assert equal(row.tokens, want.tokens)
            assert equal(row.target_value, want.target_value)
            assert torch.equal(row.token_ids, want.token_ids)
            assert torch.equal(row.position, want.position)
            assert (row.target, row.str_tokens) == (want.target, want.str_tokens)
            assert (row.head_tokens is None) == (want.head_tokens is None)
            for part in want.per_token:
                assert equal(row.extra[part], want.extra[part])
            if want.head_tokens is not None and row.head_tokens is not None:
                assert equal(row.head_tokens, want.head_tokens)


@one_per_backend
@pytest.mark.parametrize("configuration", READ_LATER_TOKENS)
def test_one_forward_of_the_whole_text_would_tell_of_later_tokens(
    name: str, configuration: str
) -> None:
    method, options = READ_LATER_TOKENS[configuration]
    result = explain(name, method=method, generated=REPEATED, **options)
    text, n = result.relevance.token_ids[:1], result.n_prompt
    with tiny.precision(EXACT):
        wanted = [la.Logit(t, position=n - 1 + i) for i, t in enumerate(REPEATED)]
        whole = la.attribute(small.model(name, EXACT), text, wanted, method, **options)
    assert error(whole.tokens[:, :n], result.relevance.tokens[:, :n]) > 1e-3


def test_a_token_of_interest_that_was_not_read_yet_is_refused() -> None:
    with pytest.raises(la.InputError, match="holds the token 'w20' 0 times"):
        explain(small.GPT2[0], method="attention_only", row="token")


@one_per_backend
def test_that_comparison_sees_a_row_of_another_prefix(name: str) -> None:
    result = explain(name)
    shorter = result.relevance.token_ids[:1, : result.n_prompt]
    with tiny.precision(EXACT):
        model = small.model(name, EXACT)
        other = la.attribute(model, shorter, la.Logit(GENERATED[1]))
    assert error(result[1].tokens[:, :-1], other.tokens) > 0.01


@every_causal
@pytest.mark.parametrize("target", TARGETS)
def test_targets(name: str, target: Any) -> None:
    result = explain(name, target=target)
    with tiny.precision(EXACT):
        last = result.relevance.token_ids[:, :-1]
        made = TARGETS[target](GENERATED[-1])
        want = la.attribute(small.model(name, EXACT), last, made)
    assert error(result[-1].tokens, want.tokens) < 1e-10
    assert result[-1].unit == ("nat" if target == "log_prob" else "logit")


@every_causal
def test_the_contrastive_target_is_against_the_runner_up(name: str) -> None:
    result = explain(name, target="logit_diff")
    model, ids = small.model(name, EXACT), result.relevance.token_ids
    with tiny.precision(EXACT), torch.no_grad():
        logits = model(ids)[0]
        for i, token in enumerate(GENERATED):
            at = logits[result.n_prompt - 1 + i].clone()
            value = float(at[token])
            at[token] = -torch.inf
            foil = int(at.argmax())
            assert abs(float(result[i].target_value) - (value - float(at[foil]))) < 1e-9
            assert result[i].target == [f"logit of 'w{token}' - logit of 'w{foil}'"]


# --------------------------------------------------------------------------------- decoding


@every_causal
def test_greedy_decoding_is_that_of_the_models_own_forwards(name: str) -> None:
    model = small.model(name)
    result = explain(name, "float32", max_new_tokens=6)
    ids = result.relevance.token_ids[0, : result.n_prompt].tolist()
    assert ids == model.to_tokens(PROMPT)[0].tolist()
    for _ in range(len(result)):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert result.relevance.token_ids[0].tolist() == ids
    again = explain(name, "float32", max_new_tokens=6)
    assert torch.equal(again.relevance.tokens, result.relevance.tokens)
    assert result.relevance.metadata["generation"]["decoding"] == "greedy"


@one_per_backend
def test_sampling_follows_its_seed_and_leaves_the_random_state_alone(name: str) -> None:
    options = {"max_new_tokens": 8, "sampling_temperature": 3.0}
    state = torch.get_rng_state()
    texts = {
        seed: explain(name, "float32", sampling_seed=seed, **options).generated for seed in (0, 1)
    }
    assert explain(name, "float32", sampling_seed=0, **options).generated == texts[0] != texts[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_decoding_stops_at_the_end_of_the_text() -> None:
    model = la.load("demo-gpt2", device="cpu")
    graph = resolve(model)
    result = la.attribute_generation(model, "the keys near the cabinets", max_new_tokens=40)
    assert len(result) < 40
    with torch.no_grad():
        after = model(result.relevance.token_ids[:1])[0, -1].argmax()
    assert int(after) in end_ids(graph)
    assert not set(result.relevance.token_ids[0, result.n_prompt :].tolist()) & end_ids(graph)


@one_per_backend
def test_runners_up_are_read_off_one_forward(name: str) -> None:
    graph = resolve(small.model(name))
    ids = [5, 9, 12, 20, 33]
    with torch.no_grad():
        logits = small.model(name)(torch.tensor([ids]))[0]
    for i, found in enumerate(runners_up(graph, ids, 3)):
        order = logits[2 + i].argsort(descending=True).tolist()
        assert found == next(token for token in order if token != ids[3 + i])


@every_causal
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small.fresh(name)
    la.attribute_generation(model, PROMPT, generated=GENERATED)
    before = small.world(model)
    with torch.no_grad():
        la.attribute_generation(model, PROMPT, max_new_tokens=3, target="logit_diff")
    assert small.world(model) == before


# ------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("words", [False, True])
def test_the_matrix_conserves_every_row(story: Generation, words: bool) -> None:
    matrix = story.matrix(words)
    tokens = story.relevance.tokens.double()
    assert torch.allclose(matrix.values.nansum().double(), tokens.sum(), atol=1e-4)
    assert torch.allclose(matrix.target_value.sum(), story.relevance.target_value.sum())
    if not words:
        assert torch.allclose(matrix.values.nansum(dim=1).double(), tokens.sum(dim=1), atol=1e-5)
        assert torch.equal(matrix.values.isnan(), ~story.relevance.attention_mask[:, :-1])


def test_words_on_both_axes(story: Generation) -> None:
    matrix = story.matrix(words=True)
    assert matrix.rows == ["were", "in", "the", "new", "newspapers", "."]
    assert matrix.columns == [
        *["<|endoftext|>", "the", "keys", "near", "the", "cabinets"],
        *matrix.rows[:-1],
    ]
    assert matrix.n_prompt == 6
    row = [i for i, token in enumerate(story.generated_tokens) if token in (" newsp", "ap", "ers")]
    pieces = story.generated_tokens.index(" new", 4)
    row = list(range(pieces, len(story) - 1))
    assert "".join(story.generated_tokens[i] for i in row) == " newspapers" and len(row) > 1
    cabinets = [i for i in range(story.n_prompt) if i >= story.n_prompt - 5]
    assert "".join(story.str_tokens[i] for i in cabinets) == " cabinets"
    want = story.relevance.tokens[row][:, cabinets].sum()
    assert torch.allclose(matrix.values[4, 5], want, atol=1e-5)
    assert bool(matrix.values[3, 10].isnan()) and not bool(matrix.values[4, 10].isnan())


def test_no_word_crosses_the_end_of_the_prompt() -> None:
    model = la.load("demo-llama", device="cpu")
    result = la.attribute_generation(model, "the key", generated="s are new")
    assert result.matrix(words=True).rows == ["s", "are", "new"]
    assert result.matrix(words=True).columns[2] == "key"
    assert (result.prompt, result.generated) == ("the key", "s are new")


def test_what_the_whole_text_used(story: Generation) -> None:
    n, tokens = story.n_prompt, story.relevance.tokens
    over = {name: story.accumulated(name) for name in ("prompt", "generated", "all")}  # type: ignore[arg-type]
    assert torch.allclose(over["prompt"].tokens[0], tokens[:, :n].sum(0), atol=1e-5)
    assert torch.allclose(over["generated"].tokens[0], tokens[:, n:-1].sum(0), atol=1e-5)
    both = torch.cat([over["prompt"].tokens, over["generated"].tokens], dim=1)
    assert torch.equal(over["all"].tokens, both)
    assert torch.allclose(over["all"].target_value, story.relevance.target_value.sum())
    assert over["prompt"].words().strings()[-1] == "cabinets"
    assert f"({len(story)} terms)" in over["all"].target[0]
    assert float(over["all"].check().total[0]) == pytest.approx(float(tokens.sum()), abs=1e-4)
    with pytest.raises(la.InputError, match="unknown over 'text'"):
        story.accumulated("text")  # type: ignore[arg-type]
    with pytest.raises(la.InputError, match="single generated token"):
        demo(generated=" were").accumulated("generated")


def test_special_tokens_set_apart_are_added_up_too(story: Generation) -> None:
    apart, ignored = (story.with_special_tokens(p) for p in ("separate", "ignore"))
    bos = story.relevance.tokens[:, 0]
    assert torch.equal(apart.relevance.extra["special_tokens"][:, 0], bos) and bos.abs().min() > 0
    for over in ("prompt", "generated", "all"):
        want, found = story.accumulated(over), apart.accumulated(over)
        total = found.tokens + found.extra["special_tokens"]
        assert torch.allclose(total, want.tokens, atol=1e-5)
        assert torch.allclose(found.special_mass, want.special_mass, atol=1e-5)
        assert torch.equal(found.tokens, ignored.accumulated(over).tokens)
    word = apart.of("newspapers")
    both = word.tokens.sum() + word.extra["special_tokens"].sum()
    assert torch.allclose(both, story.of("newspapers").tokens.sum(), atol=1e-5)
    left_out = ignored.accumulated("all").special_mass
    assert torch.allclose(left_out, story.relevance.special_mass.mean())
    assert torch.equal(apart[2].extra["special_tokens"][0, :1], bos[2:3])
    assert apart[2].extra["special_tokens"].shape == apart[2].tokens.shape


def test_attention_sinks_count_as_special_for_every_generated_token(story: Generation) -> None:
    sinks = torch.zeros(1, len(story.str_tokens), dtype=torch.bool)
    sinks[0, 1] = True
    apart = story.with_special_tokens("separate", also=sinks)
    want = story.relevance.tokens[:, :2]
    assert torch.equal(apart.relevance.extra["special_tokens"][:, :2], want)
    named = story.with_special_tokens("ignore", also=" c")
    assert not named.relevance.tokens[:, story.str_tokens.index(" c")].any()


def test_a_generation_says_what_special_tokens_hold(story: Generation) -> None:
    mass = story.relevance.special_mass
    note = f"hold {mass.mean():.0%} of the absolute relevance, mean of {len(story)} tokens"
    assert mass.max() > 0 and note in story._repr_html_()
    assert f"(at most {mass.max():.0%})" in story._repr_html_()
    assert "(left out)" in story.with_special_tokens("ignore")._repr_html_()


def test_every_generated_token_can_count_the_same(story: Generation) -> None:
    tokens = story.relevance.tokens
    want = (tokens / tokens.abs().sum(dim=1, keepdim=True)).sum(0)[: story.n_prompt]
    found = story.accumulated(normalise=True)
    assert torch.allclose(found.tokens[0], want, atol=1e-6)
    assert found.unit == "share" and found.metadata["accumulated"]["normalised"]
    assert not torch.allclose(found.tokens, story.accumulated().tokens)


def test_where_each_token_comes_from(story: Generation) -> None:
    table = story.sources()
    assert table["generated"].tolist() == story.generated_tokens
    tokens = story.relevance.tokens.double()
    assert torch.allclose(torch.tensor(table["prompt"]), tokens[:, : story.n_prompt].sum(1))
    assert torch.allclose(torch.tensor(table["prompt"] + table["earlier"]), tokens.sum(1))
    assert table["earlier"][0] == 0


# -------------------------------------------------------------------------- one of its words


def test_a_token_of_interest_by_string_and_occurrence() -> None:
    result = demo(generated=" are in the library . the keys are new")
    first, second = result.of("are"), result.of("are", occurrence=1)
    places = [i for i, token in enumerate(result.generated_tokens) if token == " are"]
    for found, place in zip((first, second), places, strict=True):
        assert torch.equal(found.tokens, result[place].tokens)
        assert found.target == ["logit of ' are'"]
        assert found.str_tokens[0] == result.str_tokens[: result.n_prompt + place]
    assert torch.equal(result.of("are", -1).tokens, second.tokens)
    assert first.words().strings()[-1] == "cabinets"


def test_a_word_of_several_tokens_is_the_sum_of_their_rows() -> None:
    result = demo(target="log_prob")
    word, rows = result.of("newspapers"), range(4, len(result) - 1)
    seen = result.n_prompt + rows[-1]
    assert len(rows) > 1
    assert torch.allclose(word.tokens[0], result.relevance.tokens[rows, :seen].sum(0), atol=1e-5)
    assert torch.allclose(word.target_value, result.relevance.target_value[rows].sum())
    assert word.head_tokens is not None and result.relevance.head_tokens is not None
    heads = result.relevance.head_tokens[rows, :, :seen].sum(0)
    assert torch.allclose(word.head_tokens[0], heads, atol=1e-5)
    assert int(word.position[0]) == seen - 1
    word.check()


def test_a_word_takes_the_token_of_its_own_space_along() -> None:
    model = la.load("demo-llama", device="cpu")
    result = la.attribute_generation(model, "the keys", generated=" The key")
    assert result.generated_tokens[:3] == [" ", "T", "he"]
    matrix = result.matrix(words=True)
    assert matrix.rows[0] == "The"
    assert torch.allclose(result.of("The").tokens.sum(), matrix.values[0].nansum(), atol=1e-5)


BAD_WORDS = {
    "absent": (("keys",), "'keys' occurs 0 times in the generated text"),
    "too often": (("the", 1), "'the' occurs 1 times.*no occurrence 1"),
    "cut": (("ere",), "starts or ends inside a token.*'were'"),
    "empty": ((" ",), "empty"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_WORDS.values(), ids=list(BAD_WORDS))
def test_words_that_were_not_generated(story: Generation, arguments: Any, message: str) -> None:
    with pytest.raises(la.InputError, match=message):
        story.of(*arguments)


# -------------------------------------------------------------------------- showing, saving


def test_save_and_load(story: Generation, tmp_path: Any) -> None:
    again = Generation.load(story.save(tmp_path / "story"))
    assert again.n_prompt == story.n_prompt and again.generated == story.generated
    assert torch.equal(again.relevance.tokens, story.relevance.tokens)
    assert again.matrix(words=True).columns == story.matrix(words=True).columns
    pd.testing.assert_frame_equal(again.to_pandas(), story.to_pandas())
    with pytest.raises(la.SavedResultError, match="no saved generation"):
        Generation.load(tmp_path)


def test_the_table_holds_every_pair_that_was_seen(story: Generation) -> None:
    table = story.to_pandas()
    n, g = story.n_prompt, len(story)
    assert len(table) == n * g + g * (g - 1) // 2
    assert set(table["part"]) == {"prompt", "generated"}
    first = table[table["row"] == 0]
    assert len(first) == n and set(first["part"]) == {"prompt"}
    assert abs(table["relevance"].sum() - float(story.relevance.tokens.sum())) < 1e-3


def test_the_figure(story: Generation) -> None:
    figure = story.plot()
    (cells,) = figure.data
    assert cells.z.shape == (6, 11)
    assert list(figure.layout.yaxis.ticktext)[4] == "newspapers"
    assert figure.layout.shapes[0].x0 == 5.5
    limit = abs(story.matrix(words=True).values.nan_to_num()).max()
    assert figure.layout.coloraxis.cmax == pytest.approx(float(limit))
    assert story.plot(words=False).data[0].z.shape == (len(story), len(story.str_tokens) - 1)
    with pytest.raises(la.InputError, match="limit"):
        story.plot(limit=0.0)


def test_the_figures_of_aieg_take_every_generated_token() -> None:
    result = demo(method="aieg", steps=3)
    (bars,) = la.plots.output_emphasis(result.relevance).data
    assert len(bars.x) == len(result) and "' were'" in bars.y[0]
    parts = la.plots.path_parts(result.relevance, example=2).data[-1]
    assert len(parts.x) == result.n_prompt + 2


def test_results_show_themselves(story: Generation) -> None:
    assert repr(story).startswith("Generation(attnlrp, ") and "of the prompt" in repr(story)
    page = story._repr_html_()
    assert (
        "were in the new newspapers ." in page and "> cabinets" not in page and "cabinets" in page
    )
    assert repr(story.matrix(words=True)).startswith("Matrix(attnlrp, 6 generated words by 11")
    assert len(list(story)) == len(story)
    with pytest.raises(la.InputError, match=f"{len(story)} were generated"):
        story[len(story)]


# -------------------------------------------------------------------------------- bad input


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"generated": None}, "give either max_new_tokens"),
    "both": ({"max_new_tokens": 3}, "give either max_new_tokens"),
    "no tokens": ({"generated": None, "max_new_tokens": 0}, "whole number of at least 1, got 0"),
    "half a token": ({"generated": None, "max_new_tokens": 1.5}, "got 1.5"),
    "target": ({"target": "logits"}, "unknown target 'logits'; did you mean 'logit'"),
    "temperature": ({"sampling_temperature": -1}, "0 .greedy. or a number above"),
    "nothing generated": ({"generated": " "}, "the generated text is empty"),
    "no ids": ({"generated": []}, "generated holds no token ids"),
    "strange ids": ({"generated": [99]}, "99 is out of range"),
    "no ids at all": ({"generated": object()}, "generated must be a string or token ids"),
    "several texts": ({"prompt": torch.ones(2, 3).long()}, "prompt holds 2 texts"),
    "empty prompt": ({"prompt": ""}, "the text is empty"),
    "merges": ({"generated": "w6"}, "'w6' does not go on from the prompt.*w12'.*merges"),
    "too long": ({"generated": [5] * 63}, "63 generated ones are more than the 64"),
    "too long to write": ({"generated": None, "max_new_tokens": 99}, "99 generated ones"),
    "option": ({"stepz": 3}, "stepz"),
    "mask": ({"attention_mask": torch.ones(1, 6)}, "attention_mask: a prompt is one text"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=list(BAD))
def test_bad_input(options: dict[str, Any], message: str) -> None:
    given = {"prompt": PROMPT, "generated": " w6 w7"} | options
    with small.untyped(), pytest.raises(la.InputError, match=message):
        la.attribute_generation(small.model(small.GPT2[0]), given.pop("prompt"), **given)


@pytest.mark.parametrize("name", small.MASKED)
def test_a_masked_model_is_refused(name: str) -> None:
    with pytest.raises(la.UnsupportedModelError, match="it generates no text"):
        la.attribute_generation(small.model(name), "w5 w9", max_new_tokens=2)


def test_a_text_that_ends_at_once_is_refused() -> None:
    """The demo model ends its texts after a full stop."""
    with pytest.raises(la.InputError, match="nothing was generated to explain"):
        demo("the keys fall in the rain .", generated=None, max_new_tokens=3)


def test_ids_and_strings_are_the_same() -> None:
    model = small.model(small.GPT2[0])
    text = la.attribute_generation(model, PROMPT, generated=" w20 w33")
    ids = model.to_tokens(PROMPT)
    for prompt in (ids, ids[0], ids[0].tolist()):
        for generated in ([20, 33], torch.tensor([20, 33]), " w20 w33"):
            again = la.attribute_generation(model, prompt, generated=generated)
            assert torch.equal(again.relevance.tokens, text.relevance.tokens)


def test_unknown_words_of_the_prompt_are_told() -> None:
    with pytest.warns(la.Notice, match="does not know every word"):
        la.attribute_generation(small.model(small.GPT2[0]), "w5 huh", generated=[5])


# --------------------------------------------------------------------------- command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["generate", *arguments])


def test_the_command_writes_everything(tmp_path: Any) -> None:
    page, table, folder = tmp_path / "p.html", tmp_path / "t.csv", tmp_path / "saved"
    files = ["--html", str(page), "--csv", str(table), "--save", str(folder)]
    ran = run("the keys near the cabinets", "--generated", " were new .", *files)
    assert ran.exit_code == 0, ran.output
    assert "generated: were new ." in ran.stdout
    saved = Generation.load(folder)
    assert len(pd.read_csv(table)) == len(saved.to_pandas(words=True))
    assert "What did the generated text use?" in page.read_text("utf-8")


def test_the_command_as_json() -> None:
    import json

    ran = run(
        "the keys", "-n", "3", "--tokens", "--json", "--explain", "log_prob", "--method", "lrp"
    )
    document = json.loads(ran.stdout)
    assert document["kind"] == "token" and document["unit"] == "nat"
    assert len(document["relevance"]) == len(document["rows"]) <= 3
    assert document["relevance"][0][-1] is None or len(document["rows"]) == 1
    assert document["metadata"]["generation"]["target"] == "log_prob"


def test_the_command_refuses_both_kinds_of_text() -> None:
    assert run("the keys", "-n", "3", "--generated", " are").exit_code == 2
