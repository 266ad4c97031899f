"""Hypothesis strategies for whole models, valid by construction, shrinking towards one layer of width 1.

Every strategy draws plain data as an author would write it; `model_specs` and `graphs` run it through the street.
`step` makes every width that a matmul contracts a multiple of it, for packing laws with groups and blocks.
"""

from typing import Any

from hypothesis import strategies as st

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.model import ModelSpec

Data = dict[str, Any]
Draw = st.DrawFn

SEEDS = ("model", "llama 4 / test", "A.b-c_9")
PART_NAMES = ("a", "local", "no-rope", "on_", "B2")
POSITIVE = st.floats(min_value=1e-6, max_value=1e6, allow_nan=False)
EPS = st.sampled_from([1e-5, 1e-6, 1e-12])
TOWER_OPTIONS = {
    "class_token": st.sampled_from(["first", "last", "none"]),
    "learned_positions": st.booleans(),
    "patch_bias": st.booleans(),
    "pre_layernorm": st.booleans(),
    "post_layernorm": st.booleans(),
}
TEXT_OPTIONS = {
    "dtype": st.sampled_from(["bf16", "fp16", "fp32"]),
    "tie_embeddings": st.booleans(),
    "embedding_scale": POSITIVE,
    "learned_positions": st.booleans(),
    "final_norm": st.booleans(),
    "head_bias": st.booleans(),
    "logit_softcap": POSITIVE,
}


def sizes(most: int = 24, step: int = 1) -> st.SearchStrategy[int]:
    """Widths: small, odd ones included."""
    return st.integers(1, max(most // step, 3)).map(lambda n: n * step)


@st.composite
def masks(draw: Draw, *, bidirectional: bool = True) -> Data:
    """Any mask; `bidirectional` allows the one that caches nothing."""
    kind = draw(st.sampled_from(["causal", "chunked", "sliding_window", *(["none"] if bidirectional else [])]))
    return {"kind": kind} | ({"size": draw(st.integers(1, 40))} if kind in ("chunked", "sliding_window") else {})


@st.composite
def rope_scalings(draw: Draw) -> Data:
    kind = draw(st.sampled_from(["linear", "llama3", "yarn", "proportional"]))
    scaling: Data = {"kind": kind, "factor": draw(st.sampled_from([1.0, 2, 8.0, 16]))}
    if kind == "llama3":
        low = draw(st.sampled_from([1.0, 2.0]))
        scaling |= {"low_freq_factor": low, "high_freq_factor": low * draw(st.sampled_from([1, 4]))}
    if kind == "proportional":
        scaling["share"] = draw(st.sampled_from([0.1, 0.25, 1.0]))
    if kind in ("llama3", "yarn"):
        scaling["original_max_seq_len"] = draw(st.integers(1, 8192))
    if kind == "yarn" and draw(st.booleans()):
        scaling |= {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16.0, "truncate": draw(st.booleans())}
    return scaling


@st.composite
def ropes(draw: Draw, *, rotated: int | None = None) -> Data:
    """Rotary positions; `rotated` bounds the rotated part of a head, None leaves it out."""
    rope: Data = {"kind": "rope", "theta": draw(st.sampled_from([10000.0, 500000, 1e6]))}
    if rotated is not None and draw(st.booleans()):
        rope["rotary_dim"] = 2 * draw(st.integers(1, rotated // 2))
    if draw(st.booleans()):
        rope["layout"] = draw(st.sampled_from(["interleaved", "half"]))
    return rope | ({"scaling": draw(rope_scalings())} if draw(st.booleans()) else {})


@st.composite
def head_with_position(draw: Draw, step: int, vision: bool) -> tuple[int, Data]:
    """A head's width and a position that suits it; only patches have a place in two dimensions."""
    kind = draw(st.sampled_from(["none", "rope", *(["rope_2d"] if vision else [])]))
    if kind == "none":
        return draw(sizes(9, step)), {"kind": "none"}
    if kind == "rope_2d":
        more = {"layout": st.sampled_from(["interleaved", "half"]), "first": st.sampled_from(["column", "row"])}
        return 4 * draw(sizes(3, step)), {"kind": "rope_2d", "theta": 10000.0} | draw(some_of(more))
    head_dim = 2 * draw(sizes(6, step))
    rope = draw(ropes(rotated=head_dim))
    if not vision and draw(st.booleans()):
        rope["sections"] = draw(sections(rope.get("rotary_dim", head_dim) // 2))
    return head_dim, rope


@st.composite
def sections(draw: Draw, pairs: int) -> Data:
    """Pairs that turn by an image token's time, row and column, one section after the other or in turns."""
    if draw(st.booleans()):
        row, column = (draw(st.integers(0, len(range(axis, pairs, 3)))) for axis in (1, 2))
        return {"time": pairs - row - column, "row": row, "column": column, "interleaved": True}
    row = draw(st.integers(0, pairs))
    column = draw(st.integers(0, pairs - row))
    return {"time": pairs - row - column, "row": row, "column": column}


@st.composite
def gqas(draw: Draw, *, bidirectional: bool = True, step: int = 1, vision: bool = False) -> Data:
    num_kv_heads, (head_dim, position) = draw(st.integers(1, 4)), draw(head_with_position(step, vision))
    part: Data = {
        "kind": "gqa",
        "num_heads": num_kv_heads * draw(st.integers(1, 4)),
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "mask": draw(masks(bidirectional=bidirectional)),
        "position": position,
    }
    options = {
        "qkv_bias": st.booleans(),
        "output_bias": st.booleans(),
        "qk_norm": st.none() | qk_norms(),
        "temperature": st.sampled_from([None, {"floor_scale": 8192, "attn_scale": 0.1}]),
        "logit_softcap": st.none() | POSITIVE,
        "scale": st.none() | POSITIVE,
        "sinks": st.booleans(),
        "output_gate": st.sampled_from([None, "elementwise", "headwise"]),
        "v_head_dim": sizes(9, step),
        "value_scale": st.sampled_from([0.707, 2.0]),
        "value_norm": st.just({"eps": 1e-6}),
    }
    part |= draw(some_of(options))
    return part | ({} if "v_head_dim" in part else draw(some_of({"values_from_keys": st.booleans()})))


@st.composite
def qk_norms(draw: Draw) -> Data:
    if draw(st.booleans()):
        return {"kind": "l2"}
    options = {"over": st.sampled_from(["head", "width"]), "unit_offset": st.booleans()}
    return {"kind": "rmsnorm", "eps": 1e-6} | draw(some_of(options))


@st.composite
def gate_clamps(draw: Draw) -> Data:
    options = {"alpha": st.sampled_from([1.0, 1.702]), "up_offset": st.sampled_from([0.0, 1.0])}
    return {"limit": draw(st.sampled_from([0.5, 7.0]))} | draw(some_of(options))


@st.composite
def some_of(draw: Draw, options: dict[str, st.SearchStrategy[Any]]) -> Data:
    """Some of the optional fields, each with a drawn value."""
    return {name: draw(values) for name, values in options.items() if draw(st.booleans())}


@st.composite
def mlas(draw: Draw, *, bidirectional: bool = True, step: int = 1, vision: bool = False) -> Data:
    return {
        "kind": "mla",
        "num_heads": draw(st.integers(1, 4)),
        "q_lora_rank": draw(st.none() | sizes(step=step)),
        "kv_lora_rank": draw(sizes(step=step)),
        "qk_nope_head_dim": draw(sizes(9, step)),
        "qk_rope_head_dim": 2 * draw(sizes(6, step)),
        "v_head_dim": draw(sizes(9, step)),
        "mask": draw(masks(bidirectional=bidirectional)),
        "position": draw(st.just({"kind": "none"}) | ropes()),
        "norm_eps": draw(EPS),
        "bias": draw(st.booleans()),
    }


@st.composite
def gated_delta_nets(draw: Draw, step: int = 1) -> Data:
    num_key_heads = draw(st.integers(1, 3))
    part: Data = {
        "kind": "gated_delta_net",
        "num_key_heads": num_key_heads,
        "num_value_heads": num_key_heads * draw(st.integers(1, 3)),
        "key_head_dim": draw(sizes(9, step)),
        "value_head_dim": draw(sizes(9, step)),
    }
    return part | draw(some_of({"conv_kernel_size": st.integers(2, 5), "norm_eps": EPS}))


@st.composite
def kdas(draw: Draw, step: int = 1) -> Data:
    part: Data = {"kind": "kda", "num_heads": draw(st.integers(1, 4)), "head_dim": draw(sizes(9, step))}
    return part | draw(some_of({"conv_kernel_size": st.integers(2, 5), "norm_eps": EPS}))


@st.composite
def mamba2s(draw: Draw, step: int = 1) -> Data:
    num_groups = draw(st.integers(1, 3))
    part: Data = {
        "kind": "mamba2",
        "num_groups": num_groups,
        "num_heads": num_groups * draw(st.integers(1, 3)),
        "head_dim": draw(sizes(9, step)),
        "state_size": draw(sizes(9, step)),
    }
    options = {"conv_kernel_size": st.integers(2, 5), "conv_bias": st.booleans(), "bias": st.booleans()}
    return part | draw(some_of(options | {"min_step": st.sampled_from([0.0, 0.001]), "norm_eps": EPS}))


@st.composite
def dense_ffns(draw: Draw, step: int = 1) -> Data:
    kind = draw(st.sampled_from(["swiglu", "geglu", "mlp"]))
    options: dict[str, st.SearchStrategy[Any]] = {"bias": st.booleans()}
    if kind == "geglu":
        options["approximate"] = st.sampled_from(["tanh", "none"])
    if kind == "swiglu":
        options["clamp"] = st.none() | gate_clamps()
    if kind == "mlp":
        options["activation"] = st.sampled_from(["gelu", "gelu_tanh", "relu", "relu2"])
    return {"kind": kind, "intermediate_size": draw(sizes(step=step))} | draw(some_of(options))


@st.composite
def moes(draw: Draw, step: int = 1) -> Data:
    num_groups, limited = draw(st.integers(1, 3)), 1
    per_group = draw(st.integers(1 if num_groups == 1 else 2, 5))
    limited = draw(st.integers(1, num_groups))
    router: Data = {"score": draw(st.sampled_from(["sigmoid", "softmax"]))}
    if num_groups > 1:
        router |= {"num_groups": num_groups, "num_limited_groups": limited}
    router |= draw(
        some_of(
            {
                "scales": st.sampled_from(["input", "output"]),
                "renormalize": st.booleans(),
                "scaling_factor": POSITIVE,
                "group_score": st.sampled_from(["top2_sum", "max"]),
                "correction_bias": st.booleans(),
                "bias": st.booleans(),
                "norm": st.just({"eps": 1e-6}),
                "expert_scale": st.booleans(),
            }
        )
    )
    part: Data = {
        "kind": "moe",
        "num_experts": num_groups * per_group,
        "num_experts_per_token": draw(st.integers(1, limited * per_group)),
        "intermediate_size": draw(sizes(step=step)),
        "router": router,
    }
    balance = st.sampled_from([{"auxiliary_loss": 0.01}, {"z_loss": 0.001}, {"auxiliary_loss": 0.01, "z_loss": 0.001}])
    part |= draw(some_of({"capacity_factor": POSITIVE, "balance": balance, "expert_bias": st.booleans()}))
    gate = {"activation": st.sampled_from(["silu", "gelu_tanh"])} if draw(st.booleans()) else {"clamp": gate_clamps()}
    part |= draw(some_of(gate))
    if "clamp" not in part and draw(st.booleans()):
        part |= {"gated": False} | draw(some_of({"activation": st.sampled_from(["silu", "relu2"])}))
    part |= draw(some_of({"latent_size": sizes(step=step), "input_norm": st.just({"eps": 1e-6})}))
    if draw(st.booleans()):
        part["num_shared_experts"] = draw(st.integers(1, 3))
        part |= draw(some_of({"shared_intermediate_size": sizes(step=step), "shared_gate": st.booleans()}))
    return part


@st.composite
def norms(draw: Draw) -> Data:
    kind = draw(st.sampled_from(["rmsnorm", "layernorm"]))
    option = "unit_offset" if kind == "rmsnorm" else "bias"
    return {"kind": kind, "eps": draw(EPS)} | draw(some_of({option: st.booleans()}))


@st.composite
def blocks(draw: Draw, attention: list[str], ffn: list[str]) -> Data:
    """One block of existing parts: attention, feed-forward or both, in any form."""
    both = draw(st.sampled_from(["both", "attention", "ffn"])) if attention and ffn else "only"
    block: Data = {}
    if attention and both != "ffn":
        block["attention"] = draw(st.sampled_from(attention))
    if ffn and both != "attention":
        block["ffn"] = draw(st.sampled_from(ffn))
    forms = ["pre_norm", "post_norm", "sandwich", "output_norm", *(["parallel"] if len(block) == 2 else [])]
    block |= draw(some_of({"form": st.sampled_from(forms), "repeat": st.integers(1, 3)}))
    if block.get("form") == "sandwich" and "ffn" in block:
        block |= draw(some_of({"second_ffn": st.sampled_from(ffn)}))
    scaled = {} if block.get("form") == "post_norm" else {"output_scale": st.booleans()}
    return block | draw(some_of(scaled))


@st.composite
def stacks(draw: Draw, *, hidden_size: int, vision: bool = False, bidirectional: bool = True, step: int = 1) -> Data:
    """Parts and the pattern in which they are laid; a vision tower attends to every patch."""
    parts: Data = {}
    recurrent = {"gated_delta_net": gated_delta_nets, "kda": kdas, "mamba2": mamba2s}
    recurrent = {} if vision else recurrent  # which see no later patches
    kinds = draw(st.lists(st.sampled_from(["gqa", "dense", "moe", "mla", *recurrent]), min_size=1, max_size=4))
    for name, kind in zip(PART_NAMES, kinds, strict=False):
        attentions = {"gqa": gqas, "mla": mlas}
        if kind in recurrent:
            parts[name] = draw(recurrent[kind](step))
        elif kind in attentions:
            parts[name] = draw(attentions[kind](bidirectional=bidirectional, step=step, vision=vision))
            parts[name]["mask"] = {"kind": "none"} if vision else parts[name]["mask"]
        else:
            parts[name] = draw(dense_ffns(step) if kind == "dense" else moes(step))
            if vision:
                parts[name].pop("balance", None)  # ranks without images do not run the tower
    attention = [name for name, part in parts.items() if part["kind"] in ("gqa", "mla", *recurrent)]
    block = blocks(attention, [name for name in parts if name not in attention])
    group = st.fixed_dictionaries({"blocks": st.lists(block, min_size=1, max_size=3), "repeat": st.integers(1, 3)})
    layers = draw(st.lists(block | group, min_size=1, max_size=3))
    return {"hidden_size": hidden_size, "norm": draw(norms()), "parts": parts, "layers": layers}


@st.composite
def patch_mergers(draw: Draw, fold: int, step: int) -> Data:
    options = {
        "norm": st.sampled_from(["layernorm", "rmsnorm"]),
        "norms": st.sampled_from(["patches", "folded"]),
        "activation": st.sampled_from(["gelu", "gelu_tanh"]),
        "bias": st.booleans(),
    }
    sizes_of = {"spatial_merge_size": fold, "output_size": draw(sizes(step=step))}
    return {"kind": "patch_merger", "eps": 1e-6} | sizes_of | draw(some_of(options))


def num_blocks(stack: Data) -> int:
    """Blocks of a drawn stack, all repeats laid out."""
    return sum(
        item.get("repeat", 1) * sum(block.get("repeat", 1) for block in item.get("blocks", [{}]))
        for item in stack["layers"]
    )


@st.composite
def visions(draw: Draw, text_width: int, step: int = 1, text_blocks: int = 0) -> Data:
    fold, patch = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 4))
    tower = draw(stacks(hidden_size=draw(sizes(step=step)), vision=True, step=step))
    tower |= draw(some_of(TOWER_OPTIONS))
    for part in tower["parts"].values():
        is_plain = part["kind"] == "gqa" and not {"sinks", "logit_softcap", "v_head_dim"} & part.keys()
        if is_plain and tower.get("class_token", "none") == "none" and draw(st.booleans()):
            part["mask"] = {"kind": "grid_window", "size": draw(st.integers(1, 6))}
    if tower.get("learned_positions") and tower.get("class_token", "none") == "none" and draw(st.booleans()):
        tower["position_grid"] = draw(st.integers(1, 6))
    adapter: Data = {
        "kind": "pixel_shuffle_mlp",
        "pixel_shuffle_ratio": 1 / fold,
        "intermediate_size": draw(sizes(step=step)),
        "output_size": draw(sizes(step=step)),
        "bias": draw(st.booleans()),
    }
    more: Data = draw(some_of({"temporal_patch_size": st.integers(1, 3)}))
    if draw(st.booleans()):
        adapter = draw(patch_mergers(fold, step))
    most = min(text_blocks, num_blocks(tower))
    if most and draw(st.booleans()):
        blocks = draw(st.sets(st.integers(0, num_blocks(tower) - 1), min_size=1, max_size=most))
        same = {"output_size": adapter["output_size"]}
        more["deepstack"] = {"blocks": sorted(blocks), "adapter": draw(patch_mergers(fold, step)) | same}
    return more | {
        "image_size": patch * fold * draw(st.integers(1, 4)),
        "patch_size": patch,
        "num_channels": draw(st.integers(1, 3)),
        "max_tiles": draw(st.integers(1, 16)),
        "global_tile": draw(st.booleans()),
        "tower": tower,
        "adapter": adapter,
        "projector": {"kind": "linear", "output_size": text_width, "bias": draw(st.booleans())},
    }


@st.composite
def modules(draw: Draw, text: Data) -> Data:
    """Modules of multi-token prediction for a drawn text: one of its blocks, once."""
    block = draw(st.sampled_from([block for item in text["layers"] for block in item.get("blocks", [item])]))
    tables = dict.fromkeys(("embedding", "head"), st.sampled_from(["shared", "copy"]))
    return draw(some_of(tables)) | {"num_modules": draw(st.integers(1, 3)), "block": block | {"repeat": 1}}


@st.composite
def models(
    draw: Draw, vision: bool | None = None, bidirectional: bool = True, step: int = 1, mtp: bool = False
) -> Data:
    """A whole spec as plain data. `vision` fixes whether there is a tower, `mtp` forces modules beside the model."""
    width = draw(sizes(step=step))
    text = draw(stacks(hidden_size=width, bidirectional=bidirectional, step=step))
    text |= {"vocab_size": draw(sizes(200, step)), "max_seq_len": draw(st.integers(1, 300))}
    text |= draw(some_of(TEXT_OPTIONS))
    text |= {"tie_embeddings": False, "learned_positions": False} if mtp else {}
    if not (text.get("tie_embeddings") or text.get("learned_positions")) and (mtp or draw(st.booleans())):
        text["mtp"] = draw(modules(text))
    data: Data = {"l4spec": 1, "name": draw(st.sampled_from(SEEDS)), "text": text}
    seeing = draw(st.booleans()) if vision is None else vision
    return data | ({"vision": draw(visions(width, step, num_blocks(text)))} if seeing else {})


def model_specs(**limits: Any) -> st.SearchStrategy[ModelSpec]:
    """Checked specs of random models."""
    return models(**limits).map(ModelSpec.model_validate)


def graphs(**limits: Any) -> st.SearchStrategy[LayerGraph]:
    """Layer graphs of random models."""
    return model_specs(**limits).map(l4spec.compile)
