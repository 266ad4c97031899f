"""Meta's original Llama 4 layout, on synthetic files written here as the reference's load hooks and its resharding say.

Source: meta-llama/llama-models, models/checkpoint.py and models/llama4/{model,moe,ffn}.py.
"""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import l4spec
from l4spec.errors import UserError
from l4spec.runtime.model import Model
from tests.runtime.checkpoints.models import assert_same_tensors, randomize, tensors_of

State = dict[str, torch.Tensor]
VISION = "vision_embeddings.vision_encoder."


def model_of(name: str, fill: bool = True) -> Model:
    model = l4spec.build(l4spec.compile(l4spec.load(name)))
    return randomize(model) if fill else model


def rows(tensor: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    """What a column-parallel layer keeps on each rank: a part of its outputs."""
    return list(tensor.chunk(ranks, dim=0))


def columns(tensor: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    """What a row-parallel layer keeps on each rank: a part of its inputs."""
    return list(tensor.chunk(ranks, dim=1))


def layer_state(ours: State, layer: int, ranks: int, published: bool) -> dict[str, list[torch.Tensor]]:
    """One layer of the language model, for each name its tensor on every rank."""
    get = {name.removeprefix(f"text.layers.{layer}."): t for name, t in ours.items() if f"text.layers.{layer}." in name}
    q, k, v = (rows(get[f"attention.{name}_proj.weight"], ranks) for name in "qkv")
    state = {"attention.wo.weight": columns(get["attention.o_proj.weight"], ranks)}
    norm, is_moe = [get["attention_norm.weight"]] * ranks, "ffn.router.weight" in get
    if published:
        state["attention.wqkv.weight"] = [torch.cat(part) for part in zip(q, k, v, strict=True)]
        state["attention.wqkv.layer_norm_weight"] = norm
    else:
        state |= {"attention.wq.weight": q, "attention.wk.weight": k, "attention.wv.weight": v}
        state["attention_norm.weight"] = norm
    prefix = "ffn.shared_expert." if is_moe else "ffn."
    gate, up = (rows(get[f"{prefix}{name}_proj.weight"], ranks) for name in ("gate", "up"))
    down = columns(get[f"{prefix}down_proj.weight"], ranks)
    ffn_norm = "feed_forward.norm.weight" if is_moe else "feed_forward.mlp.layer_norm_weight"
    state[ffn_norm if published else "ffn_norm.weight"] = [get["ffn_norm.weight"]] * ranks
    if is_moe:
        state |= moe_state(get, ranks, published)
        plain = ("shared_expert.w1", "shared_expert.w3", "shared_expert.w2")
        names = ("w_in_shared_FD", "w_swiglu_FD", "w_out_shared_DF") if published else plain
        for name, parts in zip(names, (gate, up, down), strict=True):
            state[f"feed_forward.{name}.weight"] = parts
    elif published:
        state["feed_forward.mlp.fc1_weight"] = [torch.cat(part) for part in zip(gate, up, strict=True)]
        state["feed_forward.mlp.fc2_weight"] = down
    else:
        state |= {f"feed_forward.{name}.weight": part for name, part in (("w1", gate), ("w3", up), ("w2", down))}
    return state


def moe_state(get: State, ranks: int, published: bool) -> dict[str, list[torch.Tensor]]:
    """Experts [expert, in, out] cut along their width, two leading dims folded where published; the router [in, e]."""
    state = {"feed_forward.router_DE": [get["ffn.router.weight"].T] * ranks}
    names = {"gate_proj": ("moe_w_in_eD_F", "w1", 2), "up_proj": ("moe_w_swiglu_eD_F", "w3", 2)}
    names["down_proj"] = ("moe_w_out_eF_D", "w2", 1)
    for kind, (folded, plain, dim) in names.items():
        parts = get[f"ffn.experts.{kind}"].transpose(1, 2).chunk(ranks, dim=dim)
        name = f"feed_forward.experts.{folded if published else plain}"
        state[name] = [part.flatten(0, 1) if published else part for part in parts]
    return state


def vision_state(ours: State, ranks: int) -> dict[str, list[torch.Tensor]]:
    """The vision encoder, adapter and projection."""
    state = {
        f"{VISION}conv1._linear.weight": rows(ours["vision.patch_embedding.proj.weight"], ranks),
        f"{VISION}class_embedding": [ours["vision.patch_embedding.class_token"]] * ranks,
        f"{VISION}positional_embedding_vlm": [ours["vision.position.weight"]] * ranks,
        "vision_embeddings.vision_adapter.mlp.c_fc.weight": rows(ours["vision.adapter.fc1.weight"], ranks),
        "vision_embeddings.vision_adapter.mlp.c_proj.weight": columns(ours["vision.adapter.fc2.weight"], ranks),
        "vision_projection.weight": rows(ours["vision.projector.proj.weight"], ranks),
    }
    for name, tensor in ours.items():
        if match := re.match(r"vision\.(pre|post)_norm\.(weight|bias)", name):
            state[f"{VISION}ln_{match[1]}.{match[2]}"] = [tensor] * ranks
        if match := re.match(r"vision\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
            layer, inner, kind = match.groups()
            theirs = {"ffn.up_proj": "mlp.c_fc", "ffn.down_proj": "mlp.c_proj", "attention.o_proj": "attn.wo"}
            theirs |= {f"attention.{letter}_proj": f"attn.w{letter}" for letter in "qkv"}
            theirs |= {"attention_norm": "ln_1", "ffn_norm": "ln_2"}
            is_row = inner in ("ffn.down_proj", "attention.o_proj")
            whole = "norm" in inner or (is_row and kind == "bias")
            parts = [tensor] * ranks if whole else (columns if is_row else rows)(tensor, ranks)
            state[f"{VISION}transformer.resblocks.{layer}.{theirs[inner]}.{kind}"] = parts
    return state


def write_meta(model: Model, folder: Path, ranks: int, *, published: bool = True) -> list[dict[str, Any]]:
    """Write `consolidated.NN.pth` and return what each holds."""
    ours = tensors_of(model)
    tensors = {
        "tok_embeddings.weight": rows(ours["text.embedding.weight"], ranks),
        "norm.weight": [ours["text.norm.weight"]] * ranks,
        "output.weight": rows(ours["text.head.weight"], ranks),
    }
    for layer in range(model.graph.num_layers):
        state = layer_state(ours, layer, ranks, published)
        tensors |= {f"layers.{layer}.{name}": parts for name, parts in state.items()}
    if "vision.position.weight" in ours:
        tensors |= vision_state(ours, ranks)
    shards: list[dict[str, Any]] = [
        {name: parts[rank].contiguous() for name, parts in tensors.items()} for rank in range(ranks)
    ]
    for rank, shard in enumerate(shards):
        shard["layers.0.attention.wqkv._extra_state"] = io.BytesIO(b"state")
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    return shards


@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("published", [True, False])
def test_every_rank_puts_its_part_where_it_belongs(name: str, ranks: int, published: bool, tmp_path: Path) -> None:
    model, again = model_of(name), model_of(name, fill=False)
    write_meta(model, tmp_path, ranks, published=published)
    l4spec.load_checkpoint(again, tmp_path)
    assert_same_tensors(tensors_of(again), tensors_of(model))


def test_a_single_file_may_bear_no_number(tmp_path: Path) -> None:
    model, again = model_of("tiny/scout"), model_of("tiny/scout", fill=False)
    write_meta(model, tmp_path, 1)
    (tmp_path / "consolidated.00.pth").rename(tmp_path / "consolidated.pth")
    l4spec.load_checkpoint(again, tmp_path)
    assert_same_tensors(tensors_of(again), tensors_of(model))


def refused(folder: Path) -> str:
    """The message with which a folder is refused; the model must be as it was."""
    model = model_of("tiny/scout")
    before = tensors_of(model)
    with pytest.raises(UserError) as refusal:
        l4spec.load_checkpoint(model, folder)
    assert_same_tensors(tensors_of(model), before)
    return str(refusal.value)


def test_what_a_rank_lacks_or_has_in_another_shape_is_named_with_its_file(tmp_path: Path) -> None:
    shards = write_meta(model_of("tiny/scout"), tmp_path, 2)
    del shards[1]["layers.2.attention.wo.weight"]
    shards[1]["layers.3.feed_forward.router_DE"] = torch.zeros(80, 17)
    shards[0]["layers.0.speech.weight"] = torch.zeros(1)
    for rank, shard in enumerate(shards):
        torch.save(shard, tmp_path / f"consolidated.{rank:02d}.pth")
    message = refused(tmp_path)
    assert "layers.2.attention.wo.weight: is missing in rank 1" in message
    assert "consolidated.01.pth: layers.3.feed_forward.router_DE: expected shape [80, 16], found [80, 17]" in message
    assert "consolidated.00.pth: layers.0.speech.weight: is stored" in message


def test_a_gap_between_ranks_is_refused(tmp_path: Path) -> None:
    write_meta(model_of("tiny/scout"), tmp_path, 2)
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "consolidated.02.pth")
    assert "without a gap" in refused(tmp_path)


def test_a_truncated_file_is_refused_by_its_name(tmp_path: Path) -> None:
    write_meta(model_of("tiny/scout"), tmp_path, 2)
    path = tmp_path / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "consolidated.01.pth" in refused(tmp_path)


class Malicious:
    """What must never run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("executed",)


def test_a_pickle_of_anything_but_weights_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"tok_embeddings.weight": Malicious()}, tmp_path / "consolidated.00.pth")
    message = refused(tmp_path)
    assert "weights alone" in message
    assert "print" in message
    assert "executed" not in capsys.readouterr().out


def test_a_model_that_is_no_llama_4_is_refused(tmp_path: Path) -> None:
    write_meta(model_of("tiny/scout"), tmp_path, 1)
    model = l4spec.build(l4spec.compile(l4spec.load("tiny/deepseek")))
    with pytest.raises(UserError, match="Meta's Llama 4"):
        l4spec.load_checkpoint(model, tmp_path)
