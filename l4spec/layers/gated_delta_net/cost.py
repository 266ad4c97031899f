"""What a gated delta net costs: projections, and a state of fixed size instead of a cache that grows."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import (
    Bound,
    Buffer,
    CacheEntry,
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
from l4spec.layers.gated_delta_net.spec import GatedDeltaNetSpec
from l4spec.layers.recurrent.chunks import CHUNK, delta_rule_products, recurrence
from l4spec.units import ceil_div

STATE_BYTES = 4
"""Of a number of the recurrent state, which sums up over the whole sequence: fp32."""


def declare(spec: GatedDeltaNetSpec, width: Width) -> Declaration:
    """Projections q, k, v, z, b, a; a convolution of q, k and v; per value head a state [key_head_dim, value_head_dim].

    The recurrence needs 6 * key_head_dim * value_head_dim FLOPs per token and head: the state is read for the key,
    corrected, and read for the query. Convolution, norms and gates count no FLOPs by convention.
    """
    hidden, stream = Dim("hidden", width.hidden_size), tokens_of(width.hidden_size)
    parameters = _parameters(spec, hidden)
    matmuls = tuple(p for p in parameters if p.role == "linear")

    def run(work: Work, products: HeadProducts) -> tuple[Operation, ...]:
        tokens, values = work.num_tokens, spec.num_value_heads * spec.value_head_dim
        projections = tuple(Matmul(p.name.removesuffix(".weight"), tokens, p) for p in matmuls)
        return (
            *projections[:-1],  # x @ W_q.T, x @ W_k.T, x @ W_v.T, x @ W_z.T, x @ W_b.T, x @ W_a.T
            Elementwise("convolve", tokens * spec.conv_width, reads=spec.conv_kernel_size),  # silu(conv(q, k, v))
            products,  # S <- exp(g) S + k (beta (v - S.T k)).T; S.T q
            Elementwise("norm_gate", tokens * values, reads=2),  # norm(read) * silu(z)
            projections[-1],  # y @ W_out.T
        )

    def operations(work: Work) -> tuple[Operation, ...]:
        per_token = 3 * spec.key_head_dim * spec.value_head_dim
        return run(work, recurrence("delta_rule", work, spec.num_value_heads, per_token))

    def executed(work: Work) -> tuple[Operation, ...]:
        products = delta_rule_products(work, spec.num_value_heads, spec.key_head_dim, spec.value_head_dim)
        return run(work, products)

    return Declaration(
        parameters,
        operations,
        inputs=(stream,),
        output=stream,
        cache=_states(spec),
        live=lambda work: _live(spec, work, hidden),
        saved=lambda work: _saved(spec, work, hidden),
        executed=executed,
    )


def _parameters(spec: GatedDeltaNetSpec, hidden: Dim) -> tuple[Parameter, ...]:
    keys = Dim("heads", spec.num_key_heads * spec.key_head_dim, spec.num_key_heads)
    values = Dim("heads", spec.num_value_heads * spec.value_head_dim, spec.num_value_heads)
    heads, kernel = Dim("heads", spec.num_value_heads), Dim("kernel", spec.conv_kernel_size)
    widths = {"q": keys, "k": keys, "v": values, "z": values, "b": heads, "a": heads}
    projections = tuple(linear(f"{name}_proj", dim, hidden, "attention")[0] for name, dim in widths.items())
    filters = tuple(Parameter(f"{name}_conv", (widths[name], kernel), "attention", "other") for name in "qkv")
    return (
        *projections,
        *filters,
        Parameter("A_log", (heads,), "attention", "other", start=0.0),
        Parameter("dt_bias", (heads,), "attention", "bias", start=1.0),
        Parameter("norm.weight", (Dim("head_dim", spec.value_head_dim),), "attention", "norm"),
        *linear("out_proj", hidden, values, "attention"),
    )


def _states(spec: GatedDeltaNetSpec) -> tuple[CacheEntry, ...]:
    """The last tokens before the convolution, in the model's format, and what each value head keeps, in fp32."""
    channels = Dim("heads", spec.conv_width, spec.num_key_heads)
    state = (Dim("heads", spec.num_value_heads), Dim("key", spec.key_head_dim), Dim("value", spec.value_head_dim))
    return (
        CacheEntry("convolution", (Dim("kernel", spec.conv_kernel_size - 1), channels), Bound("state"), least_bytes=2),
        CacheEntry("state", state, Bound("state"), least_bytes=STATE_BYTES),
    )


def _live(spec: GatedDeltaNetSpec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    channels = Dim("heads", spec.conv_width, spec.num_key_heads)
    values = Dim("heads", spec.num_value_heads * spec.value_head_dim, spec.num_value_heads)
    widths = {"normed_input": hidden, "projected": channels, "convolved": channels, "z": values, "read": values}
    return tuple(Buffer(name, work.num_tokens, (dim,)) for name, dim in widths.items())


def _saved(spec: GatedDeltaNetSpec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    """Beside what is alive the gated values, and a state after each chunk of tokens, as fused kernels keep them."""
    values = Dim("heads", spec.num_value_heads * spec.value_head_dim, spec.num_value_heads)
    num_chunks = work.num_sequences * ceil_div(work.num_queries, CHUNK)
    state = (Dim("heads", spec.num_value_heads), Dim("key", spec.key_head_dim), Dim("value", spec.value_head_dim))
    return (
        *_live(spec, work, hidden),
        Buffer("gated", work.num_tokens, (values,)),
        Buffer("chunk_states", num_chunks, state, bytes_per_element=STATE_BYTES),
    )
