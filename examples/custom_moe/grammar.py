"""Endless synthetic text: short stories by a small grammar, as token ids.

A story is about one animal with one colour at one place, said at its beginning. Every later sentence names them again,
so that a model that remembers the beginning knows words which the grammar alone leaves open.
"""

import random
from collections.abc import Iterator

ANIMALS = ("cat", "dog", "fox", "owl", "hen", "cow", "bee", "ant")
COLOURS = ("red", "blue", "green", "white", "black", "brown")
PLACES = ("garden", "house", "forest", "river", "hill", "field")
VERBS = ("sees", "likes", "follows", "finds", "hears", "calls")
OTHERS = ("bird", "child", "horse", "frog", "stone", "moon")
SMALL = ("there", "is", "a", "the", "in", "and", "then", "goes", "to", "it", "sleeps", ".", "<story>")
WORDS = (*SMALL, *ANIMALS, *COLOURS, *PLACES, *VERBS, *OTHERS)
"""The vocabulary: the id of a word is its place here."""
_IDS = {word: index for index, word in enumerate(WORDS)}
MIN_SENTENCES, MAX_SENTENCES = 3, 6


def stories(seed: int) -> Iterator[int]:
    """Token ids of one story after another, the same for the same seed."""
    draw = random.Random(seed)
    while True:
        for word in _story(draw):
            yield _IDS[word]


def ids_of(text: str) -> list[int]:
    """The ids of words; KeyError for an unknown one."""
    return [_IDS[word] for word in text.split()]


def text_of(ids: list[int]) -> str:
    """The words of ids; those beyond the vocabulary show as `?`."""
    return " ".join(WORDS[index] if index < len(WORDS) else "?" for index in ids)


def _story(draw: random.Random) -> Iterator[str]:
    animal, colour, place = draw.choice(ANIMALS), draw.choice(COLOURS), draw.choice(PLACES)
    hero = f"the {colour} {animal}"
    yield from f"<story> there is a {colour} {animal} in the {place} .".split()
    for _ in range(draw.randint(MIN_SENTENCES, MAX_SENTENCES)):
        yield from _sentence(draw, hero, place).split()
    yield from f"then {hero} sleeps in the {place} .".split()


def _sentence(draw: random.Random, hero: str, place: str) -> str:
    verb, other = draw.choice(VERBS), draw.choice(OTHERS)
    forms = (
        f"{hero} {verb} a {other} .",
        f"{hero} goes to the {place} and {verb} the {other} .",
        f"then it {verb} a {other} in the {place} .",
    )
    return draw.choice(forms)
