"""Other ways in which the same weights are stored: fused experts, leftovers of older versions, our own names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.checkpoints.hub_names import hub_layout, native_layout
from l4spec.runtime.checkpoints.layout import stored_parameters
from tests.runtime.checkpoints.models import (
    FAMILIES,
    assert_same_tensors,
    blank_model,
    randomize,
    save_small,
    small_graph,
    small_model,
    tensors_of,
)
from tests.runtime.tiny import MLA, graph_of, text_of

State = dict[str, torch.Tensor]


def saved_state(family: str, folder: Path) -> tuple[State, State]:
    """What a small model holds, and what its saved file holds."""
    model = save_small(family, folder)
    return tensors_of(model), load_file(folder / "model.safetensors")


def assert_loads(family: str, folder: Path, stored: State, expected: State) -> None:
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    model = blank_model(family)
    l4spec.load_checkpoint(model, folder, verify=False)
    assert_same_tensors(tensors_of(model), expected)


def fuse_experts(stored: State, names: tuple[str, str, str]) -> State:
    """Experts stored one by one, as transformers 5 holds them in memory: [expert, 2 out, in] and [expert, out, in]."""
    gate, up, down = names
    fused = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
    prefixes = sorted({name.split(".experts.")[0] for name in stored if ".experts." in name})
    for prefix in prefixes:
        experts = f"{prefix}.experts"
        count = len({name for name in stored if name.startswith(experts) and name.endswith(f".{gate}.weight")})
        rows = [
            torch.cat([stored[f"{experts}.{e}.{gate}.weight"], stored[f"{experts}.{e}.{up}.weight"]])
            for e in range(count)
        ]
        fused[f"{experts}.gate_up_proj"] = torch.stack(rows)
        fused[f"{experts}.down_proj"] = torch.stack([stored[f"{experts}.{e}.{down}.weight"] for e in range(count)])
    return fused


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("mixtral", ("w1", "w3", "w2")),
        ("qwen3_moe", ("gate_proj", "up_proj", "down_proj")),
        ("deepseek_v3", ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_fused_experts_load_where_they_are_usually_stored_one_by_one(
    family: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    expected, stored = saved_state(family, tmp_path)
    fused = fuse_experts(stored, names)
    assert fused.keys() != stored.keys()
    assert_loads(family, tmp_path, fused, expected)


def test_mixtral_under_the_names_that_transformers_uses_in_memory_loads(tmp_path: Path) -> None:
    expected, stored = saved_state("mixtral", tmp_path)
    fused = fuse_experts(stored, ("w1", "w3", "w2"))
    renamed = {name.replace(".block_sparse_moe.", ".mlp."): tensor for name, tensor in fused.items()}
    assert_loads("mixtral", tmp_path, renamed, expected)


def test_llama_4_with_experts_one_by_one_loads(tmp_path: Path) -> None:
    expected, stored = saved_state("llama4", tmp_path)
    apart = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
    for name, tensor in stored.items():
        prefix, _, kind = name.rpartition(".")
        for expert, matrix in enumerate(tensor if ".experts." in name else ()):
            if kind == "down_proj":
                apart[f"{prefix}.{expert}.down_proj.weight"] = matrix.T
            else:
                gate, up = matrix.chunk(2, dim=1)
                apart |= {f"{prefix}.{expert}.gate_proj.weight": gate.T, f"{prefix}.{expert}.up_proj.weight": up.T}
    assert_loads("llama4", tmp_path, apart, expected)


def test_llama_4_stores_experts_transposed_and_the_gate_before_the_up_projection(tmp_path: Path) -> None:
    ours, stored = saved_state("llama4", tmp_path)
    fused = stored["language_model.model.layers.0.feed_forward.experts.gate_up_proj"]
    gate, up = fused.transpose(1, 2).chunk(2, dim=1)
    assert torch.equal(gate, ours["text.layers.0.ffn.experts.gate_proj"])
    assert torch.equal(up, ours["text.layers.0.ffn.experts.up_proj"])


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gemma2", "lm_head.weight"),
        ("deepseek_v3", "model.layers.4.self_attn.q_a_proj.weight"),
    ],
)
def test_what_published_checkpoints_hold_and_nobody_reads_is_left_alone(
    family: str, extra: str, tmp_path: Path
) -> None:
    expected, stored = saved_state(family, tmp_path)
    assert_loads(family, tmp_path, {**stored, extra: torch.zeros(3)}, expected)


def test_an_output_table_beside_an_untied_model_is_no_leftover(tmp_path: Path) -> None:
    expected, stored = saved_state("llama", tmp_path)
    with pytest.raises(UserError, match=r"output\.weight: is stored, but"):
        assert_loads("llama", tmp_path, {**stored, "output.weight": torch.zeros(3)}, expected)


def test_several_files_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    expected, stored = saved_state("llama", tmp_path)
    first, *_ = stored
    save_file({first: stored.pop(first)}, tmp_path / "other.safetensors")
    assert_loads("llama", tmp_path, stored, expected)


def test_a_model_that_no_family_can_say_is_saved_under_our_names_with_its_spec(tmp_path: Path) -> None:
    overrides = ["text.parts.moe.router.score=softmax", "text.parts.moe.num_experts_per_token=2"]
    model = randomize(l4spec.build(l4spec.compile(l4spec.load("tiny/scout", overrides)), dtype="bf16"))
    saved = l4spec.save_checkpoint(model, tmp_path / "own")
    assert saved.layout == "l4spec"
    assert load_file(tmp_path / "own" / "model.safetensors").keys() == model.state_dict().keys()
    again = l4spec.open_model(tmp_path / "own")
    assert again.dtype == torch.bfloat16
    assert again.graph.model.text.stack.blocks == model.graph.model.text.stack.blocks
    assert_same_tensors(tensors_of(again), tensors_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_covers_every_element_of_every_tensor_exactly_once(family: str) -> None:
    graph = small_graph(family)
    shapes = {name: parameter.shape for name, parameter in stored_parameters(graph)}
    layouts = [layout for other in FAMILIES if (layout := hub_layout(graph, other))]
    alone = ("llama4", "gemma2", "gpt_oss", "gemma4_text", "deepseek_v4", "qwen2_5_vl")
    assert len(layouts) >= (1 if family in alone else 2)
    for layout in [*layouts, native_layout(graph)]:
        for way in range(max(len(group.alternatives) for group in layout.groups)):
            counts = {name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}
            for group in layout.groups:
                for stored in group.alternatives[min(way, len(group.alternatives) - 1)]:
                    _count(counts, stored.pieces)
            assert all(bool((count == 1).all()) for count in counts.values())


def _count(counts: State, pieces: object) -> None:
    for piece in pieces:  # type: ignore[attr-defined]
        box = [slice(None)] * counts[piece.tensor].dim()
        for dim, start, stop in piece.region:
            box[dim] = slice(start, stop)
        counts[piece.tensor][tuple(box)] += 1


def test_saving_to_a_model_type_that_is_known_by_its_origin_keeps_it(tmp_path: Path) -> None:
    spec = l4spec.load("compare/mistral-nemo-2407")
    assert spec.huggingface is not None
    save_small("mistral", tmp_path / "saved")
    assert '"model_type": "mistral"' in (tmp_path / "saved" / "config.json").read_text()


def test_small_models_of_different_seeds_differ() -> None:
    one, other = tensors_of(small_model("llama")), tensors_of(small_model("llama", seed=1))
    assert not any(one[name].equal(other[name]) for name in one)


def test_a_spec_beside_weights_keeps_the_null_of_a_field_without_a_default(tmp_path: Path) -> None:
    part = MLA | {"q_lora_rank": None, "num_heads": 3}
    model = l4spec.build(graph_of(text_of({"a": part}, [{"attention": "a"}], head_bias=True)), dtype="fp32")
    assert l4spec.save_checkpoint(model, tmp_path / "saved").layout == "l4spec"
    again = l4spec.open_model(tmp_path / "saved")
    assert again.graph.model.text == model.graph.model.text
    assert_same_tensors(tensors_of(again), tensors_of(model))
