"""Words and phrases that may stand for each other, and swapping one of them in a text.

The list is our own: of the demo language (`lens_attr.demo.words`), and common English function
words, adverbs, adjectives and verbs. No noun is in it, so nothing changes the number or the gender
that an answer agrees with; a verb stands beside others in the same form. Words that mean something
else in a common phrase (how many, used to, each other) are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_AUXILIARIES = (
    "is", "are", "was", "were", "has", "have", "had", "does", "do", "did",
    "could", "would", "should", "must",
)  # fmt: skip

_GROUPS: tuple[tuple[str, ...], ...] = (
    # the demo language
    ("near", "beside", "next to"),
    ("often", "usually"),
    ("liked", "loved"),
    ("hated", "despised"),
    ("followed", "chased"),
    ("saw", "noticed"),
    ("found", "discovered"),
    ("helped", "assisted"),
    ("defended", "protected"),
    ("praised", "admired"),
    ("taught", "instructed"),
    ("big", "large"),
    ("small", "little"),
    ("quiet", "silent"),
    ("strange", "odd"),
    ("happy", "glad"),
    ("clever", "smart"),
    ("rarely", "seldom"),
    ("maybe", "perhaps"),
    ("at noon", "at midday"),
    ("on most days", "most days"),
    ("as they say", "so they say"),
    # function words
    *((f"{verb}n't", f"{verb} not") for verb in _AUXILIARIES),
    ("can't", "cannot"),
    ("won't", "will not"),
    ("a lot of", "lots of", "plenty of"),
    ("although", "even though"),
    ("whilst", "while"),
    ("until", "till"),
    ("among", "amongst"),
    ("toward", "towards"),
    ("beneath", "underneath"),
    ("despite", "in spite of"),
    ("regarding", "concerning"),
    ("due to", "because of", "owing to"),
    ("along with", "together with"),
    ("in order to", "so as to"),
    ("during", "in the course of"),
    ("more than", "in excess of"),
    ("should", "ought to"),
    # adverbs
    ("for example", "for instance"),
    ("however", "nevertheless", "nonetheless"),
    ("therefore", "thus", "consequently"),
    ("moreover", "furthermore"),
    ("subsequently", "afterwards"),
    ("approximately", "roughly"),
    ("almost", "nearly"),
    ("completely", "entirely", "wholly"),
    ("very", "extremely"),
    ("quickly", "rapidly", "swiftly"),
    ("mainly", "chiefly", "primarily"),
    ("sometimes", "occasionally"),
    ("frequently", "regularly"),
    ("immediately", "instantly"),
    ("finally", "eventually"),
    ("recently", "lately"),
    ("formerly", "previously"),
    ("originally", "initially"),
    ("currently", "at present"),
    ("especially", "particularly"),
    ("certainly", "surely"),
    ("really", "truly"),
    ("exactly", "precisely"),
    ("partly", "partially"),
    # adjectives
    ("important", "significant"),
    ("famous", "well-known"),
    ("difficult", "hard"),
    ("wealthy", "affluent"),
    ("brave", "courageous"),
    ("huge", "enormous", "gigantic"),
    ("tiny", "minuscule"),
    ("whole", "entire"),
    ("various", "diverse"),
    ("numerous", "very many"),
    ("previous", "former"),
    ("additional", "further"),
    ("sick", "ill"),
    ("terrible", "awful", "dreadful"),
    ("funny", "amusing"),
    ("dull", "tedious"),
    # verbs
    ("annoyed", "irritated"),
    ("annoy", "irritate"),
    ("annoys", "irritates"),
    ("annoying", "irritating"),
    ("revealed", "disclosed"),
    ("reveal", "disclose"),
    ("reveals", "discloses"),
    ("concealed", "hid"),
    ("described", "depicted"),
    ("describe", "depict"),
    ("describes", "depicts"),
    ("discussed", "talked about"),
    ("discuss", "talk about"),
    ("discusses", "talks about"),
    ("discussing", "talking about"),
    ("astounded", "astonished"),
    ("astounding", "astonishing"),
    ("disturbed", "bothered"),
    ("disturbing", "bothering"),
    ("scared", "frightened"),
    ("stunned", "shocked"),
    ("confused", "bewildered"),
    ("insulted", "offended"),
    ("cured", "healed"),
    ("questioned", "interrogated"),
    ("criticized", "criticised"),
    ("criticize", "criticise"),
    ("bought", "purchased"),
    ("began", "started"),
    ("built", "constructed"),
    ("obtained", "acquired"),
    ("claimed", "asserted"),
    ("attempted", "tried"),
    ("allowed", "permitted"),
    ("required", "needed"),
    ("remained", "stayed"),
    ("happened", "occurred"),
    ("located", "situated"),
    ("founded", "established"),
    ("called", "named"),
    ("created", "produced"),
    ("governed", "ruled"),
)

SYNONYMS: Mapping[str, Sequence[str]] = {
    word: [other for other in group if other != word] for group in _GROUPS for word in group
}
"""What may stand in the place of each word or phrase."""

_PHRASE = re.compile(
    rf"(?<![\w-])(?:{'|'.join(re.escape(one) for one in sorted(SYNONYMS, key=len, reverse=True))})"
    r"(?![\w-])",
    re.IGNORECASE,
)


def swaps(text: str) -> list[tuple[int, int, list[str]]]:
    """Start and end of every word or phrase of the list, and what may stand there."""
    found = [
        (*one.span(), _fitting(text, one.start(), one.group())) for one in _PHRASE.finditer(text)
    ]
    return [swap for swap in found if swap[2]]


def _fitting(text: str, start: int, phrase: str) -> list[str]:
    """Synonyms of a phrase, capitalised as it is, that leave "a" or "an" before it right."""
    others = SYNONYMS[phrase.lower()]
    if re.search(r"\ban?\s+$", text[:start], re.IGNORECASE):
        others = [other for other in others if _opens(other) == _opens(phrase)]
    return [one.capitalize() for one in others] if phrase[0].isupper() else list(others)


def _opens(phrase: str) -> bool:
    """Whether it starts with a vowel."""
    return phrase[0].lower() in "aeiou"
