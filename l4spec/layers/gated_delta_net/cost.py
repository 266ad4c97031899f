"""Cost of a gated delta net: projections, and a state of fixed size instead of a cache that grows."""

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
from l4spec.layers.gated_delta_net.spec import GatedDeltaNetSpec
from l4spec.layers.recurrent.chunks import delta_rule_products, recurrence
from l4spec.layers.recurrent.declared import cached_states, per_token, states_of_chunks


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
        cache=cached_states(spec.conv_kernel_size, _convolved(spec), _state(spec)),
        live=lambda work: _live(spec, work, hidden),
        saved=lambda work: _saved(spec, work, hidden),
        executed=executed,
    )


def _parameters(spec: GatedDeltaNetSpec, hidden: Dim) -> tuple[Parameter, ...]:
    keys = Dim("heads", spec.num_key_heads * spec.key_head_dim, spec.num_key_heads)
    values = _values(spec)
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


def _values(spec: GatedDeltaNetSpec) -> Dim:
    return Dim("heads", spec.num_value_heads * spec.value_head_dim, spec.num_value_heads)


def _convolved(spec: GatedDeltaNetSpec) -> Dim:
    return Dim("heads", spec.conv_width, spec.num_key_heads)


def _state(spec: GatedDeltaNetSpec) -> tuple[Dim, ...]:
    return Dim("heads", spec.num_value_heads), Dim("key", spec.key_head_dim), Dim("value", spec.value_head_dim)


def _live(spec: GatedDeltaNetSpec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    mixed, values = _convolved(spec), _values(spec)
    widths = {"normed_input": hidden, "projected": mixed, "convolved": mixed, "z": values, "read": values}
    return per_token(work, widths, {"normed_input": tuple(f"{name}_proj" for name in "qkvzba")})


def _saved(spec: GatedDeltaNetSpec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    """The live buffers, the gated values, and the state after each chunk."""
    gated = per_token(work, {"gated": _values(spec)}, {"gated": ("out_proj",)})
    return (*_live(spec, work, hidden), *gated, states_of_chunks(work, _state(spec)))
