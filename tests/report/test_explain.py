"""`--explain`: every sum's last line is the number of the plan."""

import re

import pytest

from l4spec.layers.declaration import Work
from l4spec.report.explain import cache_sums, explain_page, flops_sums, parameter_sums, weight_sums
from l4spec.report.page import to_text
from planners.plan import plan
from tests.report.conftest import Compile

SPECS = ("scout", "maverick", "llama-guard-4-12b", "mobilellm-r1-950m", "tiny/deepseek")


def last(rows: list[tuple[str, ...]]) -> int:
    return number(rows[-1][-1])


def number(text: str) -> int:
    return int(text.replace(",", "").removesuffix(" B"))


@pytest.mark.parametrize("name", SPECS)
def test_parameters_sum_to_the_plan(compiled: Compile, name: str) -> None:
    rows = parameter_sums(compiled(name))
    assert last(rows) == plan(compiled(name)).params.total == sum(number(row[-1]) for row in rows[:-1])


@pytest.mark.parametrize("name", SPECS)
def test_the_printed_arithmetic_computes_to_the_printed_number(compiled: Compile, name: str) -> None:
    for _, _, arithmetic, result in parameter_sums(compiled(name))[:-1]:
        expression = arithmetic.replace("×", "*").replace(",", "")
        assert re.fullmatch(r"[0-9 ()+*]+", expression)
        assert eval(expression) == number(result)


@pytest.mark.parametrize("name", SPECS)
def test_flops_sum_to_the_plan(compiled: Compile, name: str) -> None:
    graph = compiled(name)
    result = plan(graph, context=2000, batch=3).flops
    assert last(flops_sums(graph, Work(1, 1), text_only=True, pairs=False)) == result.forward_per_token
    assert last(flops_sums(graph, Work(3, 2000, phase="prefill", num_logits=1))) == result.prefill
    assert last(flops_sums(graph, Work(3, 1, 1999, phase="decode"))) == result.decode
    assert 3 * last(flops_sums(graph, Work(3, 2000, phase="train"))) == result.train_step


@pytest.mark.parametrize("scheme", ["bf16", "fp8", "w4a16", "int4-mixed", "awq", "nvfp4", "gguf-q4_k_m"])
def test_weights_sum_to_the_plan(compiled: Compile, scheme: str) -> None:
    graph = compiled("scout")
    assert last(weight_sums(graph, scheme)) == plan(graph, quantization=scheme).weights.bytes


@pytest.mark.parametrize("name", SPECS)
def test_the_ideal_cache_is_the_sum_of_its_layers(compiled: Compile, name: str) -> None:
    graph = compiled(name)
    rows = cache_sums(graph, plan(graph, context=2000, batch=2))
    assert last(rows) == sum(number(row[-1]) for row in rows[:-1])


def test_every_constant_of_the_hardware_has_its_source(compiled: Compile) -> None:
    graph = compiled("scout")
    text = to_text(explain_page(graph, plan(graph, gpus="8xH100", engine="vllm-hybrid", quantization="fp8")))
    for word in (
        "datasheet",
        "h100-sxm physical memory",
        "engine vllm-hybrid",
        "quantization fp8",
        "block of 16 tokens",
    ):
        assert word in text


def test_training_is_explained_by_its_forward_pass(compiled: Compile) -> None:
    graph = compiled("tiny/scout")
    text = to_text(explain_page(graph, plan(graph, mode="train", gpus="1xH100")))
    assert "a training step counts 3 times as much" in text
    assert "KV cache" not in text
