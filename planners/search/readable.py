"""Which formats of weights an engine reads: those that its launches can name.

The lists are those of `l4spec.deploy`, which stands above the planner and says where each comes from; a test holds both
together. What the spec is published in is read by every engine that serves the model.
"""

from l4spec.quantization.scheme import SCHEMES

_PLAIN = ("bf16", "fp16", "fp32")
_COMPRESSED = ("fp8", "fp8-block", "w4a16", "w4a16-ffn", "int8", "nvfp4", "awq", "gptq", "mxfp4-experts", "fp8-mixed")
RELEASED = ("fp8-experts", "fp8-ffn")
"""Formats of published checkpoints whose own config says how they are read."""
READS: dict[str, frozenset[str]] = {
    "vllm": frozenset((*_PLAIN, *_COMPRESSED, *RELEASED, "bnb-nf4")),
    "sglang": frozenset((*_PLAIN, *_COMPRESSED, *RELEASED, *(s for s in SCHEMES.names if s.startswith("gguf-")))),
    "tensorrt-llm": frozenset(("bf16", "fp16", "fp8", "fp8-block", "nvfp4", "awq")),
}
"""By the first words of an engine's name."""


def not_read(engine: str, scheme: str, published: str) -> str | None:
    """Why an engine has no kernels for weights in a shipped scheme; None where it has, or where nobody says."""
    if scheme == published or scheme not in SCHEMES.names:
        return None
    for name, known in READS.items():
        if engine.startswith(name) and scheme not in known:
            return f"{engine} reads no weights packed as {scheme}"
    return None
