"""A quantization scheme as a rule table: which tensors are stored by which packing law."""

import re
from functools import lru_cache
from pathlib import Path

from l4spec.catalog.entry import Entry, Source
from l4spec.catalog.registry import Registry, find_beside, looks_like_path
from l4spec.spec.storage import BlockLaw, ComputeDType, Law, Many, PlainLaw, Rule, ScaledLaw, Target

_REGROUPED = re.compile(r"(.+)-g([1-9][0-9]{0,5})")


class Quantization(Entry):
    """A scheme: the first rule that fits a tensor decides, else `default`."""

    source: Source
    compute_dtype: ComputeDType
    """Type in which quantized matmuls run: weight-only schemes unpack to bf16."""
    default: Law
    rules: Many[Rule] = ()

    @property
    def depends_on_layer(self) -> bool:
        """True if equal layers may be stored differently, so that targets need their `layer`."""
        return any(rule.layers != "all" for rule in self.rules)

    def law_for(self, target: Target) -> PlainLaw | ScaledLaw | BlockLaw:
        """Storage format of `target`."""
        return next((rule.law for rule in self.rules if rule.fits(target)), self.default)

    @property
    def group_sizes(self) -> frozenset[int]:
        """The sizes of its groups along the input dim; empty if it has none."""
        laws = (self.default, *(rule.law for rule in self.rules))
        return frozenset(law.group for law in laws if isinstance(law, ScaledLaw) and isinstance(law.group, int))


SCHEMES = Registry(Path(__file__).parent / "schemes", "quantization scheme")


def scheme_named(text: str) -> Quantization:
    """The scheme called `text`, or described by the YAML file at this path; `NAME-g32` is NAME with groups of 32.

    Raises UserError for an unknown name, and for other groups of a scheme that has none along the input dim.
    """
    match = _REGROUPED.fullmatch(text.strip())
    if match is None or looks_like_path(text) or SCHEMES.find(text) or find_beside(text):
        return SCHEMES.load(Quantization, text)
    base = scheme_named(match[1]) if SCHEMES.find(match[1]) or find_beside(match[1]) else None
    if base is None or not base.group_sizes:
        raise SCHEMES.unknown(text)
    return regrouped(base, int(match[2]))


@lru_cache(maxsize=64)
def regrouped(scheme: Quantization, size: int) -> Quantization:
    """The same scheme with groups of `size` where it has groups along the input dim."""

    def other(law: PlainLaw | ScaledLaw | BlockLaw) -> PlainLaw | ScaledLaw | BlockLaw:
        grouped = isinstance(law, ScaledLaw) and isinstance(law.group, int)
        return law.model_copy(update={"group": size}) if grouped else law

    return scheme.model_copy(
        update={
            "name": f"{scheme.name}-g{size}",
            "aliases": (),
            "description": f"{scheme.description}; in groups of {size}",
            "default": other(scheme.default),
            "rules": tuple(rule.model_copy(update={"law": other(rule.law)}) for rule in scheme.rules),
        }
    )
