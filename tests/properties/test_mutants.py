"""The laws bite: a plan whose formula has lost one factor no longer meets the run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

import l4spec
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.common.ledger import Ledger
from l4spec.layers.declaration import (
    AttentionPairs,
    CacheEntry,
    Declaration,
    Dim,
    Elementwise,
    HeadProducts,
    Matmul,
    Operation,
    Parameter,
    Work,
)
from l4spec.runtime.measure.run import RunMeasurement, RunShape
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from planners.catalog import engine
from planners.counts.kv_cache import plan_cache
from planners.counts.params import count_params
from planners.module import activation_ledger
from planners.module.activation_ledger import activation_bytes
from planners.module.executed import executed_rows
from tests.contracts.kinds_everywhere import SEEING
from tests.properties.runs import decoded, measured, planned_flops, some

OTHER_KINDS = """
l4spec: 1
name: other kinds
text:
  hidden_size: 24
  vocab_size: 96
  max_seq_len: 64
  dtype: fp32
  learned_positions: true
  norm: {kind: layernorm, eps: 1.0e-5}
  parts:
    window: {kind: gqa, num_heads: 6, num_kv_heads: 2, head_dim: 4, mask: {kind: sliding_window, size: 12},
             position: {kind: none}, logit_softcap: 30.0}
    delta: {kind: gated_delta_net, num_key_heads: 2, num_value_heads: 4, key_head_dim: 6, value_head_dim: 10}
    kda: {kind: kda, num_heads: 3, head_dim: 6}
    mamba: {kind: mamba2, num_heads: 6, num_groups: 2, head_dim: 4, state_size: 10}
    geglu: {kind: geglu, intermediate_size: 40}
    mlp: {kind: mlp, intermediate_size: 56}
    moe: {kind: moe, num_experts: 6, num_experts_per_token: 2, num_shared_experts: 2, shared_gate: true,
          intermediate_size: 48, router: {score: softmax, scales: output, correction_bias: true}}
  layers:
    - {attention: window, ffn: geglu}
    - {attention: window, ffn: mlp, form: sandwich}
    - {attention: mamba, form: output_norm}
    - {attention: delta, ffn: moe}
    - {attention: kda}
"""
BATCH, LENGTH, TILES = 2, 38, 2
PIECES = [20, 17, 1]


@dataclass(frozen=True)
class Case:
    """A model, and what its run showed."""

    graph: LayerGraph
    tiles: int
    measurement: RunMeasurement
    pieces: list[tuple[Work, dict[str, int]]]


@cache
def cases() -> tuple[Case, ...]:
    """Models that together have every kind, each with a size above 1 wherever a formula has a factor."""
    names = ("tiny/scout", "tiny/deepseek")
    graphs = [l4spec.compile(l4spec.load(name)) for name in names]
    graphs += [l4spec.compile(parse_spec(read_text(text, "other.yaml"))) for text in (OTHER_KINDS, SEEING)]
    return tuple(_case(graph) for graph in graphs)


def _case(graph: LayerGraph) -> Case:
    tiles = TILES if graph.model.vision else 0
    sample = RunShape(LENGTH, 0, BATCH, tiles, training=True, cache_lengths=(LENGTH,))
    measurement = measured(graph, sample, "weights", "prefill", "training", "caches", "memory")
    return Case(graph, tiles, measurement, decoded(l4spec.build(graph, dtype="fp32"), BATCH, PIECES))


def broken_laws(case: Case, plan: LayerGraph) -> set[str]:
    """The laws that do not hold between the run of a model and the plan of a graph that should be the same."""
    result, work = case.measurement, Work(BATCH, LENGTH, num_logits=1)
    train = planned_flops(plan, Work(BATCH, LENGTH, phase="train"), case.tiles)
    caches = plan_cache(plan, engine("ideal"), dtype="fp32", context=LENGTH, batch=BATCH)
    peak = activation_bytes(plan, work, num_tiles=case.tiles, item_bytes=4, expert_load=result.expert_load)
    assert result.activation_bytes is not None
    laws = {
        "parameters": some(count_params(plan).by_part) == result.params_by_part,
        "prefill": planned_flops(plan, work, case.tiles) == some(result.prefill_flops),
        "pieces": all(planned_flops(plan, piece) == counted for piece, counted in case.pieces),
        "training": train == some({name: n for name, n in result.training_flops.items() if name}),
        "cache": caches.bytes == result.cache_bytes[LENGTH],
        "activations": result.activation_bytes <= peak <= 1.25 * result.activation_bytes,
    }
    return {name for name, holds in laws.items() if not holds}


def without_factor(value: Any, name: str) -> Any:
    """An operation, dimension or entry with one of its factors set to 1."""
    change = getattr(value, "_replace", None)
    return replace(value, **{name: 1}) if change is None else change(**{name: 1})


def mutated(graph: LayerGraph, change: Callable[[LayerNode], Declaration]) -> LayerGraph:
    """The graph with another declaration for its nodes."""
    nodes = tuple(replace(node, declaration=change(node)) for node in graph.nodes)
    return LayerGraph(graph.model, nodes, graph.edges)


def with_operation(declaration: Declaration, index: int, change: Callable[[Operation], Operation]) -> Declaration:
    """What a kind runs, with one of its operations changed."""

    def executed(work: Work) -> tuple[Operation, ...]:
        operations = list(declaration.executed_operations(work))
        operations[index] = change(operations[index])
        return tuple(operations)

    return replace(declaration, executed=executed)


def declarations(case: Case) -> Iterator[tuple[str, Declaration]]:
    """Every distinct declaration of a model, with a name for messages."""
    by_id = {id(node.declaration): node for node in case.graph.nodes}
    for node in by_id.values():
        yield f"{case.graph.name} {node.id}", node.declaration


def mutants_of_operations(declaration: Declaration) -> Iterator[tuple[str, Declaration]]:
    factors = {Matmul: ("rows",), AttentionPairs: ("pairs", "num_heads", "qk_dim", "v_dim"), Elementwise: ()}
    factors |= {HeadProducts: ("num_heads", "multiply_adds")}
    for index, operation in enumerate(declaration.executed_operations(Work(BATCH, LENGTH))):
        for name in factors[type(operation)]:
            if getattr(operation, name) > 1:
                mutant = with_operation(declaration, index, lambda op, name=name: without_factor(op, name))  # type: ignore[misc]
                yield f"{operation.name} without {name}", mutant
        if isinstance(operation, Matmul):
            for place, dim in enumerate(operation.weight.dims):
                if dim.size > 1 and not (dim.axis == "experts" and len(operation.weight.dims) == 3):
                    thin = with_operation(declaration, index, lambda op, place=place: _thinner(op, place))  # type: ignore[misc]
                    yield f"{operation.name} without {dim.axis}", thin


def _thinner(operation: Operation, place: int) -> Operation:
    assert isinstance(operation, Matmul)
    return replace(operation, weight=_thin(operation.weight, place))


def _thin(parameter: Parameter, place: int) -> Parameter:
    dims = list(parameter.dims)
    dims[place] = Dim(dims[place].axis, 1)
    return replace(parameter, dims=tuple(dims), num_active=None)


def mutants_of_parameters(declaration: Declaration) -> Iterator[tuple[str, Declaration]]:
    for index, parameter in enumerate(declaration.parameters):
        for place, dim in enumerate(parameter.dims):
            if dim.size > 1 and parameter.numel:
                thin = list(declaration.parameters)
                thin[index] = _thin(parameter, place)
                yield f"{parameter.name} without {dim.axis}", replace(declaration, parameters=tuple(thin))


def mutants_of_caches(declaration: Declaration) -> Iterator[tuple[str, Declaration]]:
    for index, entry in enumerate(declaration.cache):
        changed: list[tuple[str, CacheEntry]] = [("width", entry._replace(dims=(Dim("latent", 1),)))]
        if entry.bound.size:
            unbounded = tuple(e._replace(bound=e.bound._replace(kind="full", size=None)) for e in declaration.cache)
            yield "cache without its bound", replace(declaration, cache=unbounded)
        for name, other in changed:
            entries = (*declaration.cache[:index], other, *declaration.cache[index + 1 :])
            yield f"{entry.name} without its {name}", replace(declaration, cache=entries)


def caught(case: Case, declaration: Declaration, mutant: Declaration) -> set[str]:
    plan = mutated(case.graph, lambda node: mutant if node.declaration is declaration else node.declaration)
    return broken_laws(case, plan)


def test_the_unchanged_plans_meet_their_runs() -> None:
    assert [broken_laws(case, case.graph) for case in cases()] == [set()] * 4


@pytest.mark.parametrize(
    ("mutants", "laws", "least"),
    [
        (mutants_of_operations, {"prefill", "pieces", "training"}, 60),
        (mutants_of_parameters, {"parameters"}, 60),
        (mutants_of_caches, {"cache"}, 7),
    ],
)
def test_a_formula_without_one_of_its_factors_is_caught(
    mutants: Callable[[Declaration], Iterator[tuple[str, Declaration]]], laws: set[str], least: int
) -> None:
    survivors, tried = [], 0
    for case in cases():
        for name, declaration in declarations(case):
            for what, mutant in mutants(declaration):
                tried += 1
                if not caught(case, declaration, mutant) & laws:
                    survivors.append(f"{name}: {what}")
    assert survivors == []
    assert tried >= least


def test_counting_attention_as_the_mathematics_need_it_is_caught() -> None:
    for case in cases():
        plan = mutated(case.graph, lambda node: replace(node.declaration, executed=None))
        assert {"prefill", "pieces", "training"} <= broken_laws(case, plan)


@pytest.mark.parametrize("leaf", [True, False])
def test_gradients_counted_too_few_or_too_many_are_caught(leaf: bool) -> None:
    case = cases()[0]

    def change(node: LayerNode) -> Declaration:
        def executed(work: Work) -> tuple[Operation, ...]:
            ops = node.declaration.executed_operations(work)
            return tuple(replace(op, leaf=leaf) if isinstance(op, Matmul) else op for op in ops)

        return replace(node.declaration, executed=executed)

    assert broken_laws(case, mutated(case.graph, change)) == {"training"}


def test_scores_not_counted_again_in_the_backward_pass_are_caught() -> None:
    def change(node: LayerNode) -> Declaration:
        def executed(work: Work) -> tuple[Operation, ...]:
            ops = node.declaration.executed_operations(work)
            return tuple(replace(op, fused=not op.fused) if isinstance(op, AttentionPairs) else op for op in ops)

        return replace(node.declaration, executed=executed)

    for case in cases():
        assert broken_laws(case, mutated(case.graph, change)) == {"training"}


@pytest.mark.parametrize("factor", [2, 0.5])
def test_a_ledger_that_misses_half_or_doubles_what_the_hungriest_layer_allocates_is_caught(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = activation_ledger.allocate
    for case in cases()[:3]:  # of the last one several layers reach the peak, and none alone decides it
        before = set()
        for name, declaration in declarations(case):

            def wrong(node: LayerNode, work: Work, ledger: Ledger, declaration: Declaration = declaration) -> None:
                if node.declaration is not declaration:
                    return allocate(node, work, ledger)
                inner = Ledger(ledger.item)
                allocate(node, work, inner)
                ledger.touch(int(inner.peak * factor))
                return ledger.take(inner.now)

            with monkeypatch.context() as patched:
                patched.setattr(activation_ledger, "allocate", wrong)
                before |= {name} if "activations" in broken_laws(case, case.graph) else set()
        assert before


def test_the_cases_have_every_kind_that_computes() -> None:
    kinds = {node.kind for case in cases() for node in case.graph.nodes}
    from l4spec.layers import KINDS

    # the laws of kinds whose peak is not predicted are in tests/layers (test_sparse_mla, test_compressed_attention)
    assert set(KINDS) - kinds == {name for name, kind in KINDS.items() if not kind.is_peak_predicted}
    assert all(row.work.num_tokens for case in cases() for row in executed_rows(case.graph, Work(1, 2), case.tiles))
