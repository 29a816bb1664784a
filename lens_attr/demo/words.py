"""The words of the demo language: pairs are ``(singular, plural)`` throughout."""

from __future__ import annotations

Pair = tuple[str, str]


def _pairs(text: str) -> tuple[Pair, ...]:
    """Read ``"key keys, box boxes"`` into pairs."""
    return tuple((one, many) for one, many in (entry.split() for entry in text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MALE = _pairs(
    "man men, boy boys, king kings, father fathers, brother brothers, son sons, uncle uncles, "
    "prince princes, actor actors, waiter waiters, nephew nephews, monk monks, duke dukes, "
    "wizard wizards, husband husbands, gentleman gentlemen"
)
FEMALE = _pairs(
    "woman women, girl girls, queen queens, mother mothers, sister sisters, daughter daughters, "
    "aunt aunts, princess princesses, actress actresses, waitress waitresses, niece nieces, "
    "nun nuns, duchess duchesses, witch witches, wife wives, lady ladies"
)
NEUTRAL = _pairs(
    "child children, person people, doctor doctors, teacher teachers, farmer farmers, "
    "pilot pilots, author authors, senator senators, student students, guard guards, "
    "judge judges, astronaut astronauts, photographer photographers"
)
ANIMALS = _pairs(
    "dog dogs, cat cats, horse horses, goose geese, mouse mice, wolf wolves, ox oxen, "
    "fox foxes, bird birds, crocodile crocodiles"
)
THINGS = _pairs(
    "key keys, box boxes, ball balls, cup cups, book books, lamp lamps, coin coins, "
    "knife knives, loaf loaves, bell bells, hat hats, map maps, pen pens, ring rings, "
    "drum drums, brush brushes, watch watches, bag bags, basket baskets, bottle bottles, "
    "candle candles, blanket blankets, mirror mirrors, hammer hammers, letter letters, "
    "ticket tickets, trumpet trumpets, umbrella umbrellas, shelf shelves, ladder ladders"
)

PEOPLE = MALE + FEMALE + NEUTRAL
LIVING = PEOPLE + ANIMALS
NOUNS = LIVING + THINGS

PLACES = _words(
    "kitchen garden attic cellar garage bedroom hall office barn library tower school park "
    "shop church forest museum station bathroom stable"
)

# Present-tense verbs, each group with the endings that may follow it.
COPULAS = _pairs("is are, was were, looks look, seems seem, remains remain")
COPULA_ENDINGS = (" very old .", " quite small .", " new .", " strange .", " lost .")
AUXILIARIES = _pairs("has have")
AUXILIARY_ENDINGS = (" moved .", " fallen again .", " been here before .")
NEGATABLE = _pairs("does do")
NEGATABLE_ENDINGS = (" not move .", " not fall .", " not matter .")
MOTION_VERBS = _pairs("stands stand, falls fall, moves move, turns turn, shakes shake, stays stay")
LIVING_VERBS = _pairs(
    "runs run, sings sing, walks walk, eats eat, laughs laugh, cries cry, smiles smile, "
    "plays play, jumps jump, swims swim, works work, talks talk, dances dance, goes go, "
    "hurries hurry, thinks think, sits sit, waits wait, sleeps sleep, listens listen"
)
PLAIN_ENDINGS = (" .", " every day .", " near the house .", " in the rain .", " at night .")

# Past-tense verbs have one form for both numbers, so they never give the number away.
RELATIVE_VERBS = _words(
    "liked saw followed helped knew met heard found chased feared loved hated passed"
)
REFLEXIVE_VERBS = _words(
    "hurt blamed praised washed defended taught admired dressed warned trusted described "
    "protected saved watched introduced forgave drew prepared imagined surprised"
)
REFLEXIVE_ENDINGS = (" .", " yesterday .", " again .", " in the end .", " without help .")
REFLEXIVES = {"male": " himself", "female": " herself", "plural": " themselves"}

ADJECTIVES = _words(
    "old young small big red green quiet famous strange happy dark heavy clever poor"
)
ADVERBS = _words("often never always still rarely now usually")
PREPOSITIONS = ("near", "behind", "beside", "with", "above", "next to", "in front of")
DETERMINERS = ("the", "the", "the", "my", "your", "our")
OPENINGS = (
    "yesterday ,",
    "in the morning ,",
    "at noon ,",
    "after dinner ,",
    "on most days ,",
    "during the storms ,",
    "as they say ,",
)
