"""The frozen reference of DPO on several ranks: each holds its share of the weights, also after a pass."""

import json
from pathlib import Path

import pytest

from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.phases import prepare
from l4spec.training.recipe.worker import RecipeRun
from planners.catalog import quantization
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.training_state import WEIGHT_BYTES, TrainSetting, stage_state
from tests.distributed.world import run_world
from tests.runtime.tiny import gqa, graph_of, moe, text_of

EVEN = text_of(
    {"a": gqa(), "m": moe(num_experts=8)},
    [{"attention": "a", "ffn": "m"}],
    vocab_size=512,
    norm={"kind": "rmsnorm", "eps": 0.001},
)
"""Two ranks share each of its tensors evenly."""
RECIPE = """\
l4spec: 1
kind: recipe
name: pairs
model: even.yaml
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: only, kind: dpo, tokens: 1024, context: 64, batch: 8, optimizer: {learning_rate: 0.001}}
"""


def weights_by_rank(_: int, path: str, layout: Layout) -> tuple[int, int]:
    """Elements of the reference on this rank, when it is loaded and after it scored a batch."""
    run = RecipeRun(RecipeJob(path, layout), lambda line: None)
    context = run.context(run.job.phases[0])

    def count() -> int:
        return sum(local_of(parameter).numel() for parameter in context.reference.parameters())

    loaded = count()
    prepare(context).batch_of(0)
    return loaded, count()


@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(ep=2), Layout(tp=2)], ids=str)
def test_a_rank_holds_its_share_of_the_reference(layout: Layout, tmp_path: Path) -> None:
    """As planned for ZeRO 3, by which a run shares all weights; what is outside blocks is not left gathered."""
    path = tmp_path / "pairs.yaml"
    path.write_text(RECIPE)
    (tmp_path / "even.yaml").write_text(json.dumps({"l4spec": 1, "name": "even", "text": EVEN}))
    graph = graph_of(EVEN)
    (stage,) = stages(graph, scheme_of(quantization("bf16")), layout.tp, layout.ep, 1)
    planned = stage_state(graph, TrainSetting(zero_stage=3, with_reference=True), layout, stage)
    elements = planned.reference // WEIGHT_BYTES
    assert planned.weights == 2 * planned.reference
    assert run_world(2, weights_by_rank, str(path), layout) == [(elements, elements)] * 2
