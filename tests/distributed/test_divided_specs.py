"""Random models, layouts and lengths: a divided prefill is that of one process, and keeps and sends what is planned."""

from itertools import product

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import illegal_reason
from l4spec.sharding.sequence import chunk_of
from tests.distributed.divided import Prefill, one_process, prefills
from tests.distributed.test_context_parallel import check
from tests.distributed.whole import explained, graph_from
from tests.distributed.world import run_world
from tests.strategies import Data, Draw, models

CHUNKS = (1, 2, 3, 4, 6, 12)
"""Sizes whose least common multiple is small, so that short sequences can be cut."""
MAX_SEQ_LEN = 300


@st.composite
def prefill_cases(draw: Draw, most_ranks: int) -> Prefill:
    """A model without vision, a layout with cp that it allows, and sequences that can be cut so."""
    text = yaml.safe_dump(tamed(draw(models(vision=False, bidirectional=False))))
    graph = graph_from(text)
    sizes = product((2, 3, 4), (1, 2), (1, 2), (1, 2))
    layouts = [Layout(cp=cp, tp=tp, ep=ep, dp=dp) for cp, tp, ep, dp in sizes if cp * tp * ep * dp <= most_ranks]
    legal = [layout for layout in layouts if illegal_reason(graph, layout) is None]
    assume(legal)
    layout = draw(st.sampled_from(legal))
    least = (layout.cp - 1) * chunk_of(graph) + 1
    batch = draw(st.integers(1, 2)) * layout.dp * layout.ep
    return Prefill(text, layout, draw(st.integers(least, least + 60)), batch, dtype="fp64")


def tamed(model: Data) -> Data:
    """The same model with factors that do not magnify rounding, and chunks that short sequences have several of."""
    text = model["text"]
    text |= {"max_seq_len": MAX_SEQ_LEN}
    _bound(text, "embedding_scale", "logit_softcap")
    for stack in (text, *([model["vision"]["tower"]] if "vision" in model else [])):
        stack["norm"] |= {"eps": 1e-5}
        for part in stack["parts"].values():
            _bound(part, "scale", "logit_softcap", "norm_eps")
            _bound(part.get("router", {}), "scaling_factor")
            mask = part.get("mask", {})
            if mask.get("kind") == "chunked":
                mask["size"] = CHUNKS[mask["size"] % len(CHUNKS)]
    return model


def _bound(fields: Data, *names: str) -> None:
    """Values between 1/4 and 4; a small one is null where there is none."""
    for name in names:
        if fields.get(name) is not None:
            fields[name] = min(max(fields[name], 0.25), 4.0)


def assert_as_one_process(case: Prefill) -> None:
    expected = one_process(case)
    largest = float(expected.abs().max())
    noise = float((one_process(case._replace(dtype="fp32")) - expected).abs().max())
    bound = explained(graph_from(case.text), noise, largest) / max(largest, 1e-30)
    check(case, [results[0] for results in run_world(case.layout.num_devices, prefills, [case])], bound)


@settings(max_examples=6)
@given(prefill_cases(4))
def test_any_model_is_divided(case: Prefill) -> None:
    assert_as_one_process(case)


@pytest.mark.slow
@settings(max_examples=300)
@given(prefill_cases(8))
def test_any_model_is_divided_on_up_to_eight_ranks(case: Prefill) -> None:
    assert_as_one_process(case)
