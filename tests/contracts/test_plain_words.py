"""Pages, messages, docstrings and specs use the field's words: patterns find those that a reader has to guess."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HISTORY = {"decisions.md"}
"""Pages that keep the words of their day."""

PLAINER = {
    r"\btold\b": "given, reported, passed",
    r"\bwanted\b": "expected, needed, requested",
    r"(?<!Llama [34] )\bherd\b": "the models of Llama 4",
    r"\bheld\b(?!-out| out\b| back\b)": "stored, kept, built; `held-out` data stays",
    r"\bh(?:old|olds|olding|eld) [^.;:|]{0,60}\bagainst\b": "compare with",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bbut for\b": "except",
    r"\bwithout a word\b": "without a message, silently",
    r"\bin the place of\b": "instead of, at the position of",
    r"\bat hand\b": "available, current",
    r"\banew\b": "again",
    r"\bhands? (?:in|on|over)\b(?!-)": "passes, returns, sends",
    r"\bworked out\b": "computed",
    r"\bgo(?:es)? on\b": "continues, resumes",
    r"\blies (?:on|in|outside|there|beside|elsewhere)\b": "is",
    r"\bstands? (?:in|on|there|inside|around|beside|before|at)\b": "is, appears",
    r", of them\b": "of which",
    r"\bnobody's\b": "assumed, unpublished",
}
"""A private word, as a pattern, and what to write instead."""

ROOMS = ("l4spec", "planners", "website", "examples", "benchmarks")
QUESTION = re.compile(r"(What|How|Which|Whether|Where|When|Who|Whose|Why)\b")
"""Begins a docstring with a question instead of its subject: write a noun phrase ("Bytes of …", "Reason why …", "True
if …") or an imperative, with the field's term first."""
SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z])")

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def private_words(text: str) -> list[str]:
    """The private words of a text, each with what to write instead."""
    plain = " ".join(text.split())
    matches = [
        (match[0], instead) for pattern, instead in PLAINER.items() for match in re.finditer(pattern, plain, re.I)
    ]
    return [f"{word!r} (write: {instead})" for word, instead in matches]


def pages() -> dict[str, str]:
    """Every page that people read, without its blocks of code and output; help texts are prose."""
    files = [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "tests/README.md",
    ]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.name not in HISTORY}
    return {
        path.relative_to(ROOT).as_posix(): text if path.name == "cli.md" else _FENCE.sub("", text)
        for path, text in texts.items()
    }


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string of several words: help, labels, errors and hints, docstrings too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of a module: of itself, classes, functions, fields and constants."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                yield node.lineno, docstring


def questions(text: str) -> list[int]:
    """Lines of docstrings that begin with a question word, or that have a sentence with What or Who as its subject.

    Further sentences may begin with "How" and "Where": these begin adverbial clauses too.
    """
    return [line for line, docstring in docstrings(text) if _asks(" ".join(docstring.split()))]


def _asks(docstring: str) -> bool:
    first, *others = SENTENCE.split(docstring)
    return QUESTION.match(first) is not None or any(re.match(r"(What|Who)\b", sentence) for sentence in others)


def test_pages_and_templates_use_plain_words() -> None:
    templates = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "l4spec").rglob("*.j2")}
    texts = pages() | templates
    assert len(templates) >= 5
    assert len(texts) >= 40
    assert {page: words for page, text in texts.items() if (words := private_words(text))} == {}


def test_messages_and_docstrings_use_plain_words() -> None:
    files = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    places = {f"{path.relative_to(ROOT).as_posix()}:{line}": text for path in files for line, text in sentences(path)}
    assert len(places) >= 4_000
    assert {place: words for place, text in places.items() if (words := private_words(text))} == {}


def test_docstrings_name_the_thing_first() -> None:
    texts = {path: path.read_text(encoding="utf-8") for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}
    assert sum(1 for text in texts.values() for _ in docstrings(text)) >= 6_000
    assert {
        path.relative_to(ROOT).as_posix(): lines for path, text in texts.items() if (lines := questions(text))
    } == {}


def test_specs_and_catalogues_use_plain_words() -> None:
    """Descriptions, notes and comments; titles of sources stay as they were published."""
    rooms = ("specs", "l4spec", "planners", "examples")
    files = sorted(path for room in rooms for path in (ROOT / room).rglob("*.yaml"))
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    assert len(texts) >= 100
    assert {place: words for place, text in texts.items() if (words := private_words(text))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "the plan is held against the run",
        "each rank holds its part\nagainst the plan",
        "a rank that is told its layout",
        "names the place and the mend",
        "everything but for the first layer",
        "the tensor lies on the meta device",
        "parameters, of them active",
    ],
)
def test_a_private_word_is_noticed(text: str) -> None:
    assert private_words(text)


@pytest.mark.parametrize(
    "text",
    [
        "held-out loss, and text that was held out",
        "prompts are held back on purpose",
        "a share of held-out data, compared with the plan",
        "(Meta AI, The Llama 4 herd)",
        "amended files, and recommended settings",
        "runs one of them per token",
        "a hands-on example",
    ],
)
def test_words_of_the_field_stay_allowed(text: str) -> None:
    assert private_words(text) == []


@pytest.mark.parametrize(
    "text",
    [
        'def f(model):\n    """What a model costs."""',
        'class Cache:\n    size: int\n    """How many tokens fit."""',
        '"""Which ranks send to each other."""',
        'LIMIT = 3\n"""\nWhere it ends."""',
        'def f(model):\n    """Cost of a model. What it does not need is left out."""',
    ],
)
def test_a_docstring_that_begins_with_a_question_is_noticed(text: str) -> None:
    assert questions(text)


@pytest.mark.parametrize("text", ['"""Whatever the layout: one rank."""', 'def f():\n    """Reason why it failed."""'])
def test_a_docstring_that_names_the_thing_is_accepted(text: str) -> None:
    assert questions(text) == []
