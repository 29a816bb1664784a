"""The little English grammar that finds subjects and antecedents in minimal pairs, by rule."""

from __future__ import annotations

from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words("the a an this that these those some many most all every each few no any")
RELATIVE_PRONOUNS = _words("that who which")
PREPOSITIONS = _words("of about by with near behind beside from for in on at to above under")
NOUN_MODIFIERS = _words("newspaper movie public art current high senior taxi security")
"""First halves of compounds, where the noun is not the word after the determiner."""

_AGREEING = {
    "is": "are",
    "was": "were",
    "has": "have",
    "does": "do",
    "goes": "go",
    "isn't": "aren't",
    "wasn't": "weren't",
    "hasn't": "haven't",
    "doesn't": "don't",
}
_OTHER = _AGREEING | {plural: singular for singular, plural in _AGREEING.items()}
_ES_AFTER = ("ss", "sh", "ch", "x", "zz", "o")


def other_number(verb: str) -> str:
    """A present-tense verb in the other number, by the rules of spelling: runs, run; try, tries."""
    if verb in _OTHER:
        return _OTHER[verb]
    if verb.endswith("s") and not verb.endswith("ss"):
        return _without_s(verb)
    if verb.endswith("y") and verb[-2:-1] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(_ES_AFTER) else "s")


def _without_s(verb: str) -> str:
    if verb.endswith("ies") and len(verb) > 4:
        return verb[:-3] + "y"
    stem = verb.removesuffix("es")
    return stem if verb.endswith("es") and stem.endswith(_ES_AFTER) else verb[:-1]


def after_determiner(words: Sequence[str]) -> int:
    """Index of the first word that is no determiner; "a lot of" counts as one."""
    lowered = [word.lower() for word in words[:3]]
    if lowered == ["a", "lot", "of"]:
        return 3
    return 1 if lowered and lowered[0] in DETERMINERS else 0


def simple_noun(words: Sequence[str]) -> int | None:
    """Index of the noun of a first noun phrase of the form (determiner) noun; None if compound."""
    at = after_determiner(words)
    if at >= len(words) or words[at].lower() in NOUN_MODIFIERS:
        return None
    two_names = words[at][:1].isupper() and words[at + 1 : at + 2] and words[at + 1][:1].isupper()
    return None if two_names else at


def head_before(words: Sequence[str], stops: frozenset[str]) -> int | None:
    """Index of the last word before the first of ``stops``; None where there is none."""
    first = after_determiner(words)
    found = (i for i in range(first + 1, len(words)) if words[i].lower() in stops)
    stop = next(found, None)
    return None if stop is None else stop - 1


def spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Character span of each word when they are joined by single spaces."""
    found, at = [], 0
    for word in words:
        found.append((at, at + len(word)))
        at += len(word) + 1
    return found
