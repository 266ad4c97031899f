"""Checkpoints of quantized models: as large as planned, the same weights by compressed-tensors and transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from safetensors import safe_open
from torch import Tensor, nn

import l4spec
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.quantization.scheme import scheme_named
from l4spec.runtime.checkpoints.hub_names import hub_layout
from l4spec.runtime.checkpoints.layout import StoredTensor
from l4spec.runtime.checkpoints.packed_save import SHAPE_BYTES, matrix_index, stored_tensors
from l4spec.runtime.checkpoints.save import SavedCheckpoint
from l4spec.runtime.model import Model
from l4spec.runtime.quantize.weight import packed_weights
from l4spec.spec.scale import scale_spec
from tests.runtime.quantize.laws import fitted_scheme, planned_bytes
from tests.runtime.tiny import SWIGLU, gqa, graph_of, text_of

FORMATS = {
    "w4a16": "pack-quantized",
    "w4a16-ffn": "pack-quantized",
    "int8": "pack-quantized",
    "int4-mixed": "pack-quantized",
    "fp8": "float-quantized",
    "fp8-experts": "float-quantized",
    "fp8-block": "float-quantized",
}
PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape")
Saved = tuple[LayerGraph, Model, SavedCheckpoint]


def save(name: str, scheme: str, folder: Path) -> Saved:
    """A tiny model quantized and saved."""
    graph = l4spec.compile(l4spec.load(name))
    model = l4spec.build(graph, quantization=fitted_scheme(graph, scheme).name)
    return graph, model, l4spec.save_checkpoint(model, folder / "saved")


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the quantization_config of a folder of one weight file."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return tensors, json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("scheme", FORMATS)
def test_the_folders_tensors_are_as_large_as_planned_besides_the_shapes(scheme: str, tmp_path: Path) -> None:
    graph, model, saved = save("tiny/scout", scheme, tmp_path)
    tensors, config = read(saved.directory)
    num_shapes = sum(name.endswith(".weight_shape") for name in tensors)
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert stored == saved.num_bytes
    assert saved.shape_bytes == num_shapes * SHAPE_BYTES
    assert stored - saved.shape_bytes == planned_bytes(graph, fitted_scheme(graph, scheme))
    assert config["format"] == FORMATS[scheme]
    num_matrices = sum(w.shape[0] if len(w.shape) == 3 else 1 for w in packed_weights(model).values())
    assert num_shapes == (num_matrices if FORMATS[scheme] == "pack-quantized" else 0)


def skeleton(names: list[str]) -> nn.Module:
    """Linear layers on meta at the places that stored names say."""
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        parent = root
        for step in path:
            if step not in parent._modules:
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        parent.add_module(last, nn.Linear(1, 1, bias=False, device="meta"))
    return root


def linear_layers(graph: LayerGraph, model: Model, config: dict[str, Any]) -> dict[str, StoredTensor]:
    """What a checkpoint stores as the matrix of a linear layer, by the layer's name."""
    layout = hub_layout(graph, config["model_type"])
    assert layout is not None
    layers = [s for s in stored_tensors(layout, set(packed_weights(model))) if len(s.shape) == 2]
    return {s.name.removesuffix(".weight"): s for s in layers if s.name.endswith(".weight") and "embed" not in s.name}


@pytest.mark.parametrize("scheme", FORMATS)
@pytest.mark.parametrize("name", ["tiny/scout", "tiny/deepseek"])
def test_compressed_tensors_reads_the_same_weights_of_the_same_layers(name: str, scheme: str, tmp_path: Path) -> None:
    graph, model, saved = save(name, scheme, tmp_path)
    tensors, config = read(saved.directory)
    layers = linear_layers(graph, model, json.loads((saved.directory / "config.json").read_text()))
    root = skeleton(list(layers))
    apply_quantization_config(root, QuantizationConfig.model_validate(config))
    compressor, packed = BaseCompressor.get_value_from_registry(config["format"]), packed_weights(model)
    matched = {layer for layer in layers if hasattr(root.get_submodule(layer), "quantization_scheme")}
    assert matched == {layer for layer, stored in layers.items() if stored.pieces[0].tensor in packed}
    for layer in matched:
        weight, index = packed[layers[layer].pieces[0].tensor], matrix_index(layers[layer])
        own = {part: tensors[f"{layer}.{part}"] for part in PARTS if f"{layer}.{part}" in tensors}
        decompressed = compressor.decompress(own, root.get_submodule(layer).quantization_scheme)["weight"]
        assert torch.equal(decompressed, weight.dense(index[0] if index else None, decompressed.dtype))
    assert len(matched) > 10


def test_experts_are_linear_layers_of_their_own(tmp_path: Path) -> None:
    _, _, saved = save("tiny/scout", "w4a16", tmp_path)
    tensors, config = read(saved.directory)
    expert = "language_model.model.layers.0.feed_forward.experts.15.down_proj"
    assert tensors[f"{expert}.weight_packed"].dtype == torch.int32
    assert tensors[f"{expert}.weight_shape"].tolist() == [80, 16]
    assert not any("gate_up_proj" in name for name in tensors)
    ignored = config["ignore"]
    assert "language_model.model.layers.3.feed_forward.router" in ignored
    assert "multi_modal_projector.linear_1" in ignored
    assert not any("language_model" in name and "self_attn" in name for name in ignored)


def test_plain_attention_is_ignored_by_name(tmp_path: Path) -> None:
    _, _, saved = save("tiny/scout", "w4a16-ffn", tmp_path)
    _, config = read(saved.directory)
    assert "language_model.model.layers.0.self_attn.q_proj" in config["ignore"]


@pytest.mark.parametrize("scheme", ["w4a16-g32", "fp8"])
def test_transformers_runs_a_checkpoint_as_our_module_does(scheme: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    spec = scale_spec(l4spec.load("compare/llama-3.1-8b", ["text.dtype=bf16"]), "tiny")
    graph = l4spec.compile(spec)
    table = fitted_scheme(graph, scheme)
    model = l4spec.build(graph, quantization=table.name)
    l4spec.save_checkpoint(model, tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    ids = torch.arange(1, 17)[None]
    with torch.no_grad():
        expected, actual = theirs(ids).logits.float(), model(ids)
    # bf16 in both; in fp8 theirs also rounds activations, to 3 mantissa bits: 2^-4 of each
    assert (actual - expected).norm() / expected.norm() < (0.02 if scheme != "fp8" else 0.1)


@pytest.mark.parametrize("scheme", FORMATS)
def test_a_saved_model_opens_packed_and_is_the_same(scheme: str, tmp_path: Path) -> None:
    _, model, saved = save("tiny/deepseek", scheme, tmp_path)
    again = l4spec.open_model(saved.directory)
    assert again.quantization == model.quantization
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), after[name].reshape(-1).view(torch.uint8)), name
    ids = torch.arange(1, 9)[None]
    assert torch.equal(model(ids), again(ids))


def test_several_files_hold_the_same(tmp_path: Path) -> None:
    _, model, _ = save("tiny/scout", "w4a16", tmp_path)
    saved = l4spec.save_checkpoint(model, tmp_path / "many", max_shard_bytes=100_000)
    assert saved.num_files > 3
    assert torch.equal(l4spec.open_model(saved.directory)(torch.arange(9)[None]), model(torch.arange(9)[None]))


def test_a_damaged_checkpoint_names_every_tensor_and_changes_nothing(tmp_path: Path) -> None:
    graph, _, saved = save("tiny/scout", "w4a16", tmp_path)
    other = l4spec.build(graph, quantization="int8")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError) as caught:
        l4spec.load_checkpoint(other, saved.directory)
    text = str(caught.value)
    assert "self_attn.q_proj.weight_scale: expected BF16 of shape [80, 1], found BF16 of shape [80, 5]" in text
    assert all(torch.equal(before[name].reshape(-1), t.reshape(-1)) for name, t in other.state_dict().items())


def test_a_packed_folder_refuses_another_number_format(tmp_path: Path) -> None:
    _, _, saved = save("tiny/scout", "int8", tmp_path)
    with pytest.raises(UserError, match="int8 says the number formats"):
        l4spec.open_model(saved.directory, dtype="fp32")


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [("awq", "no zero points"), ("nvfp4", "one scale of 16 or 32 bits"), ("mxfp4", "one scale of 16 or 32 bits")],
)
def test_what_the_format_cannot_say_is_refused_and_nothing_written(scheme: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        save("tiny/scout", scheme, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_of_no_family_is_refused_by_what_no_config_can_say(tmp_path: Path) -> None:
    parts = {"a": gqa(temperature={"floor_scale": 4, "attn_scale": 0.1}), "f": SWIGLU}
    graph = graph_of(text_of(parts, [{"attention": "a", "ffn": "f", "form": "parallel"}]))
    model = l4spec.build(graph, quantization="w4a16-g16")
    with pytest.raises(UserError, match="needs a Hugging Face config"):
        l4spec.save_checkpoint(model, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_plain_scheme_saves_a_plain_checkpoint(tmp_path: Path) -> None:
    model = l4spec.quantize(l4spec.build(l4spec.compile(l4spec.load("tiny/scout"))), scheme_named("bf16"))
    saved = l4spec.save_checkpoint(model, tmp_path / "saved")
    assert "quantization_config" not in json.loads((saved.directory / "config.json").read_text())
    names = sorted(path.name for path in saved.directory.iterdir())
    assert names == ["config.json", "digests.json", "model.safetensors"]
    shutil.rmtree(saved.directory)
