"""Versions of engines, and the ranges from `since` to `before` that laws hold for."""

import re

from l4spec.errors import Problem, UserError

_VERSION = r"v?(\d{1,4}(?:\.\d{1,4}){0,3})(?:[a-z.+-].{0,40})?"


def parse_version(text: str) -> tuple[int, ...]:
    """Numbers of `0.19`, `v0.19.1` or `1.3.0rc20`, without a release candidate's own. Raises UserError."""
    match = re.fullmatch(_VERSION, text.strip())
    if match is None:
        raise UserError(
            [Problem(f"expected a version, found {text[:40]!r}", path="engine", hint="write it as vllm@0.19")]
        )
    return tuple(int(part) for part in match[1].split("."))


def holds(version: str, since: str, before: str) -> bool:
    """True if `version` is in the range: from `since` on, earlier than `before`; an empty end is open."""
    number = parse_version(version) if version else ()
    return (not since or number >= parse_version(since)) and (not before or number < parse_version(before))
