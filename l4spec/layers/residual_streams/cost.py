"""Cost of residual streams: a small projection of all streams per layer, and memory traffic."""

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
    Shape,
    Work,
    tokens_of,
)
from l4spec.layers.residual_streams.spec import ResidualStreamsSpec, Step


def declare(spec: ResidualStreamsSpec, width: Width) -> Declaration:
    """`weigh` holds fn [weights, streams * hidden], base [weights] and scale [3]; `join` the same of a weight a stream.

    Weights are computed in fp32, as all of the reference is; the projection is a matmul, and so is mixing the streams
    with each other. Sums count no FLOPs by convention.
    """
    count, hidden = spec.streams.count, width.hidden_size
    inputs, output = _shapes(spec, hidden)
    parameters = _parameters(spec, hidden)

    def operations(work: Work) -> tuple[Operation, ...]:
        elements = work.num_tokens * hidden
        project = tuple(Matmul("weigh", work.num_tokens, fn) for fn in parameters[:1])  # norm(h) @ W.T
        steps: dict[Step, tuple[Operation, ...]] = {
            "copy": (Elementwise("copy", elements, writes=count),),
            "weigh": (Elementwise("normalise", count * elements), *project),
            "collapse": (Elementwise("collapse", elements, reads=count),),  # sum of w h
            "spread": (
                HeadProducts("mix", 1, elements * count * count),  # C.T h
                Elementwise("spread", elements, reads=count + 1, writes=count),  # + w y
            ),
            "join": (Elementwise("normalise", count * elements), *project, Elementwise("join", elements, reads=count)),
        }
        return steps[spec.step]

    return Declaration(
        parameters,
        operations,
        inputs=inputs,
        output=output,
        live=lambda work: _live(spec, hidden, work),
        saved=lambda work: _saved(spec, hidden, work),
    )


def _shapes(spec: ResidualStreamsSpec, hidden: int) -> tuple[tuple[Shape, ...], Shape]:
    """Shapes of the inputs and of the output."""
    one, every = tokens_of(hidden), tokens_of(spec.streams.count * hidden)
    weights = tokens_of(spec.streams.num_weights)
    steps: dict[Step, tuple[tuple[Shape, ...], Shape]] = {
        "copy": ((one,), every),
        "weigh": ((every,), weights),
        "collapse": ((every, weights), one),
        "spread": ((every, one, weights), every),
        "join": ((every,), one),
    }
    return steps[spec.step]


def _parameters(spec: ResidualStreamsSpec, hidden: int) -> tuple[Parameter, ...]:
    """Nothing except for the steps that compute weights."""
    scales = {"weigh": 3, "join": 1}.get(spec.step)
    if scales is None:
        return ()
    count = spec.streams.count if spec.step == "join" else spec.streams.num_weights
    weights, every = Dim("streams", count), Dim("hidden", spec.streams.count * hidden)
    return (
        Parameter("fn", (weights, every), "residual", "other", input_dim=1),
        Parameter("base", (weights,), "residual", "bias"),
        Parameter("scale", (Dim("streams", scales),), "residual", "other", start=1.0),
    )


def _live(spec: ResidualStreamsSpec, hidden: int, work: Work) -> tuple[Buffer, ...]:
    """Buffers of a step beside its inputs: streams in fp32 and their norm, weighted streams, or the next streams."""
    every = Dim("hidden", spec.streams.count * hidden)
    wide = Buffer("normed_streams", work.num_tokens, (every,), bytes_per_element=4)
    weighed = Buffer("weighed_streams", work.num_tokens, (every,), bytes_per_element=4)
    steps: dict[Step, tuple[Buffer, ...]] = {
        "copy": (Buffer("streams", work.num_tokens, (every,)),),
        "weigh": (wide, weighed),
        "collapse": (weighed,),
        "spread": (Buffer("written", work.num_tokens, (every,)), Buffer("mixed", work.num_tokens, (every,))),
        "join": (wide, weighed),
    }
    return steps[spec.step]


def _saved(spec: ResidualStreamsSpec, hidden: int, work: Work) -> tuple[Buffer, ...]:
    """Tensors that autograd saves: the streams once per layer, their norm in fp32, the layer's output."""
    every = Dim("hidden", spec.streams.count * hidden)
    streams = Buffer("streams", work.num_tokens, (every,))
    normed = Buffer("normed_streams", work.num_tokens, (every,), bytes_per_element=4)
    steps: dict[Step, tuple[Buffer, ...]] = {
        "copy": (),
        "weigh": (streams, normed),
        "collapse": (),
        "spread": (Buffer("output", work.num_tokens, (Dim("hidden", hidden),)),),
        "join": (streams, normed),
    }
    return steps[spec.step]
