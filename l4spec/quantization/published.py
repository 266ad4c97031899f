"""The format of a model's published weights, by its spec (`stored_as`)."""

from functools import lru_cache

from l4spec.errors import Problem, UserError
from l4spec.quantization.scheme import SCHEMES, Quantization, scheme_named
from l4spec.spec.model import ModelSpec
from l4spec.spec.storage import StoredTable

AS_PUBLISHED = "as-published"
"""Value of the option for the format that the spec declares; bf16 if it declares none."""
UNQUANTIZED = "bf16"


def scheme_for(spec: ModelSpec, name: str) -> Quantization:
    """The scheme called `name`; for `as-published` the one of the spec's `stored_as`.

    Raises UserError for a name that no scheme has.
    """
    if name != AS_PUBLISHED:
        return scheme_named(name)
    stored = spec.stored_as
    if isinstance(stored, StoredTable):
        return _as_scheme(stored)
    if stored is not None:
        require_known(spec)
    return scheme_named(stored or UNQUANTIZED)


def published_name(spec: ModelSpec) -> str:
    """Name in plans of the format of the published weights: a scheme's name, or `as-published`."""
    stored = spec.stored_as
    return AS_PUBLISHED if isinstance(stored, StoredTable) else stored or UNQUANTIZED


def require_known(spec: ModelSpec) -> None:
    """Raise UserError where `stored_as` names a scheme that is not shipped."""
    stored = spec.stored_as
    if isinstance(stored, str) and SCHEMES.find(stored) is None:
        unknown = SCHEMES.unknown(stored).problems[0]
        raise UserError([Problem(unknown.message, path="stored_as", hint=unknown.hint)])


@lru_cache(maxsize=64)
def _as_scheme(stored: StoredTable) -> Quantization:
    return Quantization(
        name=AS_PUBLISHED,
        description=stored.description,
        source=f"the checkpoint's own configuration ({stored.method})",
        compute_dtype=stored.compute_dtype,
        default=stored.default,
        rules=stored.rules,
    )
