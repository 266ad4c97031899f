"""FLOPs of a phase that run in fp8, and bytes of the fp8 copies of its weights, by the table that a run reads."""

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Matmul, Work
from l4spec.quantization.matmuls import in_fp8, is_in_fp8, matmul_table
from l4spec.quantization.tensors import scheme_of, stored_size
from l4spec.spec.recipe.precision import Fp8Spec
from planners.frozen import Frozen


class Fp8Share(Frozen):
    """`flops` are those of `model_flops` that run in fp8. Weights are kept in bf16 and cast again for each product.

    `weight_bytes` are the copies in fp8 of all such weights, with their scales; `largest_bytes` that of one weight,
    which is there beside them (a stack of experts is cast as one, over all its devices).
    """

    matmuls: str
    scaling: str
    gradients: str
    flops: int
    weight_bytes: int
    largest_bytes: int


def fp8_share(graph: LayerGraph, fp8: Fp8Spec, work: Work, steps: float) -> Fp8Share:
    """The share of `steps` training steps over `work`."""
    table = matmul_table(fp8.matmuls, fp8.scaling)
    scheme = scheme_of(table)
    sizes = [stored_size(graph, node, p, p.shape, scheme) for node, p in in_fp8(graph, table)]
    sizes_bytes = [size.payload_bytes + (0 if fp8.scaling == "unit" else size.scale_bytes) for size in sizes]
    return Fp8Share(
        matmuls=fp8.matmuls,
        scaling=fp8.scaling,
        gradients=fp8.gradient_format,
        flops=round(step_flops(graph, fp8, work) * steps),
        weight_bytes=sum(sizes_bytes),
        largest_bytes=max(sizes_bytes, default=0),
    )


def step_flops(graph: LayerGraph, fp8: Fp8Spec, work: Work) -> int:
    """FLOPs in fp8 of one training step: forward, and the gradients of weights and inputs."""
    table = matmul_table(fp8.matmuls, fp8.scaling)
    return sum(
        op.flops + op.backward_flops
        for node in graph.nodes
        if node.scope == "text"
        for op in node.declaration.operations(work)
        if isinstance(op, Matmul) and is_in_fp8(graph, node, op.weight, table)
    )
