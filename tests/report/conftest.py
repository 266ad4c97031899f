"""Graphs of shipped specs, compiled once for all tests of this folder."""

from collections.abc import Callable
from functools import cache

import pytest

import l4spec
from l4spec.graph.layer_graph import LayerGraph

Compile = Callable[..., LayerGraph]


@cache
def _compiled(name: str, *overrides: str) -> LayerGraph:
    return l4spec.compile(l4spec.load(name, overrides))


@pytest.fixture
def compiled() -> Compile:
    """`compiled(name, "path=value", …)`: the layer graph of a shipped spec."""
    return _compiled
