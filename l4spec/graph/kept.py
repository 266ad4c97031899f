"""Results that are kept as long as the graph they are about: a cache of its own for each graph and function.

A cache of a function alone would keep the last thousands of graphs alive, each of some megabytes: fresh models planned
one after the other would fill memory. Here what is kept of a graph goes when the graph goes, and of one graph no more
than `maxsize` results of a function.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _KeepsResults(Protocol):
    """An object with a store of computed results."""

    @property
    def results(self) -> dict[Any, Any]:
        """The results by function."""


def itself(graph: Any) -> Any:
    """A first argument that is the graph."""
    return graph


def kept_with(
    of: Callable[[Any], _KeepsResults] = itself, maxsize: int = 256
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: results are kept with the graph that `of` finds in the first argument, by all arguments."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def kept(*args: P.args, **kwargs: P.kwargs) -> R:
            first: Any = args[0]
            results = (first if of is itself else of(first)).results
            cached: Any = results.get(function)
            if cached is None:
                cached = results[function] = lru_cache(maxsize=maxsize)(function)
            result: R = cached(*args, **kwargs)
            return result

        kept.cache_parameters = lambda: {"maxsize": maxsize, "typed": False}  # type: ignore[attr-defined]
        return kept

    return decorate
