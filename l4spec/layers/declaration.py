"""Types of a layer kind's declaration: parameters, operations, cache and buffers, in elements. Imports no torch.

Planner and runtime both read it, so that a number in a plan and a tensor in a run cannot come from two sources.
Everything is logical: no parallel degree, no hardware, and no byte except where a kind fixes one.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, Literal, NamedTuple

from l4spec.layers.growth import Bound as Bound  # noqa: PLC0414 (whoever declares imports it from here)

Part = Literal[
    "embedding",
    "attention",
    "router",
    "routed_experts",
    "shared_expert",
    "dense_ffn",
    "norm",
    "residual",
    "position",
    "head",
    "vision",
    "projector",
]
"""Part of the model in sums of parameters; all of a vision tower and its adapter is `vision`."""

Role = Literal["linear", "expert", "router", "norm", "bias", "embedding", "head", "other"]
"""Role of a parameter for quantizers, which pack `linear` and `expert` weights (`head` and `router` when named)."""

INDEX_BYTES = 8
"""Of an element of a tensor of indices: torch's int64."""
Phase = Literal["prefill", "decode", "train"]
Shape = tuple[str | int, ...]  # symbolic, as `("batch", "tokens", 5120)`


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a tensor with its logical axis.

    `units` is the number of equal indivisible pieces along it (40 heads in a projection 5120 wide): a parallel layout
    may only cut between them. By default every element is one.
    """

    axis: str
    size: int
    units: int = 0

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, "units", self.size)
        assert self.units == 0 or self.size % self.units == 0, (
            f"{self.axis}: {self.units} pieces do not divide {self.size}"
        )


@dataclass(frozen=True, slots=True)
class Parameter:
    """A named tensor that a module of this kind holds, with a logical axis for each dimension.

    `input_dim` is the index of the contracted dimension of a matmul weight: scales of a quantized weight are laid out
    along it. `num_active` is the number of slices of an `experts` axis that one token uses (None: the whole tensor). A
    `buffer` is kept and stored like a parameter but is not trained, and is not counted as one (DeepSeek's correction
    bias). `start` is the initial value of an untrained tensor; None: by its role (norms 1, biases 0, weights random).
    One with `index` holds numbers of so many things, in 8 bytes each (DeepSeek-V4's experts of every token id).
    """

    name: str
    dims: tuple[Dim, ...]
    part: Part
    role: Role
    input_dim: int | None = None
    num_active: int | None = None
    tied_to: str | None = None
    buffer: bool = False
    start: float | None = None
    index: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(dim.size for dim in self.dims)

    @property
    def numel(self) -> int:
        """Number of parameters; 0 for a buffer and for a tensor that is tied to another one and stored there."""
        return 0 if self.tied_to or self.buffer else prod(self.shape)

    @property
    def num_stored(self) -> int:
        """Elements stored for this tensor: buffers count, tied tensors do not."""
        return 0 if self.tied_to else prod(self.shape)

    @property
    def is_per_expert(self) -> bool:
        """True if each routed expert has a slice of its own: expert matrices and biases, not the router."""
        return bool(self.dims) and self.dims[0].axis == "experts"

    def num_bytes(self, dtype_bytes: int) -> int:
        """Bytes in memory in a model whose numbers have so many."""
        return self.num_stored * (INDEX_BYTES if self.index is not None else dtype_bytes)

    @property
    def num_active_elements(self) -> int:
        """Elements that one token's forward pass uses: `numel` except for routed experts."""
        return self.numel if self.num_active is None else self.numel // self.dims[0].size * self.num_active


def linear(
    name: str, out: Dim, into: Dim, part: Part, *, bias: bool = False, role: Role = "linear"
) -> tuple[Parameter, ...]:
    """The parameters of `y = x W^T (+ b)`: `{name}.weight` [out, in] and, with `bias`, `{name}.bias` [out]."""
    weight = Parameter(f"{name}.weight", (out, into), part, role, input_dim=1)
    return (weight, Parameter(f"{name}.bias", (out,), part, "bias")) if bias else (weight,)


class Work(NamedTuple):
    """Work of one forward pass: `num_sequences` sequences, each with `num_queries` new tokens after `num_cached`.

    `num_logits` is the number of positions per sequence whose logits are computed (None: all new tokens),
    `busiest_expert` the largest number of tokens that one expert of the layer gets (None: all of them).
    """

    num_sequences: int
    num_queries: int
    num_cached: int = 0
    phase: Phase = "prefill"
    num_logits: int | None = None
    busiest_expert: int | None = None

    @property
    def num_tokens(self) -> int:
        """New tokens over all sequences."""
        return self.num_sequences * self.num_queries

    @property
    def num_logit_rows(self) -> int:
        """Rows of the logits matrix over all sequences."""
        return self.num_sequences * (self.num_queries if self.num_logits is None else self.num_logits)


@dataclass(slots=True)  # frozen, it would take five times as long to make
class Matmul:
    """`rows` vectors through `weight`: rows * in * out multiply-adds, 2 FLOPs each.

    For a routed expert tensor, `rows` counts (token, expert) pairs and one pair uses one expert's slice. `leaf`: it
    reads the model's own input (pixels), which needs no gradient.
    """

    name: str
    rows: int
    weight: Parameter
    leaf: bool = False

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add counted as 2."""
        shape = (
            self.weight.shape[1:]
            if self.weight.dims[0].axis == "experts" and len(self.weight.dims) == 3
            else self.weight.shape
        )
        return 2 * self.rows * prod(shape)

    @property
    def backward_flops(self) -> int:
        """FLOPs of the gradients of weight and input: a matmul of the same size for each."""
        return self.flops if self.leaf else 2 * self.flops


@dataclass(slots=True)  # frozen, it would take five times as long to make
class AttentionPairs:
    """Scores and weighted values over `pairs` attended (query, key) pairs for each of `num_heads` heads.

    2 FLOPs per multiply-add; softmax, mask and scale are left out, as is usual. A `fused` kernel keeps no scores, so
    that its backward pass computes them again.
    """

    name: str
    pairs: int
    num_heads: int
    qk_dim: int
    v_dim: int
    fused: bool = True

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add counted as 2."""
        return 2 * self.pairs * self.num_heads * (self.qk_dim + self.v_dim)

    @property
    def backward_flops(self) -> int:
        """FLOPs of the gradients: of query and key over qk_dim, of value and weights over v_dim, and scores again."""
        again = self.qk_dim if self.fused else 0
        return 2 * self.pairs * self.num_heads * (2 * self.qk_dim + 2 * self.v_dim + again)


@dataclass(slots=True)  # frozen, it would take five times as long to make
class Elementwise:
    """Element-wise work or a gather on `elements` elements: memory traffic, no FLOPs by convention."""

    name: str
    elements: int
    reads: int = 1
    writes: int = 1
    flops: ClassVar[int] = 0
    backward_flops: ClassVar[int] = 0


class HeadProducts(NamedTuple):
    """Products of activations or states with each other, as in a recurrence: `multiply_adds` in each of `num_heads`.

    2 FLOPs each. `backward` counts the multiply-adds of the gradients (None: a product for each factor).
    """

    name: str
    num_heads: int
    multiply_adds: int
    backward: int | None = None

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add counted as 2."""
        return 2 * self.num_heads * self.multiply_adds

    @property
    def backward_flops(self) -> int:
        """FLOPs of its gradients."""
        return 2 * self.num_heads * (2 * self.multiply_adds if self.backward is None else self.backward)


Operation = Matmul | AttentionPairs | HeadProducts | Elementwise


class RotaryTable(NamedTuple):
    """A rotation of queries and keys: `width` elements of each head are rotated by the `law` (theta, scaling, pairing).

    Equal rotations share a table of cosines and sines, with a row for each position of a sequence, or of a patch grid.
    Over `sections` an image token has three numbers; text alone is turned by positions.
    """

    law: Hashable
    width: int
    over: Literal["positions", "grid", "sections"] = "positions"


class TokenMixing(NamedTuple):
    """Dependence of a token on others of its sequence: `reach` is the law of the mask, None if later ones count too.

    The law is also that of the cache: all earlier tokens, those of the token's aligned chunk, or the last ones of a
    window.
    """

    reach: Bound | None
    rotations: tuple[RotaryTable, ...] = ()


class RoutedExperts(NamedTuple):
    """Work that a router spreads: each token goes through `num_per_token` of `num_experts` experts.

    Expert parallelism sends a token's hidden state to each expert it chose, and back. With a `capacity_factor` an
    expert drops choices beyond its share of all tokens of a batch, so that ranks must count them together.

    Training may differ: a token then goes through `num_trained` experts on average (None: as many), ranks add up the
    loads of experts for an auxiliary loss over a batch or the ranks that share experts (a sequence's stay on one rank),
    and where `experts_choose` their tokens, ranks gather the scores of all. A token travels as `width` numbers (None:
    the stream's).
    """

    num_experts: int
    num_per_token: int
    capacity_factor: float | None = None
    num_trained: float | None = None
    loads_counted_over: Literal["batch", "sequence", "ep_group"] | None = None
    experts_choose: bool = False
    width: int | None = None

    def sent_width(self, hidden_size: int) -> int:
        """Numbers of a token that travel to an expert."""
        return self.width or hidden_size

    @property
    def trained_per_token(self) -> float:
        """Experts that a token goes through in training, on average."""
        return self.num_per_token if self.num_trained is None else self.num_trained


class CacheEntry(NamedTuple):
    """One tensor kept for later tokens with its growth law: per token (`key`, `value`, `latent`), or a state.

    Entries of a layer that share a law are concatenated; those of another law are rows of their own.

    `least_bytes` of an element only where the kind demands it: states are added up over many tokens, and so kept in
    fp32, whatever the format of a cache. `num_chosen` rows are the most that a query reads, where an index chooses.
    """

    name: str
    dims: tuple[Dim, ...]
    bound: Bound
    least_bytes: int = 0
    num_chosen: int | None = None

    @property
    def elements_per_token(self) -> int:
        """Elements of one row: of a token of one sequence, of a state for it, or of an entry made of several tokens."""
        return prod(dim.size for dim in self.dims)

    def bytes_per_element(self, dtype_bytes: int) -> int:
        """Bytes of an element in a cache whose format has so many."""
        return max(dtype_bytes, self.least_bytes)


class Buffer(NamedTuple):
    """An activation of `rows` rows with the given dims; `bytes_per_element` only where the kind fixes a dtype.

    `gradient_of` names the weights whose own gradients alone need it in the backward pass: where those are frozen,
    nothing saves it. Empty: other gradients need it too.
    """

    name: str
    rows: int
    dims: tuple[Dim, ...]
    bytes_per_element: int | None = None
    gradient_of: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """Elements of the whole buffer."""
        return self.rows * prod(dim.size for dim in self.dims)


@dataclass(frozen=True, eq=False)
class Declaration:
    """A layer of one kind and one size. Compared by identity: layers that share a declaration are the same layer.

    `operations` are those of the mathematics, `executed` those that our module runs if it runs more (None: the same).
    `live` gives the buffers alive at the layer's own memory peak (inputs' residual stream excluded), `saved` those that
    autograd saves; `recomputed` names those and the matmuls that selective checkpointing recomputes. `mixing` describes
    dependence between tokens (None: none, or by a law of the kind's own), `routed` the routed experts, `activation` the
    function between projections. `uncut` maps a mesh axis to the reason why it must not cut the layer.
    """

    parameters: tuple[Parameter, ...]
    operations: Callable[[Work], tuple[Operation, ...]]
    inputs: tuple[Shape, ...]
    output: Shape
    cache: tuple[CacheEntry, ...] = ()
    live: Callable[[Work], tuple[Buffer, ...]] = lambda work: ()
    saved: Callable[[Work], tuple[Buffer, ...]] = lambda work: ()
    executed: Callable[[Work], tuple[Operation, ...]] | None = None
    mixing: TokenMixing | None = None
    routed: RoutedExperts | None = None
    activation: str = ""
    uncut: Mapping[str, str] = field(default_factory=dict)
    recomputed: tuple[str, ...] = ()
    num_parameters: int = field(init=False)
    num_active_parameters: int = field(init=False)

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        assert len(set(names)) == len(names), f"parameter names repeat: {names}"
        object.__setattr__(self, "num_parameters", sum(p.numel for p in self.parameters))
        object.__setattr__(self, "num_active_parameters", sum(p.num_active_elements for p in self.parameters))

    def executed_operations(self, work: Work) -> tuple[Operation, ...]:
        """Operations that our module runs, including masked pairs inside a block of attention."""
        return (self.executed or self.operations)(work)

    def units_of(self, axis: str) -> int | None:
        """Pieces along a logical axis of its tensors (`heads`, `kv_heads`, `ffn`); None without that axis."""
        dims = (dim for parameter in self.parameters for dim in parameter.dims)
        return next((dim.units for dim in dims if dim.axis == axis), None)


def tokens_of(width: int) -> Shape:
    """The shape of a stream of token vectors of this width."""
    return ("batch", "tokens", width)
