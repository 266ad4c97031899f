"""Trainable tensors of a recipe's phase: those that its selectors name; the rest is frozen."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from l4spec.errors import Problem, nearest
from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.parse import place_of

if TYPE_CHECKING:  # a plan of a model reads no recipe
    from l4spec.spec.recipe.load import LoadedRecipe
    from l4spec.spec.recipe.phase import Phase


def is_selected(selector: str, name: str) -> bool:
    """True if a tensor's name begins with the segments of a selector; `*` matches any one segment.

    `vision` selects all of the tower, `text.layers.*.attention` all attention, `text.layers.1` not layer 10.
    """
    own, there = selector.split("."), name.split(".")
    return len(own) <= len(there) and all(one in ("*", other) for one, other in zip(own, there, strict=False))


def trained_names(graph: LayerGraph, selectors: Sequence[str]) -> frozenset[str]:
    """Names of the tensors that are trained: all without selectors. A tied tensor is the one that it is tied to."""
    names = [(f"{node.id}.{p.name}", p.tied_to) for node, p in graph.parameters() if not p.buffer]
    chosen = [(name, tied) for name, tied in names if not selectors or any(is_selected(one, name) for one in selectors)]
    return frozenset(tied or name for name, tied in chosen)


def selector_problems(loaded: "LoadedRecipe", graph: LayerGraph, phases: "Sequence[Phase]") -> Iterator[Problem]:
    """A problem for each selector of a phase that names no tensor of the model, at its place."""
    names = [f"{node.id}.{p.name}" for node, p in graph.parameters() if not p.buffer]
    for index, phase in enumerate(phases):
        for number, selector in enumerate(phase.trainable):
            if not any(is_selected(selector, name) for name in names):
                yield Problem(
                    f"no tensor of {graph.name} is called {selector!r}, or has a name that begins so",
                    f"phases[{index}].trainable[{number}]",
                    place_of(loaded.document, ("phases", index, "trainable", number)),
                    nearest(selector, _prefixes(names, selector)),
                )


def _prefixes(names: Sequence[str], like: str) -> set[str]:
    """Beginnings of names that have as many segments as a selector."""
    length = like.count(".") + 1
    return {".".join(name.split(".")[:length]) for name in names}


__all__ = ["is_selected", "selector_problems", "trained_names"]
