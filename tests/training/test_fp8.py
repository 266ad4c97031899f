"""Training in fp8: rounding and gradients within derived bounds, overflows counted, plan and run agree."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from l4spec.errors import SpecError, UserError
from l4spec.graph.build import build_graph
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.layers.common.grouped_linear import grouped_linear
from l4spec.layers.declaration import Work
from l4spec.quantization.matmuls import BLOCK, in_fp8, matmul_problems, matmul_table
from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.step import train_step
from l4spec.sharding.layout import Layout
from l4spec.spec.document import load_document
from l4spec.spec.parse import parse_spec
from l4spec.spec.recipe.load import load_recipe
from l4spec.spec.recipe.precision import Fp8Spec, Scaling
from l4spec.spec.resolve import resolve
from l4spec.training.fp8.operands import FORMATS, Kind, operand
from l4spec.training.fp8.products import Fp8Products
from l4spec.training.fp8.watch import OverflowDetector, in_training
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS
from l4spec.training.recipe.worker import work
from planners.recipes.fp8 import fp8_share, step_flops

SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
SCALED: tuple[Scaling, ...] = ("tensorwise", "rowwise", "blockwise")
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
RELATIVE = {"e4m3": 2.0**-4, "e5m2": 2.0**-3}
"""Half a step of 3 and of 2 bits of mantissa, over the value."""
HALF_SUBNORMAL = {"e4m3": 2.0**-10, "e5m2": 2.0**-17}
ARITHMETIC = 2.0**-22
"""Scaling and unscaling in fp32: a division, a product and the scale's own rounding, each 2^-24 of a value."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products wait for threads on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def products(**options: Any) -> Fp8Products:
    return Fp8Products(Fp8Spec(**options), lambda place, x, rounded: None, lambda flops: None)


def bound(x: Tensor, form: str, scaling: Scaling, kind: Kind = "rows") -> Tensor:
    """How far each value of `x` may move, from the format and the largest magnitude of its group."""
    size = x.abs()
    if scaling == "unit":
        step = torch.full_like(x, HALF_SUBNORMAL[form])
    else:
        group = size.amax().expand_as(x)
        if scaling == "rowwise":
            group = 2 * size.amax(-1, keepdim=True).expand_as(x)  # the scale is up to twice as large: a power of two
        if scaling == "blockwise":
            high = BLOCK if kind == "weight" else 1
            group = torch.cat(
                [
                    torch.cat([part.amax().expand_as(part) for part in torch.split(rows, BLOCK, dim=1)], dim=1)
                    for rows in torch.split(size, high)
                ]
            )
        step = group.clamp(min=1e-12) / LARGEST[form] * HALF_SUBNORMAL[form]
    return torch.maximum(size * (RELATIVE[form] + ARITHMETIC), step * (1 + ARITHMETIC))


@pytest.mark.parametrize("kind", ["rows", "weight"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("form", FORMATS)
@given(st.integers(0, 2**31), st.sampled_from([(1, 1), (3, 129), (130, 260)]), st.sampled_from([1e-6, 1.0, 30.0]))
@settings(max_examples=12, deadline=None)
def test_rounding_moves_a_value_by_half_a_step_at_most(
    form: str, scaling: Scaling, kind: Kind, seed: int, shape: tuple[int, int], size: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * torch.exp(3 * torch.randn(shape, generator=draw)) * size
    if scaling == "unit":
        x = x.clamp(-LARGEST[form], LARGEST[form])
    rounded = operand(x, FORMATS[form], scaling, kind)
    assert (rounded.values(x.dtype) - x).abs().le(bound(x, form, scaling, kind)).all()
    assert int(rounded.overflowed) == 0
    assert int(rounded.flushed) == int(((rounded.values(x.dtype) == 0) & (x != 0)).sum())


@pytest.mark.parametrize("scaling", SCALED)
def test_a_scale_uses_the_whole_format(scaling: Scaling) -> None:
    x = torch.randn(40, 300)
    codes = operand(x, FORMATS["e4m3"], scaling).codes.float().abs()
    assert codes.max() <= LARGEST["e4m3"]
    assert codes.max() > LARGEST["e4m3"] / 2 * (1 - RELATIVE["e4m3"])


@pytest.mark.parametrize("form", FORMATS)
def test_what_rounds_to_no_finite_number_overflows(form: str) -> None:
    largest, half_step = LARGEST[form], LARGEST[form] * RELATIVE[form] / 1.75
    x = torch.tensor([[largest, largest + half_step, largest + 1.01 * half_step, -2 * largest, 1.0]])
    rounded = operand(x, FORMATS[form], "unit")
    assert int(rounded.overflowed) == 2
    assert rounded.values(x.dtype).tolist() == [[largest, largest, largest, -largest, 1.0]]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_visible(scaling: Scaling, bad: float) -> None:
    x = torch.randn(4, 200)
    x[1, 7] = bad
    rounded = operand(x, FORMATS["e4m3"], scaling)
    assert int(rounded.overflowed) >= 1
    assert rounded.values(x.dtype)[1, 7].isnan()


def test_zeros_stay_zeros() -> None:
    for scaling in SCALINGS:
        assert torch.equal(
            operand(torch.zeros(3, 5), FORMATS["e4m3"], scaling).values(torch.float32), torch.zeros(3, 5)
        )


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_torch_scaled_mm(scaling: Scaling, out: torch.dtype) -> None:
    x, weight = torch.randn(32, 64), torch.randn(48, 64)
    own, other = (operand(each, FORMATS["e4m3"], scaling) for each in (x, weight))
    expected = torch._scaled_mm(own.codes, other.codes.t(), own.scale, other.scale.t(), out_dtype=out)
    result = products(scaling=scaling).linear(x, weight)
    # sums of 64 products in fp32 in any order: (64 + 3) 2^-24 of the sum of magnitudes, and the output's own rounding
    slack = 67 * 2.0**-24 * (own.values(x.dtype).abs() @ other.values(x.dtype).abs().t())
    assert (result - expected.float()).abs().le(slack + result.abs() * (2.0**-8 if out == torch.bfloat16 else 0)).all()


def exact(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x @ weight.t(), grad @ weight, grad.t() @ x


@pytest.mark.parametrize("gradients", ["e4m3", "e5m2"])
@pytest.mark.parametrize("scaling", SCALED)
def test_outputs_and_gradients_are_within_what_rounded_operands_allow(scaling: Scaling, gradients: str) -> None:
    """|ab - a'b'| <= |a| db + da |b| + da db, summed over the contracted dim, in fp64."""
    x, weight = torch.randn(150, 140).double(), torch.randn(136, 140).double()
    grad = torch.randn(150, 136).double() * 1e-3
    own_x, own_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = products(scaling=scaling, gradients=gradients).linear(own_x, own_weight)
    torch.autograd.backward(y, grad)
    assert own_x.grad is not None
    assert own_weight.grad is not None

    def allowed(a: Tensor, da: Tensor, b: Tensor, db: Tensor) -> Tensor:
        return a.abs() @ db.t() + da @ b.abs().t() + da @ db.t()

    def moved(t: Tensor, form: str = "e4m3", kind: Kind = "rows") -> Tensor:
        return bound(t, form, scaling, kind)

    expected = exact(x, weight, grad)
    limits = (
        allowed(x, moved(x), weight, moved(weight, kind="weight")),
        allowed(grad, moved(grad, gradients), weight.t(), moved(weight.t(), kind="weight")),
        allowed(grad.t(), moved(grad.t(), gradients), x.t(), moved(x.t())),
    )
    for result, right, limit in zip((y, own_x.grad, own_weight.grad), expected, limits, strict=True):
        assert (result - right).abs().le(limit).all()
        assert not torch.equal(result, right)  # it was rounded


@pytest.mark.parametrize("scaling", SCALINGS)
def test_experts_multiply_as_each_alone(scaling: Scaling) -> None:
    stack, x = torch.randn(5, 24, 16, requires_grad=True), torch.randn(20, 16, requires_grad=True)
    offsets = torch.tensor([3, 3, 11, 20, 20], dtype=torch.int32)
    grad = torch.randn(20, 24)
    own = products(scaling=scaling)
    results = torch.autograd.grad(own.grouped(x, stack, offsets), (x, stack), grad)
    spans = [(0, 0, 3), (2, 3, 11), (3, 11, 20)]
    alone = torch.cat([own.linear(x[start:stop], stack[expert]) for expert, start, stop in spans])
    assert torch.equal(own.grouped(x, stack, offsets), alone)
    for result, expected in zip(results, torch.autograd.grad(alone, (x, stack), grad), strict=True):
        assert torch.equal(result, expected)
    assert not results[1][[1, 4]].any()  # no rows, no gradient
    plain = grouped_linear(x, stack, offsets)
    assert (alone - plain).abs().max() < 0.2 * plain.abs().max()


def rank_model(name: str, *changes: str) -> RankModel:
    graph = build_graph(resolve(parse_spec(load_document(name, changes))))
    return distribute(build(graph, "meta", "fp32"), Layout(), seed=0, train=True)


def one_step(model: RankModel) -> None:
    ids = torch.randint(250, (4, 32), generator=torch.Generator().manual_seed(0))
    train_step(model, ids, ids.roll(-1, 1), num_microbatches=1)


@pytest.mark.parametrize(
    ("name", "matmuls"),
    [("tiny/scout", "fp8"), ("tiny/scout", "fp8-experts"), ("tiny/maverick", "fp8-ffn"), ("tiny/deepseek", "fp8")],
)
def test_the_run_puts_in_fp8_what_the_plan_s_table_says_and_nothing_else(name: str, matmuls: str) -> None:
    model, fp8 = rank_model(name), Fp8Spec(matmuls=matmuls)
    planned = {f"{node.id}.{p.name}" for node, p in in_fp8(model.graph, matmul_table(fp8.matmuls, fp8.scaling))}
    assert planned
    with in_training(model, fp8) as watch:
        assert watch is not None
        model.train()
        one_step(model)
        step = watch.finish()
    assert step.flops == step_flops(model.graph, fp8, Work(4, 32, phase="train"))
    assert {weight for (weight, _), rounded in step.operands.items() if rounded.elements} == planned
    assert not step.overflows


@pytest.mark.parametrize("scaling", SCALED)
def test_a_weight_s_copy_takes_the_planned_bytes(scaling: Scaling) -> None:
    graph, fp8 = rank_model("tiny/scout").graph, Fp8Spec(scaling=scaling)
    copies = [
        operand(torch.ones(parameter.shape[-2:]), FORMATS["e4m3"], scaling, "weight")
        for _, parameter in in_fp8(graph, matmul_table(fp8.matmuls, fp8.scaling))
        for _ in range(math.prod(parameter.shape[:-2]))
    ]
    planned = fp8_share(graph, fp8, Work(4, 32, phase="train"), 1.0)
    assert sum(each.codes.nbytes + each.scale.nbytes for each in copies) == planned.weight_bytes


def gradients_of(checkpointing: Checkpointing) -> dict[str, Tensor]:
    model = rank_model("tiny/router-softmax")
    model.checkpointing = checkpointing
    with in_training(model, Fp8Spec(scaling="rowwise")):
        one_step(model.train())
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_recomputed_activations_are_rounded_alike() -> None:
    kept = gradients_of("none")
    for recomputed in (gradients_of("selective"), gradients_of("full")):
        assert kept.keys() == recomputed.keys()
        assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_outside_nothing_is_rounded() -> None:
    model = rank_model("tiny/scout")
    ids = torch.arange(64).view(2, 32)
    before = model.train()(ids)
    with in_training(model, Fp8Spec()):
        assert not torch.equal(model(ids), before)
        assert torch.equal(model.eval()(ids), model.eval()(ids))
        evaluated = model(ids)
    assert torch.allclose(evaluated, before, atol=1e-5)
    assert torch.equal(model.train()(ids), before)


SMALL = """\
l4spec: 1
kind: recipe
name: small
model: tiny/router-softmax
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: first, kind: pretrain, tokens: 512, context: 32, batch: 4, optimizer: {learning_rate: 0.01}, precision: fp8}
  - {name: second, kind: rl, tokens: 128, context: 16, batch: 8, group: 4, max_answer: 3,
     optimizer: {learning_rate: 0.001}, precision: {kind: fp8, scaling: rowwise}}
"""


class Dropped:
    def set(self, key: str, value: str, /) -> None:
        pass


def ran(folder: Path, text: str = SMALL, **options: Any) -> list[str]:
    (folder / "small.yaml").write_text(text)
    job = RecipeJob(str(folder / "small.yaml"), Layout(), **options)
    job.check()
    lines: list[str] = []
    work(job, lines.append, Dropped())
    return lines


def rows(folder: Path) -> list[dict[str, Any]]:
    written = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in written]


def test_a_run_in_fp8_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    ran(tmp_path, out=tmp_path / "whole", save_every=1)
    whole = rows(tmp_path / "whole")
    assert all("fp8" in row for row in whole if "event" not in row)
    for kept in (2, 5):  # in each phase
        parts = tmp_path / str(kept)
        parts.mkdir()
        (parts / METRICS).write_text((tmp_path / "whole" / METRICS).read_text())
        for folder in (tmp_path / "whole").glob("step-*"):
            if int(folder.name.rpartition("-")[2]) <= kept:
                (parts / folder.name).symlink_to(folder)
        ran(tmp_path, out=parts, resume=True, save_every=1)
        assert rows(parts) == whole


def test_an_overflow_is_warned_of_once_an_operand_and_logged_each_step(tmp_path: Path) -> None:
    text = SMALL.replace("precision: fp8", "precision: {kind: fp8, scaling: unit}")
    text = text.replace("learning_rate: 0.01}", "learning_rate: 10.0}")  # weights, and what they make, leave the format
    lines = ran(tmp_path, text.partition("  - {name: second")[0], out=tmp_path / "run")
    named = [line.partition("elements of the ")[2].partition(" are")[0] for line in lines if "fp8 overflow" in line]
    logged = [row["fp8"]["overflowed"] for row in rows(tmp_path / "run") if "event" not in row]
    assert len(set(named)) == len(named) > 0
    assert {f"{place} of {weight}" for row in logged for weight, place in (name.split() for name in row)} == set(named)


def test_a_step_that_is_not_finite_names_what_overflowed(tmp_path: Path) -> None:
    text = SMALL.replace("model: tiny", "initial_deviation: 1.0\nmodel: tiny")
    text = text.replace("learning_rate: 0.01}", "learning_rate: 10.0, clip: null}")
    with pytest.raises(UserError, match=r"step \d+: the loss is .*; in fp8 overflowed text\.layers\.\d.*\(\w+\)"):
        ran(tmp_path, text, dtype="fp16")


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("fp9", "unknown kind 'fp9'"),
        ("{kind: fp8, scaling: rows}", "did you mean 'rowwise'"),
        ("{kind: fp8, gradients: e3m4}", "expected 'e4m3' or 'e5m2'"),
        ("{kind: bf16, scaling: rowwise}", "unknown field"),
        ("[fp8]", "expected a mapping"),
    ],
)
def test_a_wrong_declaration_is_refused_at_its_place(precision: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(SMALL.replace("precision: fp8", f"precision: {precision}"))
    with pytest.raises(SpecError, match=message) as caught:
        load_recipe(tmp_path / "wrong.yaml")
    assert all(problem.place is not None and "precision" in problem.path for problem in caught.value.problems)


HEAD = """\
name: mine
description: the head, or the router
source: nobody
compute_dtype: fp8
default: {kind: plain, dtype: bf16}
rules:
  - {roles: [ROLE], law: {kind: scaled, values: e4m3, bits: 8, group: row, scale_dtype: fp32}}
"""


def test_a_table_of_one_s_own_may_name_the_head_and_not_the_router(tmp_path: Path) -> None:
    model = rank_model("tiny/router-softmax")
    (tmp_path / "head.yaml").write_text(HEAD.replace("ROLE", "head"))
    fp8 = Fp8Spec(matmuls=str(tmp_path / "head.yaml"))
    assert not matmul_problems(model.graph, fp8.matmuls, "here")
    with in_training(model, fp8) as watch:
        assert watch is not None
        one_step(model.train())
        (weight,) = {weight for weight, _ in watch.finish().operands}
    assert weight == "text.head.weight"
    (tmp_path / "router.yaml").write_text(HEAD.replace("ROLE", "router"))
    (problem,) = matmul_problems(model.graph, str(tmp_path / "router.yaml"), "here")
    assert "runs no router" in problem.message


@pytest.mark.parametrize(
    ("matmuls", "message"),
    [
        ("w4a16", "other formats"),
        ("nothing", "no quantization scheme"),
        ("bf16", "computes in bf16"),
        ("fp8-ffn", "no matmul of"),
    ],
)
def test_a_scheme_that_says_nothing_about_fp8_is_refused(matmuls: str, message: str, tmp_path: Path) -> None:
    text = SMALL.replace("precision: fp8", f"precision: {{kind: fp8, matmuls: {matmuls}}}")
    with pytest.raises(UserError, match=f"phase first: precision.matmuls: .*{message}"):
        ran(tmp_path, text)


def test_a_detector_without_fp8_is_silent() -> None:
    assert list(OverflowDetector().warnings(1, None)) == []
