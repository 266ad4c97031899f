"""`kimi_linear`: Kimi Linear; Kimi Delta Attention beside latent attention without positions, some dense layers."""

from collections.abc import Sequence
from typing import Any

from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family, first
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.latent import LATENT_NAMES, LATENT_SIZES, latent_fields, read_latent
from l4spec.huggingface.naming import DECODER, FFN, Naming, Renames
from l4spec.huggingface.text import FULL, Block, Data, num_layers, read_layer_types, read_text, write_text
from l4spec.layers.kda.spec import KDASpec
from l4spec.layers.mla.spec import MLASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

LINEAR = "linear_attention"
_LISTS = {"kda_layers": LINEAR, "full_attn_layers": FULL}
"""Of `linear_attn_config`: places of layers, counted from 1."""
_KDA = {"num_heads": "num_heads", "head_dim": "head_dim", "conv_kernel_size": "short_conv_kernel_size"}
_FLAT = {
    "num_heads": "linear_num_heads",
    "head_dim": "linear_head_dim",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
"""The fields of `linear_attn_config` as transformers writes them beside it."""
_EXPERTS = ExpertFields(
    num="num_local_experts",
    shared="n_shared_experts",
    renormalize="norm_topk_prob",
    scaling="routed_scaling_factor",
    groups=True,
    router={"score": "sigmoid", "correction_bias": True},
)
_PUBLISHED = {
    "n_group": "num_expert_group",
    "norm_topk_prob": "moe_renormalize",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
    "max_position_embeddings": "model_max_length",
}
"""Fields by other names in published configs, which transformers writes, too."""


def read(fields: Fields) -> dict[str, Any]:
    """Layers as `linear_attn_config` or `layer_types` lists them, dense or with experts."""
    fields.expect("hidden_act", "silu")
    fields.expect("tie_word_embeddings", False)  # the reference ties nothing, whatever its config says
    count = num_layers(fields)
    linear = fields.mapping("linear_attn_config") or Fields({}, {}, fields.file)
    types, sparse = _types(fields, linear, count), _sparse(fields, count)
    kda = _kda(fields, linear)
    parts: Data = {"kda": kda} if LINEAR in types else {}
    if not parts:
        fields.carry("linear_attn_config", *_FLAT.values())
    if FULL in types:
        parts["attention"] = read_latent(fields, {"kind": "none"})
    else:
        fields.carry(
            "num_attention_heads", "num_key_value_heads", "qk_head_dim", "q_lora_rank", "attention_bias", *LATENT_SIZES
        )
    if all(sparse):
        fields.carry("intermediate_size")
    else:
        parts["dense"] = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")}
    if any(sparse):
        parts["moe"] = _EXPERTS.read(fields)
    else:
        fields.carry(*_EXPERTS.fields())
    names = {LINEAR: "kda", FULL: "attention"}
    blocks: list[Block] = [
        (("attention", names[kind]), ("ffn", "moe" if has_experts else "dense"))
        for kind, has_experts in zip(types, sparse, strict=True)
    ]
    return {"text": read_text(fields, parts, blocks)}


def _kda(fields: Fields, linear: Fields) -> Data:
    """Sizes of `linear_attn_config`, else of the fields beside it."""
    sizes = {}
    for ours, theirs in _KDA.items():
        if theirs in linear.data:
            sizes[ours] = linear.size(theirs)
            fields.expect_derived(_FLAT[theirs], sizes[ours])
        else:
            sizes[ours] = fields.size(_FLAT[theirs])
    linear.finish((), {})
    return {"kind": "kda", **sizes, "norm_eps": fields.number("rms_norm_eps")}


def _types(fields: Fields, linear: Fields, count: int) -> list[str]:
    """Type of each layer: `layer_types`, or both lists; by default the fifth is full, and every fourth after it."""
    usual = [FULL if index and index % 4 == 0 else LINEAR for index in range(count)]
    listed = {name: linear.integers(name) if linear.has(name) else None for name in _LISTS}
    places = {name: numbers for name, numbers in listed.items() if numbers is not None}
    if len(places) == len(_LISTS):
        named = {place: _LISTS[name] for name, numbers in places.items() for place in numbers}
        if sorted(place for numbers in places.values() for place in numbers) != list(range(1, count + 1)):
            linear.problem("kda_layers", f"expected each layer from 1 to {count} once, here or in full_attn_layers")
        usual = [named.get(index + 1, LINEAR) for index in range(count)]
    elif places:
        linear.problem(next(iter(places)), f"needs {' and '.join(_LISTS.keys() - places)} beside it")
    types = read_layer_types(fields, usual, (LINEAR, FULL))
    if places and types != usual:
        fields.consequence("layer_types", "says something else than linear_attn_config")
    return types


def _sparse(fields: Fields, count: int) -> list[bool]:
    """For each layer, True if it has experts: `mlp_layer_types`, or those after the first `first_k_dense_replace`."""
    fields.carry("first_k_dense_replace")
    kinds = fields.words("mlp_layer_types", ("dense", "sparse"))
    if kinds is not None and len(kinds) == count:
        return [kind == "sparse" for kind in kinds]
    if kinds is not None:
        fields.problem("mlp_layer_types", f"expected {count} entries, one per layer, found {len(kinds)}")
    num_dense = fields.count("first_k_dense_replace")
    return [index >= num_dense for index in range(count)]


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that KimiLinearForCausalLM reads, named as the published config names them."""
    blocks = model.text.stack.blocks
    mla, dense, moe = first(blocks, MLASpec), first(blocks, SwiGLUSpec), first(blocks, MoESpec)
    written = {
        **write_text(model.text, style),
        **({} if mla is None else latent_fields(mla)),
        "hidden_act": "silu",
        **({"intermediate_size": dense.intermediate_size} if dense else {}),
        **({} if moe is None else _EXPERTS.write(moe, blocks)),
        **_write_places([item.ffn is not None and isinstance(item.ffn.spec, MoESpec) for item in blocks]),
        "linear_attn_config": _write_linear(blocks),
    }
    return {_PUBLISHED.get(name, name): value for name, value in written.items()}


def _write_places(sparse: Sequence[bool]) -> Data:
    num_dense = [*sparse, True].index(True)
    if all(sparse[num_dense:]):
        return {"first_k_dense_replace": num_dense}
    return {"mlp_layer_types": ["sparse" if has_experts else "dense" for has_experts in sparse]}


def _write_linear(blocks: Sequence[ResolvedBlock]) -> Data:
    kda = first(blocks, KDASpec)
    sizes = {} if kda is None else {theirs: getattr(kda, ours) for ours, theirs in _KDA.items()}
    types = [LINEAR if _is_kda(item) else FULL for item in blocks]
    places = {name: [i + 1 for i, kind in enumerate(types) if kind == meant] for name, meant in _LISTS.items()}
    return {**sizes, **places}


def _is_kda(item: ResolvedBlock) -> bool:
    return item.attention is not None and isinstance(item.attention.spec, KDASpec)


_OURS, _SELF = "text.layers.#.kda.", "model.layers.#.self_attn."
_MIXTURE = ("model.layers.#.block_sparse_moe.", "model.layers.#.mlp.")
_GATE = f"{_SELF}forget_gate."


def _of_mixture(name: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}" for prefix in _MIXTURE)


NAMES: Renames = {
    **DECODER,
    **LATENT_NAMES,
    _OURS: _SELF,
    **{f"{_OURS}{name}": (f"{_SELF}{name}", f"{_GATE}{name}") for name in ("f_a_proj.", "f_b_proj.", "dt_bias")},
    FFN: _MIXTURE[::-1],  # transformers turns its renaming of mixtures around for dense layers, too
    f"{FFN}router.": _of_mixture("gate."),
    f"{FFN}router.correction_bias": _of_mixture("gate.e_score_correction_bias"),
    f"{FFN}experts": _of_mixture("experts"),
    f"{FFN}shared_expert.": _of_mixture("shared_experts."),
}
JOINED = {f"{_SELF}{name}_conv1d.weight": (f"{_OURS}{name}_conv",) for name in "qkv"}
FAMILY = Family(
    "kimi_linear",
    "KimiLinearForCausalLM",
    "models/kimi_linear/modeling_kimi_linear.py",
    read,
    write,
    Naming(
        NAMES,
        each=("w1", "w3", "w2"),
        joined={**JOINED, f"{_SELF}A_log": (f"{_OURS}A_log",)},
        unit_dims={f"{_SELF}A_log": (2, 1)},
        kinds=("kda",),
    ),
    defaults={
        "hidden_act": "silu",
        "max_position_embeddings": 1048576,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "num_attention_heads": 32,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "intermediate_size": 9216,
        "layer_types": None,
        "mlp_layer_types": None,
        "first_k_dense_replace": 1,
        "linear_head_dim": 128,
        "linear_num_heads": 32,
        "linear_conv_kernel_dim": 4,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 1024,
        "routed_scaling_factor": 2.446,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
    },
    aliases={theirs: ours for ours, theirs in _PUBLISHED.items()},
    fixed={
        "mla_use_nope": (True,),
        "mla_use_output_gate": (False,),
        "moe_layer_freq": (1,),
        "moe_router_activation_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "use_grouped_topk": (True,),
        "num_nextn_predict_layers": (0,),
    },
    ignorable=("head_dim", "rope_theta", "rope_scaling", "rope_parameters"),
)
