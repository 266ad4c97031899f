"""`nemotron-nas`: NVIDIA's Llama-Nemotron; Llama whose blocks were cut one by one by a search (DeciLM, Puzzle)."""

from typing import Any

from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, Naming
from l4spec.huggingface.text import Block, Data, num_layers, read_gqa, read_text, write_gqa, write_text
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel
from l4spec.units import ceil_div

_STEP = 256
_UNUSED = ("replace_with_linear", "sparsify", "num_sink_tokens", "window_length", "unshifted_sink", "no_op")
"""Other cuts of the search, which no released model has."""


def read(fields: Fields) -> dict[str, Any]:
    """Each block by its entry of `block_configs`: attention with so many queries per key, or none; a width, or none."""
    fields.expect("hidden_act", "silu")
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    configs = fields.raw("block_configs")
    if not isinstance(configs, list) or len(configs) != num_layers(fields) or not all(map(_is_block, configs)):
        fields.problem("block_configs", "expected an entry of attention and ffn for every layer")
        return {}
    fields.carry("num_key_value_heads", "intermediate_size")
    parts: Data = {}
    blocks: list[Block] = []
    for index, config in enumerate(configs):
        attention, ffn = (
            _entry(fields, config[slot], f"block_configs[{index}].{slot}") for slot in ("attention", "ffn")
        )
        block: list[tuple[str, str]] = []
        if attention is not None:
            group = attention.size("n_heads_in_group")
            name = f"attention_{group}"
            parts.setdefault(name, {**read_gqa(fields), "num_kv_heads": max(heads // group, 1)})
            block.append(("attention", name))
        if ffn is not None:
            size = _width(ffn.number("ffn_mult"), hidden)
            parts.setdefault(f"ffn_{size}", {"kind": "swiglu", "intermediate_size": size})
            block.append(("ffn", f"ffn_{size}"))
        if not block:
            fields.problem(f"block_configs[{index}]", "leaves nothing of the block, which no spec can say")
            block = [("ffn", next(iter(parts), "none"))]
        blocks.append(tuple(block))
    return {"text": read_text(fields, parts, blocks)}


def _is_block(config: Any) -> bool:
    return isinstance(config, dict) and all(isinstance(config.get(slot), dict) for slot in ("attention", "ffn"))


def _entry(fields: Fields, config: Data, path: str) -> Fields | None:
    """The fields of one layer; None if the search left it out."""
    entry = Fields(config, {}, fields.file, path, fields.problems, fields.consequences, fields.notes)
    for name in _UNUSED[:-1]:
        if entry.has(name):
            entry.expect(name, False)
    return None if entry.has("no_op") and entry.flag("no_op") else entry


def _width(factor: float, hidden: int) -> int:
    """The width of a feed-forward layer, rounded up to 256 (`_ffn_mult_to_intermediate_size` of the config's code)."""
    return ceil_div(int(2 * factor * hidden / 3), _STEP) * _STEP


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that DeciLMForCausalLM reads."""
    blocks, hidden = model.text.stack.blocks, model.text.stack.width.hidden_size
    lead = needed(blocks, GQASpec, "grouped-query attention")
    return {
        **write_text(model.text, style),
        **write_gqa(lead, style, implied_by=hidden),
        "num_key_value_heads": None,
        "intermediate_size": None,
        "hidden_act": "silu",
        "block_configs": [_written(item, hidden) for item in blocks],
    }


def _written(item: ResolvedBlock, hidden: int) -> Data:
    attention = item.attention.spec if item.attention else None
    ffn = item.ffn.spec if item.ffn else None
    group = attention.num_heads // attention.num_kv_heads if isinstance(attention, GQASpec) else None
    factor = 3 * ffn.intermediate_size / (2 * hidden) if isinstance(ffn, SwiGLUSpec) else None
    return {
        "attention": {"no_op": attention is None, "n_heads_in_group": group},
        "ffn": {"no_op": ffn is None, "ffn_mult": factor},
    }


FAMILY = Family(
    "nemotron-nas",
    "DeciLMForCausalLM",
    "none: nvidia/Llama-3_3-Nemotron-Super-49B-v1 modeling_decilm.py",
    read,
    write,
    Naming(DECODER),
    defaults={
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "num_key_value_heads": None,
        "intermediate_size": None,
    },
)
