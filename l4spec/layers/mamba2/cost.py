"""Cost of Mamba-2: projections, and a state of fixed size instead of a cache that grows."""

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
from l4spec.layers.mamba2.spec import Mamba2Spec
from l4spec.layers.recurrent.chunks import recurrence, scan_products
from l4spec.layers.recurrent.declared import cached_states, per_token, states_of_chunks


def declare(spec: Mamba2Spec, width: Width) -> Declaration:
    """Projections z, x, b, c, dt; a convolution of x, b and c; per head a state [state_size, head_dim]; a norm.

    The recurrence needs 4 * state_size * head_dim FLOPs per token and head: the state is written and read. Convolution,
    norm, gate and skip count no FLOPs by convention.
    """
    hidden, stream = Dim("hidden", width.hidden_size), tokens_of(width.hidden_size)
    parameters = _parameters(spec, hidden)
    matmuls = tuple(p for p in parameters if p.role == "linear")

    def run(work: Work, products: HeadProducts) -> tuple[Operation, ...]:
        tokens = work.num_tokens
        projections = tuple(Matmul(p.name.removesuffix(".weight"), tokens, p) for p in matmuls)
        return (
            *projections[:-1],  # u @ W_z.T, u @ W_x.T, u @ W_b.T, u @ W_c.T, u @ W_dt.T
            Elementwise("convolve", tokens * spec.conv_width, reads=spec.conv_kernel_size),  # silu(conv(x, b, c))
            products,  # S <- exp(dt A) S + b (dt x).T; S.T c
            Elementwise("gate_norm", tokens * spec.inner_size, reads=3),  # norm((read + D x) * silu(z))
            projections[-1],  # y @ W_out.T
        )

    return Declaration(
        parameters,
        lambda work: run(work, recurrence("scan", work, spec.num_heads, 2 * spec.state_size * spec.head_dim)),
        inputs=(stream,),
        output=stream,
        cache=cached_states(spec.conv_kernel_size, _convolved(spec), _state(spec)),
        live=lambda work: _live(spec, work, hidden),
        saved=lambda work: _saved(spec, work, hidden),
        executed=lambda work: run(work, scan_products(work, spec.num_heads, spec.state_size, spec.head_dim)),
    )


def _parameters(spec: Mamba2Spec, hidden: Dim) -> tuple[Parameter, ...]:
    inner, heads = _inner(spec), Dim("heads", spec.num_heads)
    shared = Dim("heads", spec.num_groups * spec.state_size, spec.num_groups)
    kernel, convolved = Dim("kernel", spec.conv_kernel_size), {"x": inner, "b": shared, "c": shared}
    projected = {"z": inner, **convolved, "dt": heads}
    projections = (linear(f"{name}_proj", dim, hidden, "attention", bias=spec.bias) for name, dim in projected.items())
    filters = tuple(Parameter(f"{n}_conv", (dim, kernel), "attention", "other") for n, dim in convolved.items())
    biases = tuple(Parameter(f"{n}_conv_bias", (dim,), "attention", "bias") for n, dim in convolved.items())
    return (
        *(parameter for projection in projections for parameter in projection),
        *filters,
        *(biases if spec.conv_bias else ()),
        Parameter("A_log", (heads,), "attention", "other", start=0.0),
        Parameter("D", (heads,), "attention", "other", start=1.0),
        Parameter("dt_bias", (heads,), "attention", "bias", start=1.0),
        Parameter("norm.weight", (inner,), "attention", "norm"),
        *linear("out_proj", hidden, inner, "attention", bias=spec.bias),
    )


def _inner(spec: Mamba2Spec) -> Dim:
    return Dim("heads", spec.inner_size, spec.num_heads)


def _convolved(spec: Mamba2Spec) -> Dim:
    return Dim("heads", spec.conv_width, spec.num_groups)


def _state(spec: Mamba2Spec) -> tuple[Dim, ...]:
    return Dim("heads", spec.num_heads), Dim("state", spec.state_size), Dim("head_dim", spec.head_dim)


def _live(spec: Mamba2Spec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    mixed, inner = _convolved(spec), _inner(spec)
    widths = {"normed_input": hidden, "projected": mixed, "convolved": mixed, "z": inner, "read": inner}
    return per_token(work, widths, {"normed_input": ("x_proj", "b_proj", "c_proj", "z_proj", "dt_proj")})


def _saved(spec: Mamba2Spec, work: Work, hidden: Dim) -> tuple[Buffer, ...]:
    """The live buffers, the gated values, and the state after each chunk."""
    gated = per_token(work, {"gated": _inner(spec)}, {"gated": ("out_proj",)})
    return (*_live(spec, work, hidden), *gated, states_of_chunks(work, _state(spec)))
