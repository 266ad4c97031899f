"""Memory policy of inference engines: cache paging, memory share, and overheads."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from l4spec.catalog.entry import Entry, Source, Sourced
from l4spec.errors import Problem, UserError
from l4spec.layers.base import AsTuple, Spec
from l4spec.units import Bytes
from planners.catalog.versions import holds, parse_version

Count: TypeAlias = Annotated[int, Field(ge=1, le=2**20)]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Consumer = Literal["weights", "activations", "non_torch", "cuda_graphs", "kv_cache"]


class FullKv(Spec):
    """Every layer keeps every token."""

    kind: Literal["full"]


class BoundedKv(Spec):
    """Each layer keeps the tokens that its mask can still reach: a chunked or windowed layer at most its bound."""

    kind: Literal["bounded"]


class LayerGroupsKv(Spec):
    """Layers in groups of equal size and one growth law each; a block holds `block_size_tokens` tokens of one group.

    With g groups a pool of n blocks holds n // g blocks of tokens while no local layer has reached its bound. Where
    layers keep states, a block is as many tokens of a layer as take the bytes of a state, in whole `block_size_tokens`,
    and each group of states takes `state_blocks` blocks of a sequence.
    """

    kind: Literal["layer_groups"]
    state_blocks: Sourced[Count] | None = None
    """Blocks of a sequence per group of states; 1 when left out."""


class TwoPoolsKv(Spec):
    """One pool of tokens for full layers and one for local layers, in a ratio fixed at start-up."""

    kind: Literal["two_pools"]
    hybrid_kvcache_ratio: Sourced[Annotated[float, Field(ge=0, le=1)]]
    """p of chunked layers: local tokens / full tokens = (1 - p) + p * chunk / context."""
    swa_full_tokens_ratio: Sourced[Share]
    """Local tokens / full tokens of sliding-window layers."""


class CellsKv(Spec):
    """Local layers keep min(context, window * sequences + ubatch) cells, rounded up; full layers the whole context.

    States have numbers of `state_bytes`, those of a convolution too, whatever the format of keys and values.
    """

    kind: Literal["cells"]
    ubatch_tokens: Sourced[Count]
    pad_cells: Sourced[Count]
    state_bytes: Sourced[Count] | None = None


KvPolicy: TypeAlias = Annotated[FullKv | BoundedKv | LayerGroupsKv | TwoPoolsKv | CellsKv, Field(discriminator="kind")]


class MemoryShare(Spec):
    """The share of device memory an engine gives to what `covers` lists, by default.

    `of` is the whole device, or the memory that is free once weights are loaded.
    """

    fraction: Sourced[Share]
    of: Literal["total", "free_after_load"]
    covers: Annotated[tuple[Consumer, ...], AsTuple]


class Measurement(Spec):
    """One reading of a published log."""

    setting: str
    value: Bytes
    source: Source


class ReservedTerm(Spec):
    """Memory per device that no formula gives: the median of published readings, with their spread.

    `kind` is its purpose. It holds for tensor-parallel degrees from `min_tp` up to `max_tp`, and for versions from
    `since` on that are earlier than `before`.
    """

    kind: Consumer
    since: str = ""
    before: str = ""
    min_tp: Count = 1
    max_tp: Count | None = None
    note: str = ""
    measurements: Annotated[tuple[Measurement, ...], AsTuple, Field(min_length=1)]

    @model_validator(mode="after")
    def _ordered(self) -> "ReservedTerm":
        if self.max_tp is not None and self.max_tp < self.min_tp:
            raise ValueError(f"max_tp {self.max_tp} is below min_tp {self.min_tp}")
        return self

    @property
    def num_bytes(self) -> int:
        """The median reading; of an even number of readings the mean of the middle two, rounded down."""
        ordered = sorted(reading.value for reading in self.measurements)
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2

    @property
    def spread(self) -> tuple[int, int]:
        """The smallest and the largest reading in bytes."""
        values = [reading.value for reading in self.measurements]
        return min(values), max(values)

    @property
    def sources(self) -> tuple[str, ...]:
        """Documents of the readings, each once."""
        return tuple(dict.fromkeys(reading.source for reading in self.measurements))


class ProfilingRun(Spec):
    """Activations as an engine finds them before it sizes its cache, by version.

    It runs `max_num_batched_tokens` tokens, then samples `max_num_seqs` rows over the whole vocabulary on every
    tensor-parallel rank: constant + max(forward pass, rows x vocabulary x bytes_per_logit + workspace of experts).
    """

    since: str = ""
    before: str = ""
    bytes_per_logit: Sourced[Annotated[int, Field(ge=1, le=1024)]]
    """Bytes per entry of the sampled rows: logits, their fp32 copy, sorted and normalised ones."""
    constant: Sourced[Bytes]
    largest_error: Annotated[float, Field(ge=0, lt=1)]
    """Of the law on any published reading of these versions, fitted or not: the spread of a plan's term."""

    def sampler_bytes(self, rows: int, vocabulary: int, workspace: int) -> int:
        """Bytes of the sampler's moment, the constant left out."""
        return rows * vocabulary * self.bytes_per_logit.value + workspace


class Engine(Entry):
    """One engine, or one setting of it that changes the law of its cache."""

    source: Source
    version: str = ""
    """The version whose behaviour and defaults the entry states."""
    kv: KvPolicy
    block_size_tokens: Sourced[Count] | None = None
    """Tokens of a cache block; absent when the cache is not paged."""
    memory: MemoryShare | None = None
    rope_table: bool = False
    """True if every device has a cos/sin table of max_seq_len * head_dim elements in the model's dtype."""
    even_experts: bool = False
    """True if all expert-parallel ranks must have the same number of experts."""
    profiling: Annotated[tuple[ProfilingRun, ...], AsTuple] = ()
    """Laws of the activations by version; without one they follow from declared buffers alone."""
    reserved: Annotated[tuple[ReservedTerm, ...], AsTuple] = ()
    notes: Annotated[tuple[str, ...], AsTuple] = ()
    """Notes on parallel degrees and switches, with their sources."""

    def memory_share(self) -> MemoryShare:
        """The default share of device memory; UserError for an engine that has no such default."""
        if self.memory is None:
            raise UserError(
                f"engine '{self.name}' has no default share of device memory",
                hint="it is a cache policy, or it allocates what it is asked for",
            )
        return self.memory

    def reserved_for(self, tp: int) -> tuple[ReservedTerm, ...]:
        """The calibrated terms that hold for this version and tensor-parallel degree."""
        of_version = (term for term in self.reserved if holds(self.version, term.since, term.before))
        return tuple(term for term in of_version if term.min_tp <= tp <= (term.max_tp or tp))

    def unmeasured_for(self, tp: int) -> tuple[str, ...]:
        """Kinds of terms of this engine without a measurement for this version and tensor-parallel degree."""
        known = {term.kind for term in self.reserved_for(tp)}
        return tuple(sorted({term.kind for term in self.reserved} - known))

    @property
    def profiling_run(self) -> ProfilingRun | None:
        """The law of this version's activations; None if no reading of it is known."""
        return next((run for run in self.profiling if holds(self.version, run.since, run.before)), None)

    def at_version(self, version: str) -> "Engine":
        """The entry for another version. Raises UserError for text that is none, and for an engine without versions."""
        parse_version(version)
        if not self.version:
            raise UserError([Problem(f"engine '{self.name}' has no versions", path="engine", hint=self.name)])
        return self.model_copy(update={"version": version.removeprefix("v")})
