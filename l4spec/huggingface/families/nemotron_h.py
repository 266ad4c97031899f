"""`nemotron_h`: Nemotron-H and Nemotron 3; blocks of one layer each: Mamba-2, attention, a dense layer or a mixture."""

from collections.abc import Sequence
from typing import Any

from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family, first
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import FFN, Naming
from l4spec.huggingface.text import Block, Data, read_text, write_gqa, write_text
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.mamba2.spec import Mamba2Spec
from l4spec.layers.mlp.spec import MLPSpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.model import MAX_LAYERS
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NEWER = {"linear_attention": "mamba", "full_attention": "attention"}
_USUAL = ("mamba", "moe", "attention", "mlp")
_KINDS: dict[type, str] = {Mamba2Spec: "mamba", GQASpec: "attention", MLPSpec: "mlp", MoESpec: "moe"}
_MAMBA = {
    "num_heads": "mamba_num_heads",
    "head_dim": "mamba_head_dim",
    "state_size": "ssm_state_size",
    "num_groups": "n_groups",
    "conv_kernel_size": "conv_kernel",
}
_EXPERTS = ExpertFields(
    num="n_routed_experts",
    shared=1,
    shared_width="moe_shared_expert_intermediate_size",
    renormalize="norm_topk_prob",
    scaling="routed_scaling_factor",
    groups=True,
    router={"score": "sigmoid", "correction_bias": True},
    others={"gated": False, "activation": "relu2"},
)


def read(fields: Fields) -> dict[str, Any]:
    """One layer per block, in the order of `layers_block_type` or of the letters of `hybrid_override_pattern`."""
    types = _types(fields)
    eps = fields.number("layer_norm_epsilon")
    for name in ("norm_eps", "rms_norm_eps"):
        fields.expect_derived(name, eps)
    fields.expect_derived("num_hidden_layers", len(types))
    readers = {"mamba": _mamba, "attention": _attention, "mlp": _mlp, "moe": _moe}
    parts = {name: read_part(fields) for name, read_part in readers.items() if name in types}
    if "mamba" not in parts:
        fields.carry(*_MAMBA.values(), "time_step_min", "use_conv_bias", "use_bias")
    if "attention" not in parts:
        fields.carry("num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias")
    fields.carry("intermediate_size", "moe_latent_size", "n_shared_experts", *_EXPERTS.fields())
    blocks: list[Block] = [((_slot(name), name),) for name in types]
    return {"text": read_text(fields, parts, blocks, norm={"kind": "rmsnorm", "eps": eps})}


def _types(fields: Fields) -> list[str]:
    """Type of each layer."""
    fields.carry("hybrid_override_pattern")
    pattern = fields.data.get("hybrid_override_pattern")
    if fields.has("layers_block_type") or not isinstance(pattern, str):
        words = fields.words("layers_block_type", (*_NEWER, *_LETTERS.values())) or list(_USUAL)
    elif set(pattern) - set(_LETTERS):
        fields.problem("hybrid_override_pattern", f"expected only the letters {' '.join(_LETTERS)}")
        words = None
    else:
        words = [_LETTERS[letter] for letter in pattern]
    if not words or len(words) > MAX_LAYERS:
        fields.problem("hybrid_override_pattern" if pattern else "layers_block_type", f"expected 1 to {MAX_LAYERS:,}")
        return ["mlp"]
    return [_NEWER.get(word, word) for word in words]


def _slot(name: str) -> str:
    return "attention" if name in ("mamba", "attention") else "ffn"


def _mamba(fields: Fields) -> Data:
    return {
        "kind": "mamba2",
        **{ours: fields.size(theirs) for ours, theirs in _MAMBA.items()},
        "conv_bias": fields.flag("use_conv_bias"),
        "bias": fields.flag("use_bias"),
        "min_step": fields.number("time_step_min"),
        "norm_eps": fields.number("layer_norm_epsilon"),
    }


def _attention(fields: Fields) -> Data:
    heads = fields.size("num_attention_heads")
    biases = {"qkv_bias": True, "output_bias": True} if fields.flag("attention_bias") else {}
    return {
        "kind": "gqa",
        "num_heads": heads,
        "num_kv_heads": fields.size_or_none("num_key_value_heads") or heads,
        "head_dim": fields.size("head_dim"),
        **biases,
        "mask": {"kind": "causal"},
        "position": {"kind": "none"},
    }


def _mlp(fields: Fields) -> Data:
    size = fields.size("intermediate_size")
    return {"kind": "mlp", "intermediate_size": size, "activation": "relu2", "bias": False}


def _moe(fields: Fields) -> Data:
    """There is one shared expert, of its own width, for any `n_shared_experts`."""
    latent = fields.size_or_none("moe_latent_size")
    return {**_EXPERTS.read(fields), **({} if latent is None else {"latent_size": latent})}


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that NemotronHForCausalLM reads."""
    blocks = model.text.stack.blocks
    mamba, attention, mlp = first(blocks, Mamba2Spec), first(blocks, GQASpec), first(blocks, MLPSpec)
    written = write_text(model.text, style)
    eps = written.pop("rms_norm_eps", None)
    heads = {} if attention is None else {**write_gqa(attention, style), "attention_bias": attention.qkv_bias}
    return {
        **written,
        **({} if eps is None else {"layer_norm_epsilon": eps}),
        "layers_block_type": [_written(item) for item in blocks],
        **heads,
        **({} if mlp is None else {"intermediate_size": mlp.intermediate_size}),
        **({} if mamba is None else _write_mamba(mamba)),
        **_write_moe(blocks),
    }


def _written(item: ResolvedBlock) -> str:
    """Type of a block of one layer; one of two layers is read as another type, and so refused."""
    part = item.attention or item.ffn
    return "mlp" if part is None else _KINDS.get(type(part.spec), "mlp")


def _write_mamba(spec: Mamba2Spec) -> Data:
    sizes = {theirs: getattr(spec, ours) for ours, theirs in _MAMBA.items()}
    return {**sizes, "use_conv_bias": spec.conv_bias, "use_bias": spec.bias, "time_step_min": spec.min_step}


def _write_moe(blocks: Sequence[ResolvedBlock]) -> Data:
    moe = first(blocks, MoESpec)
    return {} if moe is None else {**_EXPERTS.write(moe, blocks), "moe_latent_size": moe.latent_size}


_LAYER, _MIXER = "backbone.layers.#.", "backbone.layers.#.mixer."
_MAMBA2 = "text.layers.#.mamba2."
NAMES = {
    "text.embedding.": "backbone.embeddings.",
    "text.norm.": "backbone.norm_f.",
    "text.head.": "lm_head.",
    "text.layers.#.attention_norm.": f"{_LAYER}norm.",
    "text.layers.#.ffn_norm.": f"{_LAYER}norm.",
    "text.layers.#.attention.": _MIXER,
    _MAMBA2: _MIXER,
    FFN: _MIXER,
    f"{FFN}router.": f"{_MIXER}gate.",
    f"{FFN}router.correction_bias": f"{_MIXER}gate.e_score_correction_bias",
    f"{FFN}shared_expert.": f"{_MIXER}shared_experts.",
    f"{FFN}latent_down_proj.": f"{_MIXER}fc1_latent_proj.",
    f"{FFN}latent_up_proj.": f"{_MIXER}fc2_latent_proj.",
}
JOINED = {
    **{
        f"{_MIXER}in_proj.{kind}": tuple(f"{_MAMBA2}{name}_proj.{kind}" for name in ("z", "x", "b", "c", "dt"))
        for kind in ("weight", "bias")
    },
    f"{_MIXER}conv1d.weight": tuple(f"{_MAMBA2}{name}_conv" for name in "xbc"),
    f"{_MIXER}conv1d.bias": tuple(f"{_MAMBA2}{name}_conv_bias" for name in "xbc"),
}
FAMILY = Family(
    "nemotron_h",
    "NemotronHForCausalLM",
    "models/nemotron_h/modeling_nemotron_h.py",
    read,
    write,
    Naming(NAMES, joined=JOINED, kinds=("mamba2",), optional=(r"^mtp\.",)),
    defaults={
        "layers_block_type": None,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "intermediate_size": 21504,
        "ssm_state_size": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "conv_kernel": 4,
        "time_step_min": 0.001,
        "use_conv_bias": True,
        "use_bias": False,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "moe_latent_size": None,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    },
    aliases={
        "attention_head_dim": "head_dim",
        "layer_types": "layers_block_type",
        "num_local_experts": "n_routed_experts",
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_dt_min": "time_step_min",
        "mamba_conv_bias": "use_conv_bias",
    },
    fixed={
        "mlp_hidden_act": ("relu2",),
        "mamba_hidden_act": ("silu",),
        "mlp_bias": (False,),
        "mamba_proj_bias": (False,),
        "sliding_window": (),
    },
    ignorable=(
        *("expand", "chunk_size", "mamba_chunk_size", "time_step_max", "time_step_floor", "time_step_limit"),
        *("time_step_rank", "mamba_ssm_cache_dtype", "use_mamba_kernels", "num_logits_to_keep", "residual_in_fp32"),
        *("rescale_prenorm_residual", "moe_shared_expert_overlap", "rope_theta", "partial_rotary_factor"),
        *("rope_parameters", "rope_scaling"),
        *("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern"),
    ),
)
