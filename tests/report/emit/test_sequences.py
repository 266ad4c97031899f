"""Launches run as many sequences as were planned."""

from typing import Any

import pytest

from l4spec.deploy import LaunchRequest, emit
from planners.plan import plan
from tests.planners.models import graph

LOADS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"rate": 5.0}, None),
    ({"batch": 24}, "24"),
    ({"concurrency": 24}, "24"),
    ({"max_num_seqs": 32}, "32"),
    ({"rate": 5.0, "max_num_seqs": 32}, "32"),
    ({"concurrency": 64, "max_num_seqs": 32}, "32"),
]
"""Loads, and the most sequences of an engine's step; None: the engine's own limit."""


@pytest.mark.parametrize(("load", "limit"), LOADS, ids=str)
@pytest.mark.parametrize(
    ("engine", "own", "flag"),
    [
        ("vllm", "vllm-hybrid", "--max-num-seqs"),
        ("sglang", "sglang-hybrid", "--max-running-requests"),
        ("tensorrt-llm", "tensorrt-llm", "--max_batch_size"),
    ],
)
def test_an_engine_runs_as_many_sequences_as_were_planned(
    engine: str, own: str, flag: str, load: dict[str, Any], limit: str | None
) -> None:
    """Of a plan at a rate, whose batch is 1, a limit of 1 would serve one request after the other."""
    made = plan("scout", gpus="8xH100", engine=own, prompt_tokens=1000, output_tokens=200, tp=8, **load)
    text = emit(engine, LaunchRequest(made, graph("scout")))
    words = " ".join(line for line in text.splitlines() if not line.startswith("#")).split()
    assert (words[words.index(flag) + 1] if flag in words else None) == limit
    assert ("keeps its own limit of sequences" in text) == (limit is None)
