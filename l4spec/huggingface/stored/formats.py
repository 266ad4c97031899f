"""Weight formats in configs (`quantization_config` and its variants) of every tool that writes them.

A format is a list of packings, each with the modules that it is for, and the modules that stay as they are. Sources:
vLLM's model_executor/layers/quantization (one file a method), compressed-tensors' README, NVIDIA ModelOpt's
hf_quant_config, AutoGPTQ's and AutoAWQ's packing, bitsandbytes' functional.py, and mlx's nn/layers/quantized.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from l4spec.spec.storage import ComputeDType, PlainDType, ScaledLaw

Data = Mapping[str, Any]
Reach = Literal["linear", "linear_and_head", "experts", "matrices"]
"""Matrices of a packing whose config names none: linear layers and experts, those and the head, experts alone, or every
matrix with embedding and head."""


@dataclass(frozen=True, slots=True)
class Packing:
    """One packing law, and its modules: patterns of names, or all in `reach`."""

    law: ScaledLaw
    compute: ComputeDType
    targets: tuple[str, ...] = ()
    reach: Reach = "linear"


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """Weight format of a config: the first packing that selects a module applies, unless the module is `skipped`."""

    method: str
    packings: tuple[Packing, ...]
    skipped: tuple[str, ...] = ()
    plain: PlainDType | None = None
    """Format of all that is not packed, where it is not the model's own."""
    text_only: bool = False
    """True if the format is for the language model alone, as one in `text_config` is."""


class UnreadFormat(Exception):
    """Raised for an unsupported format, with the reason."""


def read_format(config: Data) -> StoredFormat | None:
    """The format of a checkpoint; None for an unquantized one. Raises UnreadFormat for one that is not understood."""
    text = config.get("text_config")
    holders = [config, *([text] if isinstance(text, Mapping) else [])]
    for name in ("quantization_config", "compression_config", "quantization"):
        for holder in holders:
            result = holder.get(name)
            if isinstance(result, Mapping) and result:
                read = _read({"expert_dtype": config.get("expert_dtype"), **result})
                return replace(read, text_only=holder is text) if read else None
    return None


def _read(q: Data) -> StoredFormat | None:
    method = str(q.get("quant_method") or _guessed(q)).lower().replace("_", "-")
    reader = _READERS.get(method)
    if reader is None:
        raise UnreadFormat(f"by {method[:40]}")
    try:
        return reader(q)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnreadFormat(f"by {method[:40]}, in a way of its own ({str(error)[:80]})") from None


def _guessed(q: Data) -> str:
    """The method of a config that does not name it: ModelOpt's older files, and MLX."""
    if "quant_algo" in q or "quantized_layers" in q:
        return "modelopt"
    return "mlx" if "bits" in q else "nothing that has a name"


def _names(q: Data, *keys: str) -> tuple[str, ...]:
    return tuple(str(name) for key in keys for name in q.get(key) or ())


def _fp8(q: Data) -> StoredFormat | None:
    if q.get("quant_algo") == "MIXED_PRECISION":
        return _modelopt(q)
    block = q.get("weight_block_size")
    group: Literal["tensor"] | tuple[int, int] = "tensor" if block is None else (_whole(block[0]), _whole(block[1]))
    law = ScaledLaw(kind="scaled", bits=8, values="e4m3", group=group, scale_dtype="fp32")
    experts = (Packing(_MXFP4, "fp8", reach="experts"),) if q.get("expert_dtype") == "fp4" else ()  # DeepSeek-V4
    return StoredFormat("fp8", (*experts, Packing(law, "fp8")), _names(q, "modules_to_not_convert", "ignored_layers"))


def _fbgemm(q: Data) -> StoredFormat:
    law = ScaledLaw(kind="scaled", bits=8, values="e4m3", group="row", scale_dtype="fp32")
    return StoredFormat("fbgemm_fp8", (Packing(law, "fp8"),), _names(q, "modules_to_not_convert"))


def _compressed(q: Data) -> StoredFormat | None:
    groups = q.get("config_groups") or {}
    if not groups and q.get("format") in _FLOATS:
        groups = {"all": {"weights": {"num_bits": 4, "type": "float"}, "targets": ["Linear"]}}
    if not groups:
        raise UnreadFormat("by compressed-tensors, without config_groups")
    packings = tuple(_compressed_group(group, str(group.get("format") or q.get("format"))) for group in groups.values())
    return StoredFormat("compressed-tensors", packings, _names(q, "ignore"))


def _compressed_group(group: Data, layout: str) -> Packing:
    weights, active = group["weights"], group.get("input_activations")
    bits, kind = _whole(weights["num_bits"]), weights.get("type", "int")
    targets = tuple(str(name) for name in group.get("targets") or ("Linear",))
    named = () if "Linear" in targets else targets
    if layout in _FLOATS:
        return Packing(_FLOATS[layout], "fp4" if active else "bf16", named, "linear_and_head")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    shared = {"tensor": "tensor", "channel": "row", "group": size, "block": _block(weights)}
    law = ScaledLaw(
        kind="scaled",
        bits=bits,
        values="int" if kind == "int" else "e4m3" if bits == 8 else "e2m1",
        group=shared[strategy or ("group" if size else "tensor")],
        scale_dtype="fp32" if strategy == "block" else "bf16",
        zero_point_bits=0 if weights.get("symmetric", True) else bits,
        word_bits=32 if layout == "pack-quantized" else 8,
    )
    compute: ComputeDType = "bf16" if not active else "int8" if kind == "int" else "fp8"
    return Packing(law, compute, named, "linear_and_head")


def _block(weights: Data) -> tuple[int, int] | None:
    block = weights.get("block_structure")
    if isinstance(block, str):
        block = block.split("x")
    return None if block is None else (int(block[0]), int(block[1]))


_FLOATS: Mapping[str, ScaledLaw] = {
    "nvfp4-pack-quantized": ScaledLaw(
        kind="scaled", bits=4, values="e2m1", group=16, scale_dtype="fp8", matrix_scale_dtype="fp32"
    ),
    "mxfp4-pack-quantized": ScaledLaw(kind="scaled", bits=4, values="e2m1", group=32, scale_dtype="e8m0"),
}
_NVFP4, _MXFP4 = _FLOATS.values()
_ALGORITHMS: Mapping[str, tuple[ScaledLaw, ComputeDType]] = {
    "NVFP4": (_NVFP4, "fp4"),
    "W4A16_NVFP4": (_NVFP4, "bf16"),
    "NVFP4_AWQ": (_NVFP4, "fp4"),
    "MXFP4": (_MXFP4, "fp4"),
    "FP8": (ScaledLaw(kind="scaled", bits=8, values="e4m3", group="tensor", scale_dtype="fp32"), "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": (
        ScaledLaw(kind="scaled", bits=8, values="e4m3", group="row", scale_dtype="fp32"),
        "fp8",
    ),
    "FP8_PB_WO": (ScaledLaw(kind="scaled", bits=8, values="e4m3", group=(128, 128), scale_dtype="fp32"), "fp8"),
    "W4A16_AWQ": (ScaledLaw(kind="scaled", bits=4, group=128, scale_dtype="bf16"), "bf16"),
    "INT8_SQ": (ScaledLaw(kind="scaled", bits=8, group="row", scale_dtype="fp32"), "int8"),
}
"""ModelOpt's names (modelopt/torch/export/model_config.py)."""


def _modelopt(q: Data) -> StoredFormat | None:
    algorithm, skipped = q.get("quant_algo"), _names(q, "ignore", "exclude_modules")
    if algorithm is None and not q.get("quantized_layers"):
        return None
    if algorithm != "MIXED_PRECISION" and not q.get("quantized_layers"):
        return StoredFormat("modelopt", (_algorithm(str(algorithm), q, ()),), skipped)
    by_algorithm: dict[tuple[str, int], list[str]] = {}
    for name, setting in (q.get("quantized_layers") or {}).items():
        by_algorithm.setdefault((str(setting["quant_algo"]), _whole(setting.get("group_size", 0))), []).append(
            str(name)
        )
    result = [_algorithm(name, {"group_size": size}, names) for (name, size), names in by_algorithm.items()]
    rest = _fp8({**q, "quant_algo": None}) if q.get("weight_block_size") else None  # fp8, partly packed again
    return StoredFormat("modelopt", (*result, *(rest.packings if rest else ())), () if rest else skipped)


def _algorithm(name: str, q: Data, targets: Sequence[str]) -> Packing:
    if name not in _ALGORITHMS:
        raise UnreadFormat(f"by ModelOpt's {name[:40]}")
    law, compute = _ALGORITHMS[name]
    if isinstance(law.group, int) and q.get("group_size"):
        law = law.model_copy(update={"group": _whole(q["group_size"])})
    return Packing(law, compute, tuple(targets), "linear_and_head")


def _mxfp4(q: Data) -> StoredFormat:
    return StoredFormat("mxfp4", (Packing(_MXFP4, "bf16", reach="experts"),), _names(q, "modules_to_not_convert"))


def _gptq(q: Data) -> StoredFormat:
    bits, size = _whole(q["bits"]), q.get("group_size", 128)
    law = ScaledLaw(
        kind="scaled",
        bits=bits,
        group="row" if size == -1 else _whole(size),
        scale_dtype="fp16",
        zero_point_bits=bits,  # qzeros are written for symmetric weights too
        word_bits=32,
    )
    reach: Reach = "linear_and_head" if q.get("lm_head") else "linear"
    return StoredFormat("gptq", (Packing(law, "fp16", reach=reach),), _names(q, "modules_to_not_convert"))


def _awq(q: Data) -> StoredFormat:
    bits = _whole(q.get("bits", q.get("w_bit", 4)))
    law = ScaledLaw(
        kind="scaled",
        bits=bits,
        group=_whole(q.get("group_size", q.get("q_group_size", 128))),
        scale_dtype="fp16",
        zero_point_bits=bits if q.get("zero_point", True) else 0,
        word_bits=32,
    )
    return StoredFormat("awq", (Packing(law, "fp16"),), _names(q, "modules_to_not_convert"), plain="fp16")


def _bitsandbytes(q: Data) -> StoredFormat:
    skipped = _names(q, "llm_int8_skip_modules")
    if q.get("load_in_8bit") or q.get("_load_in_8bit"):
        law = ScaledLaw(kind="scaled", bits=8, group="row", scale_dtype="fp32")
        return StoredFormat("bitsandbytes", (Packing(law, "int8"),), skipped)
    nested = bool(q.get("bnb_4bit_use_double_quant"))
    law = ScaledLaw(kind="scaled", bits=4, values="e2m1", group=64, scale_dtype="fp8" if nested else "fp32")
    return StoredFormat("bitsandbytes", (Packing(law, "bf16"),), skipped)


def _mlx(q: Data) -> StoredFormat:
    """Scale and bias of 16 bits per group, embedding and head included; modules may have numbers of their own."""
    own = tuple(_mlx_modules(q))
    skipped = tuple(name for name, setting in q.items() if setting is False)
    return StoredFormat("mlx", (*own, Packing(_mlx_law(q), "bf16", reach="matrices")), skipped)


def _mlx_modules(q: Data) -> Iterator[Packing]:
    for name, setting in q.items():
        if isinstance(setting, Mapping) and "bits" in setting:
            yield Packing(_mlx_law(setting), "bf16", (str(name),), "matrices")


def _mlx_law(q: Data) -> ScaledLaw:
    if str(q.get("mode", "affine")) != "affine":
        return _FLOATS[f"{q['mode']}-pack-quantized"]
    bits, size = _whole(q["bits"]), _whole(q["group_size"])
    return ScaledLaw(kind="scaled", bits=bits, group=size, scale_dtype="fp16", zero_point_bits=16, word_bits=32)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, found {str(value)[:40]!r}")
    return value


_READERS: Mapping[str, Callable[[Data], StoredFormat | None]] = {
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "auto-round": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "mlx": _mlx,
}
