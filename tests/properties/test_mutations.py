"""Whatever is written into a spec, the answer is a plan or a list of problems, never a traceback."""

from typing import Literal

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import l4spec
from l4spec.errors import Problem, UserError
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from planners.plan import plan
from tests.strategies import Data, models

MANY = max(300, settings().max_examples)
NUMBERLIKE = ["-1", "0", "1e400", ".nan", "-.inf", "5e5", "1_0", "0x10", "1.5", "9223372036854775808", "1099511627776"]
WORDS = ["on", "null", "~", "true", "kind", "gqa", "moe", "''", "99999999999999999999999", "2001-01-01", "*x", "&a"]
SYNTAX = [
    "[]",
    "{}",
    "[[1]]",
    "{a: 1}",
    "!!python/object:x {}",
    "- 3",
    "? x",
    "|",
    "%",
    "@",
    "\x00",
    "\t",
    "é",
    "\u2028",
]
STRANGE = st.sampled_from([*NUMBERLIKE, *WORDS, *SYNTAX, "\ud7ff"])


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The YAML of a valid model with a few lines, words or characters changed, moved, doubled or dropped."""
    lines = yaml.safe_dump(draw(models()), sort_keys=False).splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["value", "key", "drop", "double", "swap", "indent", "insert", "cut"])):
            case "value":
                lines[at] = f"{lines[at].partition(':')[0]}: {draw(STRANGE | st.text(max_size=12))}"
            case "key":
                lines[at] = f"{draw(STRANGE | st.text(max_size=12))}:{lines[at].partition(':')[2]}"
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case "indent":
                lines[at] = draw(st.sampled_from(["  ", " ", "- ", "\t", ""])) + lines[at].lstrip()
            case "insert":
                column = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:column] + draw(STRANGE | st.characters()) + lines[at][column:]
            case _:
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
    return "\n".join(lines)


def outcome(text: str) -> Literal["planned", "refused"]:
    """How far a text gets down the street; anything but a UserError with problems escapes."""
    problems: tuple[Problem, ...] = ()
    try:
        graph = l4spec.compile(parse_spec(read_text(text, "mutated.yaml")))
        planned = plan(graph, gpus="2xH100", quantization="fp8")
    except UserError as error:
        problems = error.problems
        planned = None
    assert all(str(problem) for problem in problems)
    assert (planned is None) == bool(problems)
    return "planned" if planned else "refused"


@settings(max_examples=MANY)
@given(mutated())
def test_a_mutated_spec_is_planned_or_refused(text: str) -> None:
    assert outcome(text) in ("planned", "refused")


NUMBERS: st.SearchStrategy[object] = st.sampled_from(
    [0, -1, 1, 2, 3, 7, 2**31, 2**40, 2**40 + 1, 2**63, 1.5, 1e12, True, None, "8", [8], {}]
)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every scalar in plain data."""
    if isinstance(value, dict):
        return [paths for key, child in value.items() for paths in places(child, (*path, key))]
    if isinstance(value, list):
        return [paths for index, child in enumerate(value) for paths in places(child, (*path, index))]
    return [path]


@settings(max_examples=MANY)
@given(models(), st.data())
def test_a_spec_with_one_value_replaced_is_planned_or_refused(data: Data, draws: st.DataObject) -> None:
    path = draws.draw(st.sampled_from(places(data)))
    holder = data
    for step in path[:-1]:
        holder = holder[step]  # type: ignore[index]
    holder[path[-1]] = draws.draw(NUMBERS)  # type: ignore[index]
    assert outcome(yaml.safe_dump(data, sort_keys=False)) in ("planned", "refused")
