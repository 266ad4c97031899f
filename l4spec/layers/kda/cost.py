"""Cost of Kimi Delta Attention: projections, gates of low rank, and a state of fixed size instead of a cache."""

from math import expm1, log

from l4spec.layers.base import Width
from l4spec.layers.declaration import (
    Buffer,
    Declaration,
    Dim,
    Elementwise,
    HeadProducts,
    Matmul,
    Operation,
    Parameter,
    Work,
    linear,
    tokens_of,
)
from l4spec.layers.kda.spec import KDASpec
from l4spec.layers.recurrent.chunks import CHANNEL_CHUNK, delta_rule_products, recurrence
from l4spec.layers.recurrent.declared import STATE_BYTES, cached_states, per_token, states_of_chunks

FUSED_CHUNK = 64
"""Tokens after which fused kernels keep a state for the backward pass (flash-linear-attention, `chunk_kda`)."""
RATE, STEP = log(8.5), log(expm1(0.01))
"""Middle of the ranges from which the reference draws A_log and dt_bias: rates of 1 to 16, steps of 0.001 to 0.1."""


def declare(spec: KDASpec, width: Width) -> Declaration:
    """Projections q, k, v, b; gates f and g of rank head_dim; convolutions; per head a state [head_dim, head_dim].

    The recurrence needs 6 * head_dim^2 FLOPs per token and head, as with one decay per head: the state is read for the
    key, corrected, and read for the query. Decays, convolutions, norms and gates count no FLOPs by convention.
    """
    hidden, stream = Dim("hidden", width.hidden_size), tokens_of(width.hidden_size)
    parameters = _parameters(spec, hidden)
    matmuls = tuple(p for p in parameters if p.role == "linear")

    def run(work: Work, products: HeadProducts) -> tuple[Operation, ...]:
        tokens, channels = work.num_tokens, spec.heads_width
        projections = tuple(Matmul(p.name.removesuffix(".weight"), tokens, p) for p in matmuls)
        return (
            *projections[:-1],  # x @ W_q.T, W_k, W_v, W_b; x @ W_fa.T @ W_fb.T; x @ W_ga.T @ W_gb.T
            Elementwise("convolve", 3 * tokens * channels, reads=spec.conv_kernel_size),  # silu(conv(q, k, v))
            Elementwise("decay", tokens * channels),  # -exp(A) softplus(f + dt)
            products,  # S <- diag(exp(g)) S + k (beta (v - S.T k)).T; S.T q
            Elementwise("norm_gate", tokens * channels, reads=2),  # norm(read) * sigmoid(g)
            projections[-1],  # y @ W_o.T
        )

    def operations(work: Work) -> tuple[Operation, ...]:
        return run(work, recurrence("delta_rule", work, spec.num_heads, 3 * spec.head_dim**2))

    def executed(work: Work) -> tuple[Operation, ...]:
        return run(work, delta_rule_products(work, spec.num_heads, spec.head_dim, spec.head_dim, CHANNEL_CHUNK))

    return Declaration(
        parameters,
        operations,
        inputs=(stream,),
        output=stream,
        cache=cached_states(spec.conv_kernel_size, _convolved(spec), _state(spec)),
        live=lambda work: _live(spec, work, hidden),
        saved=lambda work: _saved(spec, work, hidden),
        executed=executed,
    )


def _parameters(spec: KDASpec, hidden: Dim) -> tuple[Parameter, ...]:
    channels, heads = _channels(spec), Dim("heads", spec.num_heads)
    rank, kernel = Dim("rank", spec.head_dim), Dim("kernel", spec.conv_kernel_size)
    factors = {
        **{f"{name}_proj": (channels, hidden) for name in "qkv"},
        "b_proj": (heads, hidden),
        "f_a_proj": (rank, hidden),
        "f_b_proj": (channels, rank),
        "g_a_proj": (rank, hidden),
        "g_b_proj": (channels, rank),
    }
    return (
        *(linear(name, out, into, "attention")[0] for name, (out, into) in factors.items()),
        *(Parameter(f"{name}_conv", (channels, kernel), "attention", "other") for name in "qkv"),
        Parameter("A_log", (heads,), "attention", "other", start=RATE),
        Parameter("dt_bias", (channels,), "attention", "bias", start=STEP),
        Parameter("o_norm.weight", (Dim("head_dim", spec.head_dim),), "attention", "norm"),
        *linear("o_proj", hidden, channels, "attention"),
    )


def _channels(spec: KDASpec) -> Dim:
    return Dim("heads", spec.heads_width, spec.num_heads)


def _state(spec: KDASpec) -> tuple[Dim, ...]:
    return Dim("heads", spec.num_heads), Dim("key", spec.head_dim), Dim("value", spec.head_dim)


def _convolved(spec: KDASpec) -> Dim:
    return Dim("heads", 3 * spec.heads_width, spec.num_heads)


def _live(spec: KDASpec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    mixed, channels = _convolved(spec), _channels(spec)
    widths = {"normed_input": hidden, "projected": mixed, "convolved": mixed, "gate": channels, "read": channels}
    decay = Buffer("decay", work.num_tokens, (channels,), bytes_per_element=STATE_BYTES)  # its logs are summed
    readers = {"normed_input": ("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj", "g_a_proj")}
    return (*per_token(work, widths, readers), decay)


def _saved(spec: KDASpec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    """The live buffers, the gated values, the low-rank halves of both gates, and the state after each chunk."""
    rank = Dim("rank", spec.head_dim)
    readers = {"gated": ("o_proj",), "narrow_forget": ("f_b_proj",), "narrow_gate": ("g_b_proj",)}
    kept = per_token(work, {"gated": _channels(spec), "narrow_forget": rank, "narrow_gate": rank}, readers)
    return (*_live(spec, work, hidden), *kept, states_of_chunks(work, _state(spec), FUSED_CHUNK))
