"""Modules of multi-token prediction in checkpoints: published names, both ways, and what does not fit is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.build import build
from l4spec.runtime.checkpoints import open_mtp
from l4spec.runtime.checkpoints.headers import SINGLE, read_headers
from l4spec.runtime.model import Model
from l4spec.runtime.module_inventory import module_tensors
from l4spec.runtime.mtp import MTPModule, build_mtp, hidden_states
from l4spec.spec.scale import scale_spec
from tests.runtime.checkpoints.models import randomize
from tests.runtime.families import deepseek_v3
from tests.runtime.oracles import Oracle
from tests.runtime.test_mtp import MTP, ModuleReference
from tests.runtime.tiny import graph_of

COPIED = MTP | {"embedding": "copy", "head": "copy"}
AFTER_LAYERS = {
    "deepseek_v3": "deepseek-v3",
    "deepseek_v32": "deepseek-v3.2",
    "glm_moe_dsa": "glm-5.1",
    "glm4_moe": "glm-4.5",
}
"""A shipped spec of each family whose modules are layers after the last one."""
APART = {"qwen3_5_text": "qwen3.5-27b", "qwen3_5_moe_text": "qwen3.5-35b-a3b", "qwen3_next": "qwen3-next-80b-a3b"}
"""The same of those whose one module is `mtp.`."""
FAMILIES = AFTER_LAYERS | APART
GROUPS = {"deepseek_v3": ["text.parts.moe.router.num_groups=4", "text.parts.moe.router.num_limited_groups=2"]}
MODULE = {"num_modules": 2, "block": {"attention": "attention", "ffn": "moe"}, "embedding": "copy", "head": "copy"}


def _model(family: str = "deepseek_v3") -> Model:
    few = [] if family == "qwen3_5_text" else ["text.parts.moe.num_experts=16"]
    text = l4spec.load(FAMILIES[family], [*few, *GROUPS.get(family, [])]).model_dump(mode="json", exclude_none=True)
    ffn = "ffn" if family == "qwen3_5_text" else "moe"
    text["text"]["mtp"] = MODULE if family in AFTER_LAYERS else {"block": {"attention": "attention", "ffn": ffn}}
    if family == "qwen3_next":  # which another family, tried before, can say as well
        text["huggingface"] = {"model_type": family, "fields": {}}
    return randomize(build(l4spec.compile(scale_spec(l4spec.load(text), "tiny")), dtype="fp32"))


def _modules(model: Model) -> tuple[MTPModule, ...]:
    modules = build_mtp(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in modules:
            for tensor in module_tensors(module).values():
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
    return modules


def _assert_equal(left: tuple[MTPModule, ...], right: tuple[MTPModule, ...]) -> None:
    for one, other in zip(left, right, strict=True):
        ours, theirs = module_tensors(one), module_tensors(other)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("family", AFTER_LAYERS)
def test_modules_come_back_to_the_bit_under_published_names(family: str, tmp_path: Path) -> None:
    model = _model(family)
    modules = _modules(model)
    l4spec.save_checkpoint(model, tmp_path / "saved", modules=modules)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["model_type"], config["num_nextn_predict_layers"]) == (family, 2)
    names = read_headers(tmp_path / "saved").keys()
    for index in (model.graph.num_layers, model.graph.num_layers + 1):
        for name in ("eh_proj", "enorm", "hnorm", "shared_head.norm", "shared_head.head", "embed_tokens"):
            assert f"model.layers.{index}.{name}.weight" in names
        assert f"model.layers.{index}.mlp.experts.1.up_proj.weight" in names
    again = l4spec.open_model(tmp_path / "saved")
    assert again.graph.model.text.mtp is not None
    _assert_equal(open_mtp(again, tmp_path / "saved"), modules)


@pytest.mark.parametrize("family", APART)
def test_a_module_apart_has_the_names_of_a_layer_of_full_attention(family: str, tmp_path: Path) -> None:
    """Those of a layer are transformers' (test_families.py), the others those that vLLM's `qwen3_next_mtp.py` reads."""
    model = _model(family)
    modules = _modules(model)
    saved = l4spec.save_checkpoint(model, tmp_path / "saved", modules=modules)
    assert saved.layout == family
    names = read_headers(tmp_path / "saved").keys()
    last = f"model.layers.{model.graph.num_layers - 1}."
    block = {name.removeprefix("mtp.layers.0.") for name in names if name.startswith("mtp.layers.0.")}
    assert block == {name.removeprefix(last) for name in names if name.startswith(last)}
    others = {name for name in names if name.startswith("mtp.") and not name.startswith("mtp.layers.")}
    assert others == {f"mtp.{name}.weight" for name in ("fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    again = l4spec.open_model(tmp_path / "saved")
    read = open_mtp(again, tmp_path / "saved")
    _assert_equal(read, modules)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        logits = read[0](hidden_states(again, ids[:, :-1]), ids[:, 1:])[0]
        assert logits.equal(modules[0](hidden_states(model, ids[:, :-1]), ids[:, 1:])[0])


def test_a_module_of_transformers_layers_is_read_and_gives_its_logits(tmp_path: Path) -> None:
    """The block under the names of transformers' own layer, the rest as README_WEIGHTS.md of DeepSeek-V3 lists it."""
    oracle = deepseek_v3()
    model = Oracle(oracle.reference, copy.deepcopy(oracle.text) | {"mtp": COPIED}, oracle.num_layers).ours()
    references = [ModuleReference(oracle, seed=seed).eval() for seed in (1, 2)]
    stored = dict(oracle.reference.state_dict())
    for index, reference in enumerate(references, start=oracle.num_layers):
        prefix = f"model.layers.{index}."
        own = {"enorm": reference.enorm, "hnorm": reference.hnorm, "eh_proj": reference.eh_proj}
        own |= {"shared_head.norm": reference.norm, "shared_head.head": reference.head}
        own |= {"embed_tokens": oracle.reference.model.embed_tokens}
        stored |= {f"{prefix}{name}.weight": layer.weight for name, layer in own.items()}
        stored |= {prefix + name: tensor for name, tensor in reference.layer.state_dict().items()}
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in stored.items()}, tmp_path / SINGLE)
    ids = torch.randint(0, 90, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for module, reference in zip(open_mtp(model, tmp_path), references, strict=True):
            hidden = hidden_states(model, ids[:, :-1])
            logits, expected = module(hidden, ids[:, 1:])[0], reference(hidden, ids[:, 1:])[0]
            assert (logits - expected).abs().max() <= oracle.bound * expected.abs().max()


def test_a_model_that_no_family_can_say_keeps_its_modules_under_our_names(tmp_path: Path) -> None:
    text = deepseek_v3().text | {"mtp": COPIED | {"embedding": "shared"}}
    model = randomize(build(graph_of(text), dtype="fp32"))
    modules = _modules(model)
    saved = l4spec.save_checkpoint(model, tmp_path / "saved", modules=modules)
    assert saved.layout == "l4spec"
    names = read_headers(tmp_path / "saved").keys()
    assert {name for name in names if ".embedding." in name} == {"text.embedding.weight"}
    assert "mtp.layers.1.projection.proj.weight" in names
    _assert_equal(open_mtp(l4spec.open_model(tmp_path / "saved"), tmp_path / "saved"), modules)


def test_a_model_saved_without_its_modules_declares_none(tmp_path: Path) -> None:
    model = _model()
    l4spec.save_checkpoint(model, tmp_path / "saved")
    again = l4spec.open_model(tmp_path / "saved")
    assert again.graph.model.text.mtp is None
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in again.state_dict().items())
    with pytest.raises(UserError, match="declares no multi-token prediction"):
        open_mtp(again, tmp_path / "saved")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model whose spec declares two modules, and the folder of both."""
    folder = tmp_path_factory.mktemp("modules") / "saved"
    model = _model()
    l4spec.save_checkpoint(model, folder, modules=_modules(model))
    return model, folder


Change = Callable[[dict[str, Tensor]], object]
_PROJECTION = "model.layers.5.eh_proj.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "missing": (lambda stored: stored.pop(_PROJECTION), "eh_proj.weight: is missing"),
    "misshapen": (
        lambda stored: stored.update({_PROJECTION: stored[_PROJECTION][:, 1:].contiguous()}),
        "eh_proj.weight.*expected shape",
    ),
    "extra": (
        lambda stored: stored.update({"model.layers.5.mlp.other.weight": torch.zeros(2)}),
        "other.weight.*is stored, but the model has no such tensor",
    ),
    "a table of its own": (
        lambda stored: stored.update(
            {"model.layers.4.embed_tokens.weight": stored["model.layers.4.embed_tokens.weight"] + 1}
        ),
        "embed_tokens.weight.*differs from the table of the model",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_modules_that_do_not_fit_are_refused_by_name(what: str, saved: tuple[Model, Path], tmp_path: Path) -> None:
    change, message = BROKEN[what]
    model, folder = saved
    stored = load_file(folder / SINGLE)
    change(stored)
    save_file(stored, tmp_path / SINGLE)
    with pytest.raises(UserError, match=message):
        open_mtp(model, tmp_path)


def test_damage_is_found_before_modules_are_read(saved: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = saved
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / SINGLE).read_bytes())
    data[-1] ^= 1
    (tmp_path / SINGLE).write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        open_mtp(model, tmp_path)


def test_modules_of_another_number_or_of_a_quantized_model_are_refused(tmp_path: Path) -> None:
    model = _model()
    with pytest.raises(UserError, match="declares 2 modules of multi-token prediction, found 1"):
        l4spec.save_checkpoint(model, tmp_path / "saved", modules=_modules(model)[:1])
    modules = _modules(model)
    packed = l4spec.quantize(model, "w8a16")
    with pytest.raises(UserError, match="beside plain weights only"):
        l4spec.save_checkpoint(packed, tmp_path / "saved", modules=modules)
    with pytest.raises(UserError, match="for plain weights only"):
        open_mtp(packed, tmp_path)
    assert not (tmp_path / "saved").exists()
