"""Weight formats that each serving engine reads, by our schemes' names, and GPUs that it runs on.

For plans, searches and the launches of `--emit`.

Sources are the versions that `l4spec.deploy` writes launches for: vLLM's `vllm/config/quantization.py`, SGLang's
`QUANTIZATION_CHOICES`, and the checkpoints that TensorRT-LLM's documentation lists.
"""

from dataclasses import dataclass

from l4spec.quantization.scheme import SCHEMES
from planners.catalog.hardware import Hardware, PeakDType

BF16 = "bf16"


@dataclass(frozen=True, slots=True)
class WeightFormats:
    """Weight formats of an engine besides bf16: its own name for each of our schemes."""

    plain: dict[str, str]
    """Unquantized formats, by the engine's dtype."""
    online: dict[str, str]
    """Schemes that the engine packs itself while it loads a bf16 checkpoint, by its method."""
    packed: dict[str, str | None]
    """Schemes that it reads from a packed checkpoint, by its method; None if the checkpoint's config names it."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every scheme that the engine reads, bf16 first."""
        return (BF16, *self.plain, *self.online, *self.packed)


VLLM_FORMATS = WeightFormats(
    plain={"fp16": "float16", "fp32": "float32"},
    online={"fp8": "fp8_per_channel", "fp8-block": "fp8_per_block"},
    packed={
        "w4a16": "compressed-tensors",
        "w4a16-ffn": "compressed-tensors",
        "int8": "compressed-tensors",
        "nvfp4": "compressed-tensors",
        "awq": "awq",
        "gptq": "gptq",
        "bnb-nf4": "bitsandbytes",
        "bnb-nf4-fp32": "bitsandbytes",
        "mxfp4-experts": "mxfp4",
        "fp8-mixed": None,
    },
)
SGLANG_FORMATS = WeightFormats(
    plain={"fp16": "float16", "fp32": "float32"},
    online={"fp8": "fp8"},
    packed={
        "fp8-block": "fp8",
        "w4a16": "compressed-tensors",
        "w4a16-ffn": "compressed-tensors",
        "int8": "compressed-tensors",
        "nvfp4": "modelopt_fp4",
        "awq": "awq",
        "mxfp4-experts": "mxfp4",
        "fp8-mixed": None,
        "gptq": "gptq",
        **dict.fromkeys((name for name in SCHEMES.names if name.startswith("gguf-")), "gguf"),
    },
)
TENSORRT_LLM_FORMATS = {
    "bf16": "",
    "fp16": "",
    "fp8": "an FP8 checkpoint, whose scales are one a tensor where the plan counts one a row",
    "fp8-block": "a checkpoint in fp8 blocks of 128 x 128",
    "nvfp4": "an NVFP4 checkpoint",
    "awq": "an AWQ checkpoint (W4A16)",
}
"""By scheme the checkpoint that TensorRT-LLM needs: it takes no flag for it, and packs nothing itself."""
PUBLISHED = ("fp8-experts", "fp8-ffn")
"""Schemes of published checkpoints, whose own config names the method."""
_SCHEMES: dict[str, frozenset[str]] = {
    "vllm": frozenset((*VLLM_FORMATS.schemes, *PUBLISHED)),
    "sglang": frozenset((*SGLANG_FORMATS.schemes, *PUBLISHED)),
    "tensorrt-llm": frozenset(TENSORRT_LLM_FORMATS),
}
"""By the first words of an engine's name."""


_NOT_ON: dict[str, tuple[str, ...]] = {
    "vllm": ("Apple",),
    "sglang": ("Apple",),
    "tensorrt-llm": ("Apple", "AMD"),
    "torchtitan": ("Apple",),
}
"""Vendors whose GPUs an engine does not run on, by the first words of its name (the engines' installation guides)."""
_COMPUTED_IN: dict[str, dict[str, PeakDType]] = {"tensorrt-llm": {"fp8": "fp8", "fp8-block": "fp8", "nvfp4": "fp4"}}
"""By engine and scheme the format that a GPU has to compute in: TensorRT-LLM's documentation, quantization, hardware
support matrix. vLLM and SGLang unpack such weights on older GPUs (Marlin)."""


def unsupported(engine: str, hardware: Hardware, scheme: str) -> str | None:
    """Reason why an engine does not run on a GPU, or not with weights in a scheme; None if it does, as far as known."""
    for name, vendors in _NOT_ON.items():
        if engine.startswith(name) and hardware.description.startswith(vendors):
            return f"{engine} does not run on {hardware.description}"
    for name, schemes in _COMPUTED_IN.items():
        dtype = schemes.get(scheme) if engine.startswith(name) else None
        if dtype is not None and hardware.native_dtypes and dtype not in hardware.native_dtypes:
            return f"{engine} needs GPUs that compute in {dtype} for weights in {scheme}, and {hardware.name} does not"
    return None


def unreadable(engine: str, scheme: str, published: str) -> str | None:
    """Reason why an engine does not read weights in a shipped scheme; None if it does, or is an engine not listed here.

    The scheme that the model is `published` in, and the user's own schemes, are assumed readable.
    """
    if scheme == published or scheme not in SCHEMES.names:
        return None
    for name, schemes in _SCHEMES.items():
        if engine.startswith(name) and scheme not in schemes:
            return f"{engine} reads no weights packed as {scheme}"
    return None
