"""Shipped models as graphs, compiled once for all tests of the planner."""

from functools import cache

import l4spec
from l4spec.graph.layer_graph import LayerGraph


@cache
def graph(name: str, *overrides: str) -> LayerGraph:
    """The layer graph of a shipped spec, with `path=value` overrides."""
    return l4spec.compile(l4spec.load(name, overrides))
