"""What a tokenizer's tokens say of the text they stand for; results keep it in its place."""

from __future__ import annotations

from typing import Any

WORD_MARKS = ("\u0120", "\u2581")
"""How byte-level BPE and SentencePiece write the space before a word."""

_NO_TEXT = ("bos_token", "eos_token", "cls_token", "sep_token", "pad_token")
_SOME_TEXT = ("mask_token", "unk_token")


def spelling_facts(tokenizer: Any) -> dict[str, Any]:
    """``spaces``: whether tokens carry the spaces of the text. ``special``: ids of no text.

    The mask and the unknown token are special to tokenizers, but stand where text stands.
    """
    if tokenizer is None:
        return {"spaces": False, "special": []}
    pieces = tokenizer.convert_ids_to_tokens(
        tokenizer("a a", add_special_tokens=False)["input_ids"]
    )
    special = set(getattr(tokenizer, "all_special_tokens", None) or ())
    special -= {getattr(tokenizer, name, None) for name in _SOME_TEXT}
    special |= {getattr(tokenizer, name, None) for name in _NO_TEXT} - {None}
    names = sorted(map(str, special))
    ids = tokenizer.convert_tokens_to_ids(names)
    # The Bridge gives BERT the end of text of another model, whose id is that of the unknown token.
    own = zip(ids, names, strict=True)
    return {
        "spaces": any(piece.startswith(WORD_MARKS) for piece in pieces),
        "special": sorted(
            i for i, t in own if i is not None and tokenizer.convert_ids_to_tokens(i) == t
        ),
    }
