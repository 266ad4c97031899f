"""Matmuls of a training that run in fp8: a scheme's rule table, with groups as the training scales them."""

from functools import lru_cache
from typing import TYPE_CHECKING

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter
from l4spec.quantization.scheme import Quantization, scheme_named
from l4spec.quantization.tensors import target_of
from l4spec.spec.storage import BlockLaw, PlainLaw, ScaledLaw

if TYPE_CHECKING:  # a plan of a model reads no recipe
    from l4spec.spec.recipe.precision import Scaling

BLOCK = 128
"""Elements along the contracted dim that share a scale, and rows of a weight (DeepSeek-V3, arXiv:2412.19437, 3.3)."""
_ROLES = ("linear", "expert", "head")


def matmul_table(matmuls: str, scaling: "Scaling" = "tensorwise") -> Quantization:
    """The rule table of the scheme `matmuls`: a weight that it packs is an operand in e4m3, scaled by `scaling`.

    Raises UserError for an unknown scheme, and for one that packs into something else than e4m3.
    """
    return _scaled(scheme_named(matmuls), scaling)


@lru_cache(maxsize=64)
def _scaled(scheme: Quantization, scaling: str) -> Quantization:
    def own(law: PlainLaw | ScaledLaw | BlockLaw) -> PlainLaw | ScaledLaw | BlockLaw:
        if isinstance(law, PlainLaw):
            return law
        if not isinstance(law, ScaledLaw) or law.values != "e4m3":
            hint = "fp8, fp8-experts, fp8-ffn and fp8-mixed do"
            raise UserError(f"{scheme.name} does not say which matmuls run in fp8: it packs other formats", hint=hint)
        group: object = {"rowwise": "row", "blockwise": (BLOCK, BLOCK)}.get(scaling, "tensor")
        return law.model_copy(update={"group": group, "scale_dtype": "fp32", "matrix_scale_dtype": None})

    rules = tuple(rule.model_copy(update={"law": own(rule.law)}) for rule in scheme.rules)
    if scheme.compute_dtype != "fp8":
        raise UserError(f"{scheme.name} computes in {scheme.compute_dtype}, not in fp8", hint="name one that does")
    name = f"{scheme.name} {scaling}"
    return scheme.model_copy(update={"name": name, "aliases": (), "default": own(scheme.default), "rules": rules})


def in_fp8(graph: LayerGraph, table: Quantization) -> tuple[tuple[LayerNode, Parameter], ...]:
    """The weights whose matmuls run in fp8, in the graph's order."""
    return tuple((n, p) for n, p in graph.parameters() if is_in_fp8(graph, n, p, table))


def is_in_fp8(graph: LayerGraph, node: LayerNode, parameter: Parameter, table: Quantization) -> bool:
    """True if the matmuls of a weight run in fp8."""
    return isinstance(table.law_for(target_of(graph, node, parameter)), ScaledLaw) and parameter.tied_to is None


def matmul_problems(graph: LayerGraph, matmuls: str, path: str) -> tuple[Problem, ...]:
    """Problems at `path` of a scheme that has no fp8, or selects no matmul, or one that cannot run in fp8.

    Linear layers, experts and a head with a weight of its own can; routers, norms and embeddings cannot.
    """
    try:
        chosen = in_fp8(graph, matmul_table(matmuls))
    except UserError as error:
        return tuple(Problem(one.message, path, hint=one.hint) for one in error.problems)
    if not chosen:
        return (Problem(f"{matmuls} puts no matmul of {graph.name} in fp8", path),)
    others = {p.role: f"{node.id}.{p.name}" for node, p in reversed(chosen) if p.role not in _ROLES}
    hint = f"its rules may name the roles {', '.join(_ROLES)}"
    return tuple(
        Problem(f"{matmuls} puts {name} in fp8, which runs no {role}", path, hint=hint) for role, name in others.items()
    )
