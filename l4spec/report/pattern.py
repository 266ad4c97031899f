"""Layer patterns drawn as strips of letters: `LLLG × 12`."""

from collections.abc import Iterable, Sequence
from itertools import groupby

_SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
NOTHING = "·"


def letters_for(names: Iterable[str | None]) -> dict[str | None, str]:
    """A letter for each name in order of appearance: the first free one of its own, else any; `·` for no layer."""
    chosen: dict[str | None, str] = {None: NOTHING}
    for name in names:
        if name not in chosen and name is not None:
            own = [letter.upper() for letter in name if letter.isascii() and letter.isalnum()]
            free = [letter for letter in (*own, *_SPARE) if letter not in chosen.values()]
            chosen[name] = free[0] if free else "?"
    return chosen


def summarize(strip: str) -> str:
    """A strip in short: `LLLG × 12` when a pattern repeats to the end, else runs as `D × 3, M × 58`."""
    period = shortest_period(strip)
    if period < len(strip):
        return f"{strip[:period]} × {len(strip) // period}"
    runs = [(letter, len(list(group))) for letter, group in groupby(strip)]
    if len(runs) > 12:
        return f"{len(strip)} layers without a repeating pattern"
    return ", ".join(letter if length == 1 else f"{letter} × {length}" for letter, length in runs)


def shortest_period(strip: Sequence[object]) -> int:
    """Length of the shortest pattern whose repetition is the whole of `strip`; its own length when nothing repeats."""
    size = len(strip)
    return next(
        (
            period
            for period in range(1, size // 2 + 1)
            if size % period == 0 and all(strip[i] == strip[i - period] for i in range(period, size))
        ),
        size,
    )
