"""Made-up text that we ship as code: languages, stories, sums, retrieval, dialogues, captions. Imports no torch.

A document is a pure function of source, seed and number, so a run can continue anywhere, and held-out documents are
those of other numbers.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from l4spec.spec.recipe.data import SyntheticSource
from l4spec.spec.recipe.pictures import Scene, scene

HELD_OUT = 1 << 40
"""Documents from this number on are never trained on."""
NUM_WORDS, NUM_CLASSES = 240, 8
_ONSETS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "ch", "st", "tr", "pl"]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ou"]


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A piece of a document; a loss on answers alone counts `learned` segments only. A `picture` has no text.

    `rejected` is a worse text in its place, for preferences.
    """

    text: str
    learned: bool = True
    picture: Scene | None = None
    rejected: str | None = None


TextDocument = tuple[TextSegment, ...]


@dataclass(frozen=True, slots=True)
class _Language:
    classes: tuple[tuple[str, ...], ...]
    after: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=64)
def _language(number: int) -> _Language:
    """A lexicon in classes, and which three classes may follow each."""
    draw = random.Random(f"language {number}")
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        words["".join(draw.choice(_ONSETS) + draw.choice(_VOWELS) for _ in range(draw.randint(1, 3)))] = None
    listed = list(words)
    classes = tuple(tuple(listed[start::NUM_CLASSES]) for start in range(NUM_CLASSES))
    return _Language(classes, tuple(tuple(draw.sample(range(NUM_CLASSES), 3)) for _ in range(NUM_CLASSES)))


def language(draw: random.Random, number: int) -> TextDocument:
    """Some sentences; of a class the n-th word is chosen about as often as 1/n (Zipf)."""
    known, sentences = _language(number), []
    for _ in range(draw.randint(3, 8)):
        kind, words = draw.randrange(NUM_CLASSES), []
        for _ in range(draw.randint(4, 9)):
            choices = known.classes[kind]
            words.append(choices[int(len(choices) ** draw.random()) - 1])
            kind = known.after[kind][min(int(draw.expovariate(1.2)), 2)]
        sentences.append(" ".join(words).capitalize() + ".")
    return (TextSegment(" ".join(sentences)),)


_ANIMALS = ["owl", "fox", "bear", "cat", "hare", "crow", "frog", "wolf"]
_COLORS = ["red", "green", "gray", "white", "brown", "blue"]
_PLACES = ["forest", "river", "house", "garden", "hill", "field"]
_THINGS = ["stone", "apple", "key", "lamp", "rope", "cup"]
_VERBS = ["finds", "takes", "hides", "washes", "wants", "drops"]


def stories(draw: random.Random, number: int) -> TextDocument:
    """English sentences about one animal, one thing and two places, which stay the same throughout."""
    animal, color, thing = draw.choice(_ANIMALS), draw.choice(_COLORS), draw.choice(_THINGS)
    first, second = draw.sample(_PLACES, 2)
    middle = [f"The {animal} {draw.choice(_VERBS)} the {thing}." for _ in range(draw.randint(1, 4))]
    text = [f"There is a {color} {animal} in the {first}.", *middle, f"Then the {animal} goes to the {second}."]
    return (TextSegment(" ".join([*text, f"The {color} {animal} is in the {second} with the {thing}."])),)


@dataclass(frozen=True, slots=True)
class CheckedProblem:
    """A prompt whose answer can be checked."""

    prompt: str
    answer: str


def problem(draw: random.Random, difficulty: int) -> CheckedProblem:
    """A sum of two numbers, below 5, 10, 20, ... by difficulty."""
    most = 5 * 2**difficulty
    left, right = draw.randrange(most), draw.randrange(most)
    return CheckedProblem(f"{left}+{right}=", str(left + right))


def arithmetic(draw: random.Random, number: int) -> TextDocument:
    """One sum with its answer; only the answer can be learned."""
    made = problem(draw, number)
    return (TextSegment(made.prompt, learned=False), TextSegment(made.answer))


def retrieval(draw: random.Random, number: int) -> TextDocument:
    """`number + 4` keys with values, then one key, whose value is the answer."""
    keys = draw.sample("abcdefghijklmnopqrstuvwxyz", min(26, number + 4))
    values = [draw.choice("0123456789") for _ in keys]
    asked = draw.randrange(len(keys))
    listed = "".join(f"{key}{value} " for key, value in zip(keys, values, strict=True))
    return (TextSegment(f"{listed}?{keys[asked]}", learned=False), TextSegment(values[asked]))


def questions(draw: random.Random, number: int) -> TextDocument:
    """A dialogue: a sum asked for in words, and the answer."""
    made = problem(draw, number)
    asked = draw.choice(("What is {}?", "Add {}.", "{}: how much?")).format(made.prompt.removesuffix("="))
    return (TextSegment(f"Q: {asked}\nA: ", learned=False), TextSegment(made.answer))


_FILLER = "it rains on the hill and the fox sleeps. "
_GROUPS = ["ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY"]


def needles(draw: random.Random, length: int) -> TextDocument:
    """`length` characters: a sentence again and again, in it a letter of each of five groups; digits ask for them.

    The sentence begins anywhere, the letters stand anywhere in it, and all five are asked for at the end, in any order:
    `0` for the one of A to E, `1` for F to J. A guess is right one time in five.
    """
    letters = [draw.choice(group) for group in _GROUPS]
    start, size = draw.randrange(len(_FILLER)), length - 2 * len(_GROUPS)
    text = [_FILLER[(start + place) % len(_FILLER)] for place in range(size)]
    for place, letter in zip(draw.sample(range(size), len(letters)), letters, strict=True):
        text[place] = letter
    order = draw.sample(range(len(letters)), len(letters))
    segments = [TextSegment("".join(text), learned=False)]
    for group in order:
        segments += [TextSegment(str(group), learned=False), TextSegment(letters[group])]
    return tuple(segments)


NEEDLES_LENGTH = 64
"""Characters of a document of `needles` where its source gives none."""


def _needles(draw: random.Random, number: int) -> TextDocument:
    return needles(draw, NEEDLES_LENGTH)


def pictures(draw: random.Random, number: int) -> TextDocument:
    """A picture, and its caption after it."""
    drawn = scene(draw)
    return (TextSegment("", learned=False, picture=drawn), TextSegment(drawn.caption))


TASKS: dict[str, Callable[[random.Random, int], TextDocument]] = {
    "language": language,
    "stories": stories,
    "arithmetic": arithmetic,
    "retrieval": retrieval,
    "questions": questions,
    "needles": _needles,
    "pictures": pictures,
}
"""Makers of documents by the name that a recipe uses."""


def document(task: str, number: int, seed: int, index: int) -> TextDocument:
    """TextDocument `index` of an endless source."""
    return TASKS[task](random.Random(f"{task} {number} {seed} {index}"), number)


def document_of(source: SyntheticSource, seed: int, index: int, length: int | None = None) -> TextDocument:
    """TextDocument `index` of a recipe's source; of `needles` with another `length`, where one is given."""
    if source.task != "needles":
        return document(source.task, source.language, seed, index)
    own = length or source.length or NEEDLES_LENGTH
    return needles(random.Random(f"needles {own} {seed} {index}"), own)
