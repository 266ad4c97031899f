"""Activations by an engine's profiling run move with rows, chunk and version, and with nothing else."""

import pytest

from planners import plan
from tests.planners.models import graph


def activations(**options: object) -> int:
    settings = {"gpus": "8xH100", "engine": "vllm", "tp": 4, "quantization": "bf16"} | options
    return plan(graph("scout"), **settings).memory_per_device.activation_bytes


def test_more_sampled_rows_and_longer_steps_take_more() -> None:
    rows = [activations(max_num_seqs=rows) for rows in (256, 512, 1024)]
    assert rows[1] - rows[0] == 256 * 202_048 * 14
    assert rows[2] - rows[1] == 512 * 202_048 * 14
    assert activations(max_num_seqs=1, prefill_chunk=1 << 15) > activations(max_num_seqs=1, prefill_chunk=1 << 13)


def test_neither_context_nor_batch_moves_them_while_both_fit_a_step() -> None:
    assert len({activations(context=context, batch=batch) for context in (128, 8192) for batch in (1, 64)}) == 1


def test_sampling_is_over_the_whole_vocabulary_on_every_rank() -> None:
    one, eight = (activations(tp=tp) for tp in (2, 8))
    assert one - eight < 0.1 * one


@pytest.mark.parametrize(("engine", "more"), [("vllm@0.11", 2.5), ("vllm@0.19", 1.0)])
def test_an_older_version_takes_more_a_logit(engine: str, more: float) -> None:
    assert activations(engine=engine) == pytest.approx(more * activations(), rel=0.05)
