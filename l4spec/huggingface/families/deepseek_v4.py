"""`deepseek_v4`: DeepSeek-V4; windows and compressed keys, several residual streams, experts first by token id."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from l4spec.errors import Problem, SpecError
from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import FFN, GATED, Naming, Renames
from l4spec.huggingface.rope import read_rope, write_rope
from l4spec.huggingface.text import Data, block, num_layers, read_text, write_text
from l4spec.layers.attention.positions import YarnScaling
from l4spec.layers.compressed_attention.spec import CompressedAttentionSpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

WINDOW, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
_NAMES = {WINDOW: "window", SPARSE: "sparse", HEAVY: "heavy"}
_OF_RATIO = {0: WINDOW, 4: SPARSE, 128: HEAVY}
"""Kind of a layer by its entry of `compress_ratios`; `compress_rates` gives the number of tokens per entry."""
_USUAL_HASHED = 3
_USUAL_RATES = {SPARSE: 4, HEAVY: 128}
_HASHED, _CHOSEN = "hash_moe", "moe"
_SCORES = {"sqrtsoftplus": "sqrt_softplus", "sigmoid": "sigmoid", "softmax": "softmax"}
_SIZES = {
    "num_heads": "num_attention_heads",
    "head_dim": "head_dim",
    "q_lora_rank": "q_lora_rank",
    "num_output_groups": "o_groups",
    "output_lora_rank": "o_lora_rank",
    "window": "sliding_window",
}
_INDEX = {"num_heads": "index_n_heads", "head_dim": "index_head_dim", "topk": "index_topk"}
_STREAMS = {"count": "hc_mult", "sinkhorn_iterations": "hc_sinkhorn_iters"}


def read(fields: Fields) -> dict[str, Any]:
    """The base model; modules of multi-token prediction (`num_nextn_predict_layers`) are outside of it."""
    fields.expect("hidden_act", "silu")
    fields.expect("router_jitter_noise", 0.0, 0)
    count = num_layers(fields)
    types, ffns = _attention_types(fields, count), _ffn_types(fields, count)
    parts: Data = {_NAMES[kind]: part for kind, part in _attentions(fields, types).items()}
    parts |= {name: _moe(fields, name) for name in dict.fromkeys(ffns)}
    streams: Data = {ours: fields.size(theirs) for ours, theirs in _STREAMS.items()}
    streams |= {"eps": fields.number("hc_eps"), "norm_eps": fields.number("rms_norm_eps")}
    fields.carry("num_nextn_predict_layers", "num_mtp_layers")
    blocks = [block(_NAMES[kind], ffn) for kind, ffn in zip(types, ffns, strict=True)]
    return {"text": read_text(fields, parts, blocks, streams=streams)}


def _attention_types(fields: Fields, count: int) -> list[str]:
    """`layer_types`, or those of `compress_ratios`, whose further entries are of layers that draft."""
    usual = [HEAVY] * min(count, 2) + [SPARSE if index % 2 else HEAVY for index in range(max(count - 2, 0))]
    ratios = fields.integers("compress_ratios") if fields.has("compress_ratios") else None
    if ratios is not None:
        unknown = sorted(set(ratios) - set(_OF_RATIO))
        if unknown or len(ratios) < count:
            expected = f"one of {', '.join(map(str, _OF_RATIO))} for each of {count} layers"
            fields.problem("compress_ratios", f"expected {expected}, found {unknown or len(ratios)}")
        else:
            usual = [_OF_RATIO[ratio] for ratio in ratios[:count]]
    return _of_layers(fields, "layer_types", tuple(_NAMES), usual)


def _ffn_types(fields: Fields, count: int) -> list[str]:
    """`mlp_layer_types`, or hashed ones in the first `num_hash_layers`."""
    hashed = min(fields.count("num_hash_layers") if fields.has("num_hash_layers") else _USUAL_HASHED, count)
    return _of_layers(fields, "mlp_layer_types", (_HASHED, _CHOSEN), [_HASHED] * hashed + [_CHOSEN] * (count - hashed))


def _of_layers(fields: Fields, name: str, known: tuple[str, ...], usual: list[str]) -> list[str]:
    words = fields.words(name, known)
    if words is None:
        return usual
    if len(words) < len(usual):
        fields.problem(name, f"expected {len(usual)} entries, one per layer, found {len(words)}")
        return usual
    return words[: len(usual)]


def _attentions(fields: Fields, types: list[str]) -> dict[str, Data]:
    """A part for each kind of attention that layers have."""
    sizes = {ours: fields.size(theirs) for ours, theirs in _SIZES.items()}
    turned = _turned(fields, sizes["head_dim"])
    common: Data = {"kind": "compressed_attention", **sizes, "rope_head_dim": turned}
    common["norm_eps"] = fields.number("rms_norm_eps")
    rates, positions = _rates(fields), _positions(fields)
    index = {ours: fields.size(theirs) for ours, theirs in _INDEX.items()}
    compressions: dict[str, Data] = {
        SPARSE: {"ratio": rates[SPARSE], "overlap": True, "index": index},
        HEAVY: {"ratio": rates[HEAVY]},
    }
    if not {SPARSE, HEAVY} <= set(types):
        fields.carry("compress_rates", *(_INDEX.values() if SPARSE not in types else ()))
    if WINDOW not in types or len(set(types)) == 1:  # a rotation that no layer has
        fields.carry("rope_parameters", "rope_theta", "compress_rope_theta")
    parts = {}
    for kind in dict.fromkeys(types):
        compression = {"compression": compressions[kind]} if kind in compressions else {}
        parts[kind] = {**common, "position": positions["main" if kind == WINDOW else "compress"], **compression}
    return parts


def _turned(fields: Fields, head_dim: int) -> int:
    """Rotated elements of a head: a number, a share of the head, or those of the release."""
    share = fields.number_or_none("partial_rotary_factor")
    usual = int(head_dim * (64 / 512 if share is None else share))
    if fields.has("qk_rope_head_dim"):
        turned = fields.size("qk_rope_head_dim")
        if share is not None and turned != usual:
            fields.consequence(
                "partial_rotary_factor", f"expected qk_rope_head_dim ({turned}) of head_dim ({head_dim})"
            )
        return turned
    return usual


def _rates(fields: Fields) -> dict[str, int]:
    """Tokens of an entry by kind of attention."""
    names = ((SPARSE, "compress_rate_csa"), (HEAVY, "compress_rate_hca"))
    rates = {kind: fields.size(name) for kind, name in names if fields.has(name)}
    inner = fields.mapping("compress_rates", _USUAL_RATES)
    written = _USUAL_RATES if inner is None else {kind: inner.size(kind) for kind in _USUAL_RATES}
    if inner is not None:
        inner.finish((), {})
    return {**written, **rates}


def _positions(fields: Fields) -> dict[str, Data]:
    """Rotations of windows (`main`) and of layers with entries (`compress`), which alone are scaled."""
    nested = fields.mapping("rope_parameters")
    by_name = {name: nested.data.get(name) for name in ("main", "compress")} if nested is not None else {}
    if nested is not None and all(isinstance(inner, dict) for inner in by_name.values()):
        fields.carry("rope_theta", "compress_rope_theta", "rope_scaling")
        data = {name: dict(inner) for name, inner in by_name.items() if isinstance(inner, dict)}
    else:
        scaling = fields.data.get("rope_scaling") or (nested.data if nested is not None else None) or {}
        fields.carry("rope_scaling")
        data = {"main": {"rope_theta": fields.number("rope_theta")}, "compress": dict(scaling)}
        data["compress"]["rope_theta"] = fields.number("compress_rope_theta")
    return {name: _position(fields, inner) for name, inner in data.items()}


def _position(fields: Fields, inner: Data) -> Data:
    """One rotation; the factor on cosines and sines that YaRN would have is 1."""
    inner = {name: value for name, value in inner.items() if name != "partial_rotary_factor"}
    if inner.get("attention_factor") in (1, 1.0):
        del inner["attention_factor"]
    longest = fields.data.get("max_position_embeddings")
    holder = Fields({"rope_parameters": inner, "max_position_embeddings": longest}, {}, fields.file, fields.path)
    holder.problems = fields.problems
    position = read_rope(holder, "interleaved")
    if position.get("scaling", {}).get("kind") == "yarn":
        position["scaling"] |= {"mscale": 1, "mscale_all_dim": 1}
    return position


def _moe(fields: Fields, name: str) -> Data:
    score = fields.raw("scoring_func")
    if score not in _SCORES:
        fields.problem("scoring_func", f"expected one of {', '.join(_SCORES)}, found {score!r:.40}")
    chosen = {"by_token": True} if name == _HASHED else {"correction_bias": True}
    return {
        "kind": "moe",
        "num_experts": fields.size("n_routed_experts"),
        "num_experts_per_token": fields.size("num_experts_per_tok"),
        "num_shared_experts": 1,
        "intermediate_size": fields.size("moe_intermediate_size"),
        "clamp": {"limit": fields.number("swiglu_limit")},
        "router": {
            "score": _SCORES.get(str(score), "sigmoid"),
            "scales": "output",
            "renormalize": True,
            "scaling_factor": fields.number("routed_scaling_factor"),
            **chosen,
        },
    }


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that DeepseekV4ForCausalLM reads."""
    blocks, streams = model.text.stack.blocks, model.text.streams
    if streams is None:
        raise SpecError([Problem("has one residual stream, where DeepSeek-V4 has several", path="text.streams")])
    some, moe = needed(blocks, CompressedAttentionSpec, "compressed attention"), needed(blocks, MoESpec, "MoE")
    kinds = _specs_by_kind(blocks)
    return {
        **write_text(model.text, style),
        **{theirs: getattr(some, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": 1,
        "qk_rope_head_dim": some.rope_head_dim,
        "layer_types": [_kind_of(spec) for spec in _attention_specs(blocks)],
        **_write_compression(kinds),
        **_write_positions(kinds, style),
        **{theirs: getattr(streams, ours) for ours, theirs in _STREAMS.items()},
        "hc_eps": streams.eps,
        "hidden_act": "silu",
        "mlp_layer_types": [_ffn_kind(item) for item in blocks],
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_token,
        "n_shared_experts": moe.num_shared_experts,
        "moe_intermediate_size": moe.intermediate_size,
        **({} if moe.clamp is None else {"swiglu_limit": moe.clamp.limit}),
        "routed_scaling_factor": moe.router.scaling_factor,
        "scoring_func": next(theirs for theirs, ours in _SCORES.items() if ours == moe.router.score),
    }


def _attention_specs(blocks: Sequence[ResolvedBlock]) -> Iterator[CompressedAttentionSpec]:
    for item in blocks:
        if item.attention is None or not isinstance(item.attention.spec, CompressedAttentionSpec):
            raise SpecError([Problem("a layer has no compressed attention", path="text.layers")])
        yield item.attention.spec


def _kind_of(spec: CompressedAttentionSpec) -> str:
    if spec.compression is None:
        return WINDOW
    return SPARSE if spec.compression.index is not None else HEAVY


def _ffn_kind(item: ResolvedBlock) -> str:
    if item.ffn is None or not isinstance(item.ffn.spec, MoESpec):
        raise SpecError([Problem("a layer has no mixture of experts", path="text.layers")])
    return _HASHED if item.ffn.spec.router.by_token else _CHOSEN


def _specs_by_kind(blocks: Sequence[ResolvedBlock]) -> dict[str, CompressedAttentionSpec]:
    """The first attention of each kind."""
    kinds: dict[str, CompressedAttentionSpec] = {}
    for spec in _attention_specs(blocks):
        kinds.setdefault(_kind_of(spec), spec)
    return kinds


def _write_compression(kinds: Mapping[str, CompressedAttentionSpec]) -> Data:
    compressions = {kind: spec.compression for kind, spec in kinds.items() if spec.compression is not None}
    rates = {**_USUAL_RATES, **{kind: compression.ratio for kind, compression in compressions.items()}}
    index = compressions[SPARSE].index if SPARSE in compressions else None
    written = {} if index is None else {theirs: getattr(index, ours) for ours, theirs in _INDEX.items()}
    return {"compress_rates": rates, **written}


def _write_positions(kinds: Mapping[str, CompressedAttentionSpec], style: RopeStyle) -> Data:
    """Rotations of windows and of layers with entries; a kind that no layer is of takes the other's base."""
    windows = kinds.get(WINDOW)
    compressed = next((spec for kind, spec in kinds.items() if kind != WINDOW), windows)
    windows = windows or compressed
    assert windows is not None and compressed is not None, "there is some attention"
    scaling = compressed.position.scaling
    if isinstance(scaling, YarnScaling):
        scaling = scaling.model_copy(update={"mscale": None, "mscale_all_dim": None})
    plain = compressed.position.model_copy(update={"scaling": scaling})
    if style == "rope_parameters":
        turned = compressed.rope_head_dim / compressed.head_dim
        factor = {"attention_factor": 1.0} if isinstance(scaling, YarnScaling) else {}
        main, compress = (write_rope(rope, style)["rope_parameters"] for rope in (windows.position, plain))
        main, compress = ({**rope, "partial_rotary_factor": turned} for rope in (main, {**compress, **factor}))
        return {"rope_parameters": {"main": main, "compress": compress}}
    written = write_rope(plain, style)
    return {**written, "rope_theta": windows.position.theta, "compress_rope_theta": plain.theta}


_ATTENTION, _LAYER = "text.layers.#.attention.", "model.layers.#."
_SELF, _ATTN, _FFN = f"{_LAYER}self_attn.", f"{_LAYER}attn.", f"{_LAYER}ffn."
_MODULES: Renames = {
    **GATED,
    f"{FFN}router.correction_bias": f"{_LAYER}mlp.gate.e_score_correction_bias",
    f"{FFN}router.experts_of_token": f"{_LAYER}mlp.gate.tid2eid",
    f"{FFN}shared_expert.": f"{_LAYER}mlp.shared_experts.",
    f"{_ATTENTION}index.": f"{_SELF}compressor.indexer.",
    f"{_ATTENTION}index.weights_proj.": f"{_SELF}compressor.indexer.scorer.weights_proj.",
    "text.layers.#.attention_streams.": f"{_LAYER}attn_hc.",
    "text.layers.#.ffn_streams.": f"{_LAYER}ffn_hc.",
    "text.streams_join.": "model.hc_head.hc_",
}
"""Names of transformers' modules."""
_SAVED: Renames = {
    "text.head.": "head.",
    "text.layers.#.attention_norm.": f"{_LAYER}attn_norm.",
    "text.layers.#.ffn_norm.": f"{_LAYER}ffn_norm.",
    f"{_ATTENTION}sinks": f"{_ATTN}attn_sink",
    **{
        f"{_ATTENTION}{ours}.": f"{_ATTN}{theirs}."
        for ours, theirs in {
            "q_a_proj": "wq_a",
            "q_a_norm": "q_norm",
            "q_b_proj": "wq_b",
            "kv_proj": "wkv",
            "kv_norm": "norm",
            "o_a_proj": "wo_a",
            "o_b_proj": "wo_b",
            "compressor.kv_proj": "compressor.wkv",
            "compressor.gate_proj": "compressor.wgate",
            "compressor.kv_norm": "compressor.norm",
            "index.kv_proj": "indexer.compressor.wkv",
            "index.gate_proj": "indexer.compressor.wgate",
            "index.kv_norm": "indexer.compressor.norm",
            "index.q_b_proj": "indexer.wq_b",
            "index.weights_proj": "indexer.weights_proj",
        }.items()
    },
    f"{_ATTENTION}compressor.position_bias": f"{_ATTN}compressor.ape",
    f"{_ATTENTION}index.position_bias": f"{_ATTN}indexer.compressor.ape",
    FFN: _FFN,
    f"{FFN}router.": f"{_FFN}gate.",
    f"{FFN}router.correction_bias": f"{_FFN}gate.bias",
    f"{FFN}router.experts_of_token": f"{_FFN}gate.tid2eid",
    f"{FFN}shared_expert.gate_proj.": f"{_FFN}shared_experts.w1.",
    f"{FFN}shared_expert.up_proj.": f"{_FFN}shared_experts.w3.",
    f"{FFN}shared_expert.down_proj.": f"{_FFN}shared_experts.w2.",
    "text.layers.#.attention_streams.": f"{_LAYER}hc_attn_",
    "text.layers.#.ffn_streams.": f"{_LAYER}hc_ffn_",
}
"""Names that `save_pretrained` of transformers 5 writes, from the inverse of its conversion_mapping.py."""
_PUBLISHED: Renames = {
    "text.embedding.": "embed.",
    f"{_ATTENTION}kv_norm.": "layers.#.attn.kv_norm.",
    "text.streams_join.": "hc_head_",
}
"""Names of the release where they are not the saved ones without `model.`."""


def _ways(ours: str) -> tuple[str, ...]:
    """Names of a tensor of ours in checkpoints, the written one first."""
    module = _named(_MODULES, ours)
    saved = _named(_SAVED, ours) if ours in _SAVED or ours.startswith(tuple(_SAVED)) else module
    published = str(_PUBLISHED.get(ours, saved.removeprefix("model.")))
    return tuple(dict.fromkeys((saved, module, published)))


def _named(names: Renames, ours: str) -> str:
    prefix = max((prefix for prefix in names if ours.startswith(prefix)), key=len)
    return str(names[prefix]) + ours.removeprefix(prefix)


FAMILY = Family(
    "deepseek_v4",
    "DeepseekV4ForCausalLM",
    "models/deepseek_v4/modeling_deepseek_v4.py",
    read,
    write,
    Naming(
        {ours: _ways(ours) for ours in (*_MODULES, *(name for name in _SAVED if name not in _MODULES))},
        each=("w1", "w3", "w2"),
        optional=(*Naming({}).optional, r"^(model\.)?mtp\."),
    ),
    defaults={
        "hidden_act": "silu",
        "head_dim": 512,
        "q_lora_rank": 1024,
        "partial_rotary_factor": None,
        "num_experts_per_tok": 6,
        "n_routed_experts": 256,
        "scoring_func": "sqrtsoftplus",
        "routed_scaling_factor": 1.5,
        "max_position_embeddings": 1048576,
        "rope_theta": 10000.0,
        "layer_types": None,
        "mlp_layer_types": None,
        "compress_rope_theta": 160000.0,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "swiglu_limit": 10.0,
        "sliding_window": 128,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 512,
        "router_jitter_noise": 0.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    aliases={"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"},
    fixed={
        "num_key_value_heads": (1,),
        "n_shared_experts": (1,),
        "norm_topk_prob": (True,),
        "topk_method": ("noaux_tc",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
    ignorable=("expert_dtype",),
)
