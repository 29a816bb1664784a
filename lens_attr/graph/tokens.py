"""Text to token ids and back: batches padded on the left, and continuations of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_attr.errors import InputError
from lens_attr.graph.model import ModelGraph
from lens_attr.spelling import trimmed

Text = str | Sequence[str] | Int[Tensor, "batch pos"]

BYTE_LEVEL_UNKNOWN = "<|endoftext|>"
"""GPT-2 calls this its unknown token too, but byte-level tokenizers know every text."""

INTEGERS = frozenset(
    getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
)

ANCHORS = ("x", "the", ".", "a b")


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of a batch, padded to one length.

    Attributes:
        token_ids: padding included.
        attention_mask: True on real tokens.
        texts: the strings they came from, None where ids were given.
    """

    token_ids: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"]
    texts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> list[int]:
        """Number of real tokens per example."""
        return self.attention_mask.sum(dim=1).tolist()

    @property
    def padding_mask(self) -> Bool[Tensor, "batch pos"] | None:
        """The attention mask, None where no example carries padding."""
        return None if bool(self.attention_mask.all()) else self.attention_mask

    def rows(
        self, index: Sequence[int], columns: Int[Tensor, " columns"] | None = None
    ) -> TokenBatch:
        """Some examples, repeated or not, and of them some columns."""
        ids, mask = self.token_ids[list(index)], self.attention_mask[list(index)]
        if columns is not None:
            ids, mask = ids[:, columns], mask[:, columns]
        texts = None if self.texts is None else [self.texts[i] for i in index]
        return TokenBatch(ids, mask, texts)


def tokenize(graph: ModelGraph, text: Any, attention_mask: Tensor | None = None) -> TokenBatch:
    """One string, several strings or token ids, as a padded batch on the model's device.

    Strings follow the model's own ``to_tokens`` (BOS or [CLS] as it does by default). Padding is
    on the left, for masked models on the right, where their positions count from the start.

    Raises:
        InputError: empty or too long text, ids out of range, wrong dtype or shape.
    """
    if isinstance(text, Tensor):
        return _from_ids(graph, text, attention_mask)
    if attention_mask is not None:
        raise InputError("attention_mask goes with token ids; strings are padded for you.")
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Sequence) else None
    if texts is None or not all(isinstance(one, str) for one in texts):
        raise InputError(
            "expected a string, a list of strings, or a LongTensor [batch, pos] of token ids, got "
            f"{type(text).__name__}."
        )
    if not texts:
        raise InputError("the list of texts is empty.")
    rows = [_encode_prompt(graph, one) for one in texts]
    return pad_rows(graph, rows, texts)


def _from_ids(graph: ModelGraph, ids: Tensor, mask: Tensor | None) -> TokenBatch:
    if ids.dtype not in INTEGERS:
        raise InputError(f"token ids must be integers, got {ids.dtype}.")
    _refuse_sparse("token ids", ids)
    if ids.ndim != 2 or 0 in ids.shape:
        raise InputError(
            f"token ids must have shape [batch, pos] and not be empty, got {list(ids.shape)}."
        )
    ids = ids.long()  # torch finds no smallest unsigned number
    if int(ids.min()) < 0 or int(ids.max()) >= graph.d_vocab:
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise InputError(f"token id {bad} is out of range: ids run from 0 to {graph.d_vocab - 1}.")
    _refuse_too_long(graph, ids.shape[1])
    # A clone, because ids made under torch.inference_mode cannot be saved for backward.
    ids = ids.to(graph.device).clone()
    if mask is None:
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    if not isinstance(mask, Tensor):
        raise InputError(
            f"attention_mask must be a tensor [batch, pos], got {type(mask).__name__}."
        )
    _refuse_sparse("attention_mask", mask)
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask {list(mask.shape)} does not fit ids {list(ids.shape)}.")
    mask = mask.to(graph.device).bool().clone()
    if not bool(mask.any(dim=1).all()):
        raise InputError("attention_mask hides every token of an example.")
    return TokenBatch(ids, mask)


def _refuse_sparse(what: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_nested:
        raise InputError(
            f"{what} must be an ordinary dense tensor, got {tensor.layout}: call .to_dense()."
        )


def encode_prompt(graph: ModelGraph, text: str) -> list[int]:
    """The ids of one string as the model reads it, BOS or [CLS] included; of any length.

    Raises:
        InputError: no tokenizer, or an empty text.
    """
    if graph.tokenizer is None:
        raise InputError("the model has no tokenizer: pass token ids [batch, pos] instead.")
    if not text.strip():
        raise InputError("the text is empty.")
    _refuse_half_letters("text", text)
    if graph.is_masked_model:
        return _between_cls_and_sep(graph, text)
    return graph.model.to_tokens(text, truncate=False)[0].tolist()


def character_spans(
    graph: ModelGraph, text: str, token_ids: Sequence[int]
) -> list[tuple[int, int] | None]:
    """Where in ``text`` each token of its encoding stands, without the whitespace around it.

    None for tokens that stand for no character of the text (BOS, [CLS], [SEP]).

    Raises:
        InputError: the tokenizer gives no offsets, or ``token_ids`` is no encoding of ``text``.
    """
    if not getattr(graph.tokenizer, "is_fast", False):
        raise InputError("character spans need offsets, which this tokenizer does not give.")
    plain = graph.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = plain["input_ids"], plain["offset_mapping"]
    before = _first_match(token_ids, ids)
    if before is None:
        raise InputError("the model reads other tokens than its tokenizer makes of the text.")
    spans: list[tuple[int, int] | None] = [None] * len(token_ids)
    spans[before : before + len(ids)] = [trimmed(text, *span) for span in offsets]
    return spans


def _first_match(token_ids: Sequence[int], ids: Sequence[int]) -> int | None:
    starts = range(len(token_ids) - len(ids) + 1)
    return next((i for i in starts if list(token_ids[i : i + len(ids)]) == list(ids)), None)


def _encode_prompt(graph: ModelGraph, text: str) -> list[int]:
    ids = encode_prompt(graph, text)
    _refuse_too_long(graph, len(ids))
    return ids


def _between_cls_and_sep(graph: ModelGraph, text: str) -> list[int]:
    """What BERT reads. The Bridge's copy of the tokenizer no longer adds the two by itself."""
    first, last = graph.tokenizer.cls_token_id, graph.tokenizer.sep_token_id
    before = [] if first is None else [first]
    after = [] if last is None else [last]
    return before + _encode_plain(graph, text) + after


def _refuse_half_letters(what: str, text: str) -> None:
    """Half of a surrogate pair is no letter: tokenizers fail on it, each in its own way."""
    half = next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)
    if half is not None:
        raise InputError(
            f"the {what} holds {half!r}, half of a surrogate pair, which no tokenizer can read: "
            "decode the data as UTF-8 again, or drop it."
        )


def _refuse_too_long(graph: ModelGraph, length: int) -> None:
    if length > graph.n_ctx:
        raise InputError(
            f"the text has {length} tokens, the model reads at most {graph.n_ctx}: shorten it."
        )


def pad_rows(
    graph: ModelGraph, rows: Sequence[Sequence[int]], texts: list[str] | None = None
) -> TokenBatch:
    """Rows of ids as one batch: padded on the left, for masked models on the right."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_token_id(graph), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if graph.is_masked_model else slice(longest - len(row), longest)
        ids[i, where] = torch.tensor(row)
        mask[i, where] = True
    return TokenBatch(ids.to(graph.device), mask.to(graph.device), texts)


def pad_token_id(graph: ModelGraph) -> int:
    """The id that fills padded positions; masked, so any id would do."""
    tokenizer = graph.tokenizer
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0


def str_tokens(graph: ModelGraph, batch: TokenBatch) -> list[list[str]]:
    """One readable string per token; ids in brackets where the model has no tokenizer."""
    rows = batch.token_ids.tolist()
    if graph.tokenizer is None:
        return [[f"[{token}]" for token in row] for row in rows]
    return [[token_string(graph, token) for token in row] for row in rows]


def token_string(graph: ModelGraph, token_id: int) -> str:
    """A token as text, with the space it starts with."""
    if graph.tokenizer is None:
        return f"[{token_id}]"
    piece = graph.tokenizer.convert_ids_to_tokens(token_id)
    if isinstance(piece, str) and piece.startswith("\u2581"):
        return piece.replace("\u2581", " ")
    if isinstance(piece, str) and piece.startswith("##"):
        return piece
    return graph.tokenizer.decode([token_id])


def mask_positions(graph: ModelGraph, batch: TokenBatch) -> list[list[int]]:
    """Where the mask token stands in each example (padded index)."""
    mask_id = getattr(graph.tokenizer, "mask_token_id", None)
    if mask_id is None:
        raise InputError("the tokenizer has no mask token: pass position=.")
    found = (batch.token_ids == mask_id) & batch.attention_mask
    return [row.nonzero().flatten().tolist() for row in found]


def continuation(graph: ModelGraph, string: str, prompt: str | None = None) -> list[int]:
    """The ids of ``string`` as it continues ``prompt``.

    `" was"` is one token on byte-level BPE, ``\u2581was`` on SentencePiece (where encoding `" was"`
    alone gives two tokens) and ``was`` on WordPiece, so it is read off the encoding of both
    together.

    Raises:
        InputError: no tokenizer, an empty string, or one that merges with the end of the prompt.
    """
    if graph.tokenizer is None:
        raise InputError(f"the model has no tokenizer: give the token id instead of {string!r}.")
    if not string:
        raise InputError("the target string is empty.")
    _refuse_half_letters("target", string)
    if graph.is_masked_model:
        string, prompt = f" {string.strip()}", None
    for anchor in ANCHORS if prompt is None else (prompt,):
        before, both = _encode_plain(graph, anchor), _encode_plain(graph, anchor + string)
        if len(both) > len(before) and both[: len(before)] == before:
            return _refuse_unknown(graph, string, both[len(before) :])
    end = "" if prompt is None else f" {prompt[-12:]!r}"
    raise InputError(
        f"{string!r} does not continue the prompt{end} as tokens of its own: the tokenizer merges "
        "the two. Put the space in the target (' are'), none at the end of the text, or give ids."
    )


def _refuse_unknown(graph: ModelGraph, string: str, ids: list[int]) -> list[int]:
    unknown = unknown_token(graph)
    if unknown is None or unknown[0] not in ids or unknown[1] in string:
        return ids
    raise InputError(
        f"the tokenizer does not know {string!r} and reads it as {unknown[1]}: choose a word of "
        "its vocabulary, or give the token id."
    )


def unknown_token(graph: ModelGraph) -> tuple[int, str] | None:
    """Id and string of what the tokenizer writes for text it does not know, if it has such."""
    token_id = getattr(graph.tokenizer, "unk_token_id", None)
    if token_id is None or graph.tokenizer.unk_token == BYTE_LEVEL_UNKNOWN:
        return None
    return token_id, graph.tokenizer.unk_token


def unknown_words(graph: ModelGraph, batch: TokenBatch) -> list[str]:
    """One sentence if strings of the batch hold words that the tokenizer does not know."""
    unknown = unknown_token(graph)
    if unknown is None or batch.texts is None:
        return []
    hits = ((batch.token_ids == unknown[0]) & batch.attention_mask).any(dim=1).tolist()
    examples = [
        i
        for i, (hit, text) in enumerate(zip(hits, batch.texts, strict=True))
        if hit and unknown[1] not in text
    ]
    if not examples:
        return []
    which = ", ".join(map(str, examples[:5])) + (", ..." if len(examples) > 5 else "")
    return [
        f"the tokenizer does not know every word of example {which} and reads {unknown[1]} there."
    ]


def _encode_plain(graph: ModelGraph, text: str) -> list[int]:
    return graph.tokenizer(text, add_special_tokens=False)["input_ids"]


def special_tokens(graph: ModelGraph, batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
    """True on the real tokens that the tokenizer calls special (BOS, [CLS], [MASK], ...)."""
    known = list(getattr(graph.tokenizer, "all_special_ids", None) or ())
    special = torch.tensor(known, dtype=torch.long, device=batch.token_ids.device)
    return torch.isin(batch.token_ids, special) & batch.attention_mask
