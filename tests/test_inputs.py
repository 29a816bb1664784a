"""Bad input gets one clear error that names the problem and the way out, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import tiny
import torch
from tiny import VOCAB

import lens_attr as la
from lens_attr import errors
from lens_attr.rules import RuleSet

TEXT = "w5 w9 w12"
PAIR = la.LogitDiff(" w6", " w8")
IDS = torch.tensor([[5, 9, 12], [6, 7, 8]])
D_MODEL, N_CTX = 32, 64

masked_models = pytest.mark.parametrize("name", small.MASKED)
one_per_backend = pytest.mark.parametrize("name", small.GPT2)


@pytest.fixture(autouse=True)
def as_users_run_it() -> Iterator[None]:
    with small.untyped():
        yield


def at(position: Any) -> la.LogitDiff:
    return la.LogitDiff(" w6", " w8", position=position)


def returns_nothing(grad: torch.Tensor) -> None:
    return None


BAD_TEXT = {
    "empty": ("", "empty"),
    "whitespace": (" \n ", "empty"),
    "no texts": ([], "list of texts is empty"),
    "one text empty": ([TEXT, ""], "empty"),
    "nothing": (None, "expected a string.*NoneType"),
    "list of ids": ([5, 6], r"LongTensor \[batch, pos\]"),
    "numpy ids": (IDS.numpy(), r"LongTensor \[batch, pos\].*ndarray"),
    "too long": ("w5 " * (N_CTX + 6), f"at most {N_CTX}: shorten"),
    "too many ids": (torch.full((1, N_CTX + 1), 5), f"at most {N_CTX}: shorten"),
    "id too large": (torch.tensor([[5, VOCAB]]), f"{VOCAB} is out of range.*0 to {VOCAB - 1}"),
    "negative id": (torch.tensor([[5, -1]]), "-1 is out of range"),
    "float ids": (IDS.float(), "must be integers, got torch.float32"),
    "bool ids": (IDS.bool(), "must be integers, got torch.bool"),
    "sparse ids": (IDS.to_sparse(), r"dense tensor, got torch.sparse_coo: call .to_dense\(\)"),
    "unsigned id too large": (torch.tensor([[VOCAB]]).to(torch.uint32), "60 is out of range"),
    "one dimension": (IDS[0], r"shape \[batch, pos\].*got \[3\]"),
    "three dimensions": (IDS[None], r"shape \[batch, pos\].*got \[1, 2, 3\]"),
    "no ids": (torch.zeros(1, 0, dtype=torch.long), r"not be empty, got \[1, 0\]"),
}

BAD_TARGET = {
    "a bare string": (lambda: " w6", r"write la\.Logit\(' w6'\)"),
    "several tokens": (
        lambda: la.Logit(" w6 w7"),
        r"2 tokens \('w6' \+ 'w7'\).*first piece's id \(6\)",
    ),
    "log-prob of several": (lambda: la.LogProb(" w6 w7"), "2 tokens"),
    "foil starts alike": (
        lambda: la.LogitDiff(" w6 w7", " w6 w8"),
        "both start with.*'w6'.*append",
    ),
    "foil is the target": (lambda: la.LogitDiff(6, 6), "both start with"),
    "merges with the text": (lambda: la.Logit("w6"), "Put the space in the target"),
    "empty string": (lambda: la.Logit(""), "target string is empty"),
    "id too large": (lambda: la.Logit(VOCAB), f"id {VOCAB} is out of range.*0 to {VOCAB - 1}"),
    "negative id": (lambda: la.Logit(-1), "id -1 is out of range"),
    "float": (lambda: la.Logit(3.5), "string or a token id.*got float 3.5"),  # type: ignore[arg-type]
    "bool": (lambda: la.Logit(True), "string or a token id.*got bool True"),
    "list of float": (lambda: la.Logit([3.5]), "string or a token id"),  # type: ignore[list-item]
    "list of bool": (lambda: la.Logit([True]), "string or a token id"),
    "two for one text": (
        lambda: la.Logit([6, 7]),
        "2 targets for 1 examples: give one for all, or one",
    ),
    "two foils for one": (lambda: la.LogitDiff(6, [7, 8]), "2 foils for 1 examples"),
    "position too large": (lambda: at(9), "position 9 of example 0 is out of range.*4 tokens"),
    "position too small": (lambda: at(-9), "position -9 of example 0 is out of range"),
    "no position": (lambda: at([]), "position"),
    "float position": (lambda: at(1.5), "position"),
    "position None": (lambda: at(None), "position"),
    "position True": (lambda: at(True), "position must be an integer"),
    "position of a float tensor": (lambda: at(torch.tensor(1.0)), "position must be an integer"),
    "bytes": (lambda: la.Logit(b"w6"), "got bytes b'w6'"),  # type: ignore[arg-type]
}

BAD_METRIC = {
    "matrix": (lambda logits: logits[:, -1], r"one number per example \[1\], got \[1, 60\]"),
    "scalar": (lambda logits: logits.sum(), r"one number per example \[1\], got \[\]"),
    "float": (lambda logits: 1.0, r"one number per example \[1\], got float"),
    "nothing": (lambda logits: None, r"one number per example \[1\], got NoneType"),
    "constant": (lambda logits: torch.zeros(1), "does not depend on the logits"),
    "detached": (lambda logits: logits.detach()[:, -1, 6], "does not depend on the logits"),
    "integer": (lambda logits: logits[:, -1].argmax(-1), "does not depend on the logits"),
    "no function": ("logit", "takes a function of the logits, got str"),
}

BAD_BASELINE = {
    "several tokens": (" w5 w6", "' w5 w6' is 2 tokens"),
    "id too large": (VOCAB, f"id {VOCAB} is out of range"),
    "negative id": (-1, "id -1 is out of range"),
    "bool": (True, "got bool"),
    "float": (3.5, "got float"),
    "list": ([5], "got list"),
    "another d_model": (torch.zeros(7), r"\[7\] does not fit the input \[1, 4, 32\]"),
    "number": (torch.tensor(0.0), r"\[\] does not fit the input"),
    "another length": (torch.zeros(3, D_MODEL), r"\[batch, pos, d_model\].*\[3, 32\]"),
    "another batch": (torch.zeros(5, 4, D_MODEL), r"\[5, 4, 32\] does not fit"),
    "too many dimensions": (torch.zeros(1, 1, 4, D_MODEL), r"\[1, 1, 4, 32\] does not fit"),
}

BAD_OPTIONS = {
    "method": ({"method": "atnlrp"}, "unknown method 'atnlrp'; did you mean 'attnlrp'"),
    "a rule for a rule set": ({"method": la.rules.ScaleZ()}, "RuleSet"),
    "switch": ({"method": "gim", "temprature": 3}, "temprature.*did you mean 'temperature'"),
    "switch of a rule set": ({"method": la.rules.lrp(), "norm": 1.0}, "norm.*not a RuleSet"),
    "switch value": ({"method": "lrp", "gate": "halv"}, "gate.*'half'.*got 'halv'"),
    "activation": ({"method": "lrp", "activation": "relu"}, "activation.*'identity'.*'relu'"),
    "temperature": ({"method": "gim", "temperature": 0}, "must be positive and finite, got 0"),
    "layer": ({"method": "lrp", "layers": [0, 7]}, r"layers \[7\].*layers 0 to 1"),
    "role": ({"record": ["patern"]}, "'patern'; did you mean 'pattern'"),
    "hook": ({"record": ["blocks.0.attn.hook_zz"]}, r"did you mean 'blocks\.0\.attn\.hook_z'"),
    "glob": ({"record": ["blocks.*.nothing"]}, r"no hook point matches 'blocks\.\*\.nothing'"),
    "batch size zero": (
        {"batch_size": 0},
        "must be a whole number of at least 1, got 0",
    ),
    "batch size negative": ({"batch_size": -2}, "at least 1, got -2"),
    "batch size a fraction": ({"batch_size": 1.5}, "a whole number of at least 1, got 1.5"),
    "no method": ({"method": None}, "a name or a RuleSet, got NoneType"),
    "embeddings": ({"embeddings": "tokens"}, "'full' or 'token', got 'tokens'"),
    "mask for a text": ({"attention_mask": IDS > 0}, "attention_mask goes with token ids"),
}


def table(cases: dict[str, tuple[Any, str]]) -> Any:
    """Parametrise over (value, message) pairs, by name."""
    return pytest.mark.parametrize(("bad", "message"), cases.values(), ids=list(cases))


def refused(message: str, error: type[la.LensAttrError] = la.InputError) -> Any:
    return pytest.raises(error, match=message)


# --------------------------------------------------------------------------- la.attribute


@one_per_backend
@table(BAD_TEXT)
def test_text(name: str, bad: Any, message: str) -> None:
    with refused(message):
        la.attribute(small.model(name), bad, PAIR)


@one_per_backend
@table(BAD_TARGET)
def test_target(name: str, bad: Any, message: str) -> None:
    with refused(message):
        la.attribute(small.model(name), TEXT, bad())


@one_per_backend
@table(BAD_METRIC)
def test_metric(name: str, bad: Any, message: str) -> None:
    with refused(message):
        la.attribute(small.model(name), TEXT, la.Metric(bad))


@one_per_backend
@table(BAD_BASELINE)
def test_baseline(name: str, bad: Any, message: str) -> None:
    with refused(message):
        la.attribute(small.model(name), TEXT, PAIR, baseline=bad)


@one_per_backend
@table(BAD_OPTIONS)
def test_options(name: str, bad: dict[str, Any], message: str) -> None:
    with refused(message):
        la.attribute(small.model(name), TEXT, PAIR, **bad)


@one_per_backend
def test_position_on_padding(name: str) -> None:
    texts = ["w5 w6 w7 w8 w9", "w5"]
    with refused("position 4 of example 1 is out of range or on padding: it has 2 tokens"):
        la.attribute(small.model(name), texts, at(4))


@one_per_backend
def test_number_of_positions(name: str) -> None:
    with refused("3 positions for 2 examples: give one each"):
        la.attribute(small.model(name), [TEXT, TEXT], at([0, 1, 2]))


@one_per_backend
@table(
    {
        "shape": (torch.ones(1, 2), r"attention_mask \[1, 2\] does not fit ids \[2, 3\]"),
        "sparse": (torch.ones(2, 3).to_sparse(), "attention_mask must be an ordinary dense tensor"),
        "hides a row": (torch.tensor([[1, 1, 1], [0, 0, 0]]), "hides every token of an example"),
    }
)
def test_attention_mask(name: str, bad: torch.Tensor, message: str) -> None:
    with refused(message):
        la.attribute(small.model(name), IDS, la.Logit(6), attention_mask=bad.long())


@masked_models
@table({"no": ("w5 w9", "0"), "two": ("w5 [MASK] w9 [MASK]", "2")})
def test_masks_of_a_masked_model(name: str, bad: str, message: str) -> None:
    wanted = rf"example 1 has {message} \[MASK\] tokens: put one.*or pass position="
    with refused(wanted):
        la.attribute(small.model(name), ["w5 [MASK]", bad], PAIR)


@one_per_backend
def test_a_custom_rule_must_return_a_gradient(name: str) -> None:
    rules = RuleSet((la.rules.custom("z")(returns_nothing),))  # type: ignore[arg-type]
    with refused("returns_nothing"):
        la.attribute(small.model(name), TEXT, PAIR, rules)


@one_per_backend
def test_a_custom_rule_must_act_somewhere(name: str) -> None:
    rule = la.rules.custom("z", only="*9*")(lambda grad: grad)
    with refused("matches no hook point", la.RuleNotAppliedError):
        la.attribute(small.model(name), TEXT, PAIR, RuleSet((rule,)))


@one_per_backend
def test_a_custom_rule_at_an_unknown_role(name: str) -> None:
    rule = la.rules.custom("paterns")(lambda grad: grad)
    with refused("'paterns'; did you mean 'pattern'"):
        la.attribute(small.model(name), TEXT, PAIR, RuleSet((rule,)))


@one_per_backend
def test_a_custom_rule_must_return_the_gradient(name: str) -> None:
    rule = la.rules.custom("z")(lambda grad: grad.sum())
    with small.untyped(), refused(r"returned shape \[\] at blocks.*must return the gradient"):
        la.attribute(small.model(name), TEXT, PAIR, RuleSet((rule,)))


@pytest.mark.parametrize("family", ["bert", "neo"])
@pytest.mark.parametrize("role", ["pattern", "scores"])
def test_a_custom_rule_where_no_gradient_ever_comes(family: str, role: str) -> None:
    """Delegated attention: the pattern fires forward, so a lenient context would not notice."""
    model = tiny.model(family, "bridge")
    rule = la.rules.custom(role)(lambda grad: grad * 0)
    with refused("outside the autograd graph.*at q, k, v or z", la.UnsupportedModelError):
        with RuleSet((rule,)).on(model):
            raise AssertionError("the context must not be entered")


FIRST_AND_LAST = {
    "demo-gpt2": ("<|endoftext|>", " here"),
    "demo-llama": ("<s>", " here"),
    "demo-bert": ("[CLS]", "[SEP]"),
}


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("name", FIRST_AND_LAST)
def test_strings_get_the_special_tokens_the_model_was_trained_with(name: str, backend: str) -> None:
    r = la.attribute(
        la.load(name, backend=backend), "the book [MASK] here", la.Logit(9, position=1)
    )
    assert (r.str_tokens[0][0], r.str_tokens[0][-1]) == FIRST_AND_LAST[name]


def test_unknown_words_are_never_explained_silently() -> None:
    model = la.load("demo-bert")
    with refused("does not know ' \u2603' and reads it as"):
        la.attribute(model, "the key [MASK] here", la.Logit(" \u2603"))
    with refused("does not know ' \u2603' and reads it as"):
        la.attribute(model, "the key [MASK] here", la.TopLogit(), baseline=" \u2603")
    texts = ["the key [MASK] here", "the \u2603 [MASK] here"]
    with pytest.warns(la.Notice, match=r"every word of example 1 and reads \[UNK\]"):
        r = la.attribute(model, texts, la.LogitDiff(" is", " are"))
    assert any("[UNK]" in notice for notice in r.metadata["notices"])


WHOLE = [np.int64, np.uint8, torch.tensor, lambda i: torch.tensor(i, dtype=torch.int16)]


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_number_of_any_type_is_a_number(kind: Callable[[int], Any]) -> None:
    model = small.model(small.GPT2[0])
    expected = la.attribute(model, TEXT, la.LogitDiff(6, 7, position=1), baseline=9)
    target = la.LogitDiff(kind(6), [kind(7)], position=kind(1))
    found = la.attribute(model, TEXT, target, baseline=np.int64(9))
    assert torch.equal(found.tokens, expected.tokens)
    assert found.target == expected.target
    several = la.attribute(model, TEXT, la.Logit(6, position=[kind(1), kind(2)]))
    assert several.position.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_ids_are_ids(dtype: torch.dtype) -> None:
    model = small.model(small.GPT2[0])
    found = la.attribute(model, IDS.to(dtype), la.Logit(6))
    assert torch.equal(found.tokens, la.attribute(model, IDS, la.Logit(6)).tokens)


@pytest.mark.parametrize("methods", ["gim", la.rules.gim()])
def test_compare_takes_one_method_as_it_is(methods: Any) -> None:
    compared = la.compare(small.model(small.GPT2[0]), TEXT, PAIR, methods)
    assert list(compared.results) == ["gim"]


def test_compare_needs_methods() -> None:
    with refused(r"one or more of different names, got \[\]"):
        la.compare(small.model(small.GPT2[0]), TEXT, PAIR, [])


def test_compare_refuses_two_methods_of_one_name() -> None:
    """They would overwrite each other in the table."""
    methods = [la.rules.lrp(), la.rules.lrp(norm=1.0)]
    with refused("different names.*'lrp', 'lrp'"):
        la.compare(small.model(small.GPT2[0]), TEXT, PAIR, methods)


# ------------------------------------------------------------------------------ the model


@pytest.mark.parametrize(
    "bad",
    [None, "gpt2", torch.nn.Linear(2, 2), tiny.hugging_face("gpt2")],
    ids=lambda m: type(m).__name__,
)
def test_not_a_transformer_lens_model(bad: Any) -> None:
    with refused(rf"got {type(bad).__name__}\. Load one with la\.load"):
        la.attribute(bad, TEXT, PAIR)


@pytest.mark.parametrize("name", [n for n in small.EVERY if n in ("gpt2-bridge", "bert-bridge")])
def test_train_mode_with_dropout(name: str) -> None:
    model = small.fresh(name)
    model.train()
    with refused(r"train mode with dropout.*model\.eval\(\)"):
        la.attribute(model, small.text(name), PAIR)
    assert model.training


@pytest.mark.parametrize("name", [name for name in small.CAUSAL if name.startswith("llama")])
def test_weights_that_are_not_finite(name: str) -> None:
    model = small.fresh(name)
    with torch.no_grad():
        model.embed.W_E[20] = float("nan")
    wanted = "NaN or infinite logits in example 1: check the weights"
    with refused(wanted, la.NonFiniteError):
        la.attribute(model, [TEXT, "w20 w5"], PAIR)
    la.attribute(model, [TEXT, "w21 w5"], PAIR)


@one_per_backend
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_metric_that_is_not_finite(name: str, number: float) -> None:
    bad = la.Metric(lambda logits: logits[:, -1, 6] * torch.tensor([1.0, number]))
    with refused("example 1", la.NonFiniteError):
        la.attribute(small.model(name), [TEXT, TEXT], bad)


@one_per_backend
def test_model_without_a_tokenizer(name: str) -> None:
    model = small.fresh(name)
    expected = la.attribute(model, IDS, la.Logit(6))
    model.tokenizer = None
    with refused(r"no tokenizer: pass token ids \[batch, pos\]"):
        la.attribute(model, TEXT, la.Logit(6))
    with refused(r"no tokenizer: give the token id instead of ' w6'"):
        la.attribute(model, IDS, la.Logit(" w6"))
    found = la.attribute(model, IDS, la.Logit(6))
    assert torch.equal(found.tokens, expected.tokens)
    assert found.str_tokens[0] == ["[5]", "[9]", "[12]"]


# -------------------------------------------------------------------------------- la.load


def test_load_unknown_demo() -> None:
    with refused("demo-gtp2.*did you mean 'demo-gpt2'"):
        la.load("demo-gtp2")


@pytest.mark.parametrize("backend", small.BACKENDS)
def test_load_unknown_name(backend: str) -> None:
    with refused("cannot load 'no-such/model': it is no local directory, no demo model"):
        la.load("no-such/model", backend=backend)


@pytest.mark.parametrize("backend", small.BACKENDS)
def test_load_empty_directory(backend: str, tmp_path: Path) -> None:
    with refused(r"holds no config\.json"):
        la.load(tmp_path, backend=backend)


@pytest.mark.parametrize("backend", small.BACKENDS)
@pytest.mark.parametrize("config", ["{", "{}", "", '{"model_type": "no-such-type"}'])
def test_load_corrupt_configuration(backend: str, config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with refused(f"cannot load {re.escape(str(tmp_path))}"):
        la.load(tmp_path, backend=backend)


@pytest.mark.parametrize("backend", small.BACKENDS)
def test_load_truncated_weights(backend: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny.directory("gpt2"), tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with refused(f"cannot load {re.escape(str(copy))}"):
        la.load(copy, backend=backend)


def test_load_unknown_backend() -> None:
    with refused("unknown backend 'hook': use 'auto', 'hooked' or 'bridge'"):
        la.load(tiny.directory("gpt2"), backend="hook")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float33", "int64", "nn", torch.int64])
def test_load_unknown_dtype(dtype: Any) -> None:
    with refused(rf"unknown dtype {dtype!r}.*'float32'"):
        la.load(tiny.directory("gpt2"), dtype=dtype)


@pytest.mark.skipif("hooked" in small.BACKENDS, reason="transformer-lens 3.9 still has it")
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_load_removed_backend(family: str) -> None:
    with refused("removed in transformer-lens 4: use backend='bridge'"):
        la.load(tiny.directory(family), backend="hooked")


# --------------------------------------------------------------------- results and tables


@pytest.fixture
def relevance() -> la.Relevance:
    return la.attribute(small.model(small.GPT2[0]), TEXT, PAIR)


def test_unknown_pool(relevance: la.Relevance) -> None:
    with refused("unknown pool 'summ'; did you mean 'sum'"):
        relevance.heads("summ")  # type: ignore[arg-type]


@pytest.mark.parametrize("example", [1, -2])
def test_example_out_of_range(relevance: la.Relevance, example: int) -> None:
    with refused(f"example {example} is out of range: there are 1"):
        relevance[example]


def test_attention_that_was_not_recorded(relevance: la.Relevance) -> None:
    with refused(r'pass record=\["pattern"\] to la\.attribute'):
        _ = relevance.attention


def test_unknown_method_in_the_table() -> None:
    with refused("unknown method 'lpr'; did you mean 'lrp'"):
        la.methods()["lpr"]


def test_unknown_preset_and_rule() -> None:
    with refused("unknown preset 'gmi'; did you mean 'gim'"):
        la.rules.preset("gmi")
    with refused("no rule 'Gate' in lrp; did you mean 'GateSplit'"):
        la.rules.lrp().without("Gate")
    with refused("GateSplit has no switch 'gat'; did you mean 'gate'"):
        la.rules.lrp().replace("GateSplit", gat=1)
    with refused("unknown preset 'lrpp'; did you mean 'lrp'"):
        la.check(small.model(small.GPT2[0]), "lrpp")


def test_samples_of_nothing() -> None:
    with refused("there are no samples"):
        la.sample_inputs(small.model(small.GPT2[0]), [])


# -------------------------------------------------------------------------- saved results


def break_missing(json_file: Path, tensors: Path) -> None:
    shutil.rmtree(json_file.parent)


def break_missing_tensors(json_file: Path, tensors: Path) -> None:
    tensors.unlink()


def break_truncated_tensors(json_file: Path, tensors: Path) -> None:
    tensors.write_bytes(tensors.read_bytes()[:-10])


def break_flipped_bit(json_file: Path, tensors: Path) -> None:
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)


def break_empty_tensors(json_file: Path, tensors: Path) -> None:
    tensors.write_bytes(b"")


def break_truncated_json(json_file: Path, tensors: Path) -> None:
    json_file.write_text(json_file.read_text()[:100])


def break_not_json(json_file: Path, tensors: Path) -> None:
    json_file.write_bytes(b"\xff\xfe not json")


def break_other_json(json_file: Path, tensors: Path) -> None:
    json_file.write_text("[1, 2]")


def break_missing_field(json_file: Path, tensors: Path) -> None:
    plain = json.loads(json_file.read_text())
    del plain["str_tokens"]
    json_file.write_text(json.dumps(plain))


def break_newer_format(json_file: Path, tensors: Path) -> None:
    plain = json.loads(json_file.read_text())
    json_file.write_text(json.dumps(plain | {"format": 99}))


BROKEN = {
    break_missing: "no saved relevance at",
    break_missing_tensors: r"holds no relevance\.safetensors",
    break_truncated_tensors: "truncated or altered",
    break_flipped_bit: "truncated or altered",
    break_empty_tensors: "truncated or altered",
    break_truncated_json: "truncated or no json",
    break_not_json: "truncated or no json",
    break_other_json: "is not a saved Relevance",
    break_missing_field: "is not a saved Relevance",
    break_newer_format: "has format 99.*update lens_attr",
}


@pytest.mark.parametrize(
    ("spoil", "message"), BROKEN.items(), ids=[f.__name__.removeprefix("break_") for f in BROKEN]
)
def test_saved_result(
    spoil: Callable[[Path, Path], None], message: str, relevance: la.Relevance, tmp_path: Path
) -> None:
    saved = relevance.save(tmp_path / "result")
    spoil(saved / "relevance.json", saved / "relevance.safetensors")
    with refused(message, la.SavedResultError):
        la.Relevance.load(saved)


NO_RECORDS = {"records": [], "flow": [], "extra": []}
DAMAGED = {
    "order is empty": ({"order": {}}, "'order' has no list 'records'"),
    "order names no tensor": ({"order": NO_RECORDS | {"flow": ["x"]}}, "names 'flow/x', which is"),
    "order names no name": ({"order": NO_RECORDS | {"flow": [{}]}}, "not among the tensors"),
    "order is a list": ({"order": []}, "'order' is no dict"),
    "no strings": ({"str_tokens": None}, "'str_tokens' is no list"),
    "no rows": ({"str_tokens": []}, "'str_tokens' and 'target' are not of 1 examples"),
    "no row": ({"str_tokens": [None]}, "'str_tokens' and 'target' are not of 1 examples"),
    "short row": ({"str_tokens": [["w5"]]}, "are not of 1 examples with 4 tokens"),
    "no target": ({"target": []}, "'str_tokens' and 'target' are not of 1 examples"),
    "no metadata": ({"metadata": None}, "'metadata' is no dict"),
    "no method": ({"method": 3}, "'method' is no str"),
}


@pytest.mark.parametrize(("fields", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_json_of_a_saved_result(
    fields: dict[str, Any], message: str, relevance: la.Relevance, tmp_path: Path
) -> None:
    saved = relevance.save(tmp_path / "result")
    plain = json.loads((saved / "relevance.json").read_text())
    (saved / "relevance.json").write_text(json.dumps(plain | fields))
    with refused(rf"relevance\.json is damaged: .*{message}", la.SavedResultError):
        la.Relevance.load(saved)


def test_saving_into_a_file(relevance: la.Relevance, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused("is a file: give a directory"):
        relevance.save(tmp_path / "file")


# ------------------------------------------------------------------------------ the family


def test_every_public_error_is_a_lens_attr_error() -> None:
    public = [getattr(la, name) for name in la.__all__ if name.endswith("Error")]
    defined = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    raised = [e for e in defined if not issubclass(e, Warning)]
    assert set(public) == set(raised)
    assert all(issubclass(error, la.LensAttrError) for error in raised)
    assert issubclass(la.InputError, ValueError)
