"""What a rank holds for modules of multi-token prediction while they train is what the plan says, to the byte."""

from dataclasses import dataclass

import pytest
import torch

from l4spec.graph.layer_graph import LayerGraph
from l4spec.graph.with_modules import with_modules
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.runtime.build import build
from l4spec.runtime.measure.memory import tracking_memory
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.mtp import MTPLoss
from l4spec.runtime.parallel.step import train_step
from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout
from planners.catalog import quantization
from planners.counts.weights import scheme_of
from planners.device.activations import activation_rates
from planners.device.stages import stages
from planners.device.trained_modules import module_kept
from planners.device.training_state import OPTIMIZER_BYTES, WEIGHT_BYTES, StageState, TrainSetting, stage_state
from tests.distributed.test_kept import settled
from tests.distributed.world import run_world
from tests.runtime.tiny import SWIGLU, Json, gqa, graph_of, moe, text_of, token_ids

SEQUENCES, TOKENS = 2, 32
NUM_TOKENS = SEQUENCES * TOKENS
WIDER, FP32, INT64, FLAG = 2, 4, 8, 1
"""The ranks compute in fp32, and the plan counts bf16."""
SCALARS = 2 * INT64
"""Of a module: its loss, and the like."""
DENSE = {"attention": "a", "ffn": "f"}
ROUTED = {"attention": "a", "ffn": "m"}


def text(num_modules: int, layer: Json, block: Json) -> Json:
    parts = {"a": gqa(mask={"kind": "causal"}), "f": SWIGLU, "m": moe(num_experts=8)}
    modules = {"num_modules": num_modules, "block": block} if num_modules else None
    return text_of(parts, [layer], vocab_size=96, mtp=modules)


def beside(layout: Layout) -> int:
    """Bytes of a token: the id that a module reads, its label's column, whether that counts and is on this rank.

    With a vocabulary that is cut also the id's row on this rank, and whether it is there.
    """
    return (2 * INT64 + 2 * FLAG) + (INT64 + FLAG if layout.tp > 1 else 0)


def dense(num_modules: int) -> LayerGraph:
    return graph_of(text(num_modules, DENSE, DENSE))


def made(graph: LayerGraph, layout: Layout) -> RankModel:
    return distribute(build(with_modules(graph), "meta", "fp32"), layout, train=True).train()


Kind = tuple[int, Checkpointing]
FULL: list[Kind] = [(0, "full"), (1, "full"), (2, "full")]
CORE: list[Kind] = [(0, "selective"), (1, "selective"), (0, "none"), (1, "none")]
Kept = dict[Kind, int]


def kept_by_rank(_: int, layout: Layout, kinds: list[Kind]) -> Kept:
    """Bytes alive after the losses of a forward pass, by modules and checkpointing."""
    kept: Kept = {}
    for num_modules, kind in kinds:
        model = made(dense(num_modules), layout)
        model.checkpointing = kind
        ids = model.own_rows(token_ids(SEQUENCES, TOKENS, vocab=96))
        counts = torch.ones(1 + num_modules)
        with tracking_memory(model.device) as memory:
            if num_modules:
                loss = model.losses_with_modules(ids, ids, weight=1.0, counts=counts)
            else:
                loss = (model.loss(ids, ids, count=counts[0]), torch.empty(0))
        kept[num_modules, kind] = settled(memory) if layout.num_devices > 1 else memory.live_bytes
        del loss
    return kept


def kept_of(layout: Layout, kinds: list[Kind]) -> list[Kept]:
    """Of every rank."""
    return run_world(layout.tp, kept_by_rank, layout, kinds) if layout.tp > 1 else [kept_by_rank(0, layout, kinds)]


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2)], ids=str)
def test_a_module_keeps_what_is_planned(layout: Layout) -> None:
    """With full checkpointing, its logits included, exactly, besides a few scalars."""
    for kept in kept_of(layout, FULL):
        for number in (1, 2):
            logits = activation_rates(dense(2), layout.tp, 1).per_logit_row
            planned = module_kept(dense(2), layout.tp, 1, "full")[number - 1].kept * WIDER
            added = kept[number, "full"] - kept[number - 1, "full"]
            assert 0 <= added - NUM_TOKENS * (planned + logits + beside(layout)) <= SCALARS


def test_selective_checkpointing_saves_of_a_module_what_is_planned() -> None:
    (kept,) = kept_of(Layout(), CORE)
    core = module_kept(dense(1), 1, 1, "selective")[0].again
    more, less = (kept[number, "none"] - kept[number, "selective"] for number in (1, 0))
    assert more - less == NUM_TOKENS * core > 0


def test_a_module_without_checkpointing_keeps_what_is_planned() -> None:
    """Beside what torch's five norms keep on a CPU: each its result before the weight, and a number of each token."""
    (kept,), graph = kept_of(Layout(), [(0, "none"), (1, "none"), (2, "none")]), dense(2)
    (planned, _), (selective, _) = (module_kept(graph, 1, 1, kind) for kind in ("none", "selective"))
    norms = 5 * (graph.hidden_size + 1) * FP32
    logits = activation_rates(graph, 1, 1).per_logit_row
    sums = selective.again  # of softmaxes, fp32 in the plan too
    each = (planned.kept - sums) * WIDER + sums + norms + logits + beside(Layout())
    for number in (1, 2):
        assert 0 <= kept[number, "none"] - kept[number - 1, "none"] - NUM_TOKENS * each <= SCALARS


def test_logits_of_all_depths_and_one_gradient_are_the_peak() -> None:
    """With a vocabulary so wide that the losses' backward passes are; beside them a few numbers of each token."""
    vocab, few = 2048, 4 * INT64 * NUM_TOKENS
    for number in (0, 1, 2):
        model = made(graph_of(text(number, DENSE, DENSE) | {"vocab_size": vocab}), Layout())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        ids, counts = token_ids(SEQUENCES, TOKENS, vocab=96), torch.ones(1 + number)
        with tracking_memory(model.device) as memory:
            if number:
                loss, further = model.losses_with_modules(ids, ids, weight=1.0, counts=counts)
                loss = loss + further.mean()
                del further
            else:
                loss = model.loss(ids, ids, count=counts[0])
            kept, memory.peak_bytes = memory.live_bytes, 0
            torch.autograd.backward(loss)
        row = NUM_TOKENS * activation_rates(dense(2), 1, 1).per_logit_row * vocab // 96
        assert row <= memory.peak_bytes - kept <= row + few
        assert kept >= (1 + number) * row


@dataclass(frozen=True)
class Held:
    """Elements that a rank holds of weights, gradients, and one moment of AdamW."""

    weights: int
    gradients: int
    moments: int


def state_by_rank(_: int, layout: Layout, block: Json, trainable: str) -> dict[int, Held]:
    """After one step of AdamW, by the number of modules."""
    in_memory = {}
    for number in (0, 2) if trainable == "text" else (2,):
        model = made(graph_of(text(number, block, block)), layout)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trainable))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        ids = model.own_rows(token_ids(4, TOKENS, vocab=96))
        train_step(model, ids, ids, mtp=MTPLoss(1.0) if number else None)
        optimizer.step()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        moments = [state["exp_avg"] for state in optimizer.state.values() if "exp_avg" in state]
        in_memory[number] = Held(
            *(sum(local_of(x).numel() for x in xs) for xs in (model.parameters(), gradients, moments))
        )
    return in_memory


def planned_state(layout: Layout, number: int, block: Json, trainable: tuple[str, ...]) -> StageState:
    graph = graph_of(text(number, block, block))
    (stage,) = stages(graph, scheme_of(quantization("bf16")), layout.tp, layout.ep, 1)
    train = TrainSetting(zero_stage=3, trainable=trainable, with_modules=number > 0)
    return stage_state(graph, train, layout, stage)


@pytest.mark.parametrize("trainable", ["text", "text.mtp"])
@pytest.mark.parametrize(
    "layout", [Layout(), Layout(tp=2), Layout(ep=2), Layout(dp=2), Layout(dp=2, ep=2), Layout(tp=2, ep=2)], ids=str
)
def test_a_rank_holds_the_state_of_modules_that_is_planned(layout: Layout, trainable: str) -> None:
    """Weights, gradients and moments, shared as ZeRO 3 shares them; widths are even for every number of ranks."""
    selectors = () if trainable == "text" else (trainable,)
    ranks = run_world(layout.num_devices, state_by_rank, layout, ROUTED, trainable)
    for number in ranks[0]:
        planned = planned_state(layout, number, ROUTED, selectors)
        state = OPTIMIZER_BYTES["adamw"]
        expected = Held(planned.weights // WEIGHT_BYTES, planned.gradients // FP32, planned.optimizer // state)
        assert {in_memory[number] for in_memory in ranks} == {expected}
