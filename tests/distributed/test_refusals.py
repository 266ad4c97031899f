"""What the planner calls illegal is refused with its words before any process starts; what it calls legal is built."""

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import build_rank, distribute
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import illegal_reason
from l4spec.sharding.sequence import chunk_of
from l4spec.spec.model import ModelSpec
from l4spec.training.run.job import Job
from planners.plan import plan
from tests.strategies import Data, models

DEGREES = st.sampled_from([1, 2, 3, 4, 8])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """One or two degrees above 1, of up to eight ranks."""
    one, two = draw(st.permutations(["tp", "ep", "pp", "dp", "cp"]))[:2]
    first = draw(DEGREES)
    return Layout(**{one: first, two: draw(st.integers(1, 8 // first))})


@settings(max_examples=100)
@given(data=models(vision=False), layout=layouts())
def test_planner_python_and_command_line_allow_the_same_layouts(
    data: Data, layout: Layout, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data["text"]["max_seq_len"] = 300
    graph = l4spec.compile(ModelSpec.model_validate(data))
    reason = illegal_reason(graph, layout)
    answers = {
        "plan": _plans(graph, layout),
        "distribute": _distributes(graph, layout),
        "run": _runs(data, layout, tmp_path_factory.getbasetemp() / "drawn.yaml"),
    }
    if reason is None:
        assert answers["run"] == ""
        started = f"{layout} needs {layout.num_devices} processes, and torch.distributed has not been started"
        assert answers["distribute"] == ("" if layout.num_devices == 1 else started)
        assert answers["plan"] == "" or (layout.cp > 1 and "a sequence" in answers["plan"]), (
            "only 300 tokens may be too few"
        )
        for rank in {0, layout.num_devices // 2, layout.num_devices - 1}:
            assert build_rank(graph, Mesh(layout, rank), torch.float32).mesh.rank == rank
    else:
        assert answers["distribute"] == answers["run"] == f"{layout}: {reason}"
        uneven = illegal_reason(graph, layout, uneven_experts=True)  # engines give some ranks an expert more
        assert (uneven or "") in answers["plan"]


def _plans(graph: LayerGraph, layout: Layout) -> str:
    """With as many tokens as cp needs; without GPUs, where nothing limits memory."""
    context = min(max(2, layout.cp * chunk_of(graph)), 300)
    degrees = {axis: getattr(layout, axis) for axis in ("tp", "ep", "pp", "dp", "cp")}
    return _said(lambda: plan(graph, context=context, quantization="bf16", **degrees))


def _distributes(graph: LayerGraph, layout: Layout) -> str:
    return _said(lambda: distribute(build(graph, "meta"), layout, device="meta"))


def _runs(data: Data, layout: Layout, file: Path) -> str:
    file.write_text(yaml.safe_dump(data))
    job = Job(str(file), layout, batch=layout.dp * layout.ep, context=8, steps=1)
    return _said(job.check)


def _said(act: object) -> str:
    assert callable(act)
    try:
        act()
    except UserError as error:
        return "\n".join(str(problem.message) for problem in error.problems)
    return ""
