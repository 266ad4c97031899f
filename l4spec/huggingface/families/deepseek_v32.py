"""`deepseek_v32`: DeepSeek-V3.2; V3 whose queries attend to the tokens that an index chooses."""

from typing import Any, Literal

from l4spec.huggingface.families import deepseek_v3
from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import AFTER_LAYERS, Naming
from l4spec.layers.sparse_mla.spec import SparseMLASpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

_INDEX = {"index_num_heads": "index_n_heads", "index_head_dim": "index_head_dim", "index_topk": "index_topk"}


def read_indexed(fields: Fields, layout: Literal["interleaved", "half"]) -> dict[str, Any]:
    """As V3, with an index whose rotated pairs follow `layout`."""
    for name, usual in (("indexer_types", "full"), ("layer_types", "indexed_attention")):
        fields.carry(name)
        if fields.has(name) and set(fields.words(name, (usual, "shared")) or ()) - {usual}:
            fields.problem(name, "layers that share the choice of an earlier one are not read", f"expected {usual}")
    spec = deepseek_v3.read(fields)
    attention = spec["text"]["parts"]["attention"]
    index = {ours: fields.size(theirs) for ours, theirs in _INDEX.items()}
    spec["text"]["parts"]["attention"] = {**attention, "kind": "sparse_mla", **index, "index_layout": layout}
    count = len(fields.data.get("mlp_layer_types") or ())
    dense = min(fields.count("first_k_dense_replace"), count)
    fields.expect_derived("mlp_layer_types", ["dense"] * dense + ["sparse"] * (count - dense))
    return spec


def read(fields: Fields) -> dict[str, Any]:
    """The base model, whose index rotates halves of a head."""
    return read_indexed(fields, "half")


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that DeepseekV32ForCausalLM reads."""
    sparse = needed(model.text.stack.blocks, SparseMLASpec, "sparse latent attention")
    written = deepseek_v3.write_latent(model, style, sparse)
    written.pop("rope_interleave")
    return {**written, **{theirs: getattr(sparse, ours) for ours, theirs in _INDEX.items()}}


_OURS, _THEIRS = "text.layers.#.attention.index_", "model.layers.#.self_attn.indexer."
NAMES = {
    **deepseek_v3.NAMES,
    f"{_OURS}q_proj.": f"{_THEIRS}wq_b.",
    f"{_OURS}k_proj.": f"{_THEIRS}wk.",
    f"{_OURS}k_norm.": f"{_THEIRS}k_norm.",
    f"{_OURS}weights_proj.": f"{_THEIRS}weights_proj.",
}
DEFAULTS = {
    **deepseek_v3.FAMILY.defaults,
    "max_position_embeddings": 163840,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
}
FIXED = {**deepseek_v3.FAMILY.fixed, "rope_interleave": (True,), "mlp_bias": (False,)}
FAMILY = Family(
    "deepseek_v32",
    "DeepseekV32ForCausalLM",
    "models/deepseek_v32/modeling_deepseek_v32.py",
    read,
    write,
    Naming(NAMES, next_token_layers=1, modules=AFTER_LAYERS),
    defaults=DEFAULTS,
    aliases=deepseek_v3.FAMILY.aliases,
    fixed=FIXED,
)
