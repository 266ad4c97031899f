"""Costs of feed-forward layers with a gate (SwiGLU, GeGLU, experts) and without one."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import (
    Buffer,
    Declaration,
    Dim,
    Elementwise,
    Matmul,
    Operation,
    Parameter,
    Part,
    linear,
    tokens_of,
)


def gated_parameters(prefix: str, ffn: Dim, hidden: Dim, part: Part, *, bias: bool = False) -> tuple[Parameter, ...]:
    """gate_proj and up_proj [ffn, hidden] and down_proj [hidden, ffn], in this order."""
    return (
        *linear(f"{prefix}gate_proj", ffn, hidden, part, bias=bias),
        *linear(f"{prefix}up_proj", ffn, hidden, part, bias=bias),
        *linear(f"{prefix}down_proj", hidden, ffn, part, bias=bias),
    )


def plain_parameters(prefix: str, ffn: Dim, hidden: Dim, part: Part, *, bias: bool = False) -> tuple[Parameter, ...]:
    """up_proj [ffn, hidden] and down_proj [hidden, ffn], in this order."""
    return (
        *linear(f"{prefix}up_proj", ffn, hidden, part, bias=bias),
        *linear(f"{prefix}down_proj", hidden, ffn, part, bias=bias),
    )


def plain_operations(rows: int, parameters: tuple[Parameter, ...], ffn_size: int) -> tuple[Operation, ...]:
    """Two matmuls over `rows` tokens and the activation between them."""
    up, down = (p for p in parameters if p.role != "bias")
    return (
        Matmul(up.name.removesuffix(".weight"), rows, up),  # x @ W_up.T
        Elementwise("activate", rows * ffn_size),  # act(up)
        Matmul(down.name.removesuffix(".weight"), rows, down),  # activated @ W_down.T
    )


def plain_live(rows: int, ffn: Dim, hidden: Dim, prefix: str = "") -> tuple[Buffer, ...]:
    """Input, up and its activation, which autograd keeps too; `prefix` is that of the weights' names."""
    return (
        Buffer("normed_input", rows, (hidden,), gradient_of=(f"{prefix}up_proj",)),
        Buffer("up", rows, (ffn,)),
        Buffer("activated", rows, (ffn,), gradient_of=(f"{prefix}down_proj",)),
    )


def gated_operations(rows: int, parameters: tuple[Parameter, ...], ffn_size: int) -> tuple[Operation, ...]:
    """Three matmuls over `rows` tokens and one element-wise product."""
    gate, up, down = (p for p in parameters if p.role != "bias")
    return (
        Matmul(gate.name.removesuffix(".weight"), rows, gate),  # x @ W_gate.T
        Matmul(up.name.removesuffix(".weight"), rows, up),  # x @ W_up.T
        Elementwise("gate", rows * ffn_size, reads=2),  # act(gate) * up
        Matmul(down.name.removesuffix(".weight"), rows, down),  # product @ W_down.T
    )


def gated_live(rows: int, ffn: Dim, hidden: Dim, prefix: str = "") -> tuple[Buffer, ...]:
    """Input, gate, up and their product: alive together before the last projection."""
    return (
        Buffer("normed_input", rows, (hidden,), gradient_of=(f"{prefix}gate_proj", f"{prefix}up_proj")),
        Buffer("gate", rows, (ffn,)),
        Buffer("up", rows, (ffn,)),
        Buffer("product", rows, (ffn,), gradient_of=(f"{prefix}down_proj",)),
    )


def gated_saved(rows: int, ffn: Dim, hidden: Dim, prefix: str = "", *, clamped: bool = False) -> tuple[Buffer, ...]:
    """Tensors that eager autograd saves: input, gate, act(gate), up and the product; the clamped ones too."""
    names = ("activated_gate", *(("clamped_gate", "gate_sigmoid", "shifted_up") if clamped else ()))
    return (*gated_live(rows, ffn, hidden, prefix), *(Buffer(name, rows, (ffn,)) for name in names))


def declare_gated(
    intermediate_size: int, bias: bool, activation: str, width: Width, *, clamped: bool = False
) -> Declaration:
    """A dense gated layer; element-wise work counts no FLOPs by convention."""
    hidden, ffn = Dim("hidden", width.hidden_size), Dim("ffn", intermediate_size)
    parameters = gated_parameters("", ffn, hidden, "dense_ffn", bias=bias)
    stream = tokens_of(width.hidden_size)
    return Declaration(
        parameters,
        operations=lambda work: gated_operations(work.num_tokens, parameters, intermediate_size),
        inputs=(stream,),
        output=stream,
        live=lambda work: gated_live(work.num_tokens, ffn, hidden),
        saved=lambda work: gated_saved(work.num_tokens, ffn, hidden, clamped=clamped),
        activation=activation,
    )
