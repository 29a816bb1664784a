"""`attribute_generation`: let a model go on with a prompt, and explain every token it writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lens_attr.attribution.attribute import attribute, prefix_exact
from lens_attr.attribution.generation import Generation
from lens_attr.attribution.relevance import Relevance
from lens_attr.errors import (
    InputError,
    UnsupportedModelError,
    checked_count,
    did_you_mean,
    give_notice,
)
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.decoding import decode, end_ids, runners_up
from lens_attr.graph.tokens import continuation, encode_prompt, tokenize, unknown_words
from lens_attr.rules import RuleSet
from lens_attr.targets import Logit, LogitDiff, LogProb, Target

OfToken = Literal["logit", "log_prob", "logit_diff"]
"""What of a generated token: its logit, its log-probability, or its logit minus that of the
runner-up, the most likely other token."""

Ids = Int[Tensor, "..."] | Sequence[int]
"""Token ids of one text, [pos] or [1, pos]."""

_BAR_FROM = 32
"""Generated tokens from which on a progress bar is worth its line."""


@torch.inference_mode(False)
def attribute_generation(
    model: Any,
    prompt: str | Ids,
    *,
    max_new_tokens: int | None = None,
    generated: str | Ids | None = None,
    target: OfToken = "logit",
    method: str | RuleSet = "attnlrp",
    sampling_temperature: float = 0.0,
    sampling_seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> Generation:
    """Which tokens of the prompt, and of the text so far, made the model write each token.

    A causal model's prediction at a position depends on nothing after it, so every row equals
    `attribute` of that row's prefix, but all of them go through the model together. Nothing is
    left on the model.

    Cost: one forward per generated token (none where ``generated`` is given), then that of the
    method for as many targets of one text as tokens were generated: one forward for a method made
    of rules. One more forward for ``"logit_diff"``. A method that reads the whole text whatever is
    explained (GradSHAP's noise, occlusion with ``window > 1``, ``row="token"``) is run on every
    prefix by itself.

    Args:
        model: a HookedTransformer or TransformerBridge that predicts the next token.
        prompt: a string, or the ids of one text.
        max_new_tokens: how many tokens to generate; fewer where the model ends the text before.
            The end itself is not explained.
        generated: explain this continuation instead, a string or ids, the model's own or not.
        target: what of each generated token is explained, see `OfToken`.
        method: as in `attribute`, as ``options``.
        sampling_temperature: 0 takes the most likely token (greedy); above, tokens are drawn.
        sampling_seed: of that draw.
        progress: show bars or not; default: where it takes long.

    Raises:
        UnsupportedModelError: a masked model, which generates nothing.
        InputError: a text that is too long or empty, a continuation that does not start at a
            token of its own, nothing to explain.
    """
    graph = resolve(model)
    _refuse_masked(graph)
    _check(target, sampling_temperature)
    if (max_new_tokens is None) == (generated is None):
        raise InputError(
            "give either max_new_tokens, to let the model write, or generated, to explain a "
            "continuation that you have."
        )
    if options.get("attention_mask") is not None:
        raise InputError("attention_mask: a prompt is one text without padding, nothing is masked.")
    before = _prompt_ids(graph, prompt)
    if generated is None:
        most = checked_count("max_new_tokens", max_new_tokens)
        after = _generate(graph, before, most, sampling_temperature, sampling_seed, progress)
    else:
        after = _continuation_ids(graph, prompt, generated)
    _refuse_too_long(graph, len(before), len(after))
    ids = [*before, *after]
    wanted = _targets(graph, ids, len(before), target)
    if prefix_exact(method, options):
        every = attribute(
            model, torch.tensor([ids]), [wanted], method, progress=progress, **options
        )
    else:
        texts, mask = _prefixes(ids, len(before))
        options |= {"attention_mask": mask, "batch_size": 1}
        every = attribute(model, texts, wanted, method, progress=progress, **options)
    how = "given" if generated is not None else "sampled" if sampling_temperature else "greedy"
    facts: dict[str, Any] = {"decoding": how, "target": target, "n_prompt": len(before)}
    if how == "sampled":
        facts |= {"temperature": sampling_temperature, "seed": sampling_seed}
    notices = _unknown_words(graph, prompt, generated)
    for notice in notices:
        give_notice(notice)
    return Generation(_of_prefixes(every, facts, notices), len(before))


def _refuse_masked(graph: ModelGraph) -> None:
    if graph.is_masked_model:
        raise UnsupportedModelError(
            f"{graph.architecture} fills masks and reads both sides of them: it generates no text, "
            "one token after the other. Explain a mask with la.attribute."
        )


def _check(target: Any, temperature: Any) -> None:
    if target not in get_args(OfToken):
        hint = did_you_mean(str(target), get_args(OfToken))
        raise InputError(f"unknown target {target!r}; {hint}")
    if not isinstance(temperature, (int, float)) or not 0 <= temperature < float("inf"):
        raise InputError(
            f"sampling_temperature must be 0 (greedy) or a number above, got {temperature!r}."
        )


def _prompt_ids(graph: ModelGraph, prompt: str | Ids) -> list[int]:
    if isinstance(prompt, str):
        return encode_prompt(graph, prompt)
    return _ids(graph, prompt, "prompt")


def _continuation_ids(graph: ModelGraph, prompt: str | Ids, generated: str | Ids) -> list[int]:
    """The ids of a continuation that is given, as it goes on from the end of the prompt."""
    if not isinstance(generated, str):
        return _ids(graph, generated, "generated")
    if not generated.strip():
        raise InputError("the generated text is empty: there is no token to explain.")
    if not isinstance(prompt, str):
        return continuation(graph, generated)
    before, both = encode_prompt(graph, prompt), encode_prompt(graph, prompt + generated)
    if both[: len(before)] != before:
        raise InputError(
            f"the generated text {generated[:20]!r} does not go on from the prompt "
            f"{prompt[-12:]!r} with tokens of its own: the tokenizer merges the two. Start it with "
            "its space (' are'), end the prompt without one, or give ids."
        )
    return both[len(before) :]


def _unknown_words(graph: ModelGraph, *texts: Any) -> list[str]:
    """One sentence if strings hold words that the tokenizer does not know."""
    strings = [text for text in texts if isinstance(text, str)]
    found = [unknown_words(graph, tokenize(graph, text)) for text in strings]
    return [
        notice.replace("example 0", "the prompt or the generated text")
        for notice in dict.fromkeys(notice for each in found for notice in each)
    ]


def _ids(graph: ModelGraph, ids: Any, name: str) -> list[int]:
    """Ids of one text, of a shape and range that the model reads."""
    try:
        row = ids if isinstance(ids, Tensor) else torch.tensor(list(ids))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} must be a string or token ids [pos], got {type(ids).__name__}."
        ) from error
    if row.ndim == 2 and len(row) > 1:
        raise InputError(f"{name} holds {len(row)} texts: explain the generation of one at a time.")
    if row.numel() == 0:
        raise InputError(f"{name} holds no token ids.")
    return tokenize(graph, row[None] if row.ndim == 1 else row).token_ids[0].tolist()


def _generate(
    graph: ModelGraph,
    prompt: Sequence[int],
    n: int,
    temperature: float,
    seed: int,
    progress: bool | None,
) -> list[int]:
    """At most ``n`` tokens, up to the end of the text.

    Raises:
        InputError: prompt and text are longer than the model reads, or the text ends at once.
    """
    _refuse_too_long(graph, len(prompt), n)
    generator = torch.Generator().manual_seed(seed)
    written: Iterable[int] = islice(decode(graph, prompt, temperature, generator), n)
    screen = Console(stderr=True)
    if progress or (progress is None and n >= _BAR_FROM and screen.is_terminal):
        written = track(written, "generating", total=n, console=screen, transient=True)
    ends, found = end_ids(graph), []
    for token in written:
        if token in ends:
            break
        found.append(token)
    if not found:
        raise InputError(
            "the model ends the text right after the prompt, so nothing was generated to explain. "
            "Change the prompt, or give the continuation as generated=."
        )
    return found


def _refuse_too_long(graph: ModelGraph, prompt: int, generated: int) -> None:
    if prompt + generated > graph.n_ctx:
        raise InputError(
            f"{prompt} tokens of the prompt and {generated} generated ones are more than the "
            f"{graph.n_ctx} that the model reads: shorten one of them."
        )


def _targets(graph: ModelGraph, ids: Sequence[int], start: int, target: OfToken) -> Target:
    """Each token from ``start`` on, at the position that predicts it."""
    written, position = list(ids[start:]), list(range(start - 1, len(ids) - 1))
    if target == "logit":
        return Logit(written, position=position)
    if target == "log_prob":
        return LogProb(written, position=position)
    return LogitDiff(written, runners_up(graph, ids, start), position=position)


def _prefixes(
    ids: Sequence[int], start: int
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """What each token from ``start`` on was predicted from, as ids and their mask."""
    length = torch.arange(start, len(ids))[:, None]
    return torch.tensor(ids).expand(len(length), -1), torch.arange(len(ids)) < length


def _of_prefixes(every: Relevance, facts: dict[str, Any], notices: list[str]) -> Relevance:
    """Each row cut off, by its mask, after the position that its prediction stood at."""
    columns = torch.arange(every.tokens.shape[1])
    seen = columns[None] <= every.position[:, None]
    heads, special = every.head_tokens, every.special
    return replace(
        every,
        tokens=torch.where(seen, every.tokens, 0.0),
        attention_mask=seen,
        head_tokens=None if heads is None else torch.where(seen[:, None, :, None], heads, 0.0),
        special=None if special is None else special & seen,
        metadata={
            **every.metadata,
            "generation": facts,
            "notices": [*notices, *every.metadata["notices"]],
        },
    )
