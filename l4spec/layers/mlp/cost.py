"""Cost of a plain two-layer feed-forward network."""

from l4spec.layers.base import Width
from l4spec.layers.common.gated import plain_live, plain_operations, plain_parameters
from l4spec.layers.declaration import Declaration, Dim, tokens_of
from l4spec.layers.mlp.spec import MLPSpec


def declare(spec: MLPSpec, width: Width) -> Declaration:
    """up_proj [ffn, hidden], down_proj [hidden, ffn]: 4 * hidden * ffn FLOPs per token."""
    hidden, ffn = Dim("hidden", width.hidden_size), Dim("ffn", spec.intermediate_size)
    parameters = plain_parameters("", ffn, hidden, "dense_ffn", bias=spec.bias)
    stream = tokens_of(width.hidden_size)
    return Declaration(
        parameters,
        operations=lambda work: plain_operations(work.num_tokens, parameters, ffn.size),
        inputs=(stream,),
        output=stream,
        live=lambda work: plain_live(work.num_tokens, ffn, hidden),
        saved=lambda work: plain_live(work.num_tokens, ffn, hidden),
        activation=spec.activation,
    )
