"""A wider relative of a model: more query heads, wider feed-forward layers and stream, by steps that stay legal.

Each size becomes the multiple of its step that is nearest to `factor` times its own. Unchanged are the width of a head,
the cache per token (KV heads, latents, groups and states), the pattern of layers and the number of experts.
"""

from fractions import Fraction
from math import gcd, sqrt

from l4spec.errors import Problem, UserError
from l4spec.layers.base import LayerSpec, changed
from l4spec.spec.grow import relative
from l4spec.spec.model import ModelSpec, TextSpec

LEAST, MOST = Fraction(1, 10), Fraction(100)
_WIDTHS = ("intermediate_size", "shared_intermediate_size", "latent_size", "q_lora_rank")
_HEADS = (
    ("num_heads", "num_kv_heads"),
    ("num_heads", "num_groups"),
    ("num_value_heads", "num_key_heads"),
    ("num_heads", "num_heads"),
)
"""Pairs of fields: heads, and the heads that they share, whose number stays; the first existing pair applies."""
_WIDTH_STEP, _HEAD_STEP = 128, 8


def read_factor(text: str) -> Fraction:
    """A factor from 0.1 to 100 as `1.5` or `3/2`, exactly. Raises ValueError."""
    try:
        factor = Fraction(text.strip()) if len(text) <= 40 and "e" not in text.lower() else None
    except (ValueError, ZeroDivisionError):
        factor = None
    if factor is None or not LEAST <= factor <= MOST:
        raise ValueError(f"expected a factor from 0.1 to 100 like 1.5, found {text[:40]!r}")
    return factor


def widen(spec: ModelSpec, factor: Fraction) -> ModelSpec:
    """`spec` with its text `factor` times as wide. Raises UserError for a part of a kind with no size to widen."""
    if factor == 1:
        return spec
    text, problems = spec.text, list[Problem]()
    parts = {name: _part(name, part, factor, problems) for name, part in text.parts.items()}
    if problems:
        raise UserError(problems)
    hidden = _hidden_size(text, parts, factor)
    scale = text.embedding_scale and text.embedding_scale * sqrt(hidden / text.hidden_size)
    wider = changed(text, hidden_size=hidden, parts=parts, embedding_scale=scale)
    return relative(spec, f"{spec.name[:100]} x{float(factor):.4g}", wider)


def _part(name: str, part: LayerSpec, factor: Fraction, problems: list[Problem]) -> LayerSpec:
    sizes = {
        width: nearest_step(size, factor, _WIDTH_STEP)
        for width in _WIDTHS
        if isinstance(size := getattr(part, width, None), int)
    }
    sizes |= _heads(part, factor)
    if not sizes:
        path = f"text.parts.{name}"
        problems.append(Problem(f"kind {part.kind!r} has no size to widen", path, hint="--set its sizes instead"))
        return part
    return changed(part, **sizes)


def _heads(part: LayerSpec, factor: Fraction) -> dict[str, int]:
    """Query heads, a multiple of the heads that they share; with equal numbers of KV and query heads, both change."""
    for heads, shared in _HEADS:
        count, groups = getattr(part, heads, None), getattr(part, shared, None)
        if count is not None and groups is not None:
            if heads == shared or count == groups:
                more = nearest_step(count, factor, _HEAD_STEP)
                return {heads: more, shared: more}
            return {heads: max(groups, _nearest(count * factor, groups))}
    return {}


def _hidden_size(text: TextSpec, parts: dict[str, LayerSpec], factor: Fraction) -> int:
    """The stream's width: that of all query heads where it was so."""
    for name, part in text.parts.items():
        heads, dim = getattr(part, "num_heads", None), getattr(part, "head_dim", None)
        if heads is not None and dim is not None and heads * dim == text.hidden_size:
            return int(parts[name].num_heads) * int(dim)  # type: ignore[attr-defined]
    return nearest_step(text.hidden_size, factor, _WIDTH_STEP)


def nearest_step(size: int, factor: Fraction, largest_step: int) -> int:
    """The multiple nearest to `size * factor` of the greatest power of two, up to a limit, that divides `size`."""
    step = gcd(size, largest_step)
    return max(step, _nearest(size * factor, step))


def _nearest(value: Fraction, step: int) -> int:
    """The multiple of `step` nearest to a value, of two the larger."""
    return int((value / step + Fraction(1, 2)) // 1) * step
