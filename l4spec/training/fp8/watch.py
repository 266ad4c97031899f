"""Fp8 matmuls of a model in training, with counts of overflowed and flushed values by weight and operand."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from l4spec.errors import UserError
from l4spec.layers.common.modules import Linear
from l4spec.layers.common.parallel import sum_over
from l4spec.layers.lm_head.module import LMHead
from l4spec.layers.moe.module import Experts
from l4spec.quantization.matmuls import in_fp8, is_in_fp8, matmul_table
from l4spec.runtime.parallel.model import RankModel
from l4spec.spec.recipe.precision import Fp8Spec
from l4spec.training.fp8.operands import Operand
from l4spec.training.fp8.products import PLACES, Fp8Products, Place

NAMED = 3
"""Operands that an error names."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """Of one operand (`weight`'s input, itself or its output's gradient) in a step, over all ranks and passes.

    `overflowed` elements were beyond the format after scaling or not finite, `flushed` ones became zero, of `elements`.
    """

    elements: int
    overflowed: int
    flushed: int


@dataclass(frozen=True, slots=True)
class Fp8Step:
    """A step's operands by weight and place, and FLOPs in fp8 of this rank."""

    operands: Mapping[tuple[str, Place], Rounded]
    flops: int

    @property
    def overflows(self) -> dict[tuple[str, Place], Rounded]:
        """The operands that overflowed."""
        return {key: rounded for key, rounded in self.operands.items() if rounded.overflowed}

    def as_text(self) -> str:
        """Addition to the error of a step that is not finite: the operands that overflowed; empty without any."""
        names = [f"{weight} ({place})" for weight, place in self.overflows]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"; in fp8 overflowed {', '.join(names[:NAMED])}{more}" if names else ""

    def as_json(self) -> dict[str, object]:
        """The row of a metrics file: overflowed elements by operand, and the share that was flushed by weight."""
        weights = dict.fromkeys(weight for weight, _ in self.operands)
        flushed = {weight: [self.operands[weight, place] for place in PLACES] for weight in weights}
        return {
            "overflowed": {f"{weight} {place}": r.overflowed for (weight, place), r in self.overflows.items()},
            "flushed": {
                weight: round(sum(r.flushed for r in rows) / max(sum(r.elements for r in rows), 1), 6)
                for weight, rows in flushed.items()
            },
        }


class OverflowDetector:
    """Warns of an overflow, once an operand."""

    def __init__(self) -> None:
        self.warned: set[tuple[str, Place]] = set()

    def warnings(self, step: int, done: Fp8Step | None) -> Iterator[str]:
        """Warnings of this step."""
        for (weight, place), rounded in ({} if done is None else done.overflows).items():
            if (weight, place) not in self.warned:
                self.warned.add((weight, place))
                yield (
                    f"fp8 overflow at step {step}: {rounded.overflowed:,} of {rounded.elements:,} elements of the "
                    f"{place} of {weight} are beyond the format and became its largest number; scale them"
                )


class Fp8Watch:
    """Counts overflowed and flushed values of operands; `finish` returns those since its last call, over all ranks."""

    def __init__(self, model: RankModel, fp8: Fp8Spec) -> None:
        self.model, self.fp8 = model, fp8
        table = matmul_table(fp8.matmuls, fp8.scaling)
        self.names = tuple(f"{node.id}.{p.name}" for node, p in in_fp8(model.graph, table))
        self.own: dict[tuple[str, Place], Tensor] = {}
        self.flops = 0

    def products(self, name: str) -> Fp8Products:
        """The fp8 products of the weight of this name."""
        return Fp8Products(self.fp8, partial(self._record, name), self._count)

    def _record(self, name: str, place: Place, given: Tensor, rounded: Operand) -> None:
        row = torch.stack((rounded.overflowed.new_tensor(given.numel()), rounded.overflowed, rounded.flushed))
        key = (name, place)
        self.own[key] = self.own[key] + row if key in self.own else row

    def _count(self, flops: int) -> None:
        self.flops += flops

    def finish(self) -> Fp8Step:
        """Overflowed and flushed elements by operand since the last call, over all ranks, which must all call it."""
        keys = [(name, place) for name in self.names for place in PLACES]
        nothing = torch.zeros(3, dtype=torch.long, device=self.model.device)
        flat = torch.stack([self.own.get(key, nothing) for key in keys])
        for axis in (self.model.mesh.data, self.model.mesh.axis("tp"), self.model.mesh.axis("pp")):
            flat = sum_over(flat, axis)
        step = Fp8Step({key: Rounded(*row) for key, row in zip(keys, flat.tolist(), strict=True)}, self.flops)
        self.own, self.flops = {}, 0
        return step


@contextmanager
def in_training(model: RankModel, fp8: Fp8Spec | None) -> Iterator[Fp8Watch | None]:
    """While inside, the declared matmuls run in fp8 wherever the model is in training mode; None changes nothing."""
    if fp8 is None:
        yield None
        return
    watch, table = Fp8Watch(model, fp8), matmul_table(fp8.matmuls, fp8.scaling)
    changed: list[nn.Module] = []
    try:
        for node in model.nodes:
            own = (p for p in node.declaration.parameters if is_in_fp8(model.graph, node, p, table))
            changed += [_set(model, f"{node.id}.{parameter.name}", watch) for parameter in own]
        yield watch
    finally:
        for module in changed:
            module.__dict__.pop("products", None)


def _set(model: RankModel, name: str, watch: Fp8Watch) -> nn.Module:
    holder, _, own = name.rpartition(".")
    module = model.get_submodule(holder)
    if isinstance(module, Linear | LMHead):
        module.products = watch.products(name)
    elif not isinstance(module, Experts):
        raise UserError(f"{name} cannot run in fp8: that is for linear layers, experts and the head")
    else:
        module.products = {**module.products, own: watch.products(name)}
    return module
