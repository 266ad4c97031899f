"""From a stored format and a model's own tensors to `stored_as`: a scheme by name, or a table of rules."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.huggingface.naming import Naming
from l4spec.huggingface.stored.formats import Packing, Reach, StoredFormat
from l4spec.layers.declaration import Parameter, Part, Role
from l4spec.quantization.scheme import SCHEMES, scheme_named
from l4spec.quantization.tensors import target_of
from l4spec.spec.storage import Law, PlainDType, PlainLaw, Rule, ScaledLaw, Stored, StoredTable, Target

_ROLES: dict[Reach, tuple[Role, ...]] = {
    "linear": ("linear", "expert"),
    "linear_and_head": ("linear", "expert", "head"),
    "experts": ("expert",),
    "matrices": ("linear", "expert", "head", "embedding"),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as rules see it, and the law that stores it."""

    target: Target
    label: str
    law: Law


def stored_as(stored_format: StoredFormat, graph: LayerGraph, naming: Naming) -> Stored:
    """Storage format of this model's tensors: a shipped scheme's name if it is the same for every tensor."""
    plain = PlainLaw(kind="plain", dtype=stored_format.plain or _plain_of(graph))
    packed = _Packed(stored_format, naming, plain)
    entries = [
        _Entry(target_of(graph, node, parameter), _label(parameter.name), packed.law(node, parameter))
        for node, parameter in graph.parameters()
        if not parameter.tied_to
    ]
    for name in SCHEMES.names:
        scheme = scheme_named(name)
        if scheme.default == plain and all(scheme.law_for(entry.target) == entry.law for entry in entries):
            return name
    return StoredTable(
        method=stored_format.method,
        description=f"as its config says ({stored_format.method})",
        compute_dtype=stored_format.packings[0].compute,
        default=plain,
        rules=tuple(_rules(entries, plain)),
    )


def _plain_of(graph: LayerGraph) -> PlainDType:
    dtype = graph.model.text.dtype
    return "fp16" if dtype == "fp16" else "fp32" if dtype == "fp32" else "bf16"


def _label(name: str) -> str:
    """The component of a tensor's name that tells it from the others of its part."""
    steps = name.removesuffix(".weight").split(".")
    return steps[-1]


class _Packed:
    """Law that stores a tensor, by the tensor's names in the checkpoint."""

    def __init__(self, stored_format: StoredFormat, naming: Naming, plain: PlainLaw) -> None:
        self._found, self._naming, self._plain = stored_format, naming, plain
        self._skipped = _matcher(stored_format.skipped)
        self._targets = [_matcher(packing.targets) for packing in stored_format.packings]

    def law(self, node: LayerNode, parameter: Parameter) -> Law:
        """The law of one tensor: that of the first packing for it, unless it is skipped."""
        if parameter.role not in _ROLES["matrices"] or (self._found.text_only and node.scope != "text"):
            return self._plain
        full = self._naming.tagged(f"{node.id}.{parameter.name}", node.kind)
        names = tuple(self._modules(full, parameter))
        if any(map(self._skipped, names)):
            return self._plain
        for packing, fits in zip(self._found.packings, self._targets, strict=True):
            if self._is_for(packing, fits, parameter.role, node, names):
                return packing.law if _divides(packing.law, parameter) else self._plain
        return self._plain

    @staticmethod
    def _is_for(
        packing: Packing, fits: Callable[[str], bool], role: Role, node: LayerNode, names: tuple[str, ...]
    ) -> bool:
        if packing.targets:
            return any(map(fits, names))
        outside = node.scope == "vision" and packing.reach == "experts"
        return role in _ROLES[packing.reach] and not outside

    def _modules(self, full: str, parameter: Parameter) -> Iterator[str]:
        """The names of the modules that hold a tensor: of an expert's projection alone, and of the whole mixture."""
        joined = self._naming.joining(full)
        if joined is not None:
            yield joined.removesuffix(".weight")
        is_stack = parameter.role == "expert" and len(parameter.dims) == 3
        if not is_stack:
            yield from (name.removesuffix(".weight") for name in self._naming.of(full))
            return
        prefix, kind = full.rsplit(".", 1)
        order = ("gate_proj", "up_proj", "down_proj")
        for stored in self._naming.of(prefix):
            yield stored
            if kind in order:
                yield f"{stored}.0.{self._naming.each[order.index(kind)]}"


def _divides(law: ScaledLaw, parameter: Parameter) -> bool:
    """True if groups divide the input dim; tools leave other matrices unpacked (mlx_lm/utils.py, `class_predicate`)."""
    axis = -1 if parameter.input_dim is None else parameter.input_dim
    return not isinstance(law.group, int) or parameter.shape[axis] % law.group == 0


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A function that returns True if a module's name matches one of these patterns.

    `re:…` is a regular expression from the start (compressed-tensors), `*` stands for anything (ModelOpt), and a plain
    one is a module, one around it, or the end of its name (transformers' `should_convert_module`).
    """
    exact, ends, globs, expressions = set(), [], [], []
    for pattern in patterns:
        if pattern.startswith("re:"):
            expressions.append(_compiled(pattern[3:]))
        elif "*" in pattern:
            globs.append(pattern)
        else:
            exact.add(pattern)
            ends.append(pattern)
    short = tuple(end for end in ends if "." not in end)

    def fits(name: str) -> bool:
        steps = name.split(".")
        around = (".".join(steps[: index + 1]) for index in range(len(steps)))
        return (
            any(module in exact for module in around)
            or (bool(short) and name.endswith(short))
            or any(fnmatchcase(name, pattern) or fnmatchcase(f"{name}.", pattern) for pattern in globs)
            or any(fnmatchcase(name, f"{pattern}.*") for pattern in globs)
            or any(expression.match(name) for expression in expressions)
        )

    return fits


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern[:1000])
    except (re.error, RecursionError, OverflowError):
        return re.compile(r"(?!)")  # an expression that is none fits nothing


def _rules(entries: list[_Entry], plain: PlainLaw) -> Iterator[Rule]:
    """The shortest rules that were found: whole parts together, else tensors by name, else names and layers."""
    kinds: dict[tuple[Part, Role], list[_Entry]] = {}
    for entry in entries:
        kinds.setdefault((entry.target.part, entry.target.role), []).append(entry)
    whole: dict[str, tuple[Law, list[tuple[Part, Role]]]] = {}
    for kind, members in kinds.items():
        laws = {entry.law for entry in members}
        if len(laws) > 1:
            yield from _rules_by_name(kind, members, plain)
        elif (law := next(iter(laws))) != plain:
            whole.setdefault(repr(law), (law, []))[1].append(kind)
    for law, together in whole.values():
        parts, roles = dict.fromkeys(part for part, _ in together), dict.fromkeys(role for _, role in together)
        crossed = [kind for kind in kinds if kind[0] in parts and kind[1] in roles]
        if set(crossed) == set(together):
            yield Rule(parts=tuple(parts), roles=tuple(roles), law=law)
        else:
            yield from (Rule(parts=(part,), roles=(role,), law=law) for part, role in together)


def _rules_by_name(kind: tuple[Part, Role], members: list[_Entry], plain: PlainLaw) -> Iterator[Rule]:
    labels: dict[str, dict[Law, list[int]]] = {}
    for entry in members:
        layers = labels.setdefault(entry.label, {}).setdefault(entry.law, [])
        layers += [] if entry.target.layer is None else [entry.target.layer]
    alike: dict[tuple[Law, tuple[int, ...] | None], list[str]] = {}
    for label, laws in labels.items():
        for law, layers in laws.items():
            if law != plain:
                alike.setdefault((law, tuple(sorted(set(layers))) if len(laws) > 1 else None), []).append(label)
    for (law, chosen), names in alike.items():
        every = set(names) == set(labels)
        yield Rule(
            parts=(kind[0],),
            roles=(kind[1],),
            names=() if every else tuple(names),
            layers="all" if chosen is None else chosen,
            law=law,
        )
