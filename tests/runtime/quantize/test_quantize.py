"""Quantized models: stored as planned, by every scheme; computing what they store; refused with one clear error."""

import pytest
import torch
from torch import Tensor

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.quantization.scheme import regrouped, scheme_named
from l4spec.quantization.tensors import target_of
from l4spec.runtime.measure.flops import counting_flops
from l4spec.runtime.model import Model
from l4spec.runtime.module_inventory import contents_of, module_bytes, module_tensors
from l4spec.runtime.quantize.experts import QuantizedExperts
from l4spec.runtime.quantize.weight import PackedWeight, packed_weights
from l4spec.spec.storage import ScaledLaw
from planners.counts.params import count_params
from planners.module.executed import executed_rows
from tests.runtime.quantize.laws import RUNNABLE, fitted_scheme, largest_errors, planned_bytes
from tests.runtime.tiny import SWIGLU, gqa, graph_of, llama4_text, text_of

TINY = ("tiny/scout", "tiny/maverick", "tiny/deepseek")
PACKING = ("w4a16", "int8", "fp8", "fp8-block", "awq", "nvfp4", "mxfp4", "int4-mixed")


@pytest.fixture(scope="module")
def graphs() -> dict[str, LayerGraph]:
    return {name: l4spec.compile(l4spec.load(name)) for name in TINY}


def tokens(graph: LayerGraph, length: int = 24) -> Tensor:
    """Two prompts."""
    vocab_size = graph.model.text.head.vocab_size
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


def unpacked(graph: LayerGraph, quantized: Model, dtype: str) -> Model:
    """A plain model with the weights that a quantized one stores."""
    model = l4spec.build(graph, dtype=dtype, seed=None)
    stored = {name: weight.dense(dtype=model.dtype) for name, weight in packed_weights(quantized).items()}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(stored[name] if name in stored else module_tensors(quantized)[name])
    return model


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def relative(actual: Tensor, reference: Tensor) -> float:
    return float((actual - reference).detach().norm() / reference.detach().norm())


@pytest.mark.parametrize("scheme", RUNNABLE)
@pytest.mark.parametrize("name", TINY)
def test_stored_bytes_are_planned_bytes_and_no_weight_is_lost(
    name: str, scheme: str, graphs: dict[str, LayerGraph]
) -> None:
    graph = graphs[name]
    table = fitted_scheme(graph, scheme)
    model = l4spec.quantize(l4spec.build(graph), table)
    assert module_bytes(model) == planned_bytes(graph, table)
    assert sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) == planned_bytes(graph, table)
    assert contents_of(model).by_part == {part: n for part, n in count_params(graph).by_part.items() if n}
    laws = {
        f"{node.id}.{parameter.name}"
        for node, parameter in graph.parameters()
        if isinstance(table.law_for(target_of(graph, node, parameter)), ScaledLaw)
    }
    assert packed_weights(model).keys() == laws


@pytest.mark.parametrize("scheme", PACKING)
def test_every_stored_weight_is_within_half_a_step_of_the_weight(scheme: str, graphs: dict[str, LayerGraph]) -> None:
    graph = graphs["tiny/scout"]
    plain = l4spec.build(graph, dtype="fp32").state_dict()
    model = l4spec.quantize(l4spec.build(graph, dtype="fp32"), fitted_scheme(graph, scheme))
    for name, weight in packed_weights(model).items():
        matrices = range(weight.shape[0]) if len(weight.shape) == 3 else [None]
        for index in matrices:
            own = plain[name] if index is None else plain[name][index]
            bound = largest_errors(weight.law, weight.coded(() if index is None else (index,)), own)
            assert ((weight.dense(index, torch.float32) - own).abs() <= bound).all(), name


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, scheme) for name in ("tiny/scout", "tiny/deepseek") for scheme in PACKING] + [("tiny/maverick", "w4a16")],
)
def test_logits_are_those_of_the_stored_weights(name: str, scheme: str, graphs: dict[str, LayerGraph]) -> None:
    """In fp32, where nothing but the order of sums differs between packed products and plain ones."""
    graph = graphs[name]
    model = l4spec.quantize(l4spec.build(graph), fitted_scheme(graph, scheme)).to(torch.float32)
    reference = unpacked(graph, model, "fp32")
    ids = tokens(graph)
    assert relative(model(ids), reference(ids)) < 1e-4
    cache, expected = model.new_cache(2, 30), reference.new_cache(2, 30)
    for piece in (ids[:, :20], ids[:, 20:21], ids[:, 21:22]):
        assert relative(model(piece, cache=cache), reference(piece, cache=expected)) < 1e-4


def test_more_bits_change_the_logits_less(graphs: dict[str, LayerGraph]) -> None:
    graph = graphs["tiny/scout"]
    ids = tokens(graph)
    plain = l4spec.build(graph, dtype="bf16")(ids)
    errors = [
        relative(l4spec.build(graph, quantization=fitted_scheme(graph, name).name)(ids), plain)
        for name in ("bf16", "int8", "fp8", "w4a16")
    ]
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert errors[1] < 0.02  # 8-bit codes: steps of 1/127 of the largest weight, about bf16's own 2^-8
    assert errors[-1] < 0.3  # 4-bit codes: each product's weights are off by 10 % of their deviation, through 4 layers


@pytest.mark.parametrize("scheme", ["w4a16", "fp8", "int8", "int4-mixed"])
@pytest.mark.parametrize("name", TINY)
def test_fused_experts_are_packed_stacks(name: str, scheme: str, graphs: dict[str, LayerGraph]) -> None:
    graph = graphs[name]
    model = l4spec.build(graph, "meta", quantization=fitted_scheme(graph, scheme).name)
    layers = [module for module in model.modules() if isinstance(module, QuantizedExperts)]
    num_mixtures = sum(node.kind == "moe" for node in graph.nodes)
    assert len(layers) == num_mixtures > 0
    dtypes = {"w4a16": {torch.int32}, "fp8": {torch.float8_e4m3fn}, "int8": {torch.int8}, "int4-mixed": {torch.uint8}}
    for layer in layers:
        stacks = [stack for stack in layer.children() if isinstance(stack, PackedWeight)]
        assert len(stacks) == 3
        assert {stack.weight_packed.dtype for stack in stacks} == dtypes[scheme]
        assert not list(layer.parameters())


@pytest.mark.parametrize(("name", "scheme"), list(zip(TINY, ("w4a16", "int8", "int4-mixed"), strict=True)))
def test_packed_weights_run_as_many_flops_as_planned(name: str, scheme: str, graphs: dict[str, LayerGraph]) -> None:
    graph = graphs[name]
    model, ids = l4spec.build(graph, quantization=fitted_scheme(graph, scheme).name), tokens(graph)
    cache = model.new_cache(2, 30)
    for piece, start in ((ids, 0), (ids[:, :1], 24)):
        with counting_flops(model) as counted:
            model(piece, cache=cache, logits="last")
        rows = executed_rows(graph, Work(2, piece.shape[1], start, num_logits=1))
        planned = {node.id: row.flops_per_layer for row in rows if row.flops_per_layer for node in row.group.nodes}
        assert {name: count for name, count in counted.items() if count} == planned


def test_widths_of_real_models_take_the_packed_products() -> None:
    wide = {"hidden_size": 128, "vocab_size": 64}
    graph = graph_with(wide)
    model = l4spec.build(graph, quantization="w4a16-g32")
    packed = packed_weights(model)
    assert all(weight.kernel is not None for weight in packed.values())
    assert relative(model.to(torch.float32)(tokens(graph)), unpacked(graph, model, "fp32")(tokens(graph))) < 1e-4
    assert len(model.generate([[1, 2, 3]], max_new_tokens=5)[0]) == 8


def graph_with(fields: dict[str, int]) -> LayerGraph:
    """Llama 4's structure with feed-forward layers of 64."""
    text = llama4_text(**fields)
    for part in text["parts"].values():
        if "intermediate_size" in part:
            part["intermediate_size"] = 64
    return graph_of(text)


@pytest.mark.parametrize("scheme", ["w4a16", "fp8", "awq", "nvfp4"])
def test_a_model_built_packed_is_the_model_packed_after_it_was_built(
    scheme: str, graphs: dict[str, LayerGraph]
) -> None:
    graph = graphs["tiny/maverick"]
    table = fitted_scheme(graph, scheme)
    built = l4spec.build(graph, quantization=table.name, seed=3)
    after = l4spec.quantize(l4spec.build(graph, dtype=built.dtype, seed=3), table)
    states = built.state_dict(), after.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(bytes_of(states[0][name]), bytes_of(states[1][name])) for name in states[0])
    blank = l4spec.build(graph, quantization=table.name, seed=None)
    blank.load_state_dict(states[0])
    assert torch.equal(blank(tokens(graph)), built(tokens(graph)))


def test_a_quantized_model_is_frozen_and_known_by_its_scheme(graphs: dict[str, LayerGraph]) -> None:
    model = l4spec.quantize(l4spec.build(graphs["tiny/scout"]), "int8")
    assert model.quantization == scheme_named("int8")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="quantized already, as int8"):
        l4spec.quantize(model, "fp8")


def test_nothing_is_allocated_on_meta_and_bytes_are_those_of_the_plan() -> None:
    graph = l4spec.compile(l4spec.load("scout"))
    model = l4spec.build(graph, "meta", quantization="w4a16")
    assert all(tensor.is_meta for tensor in module_tensors(model).values())
    assert module_bytes(model) == planned_bytes(graph, scheme_named("w4a16")) == 60_390_403_072


@pytest.mark.parametrize("scheme", ["gguf-q4_k_m", "gguf-q8_0"])
def test_blocks_of_gguf_are_refused_before_anything_is_packed(scheme: str, graphs: dict[str, LayerGraph]) -> None:
    model = l4spec.build(graphs["tiny/scout"])
    with pytest.raises(UserError, match=f"{scheme} cannot be run: it stores Q._.* blocks of GGUF"):
        l4spec.quantize(model, scheme)
    assert model.quantization is None
    assert not packed_weights(model)


def test_groups_that_do_not_divide_are_refused_with_those_that_do(graphs: dict[str, LayerGraph]) -> None:
    with pytest.raises(UserError) as caught:
        l4spec.build(graphs["tiny/scout"], quantization="w4a16")
    (problem,) = caught.value.problems
    assert "groups of 128 do not divide the 80 weights" in problem.message
    assert problem.hint == "w4a16-g16 fits every tensor"


def other_law(**fields: object) -> object:
    """The scheme w4a16-g16 with another law."""
    table = regrouped(scheme_named("w4a16"), 16)
    (rule,) = table.rules
    return table.model_copy(update={"rules": (rule.model_copy(update={"law": rule.law.model_copy(update=fields)}),)})


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (other_law(bits=3), "it stores int of 3 bits"),
        (other_law(zero_point_bits=8), "zero points of 8 bits"),
        (other_law(values="e4m3"), "it stores e4m3 of 4 bits"),
    ],
)
def test_laws_without_a_module_are_refused(table: object, reason: str, graphs: dict[str, LayerGraph]) -> None:
    with pytest.raises(UserError, match=reason):
        l4spec.quantize(l4spec.build(graphs["tiny/scout"]), table)  # type: ignore[arg-type]


def test_only_linear_layers_and_experts_are_packed(graphs: dict[str, LayerGraph]) -> None:
    table = regrouped(scheme_named("w4a16"), 16)
    (rule,) = table.rules
    everything = rule.model_copy(update={"parts": (), "roles": ("embedding",)})
    with pytest.raises(UserError, match=r"text\.embedding\.weight: .* linear layers and experts alone"):
        l4spec.quantize(l4spec.build(graphs["tiny/scout"]), table.model_copy(update={"rules": (everything,)}))


def test_a_dtype_beside_a_scheme_is_refused(graphs: dict[str, LayerGraph]) -> None:
    with pytest.raises(UserError, match="int8 says the number formats"):
        l4spec.build(graphs["tiny/scout"], dtype="fp32", quantization="int8")


def test_a_tied_head_reads_the_embedding_that_stays_plain() -> None:
    layers = [{"attention": "a", "ffn": "f"}]
    graph = graph_of(text_of({"a": gqa(), "f": SWIGLU}, layers, tie_embeddings=True))
    model = l4spec.build(graph, quantization="w4a16-g16")
    assert module_bytes(model) == planned_bytes(graph, scheme_named("w4a16-g16"))
    model.to(torch.float32)
    assert relative(model(tokens(graph)), unpacked(graph, model, "fp32")(tokens(graph))) < 1e-4


def test_packed_models_are_not_cut_into_shards(graphs: dict[str, LayerGraph]) -> None:
    model = l4spec.build(graphs["tiny/scout"], quantization="int8")
    with pytest.raises(UserError, match="packed weights are not cut into shards"):
        l4spec.distribute(model, l4spec.Layout())
