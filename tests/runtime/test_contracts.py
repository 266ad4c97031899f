"""Modules hold what their kinds declare, caches take the bytes that the planner says."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import planners
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers import KINDS
from l4spec.runtime.build import build, check
from l4spec.runtime.initialize import initialize
from l4spec.spec.model import ModelSpec
from l4spec.spec.resolve import resolve
from tests.runtime.compressed_families import COMPRESSED_FAMILIES
from tests.runtime.families import FAMILIES
from tests.runtime.hybrid_families import DELTA_NET, KDA, MAMBA2
from tests.runtime.sparse_families import INDEX
from tests.runtime.tiny import MLA, ROPE, SWIGLU, Json, any_sides, gqa, graph_of, llama4_text, moe, text_of, vision

ATTENTIONS: dict[str, Json] = {
    "plain": gqa(),
    "biases": gqa(qkv_bias=True, output_bias=True),
    "norms": gqa(qk_norm={"kind": "rmsnorm"}, position=ROPE),
    "mla": MLA | {"bias": True},
    "mla full query": MLA | {"q_lora_rank": None},
    "sparse": MLA | INDEX | {"kind": "sparse_mla"},
    "window": gqa(mask={"kind": "sliding_window", "size": 5}),
    "chunks": gqa(mask={"kind": "chunked", "size": 8}),
    "delta net": DELTA_NET,
    "kda": KDA,
    "mamba": MAMBA2,
}
FFNS: dict[str, Json] = {
    "swiglu": SWIGLU | {"bias": True},
    "geglu": {"kind": "geglu", "intermediate_size": 20},
    "mlp": {"kind": "mlp", "intermediate_size": 20, "bias": False},
    "moe": moe(),
    "shared": moe(num_shared_experts=2, shared_intermediate_size=12, shared_gate=True),
    "corrected": moe(router={"score": "sigmoid", "num_groups": 2, "num_limited_groups": 1, "correction_bias": True}),
    "capacity": moe(capacity_factor=1.5),
    "plain experts": moe(gated=False, activation="relu2", num_shared_experts=1, expert_bias=True),
    "latent": moe(latent_size=20),
}


def block(attention: str, ffn: str, **others: object) -> LayerGraph:
    parts = {"a": ATTENTIONS[attention], "f": FFNS[ffn]}
    return graph_of(text_of(parts, [{"attention": "a", "ffn": "f", "repeat": 2}], **others))


READ = {**FAMILIES, **COMPRESSED_FAMILIES}
GRAPHS: dict[str, Callable[[], LayerGraph]] = {
    **{f"attention {name}": lambda name=name: block(name, "swiglu") for name in ATTENTIONS},  # type: ignore[misc]
    **{f"ffn {name}": lambda name=name: block("plain", name) for name in FFNS},  # type: ignore[misc]
    **{name: lambda family=family: graph_of(family().text) for name, family in READ.items()},  # type: ignore[misc]
    "tied": lambda: block("plain", "mlp", tie_embeddings=True, head_bias=True, learned_positions=True),
    "layernorm": lambda: block("plain", "mlp", norm={"kind": "layernorm", "eps": 1e-5, "bias": False}),
    "vision": lambda: graph_of(llama4_text(), vision()),
    "vision, class token first": lambda: graph_of(llama4_text(), vision("first")),
    "vision, images of any sides": lambda: graph_of(llama4_text(), any_sides()),
}


def declared(graph: LayerGraph) -> dict[str, tuple[int, ...]]:
    return {f"{node.id}.{p.name}": p.shape for node, p in graph.parameters() if p.tied_to is None}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_model_holds_exactly_what_its_graph_declares(name: str) -> None:
    graph = GRAPHS[name]()
    model = build(graph)
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == declared(graph)
    buffers = {f"{node.id}.{p.name}" for node, p in graph.parameters() if p.buffer}
    assert set(dict(model.named_buffers())) == buffers
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel for _, p in graph.parameters())


def test_the_contract_covers_every_kind() -> None:
    kinds = {node.kind for make in GRAPHS.values() for node in make().nodes}
    assert kinds >= KINDS.keys()


def test_a_module_that_holds_something_else_is_refused_by_name() -> None:
    graph = block("plain", "mlp")
    model = build(graph)
    model.get_submodule("text.norm").extra = nn.Parameter(torch.zeros(3))
    del model.get_submodule("text.layers.0.ffn").up_proj
    with pytest.raises(TypeError, match=r"(?s)text\.layers\.0\.ffn\.up_proj\.weight.*text\.norm\.extra"):
        check(model, graph)


@pytest.mark.parametrize("max_len", [1, 5, 8, 9, 100])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_cache_takes_the_declared_bytes(name: str, max_len: int, dtype: torch.dtype, size: int) -> None:
    graph = GRAPHS[name]()
    cache = build(graph, "meta").new_cache(3, max_len, dtype)
    entries = [entry for node in graph.nodes for entry in node.declaration.cache if node.scope == "text"]
    sizes = [e.elements_per_token * e.bound.num_kept(max_len) * e.bytes_per_element(size) for e in entries]
    assert cache.num_bytes == 3 * sum(sizes)


def scout_like(**others: object) -> ModelSpec:
    """Llama 4's shapes at full width."""
    attention = gqa(num_heads=40, num_kv_heads=8, head_dim=128)
    parts = {
        "local": attention | {"mask": {"kind": "chunked", "size": 8192}, "position": ROPE},
        "global": attention,
        "moe": moe(num_experts=16, num_experts_per_token=1, num_shared_experts=1, intermediate_size=8192),
    }
    pattern = [{"attention": "local", "ffn": "moe", "repeat": 3}, {"attention": "global", "ffn": "moe"}]
    sizes: Json = {"hidden_size": 5120, "vocab_size": 202048, "max_seq_len": 10485760}
    text = text_of(parts, [{"repeat": 12, "blocks": pattern}], **(sizes | others))
    return ModelSpec.model_validate({"l4spec": 1, "name": "wide", "text": text})


def test_the_planner_and_the_cache_agree_on_a_real_model() -> None:
    graph = build_graph(resolve(scout_like()))
    plan = planners.plan(graph, gpus="8xH200", quantization="bf16", kv_dtype="bf16", context=20_000, batch=2)
    cache = build(graph, "meta").new_cache(2, 20_000, torch.bfloat16)
    assert plan.kv_cache.bytes == cache.num_bytes


def test_two_trillion_parameters_build_on_meta_in_seconds() -> None:
    text: Json = {"hidden_size": 20480, "dtype": "bf16"}
    spec = scout_like(**text)
    graph = build_graph(resolve(spec))
    begin = time.process_time()
    model = build(graph, "meta")
    assert time.process_time() - begin < 10
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel for _, p in graph.parameters())
    assert all(p.is_meta for p in model.parameters())


def test_a_forward_pass_on_meta_gives_shapes_without_memory() -> None:
    model = build(build_graph(resolve(scout_like())), "meta")
    ids = torch.empty(1, 8200, dtype=torch.long, device="meta")
    logits = model(ids, cache=model.new_cache(1, 8201), logits="last")
    assert logits.is_meta
    assert logits.shape == (1, 1, 202048)


def test_the_same_seed_gives_a_tensor_the_same_values_in_every_model() -> None:
    small, large = block("plain", "swiglu"), graph_of(llama4_text(), vision())
    first, second = build(small, seed=3).state_dict(), build(large, seed=3).state_dict()
    shared = {"text.embedding.weight", "text.layers.0.attention.q_proj.weight", "text.head.weight"}
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert not torch.equal(first["text.embedding.weight"], build(small, seed=4).state_dict()["text.embedding.weight"])
    half = build(small, dtype="bf16", seed=3).state_dict()
    assert all(torch.equal(half[name], first[name].bfloat16()) for name in first)


def test_norms_begin_neutral_and_biases_at_zero() -> None:
    offset = build(graph_of(FAMILIES["gemma2"]().text)).state_dict()
    assert torch.equal(offset["text.norm.weight"], torch.zeros(48))
    plain = build(block("biases", "swiglu")).state_dict()
    assert torch.equal(plain["text.norm.weight"], torch.ones(48))
    assert torch.equal(plain["text.layers.0.attention.q_proj.bias"], torch.zeros(64))
    deviation = float(plain["text.layers.0.ffn.up_proj.weight"].std())
    assert deviation == pytest.approx(0.02, rel=0.1)


def test_a_tied_head_is_stored_once_and_follows_the_embedding() -> None:
    graph = block("plain", "mlp", tie_embeddings=True)
    model = build(graph)
    assert "text.head.weight" not in model.state_dict()
    ids = torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        before = model(ids)
        model.get_parameter("text.embedding.weight")[5] *= 2
        after = model(ids)
    assert torch.allclose(after[..., 5], 2 * before[..., 5])


def test_filling_needs_no_gradient_and_leaves_none() -> None:
    graph = block("plain", "mlp")
    model = build(graph, seed=None)
    initialize(model, graph, 1)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
