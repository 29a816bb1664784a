"""A generator of English-like sentences whose next word has a known reason.

Three tasks, each with a machine-checkable truth span:

* ``sva``, subject-verb agreement: ``the keys near the old cabinet`` -> ``are``, not ``is``;
* ``ra``, reflexive anaphora: ``the king who the women liked hurt`` -> ``himself``;
* ``qa``, extractive question answering:
  ``the box is in the kitchen . the key is in the hall . Q where is the box A`` -> ``kitchen``.

Nothing but the truth word tells the answer from the foil: determiners, adjectives and the verbs
of relative clauses have one form for both numbers, and the features of an intervening noun are
drawn independently of those of the word that decides, so they carry no hint either way.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from lens_attr.demo import words
from lens_attr.errors import InputError, did_you_mean
from lens_attr.types import Sample

Split = Literal["train", "heldout"]
Span = tuple[int, int]
Combination = tuple[str, str, str]

TASKS = ("sva", "ra", "qa")
ALL_TASKS = "all"
ATTRACTORS = ("none", "pp", "rc")
NO_NOUN = "-"
HELDOUT_ONE_IN = 10

_LIVING = frozenset(words.LIVING)
_PEOPLE = frozenset(words.PEOPLE)


def generate(
    task: str,
    n: int,
    seed: int = 0,
    split: Split = "heldout",
    attractor: str | None = None,
) -> list[Sample]:
    """Draw ``n`` samples of one task, the same ones for the same arguments on every machine.

    A smaller ``n`` gives a prefix of a larger one. Sentences are drawn independently, so a
    large ``n`` may repeat a text.

    Args:
        task: ``"sva"``, ``"ra"`` or ``"qa"``; ``"all"`` takes them in turn.
        n: how many samples.
        seed: which samples.
        split: ``"heldout"`` samples use a combination (noun, verb, attractor; in qa: object,
            place, other object) that no ``"train"`` sample contains.
        attractor: keep to one structure between the deciding noun and the answer: ``"none"``,
            ``"pp"`` (prepositional), ``"rc"`` (relative clause), or ``"any"`` of the latter two.
            ``None`` mixes all. In qa the other facts are the attractors, so it takes only
            ``None`` and ``"any"``.

    Raises:
        InputError: an argument is unknown or negative.
    """
    if task == ALL_TASKS:
        return _interleaved(n, seed, split, attractor)
    kinds = _check(task, n, split, attractor)
    rng = random.Random(f"{task}/{split}/{attractor}/{seed}")
    source = f"lens_attr generator, split {split}, seed {seed}"
    samples: list[Sample] = []
    while len(samples) < n:
        draft = _DRAW[task](rng, rng.choice(kinds))
        if _belongs(task, draft.combinations, split):
            samples.append(draft.sample(task, source))
    return samples


def _interleaved(n: int, seed: int, split: Split, attractor: str | None) -> list[Sample]:
    each = [generate(task, -(-n // len(TASKS)), seed, split, attractor) for task in TASKS]
    return [sample for turn in zip(*each, strict=True) for sample in turn][:n]


def is_heldout(task: str, combination: Combination) -> bool:
    """Whether a combination is kept from training: decided by a stable hash, about one in ten."""
    key = "|".join((task, *combination)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % HELDOUT_ONE_IN == 0


def _check(task: str, n: int, split: str, attractor: str | None) -> tuple[str, ...]:
    """Validate the arguments of `generate`; return the attractor kinds to draw from."""
    if task not in TASKS:
        raise InputError(f"Unknown task {task!r}; {did_you_mean(str(task), TASKS)}")
    if split not in get_args(Split):
        raise InputError(f"Unknown split {split!r}; {did_you_mean(str(split), get_args(Split))}")
    if n < 0:
        raise InputError(f"n is {n}; ask for zero or more samples.")
    choices: dict[str | None, tuple[str, ...]] = {None: ("facts",), "any": ("facts",)}
    if task != "qa":
        choices = {None: ATTRACTORS, "any": ATTRACTORS[1:]} | {kind: (kind,) for kind in ATTRACTORS}
    if attractor not in choices:
        known = [choice for choice in choices if choice is not None]
        hint = did_you_mean(str(attractor), known)
        raise InputError(f"Task {task!r} has no attractor {attractor!r}; {hint}")
    return choices[attractor]


@dataclass
class _Draft:
    """A text under construction: words joined by single spaces, with the span of each."""

    text: str = ""
    answer: str = ""
    foil: str = ""
    suffix: str = ""
    truth: Span = (0, 0)
    tags: dict[str, str] = field(default_factory=dict)
    combinations: list[Combination] = field(default_factory=list)

    def add(self, phrase: str) -> Span:
        """Append a phrase; an empty one leaves the text as it is."""
        if phrase:
            self.text += f" {phrase}" if self.text else phrase
        return len(self.text) - len(phrase), len(self.text)

    def sample(self, task: str, source: str) -> Sample:
        tags = {**self.tags, "combination": " ".join(self.combinations[0])}
        return Sample(
            text=self.text,
            answer=self.answer,
            foil=self.foil,
            truth=(self.truth,),
            task=task,
            suffix=self.suffix,
            source=source,
            tags=tags,
        )


def _belongs(task: str, combinations: list[Combination], split: Split) -> bool:
    """Training texts contain no held-out combination; a held-out text asks about one."""
    if split == "heldout":
        return is_heldout(task, combinations[0])
    return not any(is_heldout(task, combination) for combination in combinations)


def _sometimes(rng: random.Random, phrases: tuple[str, ...], chance: float) -> str:
    return rng.choice(phrases) if rng.random() < chance else ""


def _yes_no(condition: bool) -> str:
    return "yes" if condition else "no"


def _add_noun(draft: _Draft, rng: random.Random, noun: str) -> Span:
    """Append ``the (old) noun`` and return the span of the noun alone."""
    draft.add(rng.choice(words.DETERMINERS))
    draft.add(_sometimes(rng, words.ADJECTIVES, 0.25))
    return draft.add(noun)


def _add_attractor(
    draft: _Draft, rng: random.Random, kind: str, head: words.Pair, others: list[str]
) -> None:
    """Put the other nouns between the head noun and the verb that agrees with it."""
    if kind == "pp":
        for other in others:
            draft.add(rng.choice(words.PREPOSITIONS))
            _add_noun(draft, rng, other)
    elif kind == "rc":
        draft.add(rng.choice(("that", "who")) if head in _PEOPLE else "that")
        verb = rng.choice(words.RELATIVE_VERBS)
        if head in _LIVING and rng.random() < 0.5:  # the king who liked the women
            draft.add(verb)
            _add_noun(draft, rng, others[0])
        else:  # the king who the women liked
            _add_noun(draft, rng, others[0])
            draft.add(verb)


def _other_count(rng: random.Random, kind: str) -> int:
    """One noun intervenes, sometimes two in a chain: near the tables behind the house."""
    if kind == "none":
        return 0
    return 2 if kind == "pp" and rng.random() < 0.25 else 1


def _combine(head: str, verb: str, others: list[str]) -> list[Combination]:
    return [(head, verb, other) for other in others] or [(head, verb, NO_NOUN)]


def _verb_and_ending(rng: random.Random, subject: words.Pair) -> tuple[words.Pair, str]:
    """A present-tense verb that suits the subject, and the rest of the sentence."""
    verb = rng.choice(_LIVING_SUBJECT_VERBS if subject in _LIVING else _ANY_SUBJECT_VERBS)
    return verb, rng.choice(_ENDINGS[verb])


_ENDINGS = {
    **dict.fromkeys(words.COPULAS, words.COPULA_ENDINGS),
    **dict.fromkeys(words.AUXILIARIES, words.AUXILIARY_ENDINGS),
    **dict.fromkeys(words.NEGATABLE, words.NEGATABLE_ENDINGS),
    **dict.fromkeys(words.MOTION_VERBS + words.LIVING_VERBS, words.PLAIN_ENDINGS),
}
_ANY_SUBJECT_VERBS = words.COPULAS + words.AUXILIARIES + words.NEGATABLE + words.MOTION_VERBS
_LIVING_SUBJECT_VERBS = _ANY_SUBJECT_VERBS + words.LIVING_VERBS
_NUMBERS = ("singular", "plural")


def _draw_sva(rng: random.Random, kind: str) -> _Draft:
    """The number of the head noun decides the form of the verb that comes next."""
    subject, number = rng.choice(words.NOUNS), rng.randrange(2)
    verb, ending = _verb_and_ending(rng, subject)
    pool = words.LIVING if kind == "rc" else words.NOUNS
    others = rng.sample([noun for noun in pool if noun != subject], _other_count(rng, kind))
    other_numbers = [rng.randrange(2) for _ in others]

    draft = _Draft(answer=f" {verb[number]}", foil=f" {verb[1 - number]}", suffix=ending)
    draft.add(_sometimes(rng, words.OPENINGS, 0.25))
    draft.truth = _add_noun(draft, rng, subject[number])
    forms = [noun[i] for noun, i in zip(others, other_numbers, strict=True)]
    _add_attractor(draft, rng, kind, subject, forms)
    draft.add(_sometimes(rng, words.ADVERBS, 0.2))
    draft.tags = {
        "attractor": kind,
        "number": _NUMBERS[number],
        "conflict": _yes_no(any(other != number for other in other_numbers)),
    }
    draft.combinations = _combine(subject[0], verb[1], [noun[0] for noun in others])
    return draft


def _draw_person(rng: random.Random, feature: str) -> tuple[words.Pair, str]:
    """A person whose reflexive is the one of ``feature``: the pair and the form to write."""
    if feature == "plural":
        person = rng.choice(words.PEOPLE)
        return person, person[1]
    person = rng.choice(words.MALE if feature == "male" else words.FEMALE)
    return person, person[0]


def _draw_ra(rng: random.Random, kind: str) -> _Draft:
    """The gender and number of the antecedent decide the reflexive pronoun."""
    features = tuple(words.REFLEXIVES)
    feature, verb = rng.choice(features), rng.choice(words.REFLEXIVE_VERBS)
    antecedent, form = _draw_person(rng, feature)
    other_features = [rng.choice(features) for _ in range(_other_count(rng, kind))]
    others = [_draw_person(rng, other) for other in other_features]
    conflicting = [other for other in other_features if other != feature]
    foil = rng.choice(conflicting or [rival for rival in features if rival != feature])

    draft = _Draft(
        answer=words.REFLEXIVES[feature],
        foil=words.REFLEXIVES[foil],
        suffix=rng.choice(words.REFLEXIVE_ENDINGS),
    )
    draft.add(_sometimes(rng, words.OPENINGS, 0.25))
    draft.truth = _add_noun(draft, rng, form)
    _add_attractor(draft, rng, kind, antecedent, [other_form for _, other_form in others])
    draft.add(_sometimes(rng, words.ADVERBS, 0.2))
    draft.add(verb)
    draft.tags = {
        "attractor": kind,
        "number": _NUMBERS[feature == "plural"],
        "gender": "any" if feature == "plural" else feature,
        "conflict": _yes_no(bool(conflicting)),
    }
    draft.combinations = _combine(antecedent[0], verb, [pair[0] for pair, _ in others])
    return draft


def _draw_qa(rng: random.Random, kind: str) -> _Draft:
    """Two to four facts, then a question about one of them; its place is the answer."""
    count = rng.randint(2, 4)
    objects = [thing for thing, _ in rng.sample(words.THINGS, count)]
    places = rng.sample(words.PLACES, count)
    asked, rival = rng.sample(range(count), 2)

    draft = _Draft(answer=f" {places[asked]}", foil=f" {places[rival]}", suffix=" .")
    spans = [_add_fact(draft, rng, *fact) for fact in zip(objects, places, strict=True)]
    draft.add(f"Q where is the {objects[asked]} A")
    draft.truth = spans[asked]
    draft.tags = {
        "attractor": kind,
        "facts": str(count),
        "asked": str(asked + 1),
        "conflict": _yes_no(True),
    }
    draft.combinations = _fact_combinations(objects, places, asked, rival)
    return draft


def _add_fact(draft: _Draft, rng: random.Random, thing: str, place: str) -> Span:
    """Append ``the (red) box is in the kitchen .`` and return the span of the place."""
    draft.add("the")
    draft.add(_sometimes(rng, words.ADJECTIVES, 0.25))
    draft.add(f"{thing} is in the")
    span = draft.add(place)
    draft.add(".")
    return span


def _fact_combinations(
    objects: list[str], places: list[str], asked: int, rival: int
) -> list[Combination]:
    """The question's combination first, then every other (object, place, object) of the text.

    The others matter because a training text must not even mention a held-out combination.
    """
    pairs = [(asked, rival)] + [
        (i, j)
        for i in range(len(objects))
        for j in range(len(objects))
        if i != j and (i, j) != (asked, rival)
    ]
    return [(objects[i], places[i], objects[j]) for i, j in pairs]


_DRAW: dict[str, Callable[[random.Random, str], _Draft]] = {
    "sva": _draw_sva,
    "ra": _draw_ra,
    "qa": _draw_qa,
}
