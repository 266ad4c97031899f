"""Limits on a `tokenizer.json`: how much longer it may make a text (a kilobyte can double every letter forty times)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

MOST_GROWTH = 64.0
"""Bytes of text for a byte; published files stay below 4: a space becomes three bytes."""
MOST_STEPS = 100
MOST_ADDED = 1000
"""Characters, or tokens of a template, that are put around a text."""


def require_bounded(text: str) -> None:
    """Raise ValueError for a tokenizer whose steps make too much of a text, or that is no JSON mapping."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("expected a mapping")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        steps = list(_steps(data.get(name), 0))
        if len(steps) > MOST_STEPS:
            raise ValueError(f"its {name} has {len(steps):,} steps, more than {MOST_STEPS}")
        growth = 1.0
        for step in steps:
            growth *= _growth(step)
        if growth > MOST_GROWTH:
            raise ValueError(f"its {name} may make {growth:.3g} bytes of one, more than {MOST_GROWTH:g}")
    for step in _steps(data.get("post_processor"), 0):
        templates = [step.get("single"), step.get("pair")]
        if any(isinstance(template, list) and len(template) > MOST_ADDED for template in templates):
            raise ValueError(f"its template has more than {MOST_ADDED:,} tokens")


def _steps(step: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """A step and those in it, whatever a sequence calls them."""
    if depth > MOST_STEPS:
        raise ValueError("its steps are nested too deeply")
    if isinstance(step, dict):
        yield step
        for name in ("normalizers", "pretokenizers", "decoders", "processors"):
            for inner in step.get(name) or ():
                yield from _steps(inner, depth + 1)


def _growth(step: Mapping[str, Any]) -> float:
    """The most bytes that a step makes of one."""
    content = step.get("content") or step.get("replacement") or step.get("prepend") or ""
    length = len(content.encode()) if isinstance(content, str) else 0
    if step.get("type") == "Prepend" or "prepend" in step:
        if length > MOST_ADDED:
            raise ValueError(f"it puts {length:,} bytes before a text")
        return 1.0
    if step.get("type") != "Replace":
        return 1.0
    pattern = step.get("pattern")
    fixed = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(fixed, str) and fixed:
        return max(1.0, length / len(fixed.encode()))
    return 1.0 + length  # an expression may match nothing between any two letters
