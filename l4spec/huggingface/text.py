"""Config fields that the language models of all families share, for import and export."""

from collections.abc import Sequence
from typing import Any

from l4spec.huggingface.fields import Fields
from l4spec.huggingface.pattern import Pattern, compact
from l4spec.huggingface.rope import Layout, read_rope, write_rope
from l4spec.layers.attention.masks import ChunkedMask, SlidingWindowMask
from l4spec.layers.attention.positions import Rope
from l4spec.layers.base import LARGEST
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.rmsnorm.spec import RMSNormSpec
from l4spec.spec.model import MAX_LAYERS
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedText

Data = dict[str, Any]
Block = tuple[tuple[str, str], ...]
"""One written block as its items: hashable, so that equal ones are found."""
SIZES = {"hidden_size": "hidden_size", "vocab_size": "vocab_size", "max_seq_len": "max_position_embeddings"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
FULL, SLIDING = "full_attention", "sliding_attention"
CAUSAL: Data = {"kind": "causal"}


def num_layers(fields: Fields) -> int:
    """`num_hidden_layers`, bounded, since lists are made of it."""
    count = fields.size("num_hidden_layers")
    if count > MAX_LAYERS:
        fields.problem("num_hidden_layers", f"expected at most {MAX_LAYERS:,} layers, found {count:,}")
        return 1
    return count


def read_text(fields: Fields, parts: Data, blocks: Sequence[Block], **more: Any) -> Data:
    """The section `text` of a spec; `more` adds and replaces fields."""
    sizes = {ours: fields.size(theirs) for ours, theirs in SIZES.items()}
    sizes["max_seq_len"] = _longest(fields, sizes["max_seq_len"])
    common = {**sizes, "dtype": read_dtype(fields), "tie_embeddings": fields.flag("tie_word_embeddings")}
    norm = more.pop("norm", None) or {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps")}
    return {**common, "norm": norm, **more, "parts": parts, "layers": write_blocks(blocks)}


def write_blocks(blocks: Sequence[Block]) -> list[Data]:
    """The blocks as a spec writes them: patterns that repeat, laid once."""
    return [_written(pattern) for pattern in compact(blocks)]


def _longest(fields: Fields, limit: int) -> int:
    """The longest sequence: YaRN's extension of the pre-training length, if the config's limit is the latter.

    vLLM's rule (vllm/config/model.py, `_get_and_verify_max_len`); DeepSeek's configs hold the product already, and a
    limit within a tenth of it is taken for a rounded one.
    """
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.data.get(name)
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "yarn":
            before, factor = rope.get("original_max_position_embeddings", limit), rope.get("factor")
            if isinstance(before, int) and isinstance(factor, int | float) and 1.1 * limit < before * factor <= LARGEST:
                fields.carry("max_position_embeddings")
                return int(before * factor)
    return limit


def read_dtype(fields: Fields) -> str:
    """The number format of the weights; bf16 when the config leaves it open."""
    names = [name for name in ("dtype", "torch_dtype") if fields.has(name)]
    fields.read.update(("dtype", "torch_dtype"))
    if not names:
        return "bf16"
    value = str(fields.data[names[0]]).removeprefix("torch.")
    known = {theirs: ours for ours, theirs in DTYPES.items()}
    if value not in known:
        fields.problem(names[0], f"expected {' or '.join(known)}, found {value!r:.60}")
    return known.get(value, "bf16")


def block(attention: str, ffn: str, form: str = "pre_norm") -> Block:
    """One block as written in a spec."""
    base = (("attention", attention), ("ffn", ffn))
    return base if form == "pre_norm" else (*base, ("form", form))


def read_gqa(fields: Fields, layout: Layout = "half", *, partial: float = 1.0, **more: Any) -> Data:
    """An attention part with causal mask and rotary positions; `more` adds and replaces fields.

    `partial`: default of the rotated share of each head.
    """
    heads, head_dim = fields.size("num_attention_heads"), fields.size_or_none("head_dim")
    hidden = fields.size("hidden_size")
    if head_dim in (None, hidden // heads):
        fields.carry("head_dim")
    if head_dim is None:
        if hidden % heads:
            fields.consequence("head_dim", f"missing, and hidden_size ({hidden}) is no multiple of the heads ({heads})")
        head_dim = max(hidden // heads, 1)
    values = {
        "kind": "gqa",
        "num_heads": heads,
        "num_kv_heads": fields.size_or_none("num_key_value_heads") or heads,
        "head_dim": head_dim,
    }
    position = more.pop("position", None) or read_rope(fields, layout, head_dim=head_dim, partial=partial)
    return {**values, **more, "mask": more.get("mask", CAUSAL), "position": position}


def both_biases(fields: Fields) -> Data:
    """Biases on all four projections, if `attention_bias` is true."""
    return {"qkv_bias": True, "output_bias": True} if fields.flag("attention_bias") else {}


def window(size: int | None) -> Data:
    """Sliding-window mask, or the causal one without a size."""
    return CAUSAL if size is None else {"kind": "sliding_window", "size": size}


def read_layer_types(fields: Fields, usual: Sequence[str], known: Sequence[str]) -> list[str]:
    """`layer_types`, one entry per layer, or the `usual` ones."""
    layer_types = fields.words("layer_types", known)
    if layer_types is None:
        return list(usual)
    if len(layer_types) != len(usual):
        fields.problem("layer_types", f"expected {len(usual)} entries, one per layer, found {len(layer_types)}")
        return list(usual)
    return layer_types


def read_rotary_layers(fields: Fields, given: list[int] | None, count: int) -> list[bool]:
    """For each layer, True if it has rotary positions: 1 in `given`, the field `no_rope_layers` (sic).

    None: all layers have them except each `no_rope_layer_interval`-th.
    """
    interval = fields.size("no_rope_layer_interval")
    fields.carry("no_rope_layer_interval")
    if given is None:
        given = [int((i + 1) % interval != 0) for i in range(count)]
    if len(given) < count or set(given) - {0, 1}:
        fields.problem("no_rope_layers", f"expected at least {count} entries of 0 or 1, one per layer")
        given = [1] * count
    return [bool(turned) for turned in given[:count]]


def write_text(text: ResolvedText, style: RopeStyle) -> Data:
    """The fields that every language model's config has."""
    eps = {"rms_norm_eps": text.stack.norm.eps} if isinstance(text.stack.norm, RMSNormSpec) else {}
    return {
        "hidden_size": text.stack.width.hidden_size,
        "vocab_size": text.embedding.vocab_size,
        "max_position_embeddings": text.stack.width.max_seq_len,
        "num_hidden_layers": len(text.stack.blocks),
        **eps,
        "tie_word_embeddings": text.head.tied,
        "dtype" if style == "rope_parameters" else "torch_dtype": DTYPES[text.dtype],
    }


def write_gqa(spec: GQASpec, style: RopeStyle, *, implied_by: int | None = None, partial: float = 1.0) -> Data:
    """Heads and rotary positions of an attention part; head_dim is left out where the width `implied_by` implies it.

    `partial`: the family's rotated share of each head, if a config has none.
    """
    return {
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        **({} if spec.head_dim * spec.num_heads == implied_by else {"head_dim": spec.head_dim}),
        **(write_rope(spec.position, style, spec.head_dim, partial) if isinstance(spec.position, Rope) else {}),
    }


def attention_of(item: ResolvedBlock) -> GQASpec | None:
    """The grouped-query attention of a block, if it has one."""
    spec = item.attention.spec if item.attention else None
    return spec if isinstance(spec, GQASpec) else None


def local_size(blocks: Sequence[ResolvedBlock], kind: type[ChunkedMask] | type[SlidingWindowMask]) -> int | None:
    """The size of the first mask of a kind; None without any."""
    masks = (spec.mask for spec in map(attention_of, blocks) if spec is not None)
    return next((mask.size for mask in masks if isinstance(mask, kind)), None)


def write_layer_types(blocks: Sequence[ResolvedBlock]) -> list[str]:
    """`layer_types` of a model that mixes sliding windows and full attention."""
    specs = [attention_of(item) for item in blocks]
    return [SLIDING if spec and isinstance(spec.mask, SlidingWindowMask) else FULL for spec in specs]


def _written(pattern: Pattern[Block]) -> Data:
    blocks = [{**dict(run.item), **({"repeat": run.count} if run.count > 1 else {})} for run in pattern.runs]
    if len(blocks) == 1:
        repeat = pattern.runs[0].count * pattern.count
        return {**dict(pattern.runs[0].item), **({"repeat": repeat} if repeat > 1 else {})}
    return {"repeat": pattern.count, "blocks": blocks}
