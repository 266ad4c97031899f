"""Processes that answer commands, shared by the tests of a worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Answers commands that need no torch."""
    result = Server("planners.plan", "l4spec.report.plan_page", "l4spec.huggingface", "l4spec.report.graph_views")
    yield result
    result.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what a draw writes, overwritten by the next."""
    return tmp_path_factory.mktemp("hostile")
