"""Packed sizes: the formulas against packing by hand, their laws, and published footprints of Llama 4."""

from dataclasses import dataclass
from math import ceil, prod

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from l4spec.errors import UserError
from l4spec.layers.declaration import Part, Role
from l4spec.quantization.packing import Refusal, StoredSize, stored_bytes
from l4spec.spec.storage import BlockLaw, PlainLaw, ScaledLaw, uses_more_bits
from planners.catalog import Target, quantization, shipped_names
from planners.counts.weights import scheme_of, weigh
from tests.planners.models import graph

ALL = shipped_names("quantization")
BF16 = PlainLaw(kind="plain", dtype="bf16")
SIZES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "e8m0": 1}


def _size(law: PlainLaw | ScaledLaw | BlockLaw, shape: tuple[int, ...], axis: int | None = None) -> StoredSize:
    size = stored_bytes(law, shape, axis)
    assert isinstance(size, StoredSize)
    return size


scaled_laws = st.builds(
    ScaledLaw,
    kind=st.just("scaled"),
    bits=st.integers(1, 8),
    group=st.sampled_from(["tensor", "row"]) | st.integers(1, 8) | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale_dtype=st.sampled_from(["fp32", "bf16", "fp8", "e8m0"]),
    zero_point_bits=st.sampled_from([0, 4, 8]),
    matrix_scale_dtype=st.sampled_from([None, "fp32"]),
    word_bits=st.sampled_from([8, 16, 32]),
)
shapes = st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple)


def _packed_by_hand(law: ScaledLaw, shape: tuple[int, ...], axis: int) -> StoredSize:
    """Every weight put into words bit by bit, every group collected in a set."""
    payload = scales = zeros = 0
    *_, rows, columns = shape if axis == len(shape) - 1 else (*shape[:-2], shape[-1], shape[-2])
    for _matrix in range(prod(shape[:-2])):
        groups = set()
        for row in range(rows):
            words = set()
            for column in range(columns):
                words |= {(column * law.bits + bit) // law.word_bits for bit in range(law.bits)}
                groups.add(_group_of(law, row, column))
            payload += len(words) * law.word_bits // 8
        scales += len(groups) * SIZES[law.scale_dtype] + (
            SIZES[law.matrix_scale_dtype] if law.matrix_scale_dtype else 0
        )
        zeros += ceil(len(groups) * law.zero_point_bits / law.word_bits) * law.word_bits // 8
    return StoredSize(payload, scales, zeros)


def _group_of(law: ScaledLaw, row: int, column: int) -> tuple[int, int]:
    if isinstance(law.group, tuple):
        return row // law.group[0], column // law.group[1]
    if isinstance(law.group, int):
        return row, column // law.group
    return (0, 0) if law.group == "tensor" else (row, 0)


@given(scaled_laws, shapes, st.booleans())
def test_the_formula_counts_what_packing_by_hand_counts(law: ScaledLaw, shape: tuple[int, ...], last: bool) -> None:
    axis = len(shape) - 1 if last else len(shape) - 2
    num_bytes = stored_bytes(law, shape, axis)
    if isinstance(num_bytes, Refusal):
        assert isinstance(law.group, int)
        assert shape[axis] % law.group
        return
    assert num_bytes == _packed_by_hand(law, shape, axis)


@given(scaled_laws, st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_a_stack_of_experts_takes_the_bytes_of_its_matrices(law: ScaledLaw, experts: int, out: int, into: int) -> None:
    one = stored_bytes(law, (out, into), 1)
    assume(isinstance(one, StoredSize))
    assert isinstance(one, StoredSize)
    total = sum([one] * experts, StoredSize(0))
    assert _size(law, (experts, out, into), 2) == total


@given(scaled_laws, st.integers(1, 9), st.integers(1, 9))
def test_only_the_contracted_dim_matters_not_where_it_stands(law: ScaledLaw, out: int, into: int) -> None:
    upright, lying = stored_bytes(law, (out, into), 1), stored_bytes(law, (into, out), 0)
    if isinstance(upright, StoredSize):
        assert upright == lying
    else:
        assert isinstance(lying, Refusal)


@pytest.mark.parametrize("name", [name for name in ALL if name != "fp32"])
@given(experts=st.integers(1, 4), out=st.integers(1, 600), blocks=st.integers(1, 8))
def test_a_quantized_matrix_is_never_larger_than_bf16(name: str, experts: int, out: int, blocks: int) -> None:
    shape = (experts, out, 256 * blocks)
    law = quantization(name).law_for(Target("experts.down_proj", "routed_experts", "expert", 0, 8))
    assert _size(law, shape, 2).total_bytes <= _size(BF16, shape, 2).total_bytes


@given(st.integers(1, 64), st.integers(1, 2000))
def test_a_group_that_does_not_divide_the_input_dim_is_refused_with_the_shape(out: int, into: int) -> None:
    law = quantization("w4a16").law_for(Target("q_proj.weight", "attention", "linear"))
    num_bytes = stored_bytes(law, (out, into), 1)
    if into % 128:
        assert num_bytes == Refusal(
            f"groups of 128 do not divide the {into} weights of the input dim (shape {out}x{into})"
        )
    else:
        assert num_bytes == StoredSize(out * into // 2, out * into // 128 * 2)


def test_gguf_rows_that_are_no_whole_blocks_fall_back_twice() -> None:
    law = quantization("gguf-q4_k_m").law_for(Target("up_proj.weight", "dense_ffn", "linear", 0, 8))
    assert _size(law, (10, 256)).total_bytes == 10 * 144
    assert _size(law, (10, 96)).total_bytes == 10 * 3 * 22
    assert _size(law, (10, 90)).total_bytes == 10 * 90 * 2


def test_a_vector_is_one_row() -> None:
    assert _size(BF16, (5120,)).total_bytes == 10240
    q8 = BlockLaw(kind="block", type="Q8_0", weights=32, bytes=34, fallback=BF16)
    assert _size(q8, (64,)).total_bytes == 68


def test_deepseek_blocks_at_the_edge_count_in_full() -> None:
    law = quantization("fp8-block").law_for(Target("kv_a_proj.weight", "attention", "linear"))
    assert _size(law, (576, 7168), 1) == StoredSize(576 * 7168, 5 * 56 * 4)


def test_llama_cpp_gives_more_bits_to_half_the_layers_of_llama_4() -> None:
    chosen = [layer for layer in range(48) if uses_more_bits(layer, 48)]
    assert chosen == [*range(6), *range(8, 42, 3), *range(42, 48)]


@pytest.mark.parametrize(("scheme", "part"), [("fp8-mixed", "routed_experts"), ("fp8-ffn", "dense_ffn")])
def test_schemes_that_spare_the_first_and_last_layer_do(scheme: str, part: Part) -> None:
    role: Role = "expert" if part == "routed_experts" else "linear"
    kinds = [quantization(scheme).law_for(Target("down_proj", part, role, layer, 4)).kind for layer in range(4)]
    assert kinds == ["plain", "scaled", "scaled", "plain"]
    assert quantization(scheme).depends_on_layer
    assert not quantization("fp8").depends_on_layer


def test_vectors_router_and_vision_are_never_packed() -> None:
    kept: list[tuple[Part, Role]] = [
        ("norm", "norm"),
        ("router", "router"),
        ("attention", "bias"),
        ("vision", "linear"),
    ]
    for name in ALL:
        for part, role in [*kept, ("projector", "linear"), ("position", "other")]:
            assert isinstance(quantization(name).law_for(Target("x.weight", part, role, 0, 4)), PlainLaw)


@dataclass(frozen=True)
class _Tensor:
    name: str
    part: Part
    role: Role
    shape: tuple[int, ...]
    layers: tuple[int, ...] | None = None


def _llama_4(num_experts: int, moe_layers: tuple[int, ...]) -> list[_Tensor]:
    """Scout and Maverick by hand; vectors and the vision tower as one tensor of their count."""
    every, dense = tuple(range(48)), tuple(sorted(set(range(48)) - set(moe_layers)))

    def ffn(
        prefix: str, part: Part, role: Role, width: int, lead: tuple[int, ...], at: tuple[int, ...]
    ) -> list[_Tensor]:
        up, down = (*lead, width, 5120), (*lead, 5120, width)
        shapes = {"gate_proj": up, "up_proj": up, "down_proj": down}
        return [_Tensor(f"{prefix}.{name}.weight", part, role, shape, at) for name, shape in shapes.items()]

    heads = {"q_proj": (5120, 5120), "k_proj": (1024, 5120), "v_proj": (1024, 5120), "o_proj": (5120, 5120)}
    return [
        _Tensor("embedding.weight", "embedding", "embedding", (202048, 5120)),
        _Tensor("head.weight", "head", "head", (202048, 5120)),
        _Tensor("norm.weight", "norm", "norm", (5120,)),
        _Tensor("norms", "norm", "norm", (10240,), every),
        *[_Tensor(f"{name}.weight", "attention", "linear", shape, every) for name, shape in heads.items()],
        _Tensor("router.weight", "router", "router", (num_experts, 5120), moe_layers),
        *ffn("experts", "routed_experts", "expert", 8192, (num_experts,), moe_layers),
        *ffn("shared_expert", "shared_expert", "linear", 8192, (), moe_layers),
        *ffn("mlp", "dense_ffn", "linear", 16384, (), dense),
        _Tensor("vision", "vision", "linear", (850_960_896,)),
        _Tensor("projector.weight", "projector", "linear", (5120, 4096)),
    ]


MODELS = {
    "scout": _llama_4(16, tuple(range(48))),
    "maverick": _llama_4(128, tuple(range(1, 48, 2))),
}


def _footprint(scheme_name: str, tensors: list[_Tensor]) -> int:
    scheme, total = quantization(scheme_name), 0
    for tensor in tensors:
        for layer in tensor.layers if tensor.layers is not None else (None,):
            target = Target(tensor.name, tensor.part, tensor.role, layer, None if layer is None else 48)
            total += _size(scheme.law_for(target), tensor.shape).total_bytes
    return total


def test_the_tensors_counted_here_are_all_of_llama_4() -> None:
    assert _footprint("bf16", MODELS["scout"]) == 217_283_587_072
    assert _footprint("bf16", MODELS["maverick"]) == 803_167_562_752
    assert _footprint("fp32", MODELS["scout"]) == 2 * 217_283_587_072


@pytest.mark.parametrize(
    ("scheme", "scout_gb", "maverick_gb"),
    [
        ("fp8", 111.59, 404.54),
        ("fp8-experts", 120.65, 416.62),
        ("int4-mixed", 63.27, 218.82),
        ("w4a16", 60.39, 211.46),
        ("int4", 60.39, 211.46),
        ("w4a16-ffn", 64.87, 215.94),
        ("nvfp4", 65.34, 230.14),
    ],
)
def test_footprints_of_llama_4_are_the_published_ones(scheme: str, scout_gb: float, maverick_gb: float) -> None:
    assert _footprint(scheme, MODELS["scout"]) / 1e9 == pytest.approx(scout_gb, rel=1e-3)
    assert _footprint(scheme, MODELS["maverick"]) / 1e9 == pytest.approx(maverick_gb, rel=1e-3)


LLAMA_CPP = {  # ggml-org/llama.cpp tools/quantize/README.md, bits per weight of Llama 3.1 8B; Q3_K_M: of an older state
    "q2_k": 3.1593,
    "q3_k_s": 3.6429,
    "q3_k_m": 3.9960,
    "q3_k_l": 4.2979,
    "q4_k_s": 4.6672,
    "q4_k_m": 4.8944,
    "q5_k_s": 5.5704,
    "q5_k_m": 5.7036,
    "q6_k": 6.5633,
    "q8_0": 8.5008,
}


@pytest.mark.parametrize(("mix", "bits"), LLAMA_CPP.items())
def test_mixes_of_llama_cpp_have_the_published_bits_per_weight(mix: str, bits: float) -> None:
    stored = weigh(graph("compare/llama-3.1-8b"), scheme_of(quantization(f"gguf-{mix}"))).bytes
    assert 8 * stored / 8_030_261_248 == pytest.approx(bits, abs=0.5e-4)


def test_every_gguf_scheme_is_held_to_a_published_size() -> None:
    assert {name for name in shipped_names("quantization") if name.startswith("gguf-")} == {
        f"gguf-{n}" for n in LLAMA_CPP
    }


@pytest.mark.parametrize(
    ("model", "scheme", "gigabytes"),
    [
        ("compare/llama-3.1-8b", "bnb-nf4", 5.70),  # model.safetensors of unsloth/Meta-Llama-3.1-8B-bnb-4bit
        ("compare/llama-3.1-8b", "mlx-4bit", 4.52),  # mlx-community/Meta-Llama-3.1-8B-Instruct-4bit
        ("compare/llama-2-7b", "gptq", 3.90),  # TheBloke/Llama-2-7B-32K-Instruct-GPTQ, main; with g_idx, 0.005 GB
    ],
)
def test_other_formats_have_the_published_size(model: str, scheme: str, gigabytes: float) -> None:
    stored = weigh(graph(model), scheme_of(quantization(scheme))).bytes
    assert stored / 1e9 == pytest.approx(gigabytes, abs=0.011)


def test_scout_in_q4_k_m_is_the_67_gb_that_ollama_lists() -> None:
    assert round(_footprint("gguf-q4_k_m", MODELS["scout"]) / 1e9) == 67


def test_a_scheme_with_other_groups_is_named_after_them() -> None:
    base, other = quantization("w4a16"), quantization("W4A16-g32")
    assert other.name == "w4a16-g32"
    assert other.group_sizes == {32}
    assert other == quantization("int4-g32"), "an alias is as good"
    assert [rule.parts for rule in other.rules] == [rule.parts for rule in base.rules]
    assert quantization("int4-mixed-g128").group_sizes == {128}, "a shipped name is no name of groups"


@pytest.mark.parametrize("name", ["fp8-g32", "bf16-g16", "w4a16-g0", "w5-g32", "w4a16-g32-g16-"])
def test_groups_of_a_scheme_without_any_are_no_name(name: str) -> None:
    with pytest.raises(UserError, match="no quantization scheme is called"):
        quantization(name)
