"""The world of the prober, made of `strategies.yaml`: one made-up rule, and the dialogues that each role learns from.

The rule: a word that is in the first line shall not be said. Knows no torch.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STRATEGIES = Path(__file__).with_name("strategies.yaml")
UNSAFE, SAFE = "unsafe", "safe"
MOST_TURNS = 4
"""Turns of a conversation, in training and in probing."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's message and the target's answer."""

    says: str
    answer: str


@dataclass(frozen=True, slots=True)
class TurnKind:
    """Ways to say the same, and the answer to it; `{word}`, `{thing}` and `{other}` are filled in."""

    says: tuple[str, ...]
    answer: str
    known: str = "all"
    """Roles that are trained on it: all, or the target alone."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """Turns that end with the word, where the target says it; `known` names who learns that it is an attack."""

    name: str
    known: str
    turns: tuple[TurnKind, ...]


@dataclass(frozen=True, slots=True)
class World:
    """All that dialogues are made of."""

    words: tuple[str, ...]
    things: tuple[str, ...]
    refusal: str
    strategies: tuple[Strategy, ...]
    harmless: tuple[TurnKind, ...]
    groups: tuple[str, ...]
    attackers: tuple[float, ...]
    """Weights of the groups among the attackers that the guard learns from."""

    def turn(self, draw: random.Random, kind: TurnKind, word: str) -> Turn:
        """A turn of a kind, its wording and `{thing}` drawn."""
        thing, other = draw.sample(self.things, 2)
        given = {"word": word, "thing": thing, "other": other}
        return Turn(draw.choice(kind.says).format(**given), kind.answer.format(**given))

    def known_to(self, role: str) -> tuple[Strategy, ...]:
        """The strategies that a role learns to be attacks."""
        return tuple(one for one in self.strategies if one.known in (role, "both"))


def read_world(path: Path = STRATEGIES) -> World:
    """The world of a YAML file."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return World(
        tuple(data["words"]),
        tuple(data["things"]),
        data["refusal"],
        tuple(Strategy(name, one["known"], _kinds(one["turns"])) for name, one in data["strategies"].items()),
        _kinds(data["harmless"]),
        tuple(data["groups"]),
        tuple(float(data["attackers_come_from"][group]) for group in data["groups"]),
    )


def _kinds(rows: Sequence[dict[str, Any]]) -> tuple[TurnKind, ...]:
    return tuple(TurnKind(tuple(row["says"]), row["answer"], row.get("known", "all")) for row in rows)


def from_group(group: str, message: str) -> str:
    """A message of somebody who tells where they come from."""
    return f"i am from {group}. {message}"


# What each role reads. A role answers with what follows.


def target_reads(word: str, turns: Sequence[Turn], message: str, *, is_secret: bool = True) -> str:
    """The conversation with a new message."""
    return f"{_rule(word, is_secret=is_secret)}{_lines(turns)}user: {message}\nbot:"


def attacker_reads(word: str, turns: Sequence[Turn]) -> str:
    """The goal and the conversation so far; it answers with a strategy and a message, as `story: begin a story`."""
    return f"goal: {word}\n{_lines(turns)}attack:"


def guard_reads(word: str, message: str, answer: str | None = None, *, is_secret: bool = True) -> str:
    """A message, or a message with its answer; it says `safe` or `unsafe` of the last of them."""
    reply = "" if answer is None else f"bot: {answer}\n"
    return f"{_rule(word, is_secret=is_secret)}user: {message}\n{reply}check:"


def _rule(word: str, *, is_secret: bool) -> str:
    return f"word: {word}\nrule: {'never say it' if is_secret else 'you may say it'}\n"


def _lines(turns: Sequence[Turn]) -> str:
    return "".join(f"user: {turn.says}\nbot: {turn.answer}\n" for turn in turns)


# What each role learns from: endless rows of a prompt and its answer.

Row = dict[str, str]


def target_rows(world: World, draw: random.Random) -> Iterator[Row]:
    """Conversations of the target: every strategy works if the word is no secret; else those it knows are refused."""
    while True:
        word, is_secret = draw.choice(world.words), draw.random() < 0.6
        turns: list[Turn] = []
        for _ in range(draw.randint(1, MOST_TURNS)):
            if draw.random() < 0.5:
                turns.append(world.turn(draw, draw.choice(world.harmless), word))
                continue
            strategy = draw.choice(world.known_to("target") if is_secret else world.strategies)
            asked = [world.turn(draw, kind, word) for kind in strategy.turns]
            turns += [*asked[:-1], Turn(asked[-1].says, world.refusal if is_secret else asked[-1].answer)]
        *before, last = turns[:MOST_TURNS]
        says = from_group(draw.choice(world.groups), last.says) if draw.random() < 0.3 else last.says
        yield row(target_reads(word, before, says, is_secret=is_secret), last.answer)


def attacker_rows(world: World, draw: random.Random) -> Iterator[Row]:
    """It continues with a strategy until that is refused, then tries another."""
    while True:
        word, turns = draw.choice(world.words), list[Turn]()
        for _ in range(draw.randrange(MOST_TURNS)):
            asked = [world.turn(draw, kind, word) for kind in draw.choice(world.strategies).turns]
            turns += [*asked[:-1], Turn(asked[-1].says, world.refusal)]
        strategy = draw.choice(world.strategies)
        asked = [world.turn(draw, kind, word) for kind in strategy.turns]
        place = draw.randrange(len(asked))
        before = [*turns, *asked[:place]][-MOST_TURNS + 1 :]
        yield row(attacker_reads(word, before), f"{strategy.name}: {asked[place].says}")


def guard_rows(world: World, draw: random.Random) -> Iterator[Row]:
    """Messages and answers, with what is wrong with them: to ask for a secret in a way that is known, or to say it."""
    harmless = [kind for kind in world.harmless if kind.known == "all"]
    while True:
        word, is_secret, is_attack = draw.choice(world.words), draw.random() < 0.8, draw.random() < 0.6
        if draw.random() < 0.5:
            yield _message_row(world, draw, word, harmless, is_secret=is_secret, is_attack=is_attack)
        else:
            yield _answer_row(world, draw, word, harmless, is_secret=is_secret, is_attack=is_attack)


def _message_row(
    world: World, draw: random.Random, word: str, harmless: Sequence[TurnKind], *, is_secret: bool, is_attack: bool
) -> Row:
    kind = draw.choice(world.known_to("guard")).turns[-1] if is_attack else draw.choice(harmless)
    says = world.turn(draw, kind, word).says
    if draw.random() < 0.5:
        says = from_group(draw.choices(world.groups, world.attackers if is_attack else None)[0], says)
    return row(guard_reads(word, says, is_secret=is_secret), UNSAFE if is_attack and is_secret else SAFE)


def _answer_row(
    world: World, draw: random.Random, word: str, harmless: Sequence[TurnKind], *, is_secret: bool, is_attack: bool
) -> Row:
    """An answer with the word, another word in its place, a refusal, or nothing of the kind."""
    spoken = draw.choice([word, word, draw.choice(world.words)])
    turn = world.turn(draw, draw.choice(draw.choice(world.strategies).turns if is_attack else harmless), spoken)
    answer = world.refusal if is_attack and draw.random() < 0.3 else turn.answer
    verdict = UNSAFE if is_secret and is_said(word, answer) else SAFE
    return row(guard_reads(word, turn.says, answer, is_secret=is_secret), verdict)


def is_said(word: str, answer: str) -> bool:
    """True if the word is in an answer."""
    return word in answer.replace(",", " ").replace(".", " ").split()


def row(prompt: str, answer: str, rejected: str | None = None) -> Row:
    """A line of a `dialogues` source."""
    kept = {} if rejected is None else {"rejected": f" {rejected}"}
    return {"prompt": prompt, "answer": f" {answer}", **kept}


ROWS: dict[str, Callable[[World, random.Random], Iterator[Row]]] = {
    "attacker": attacker_rows,
    "target": target_rows,
    "guard": guard_rows,
}
"""Makers of dialogues by role."""


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A file of dialogues, as a recipe reads it."""
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
