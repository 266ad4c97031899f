"""Allocation ledger: replays what our modules allocate and free in a forward pass without gradients on a CPU.

A kind's ledger makes the allocations of its torch module in the order in which the module does, so that the peak comes
out. It is larger than the declared `live`, which a fused engine needs: eager code keeps every intermediate result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

WIDE = 4
"""Bytes of an fp32 number."""
INDEX = 8
"""Bytes of an index."""
COUNT = 4
"""Bytes of a count of tokens."""
FLAG = 1
"""Bytes of a truth value."""

MOST_FEW_ROWS = 3
"""Rows up to which an fp32 product goes another way, in halves: `l4spec.layers.common.modules.linear`."""


@dataclass(slots=True)
class Ledger:
    """Bytes allocated now and at the peak; `item` is the size of an activation's number.

    `shared` names the tensors that the layers of one forward pass share, `shared_bytes` of `now`: made once, kept until
    its end. `has_places`: the text has images, and rotations over sections have a table for each row.
    """

    item: int
    now: int = 0
    peak: int = 0
    shared: set[str] = field(default_factory=set)
    shared_bytes: int = 0
    has_places: bool = False

    @property
    def is_wide(self) -> bool:
        """True if activations are fp32 already, so that widening copies nothing."""
        return self.item == WIDE

    def take(self, num_bytes: int) -> None:
        """Hold so much more."""
        self.now += num_bytes
        self.peak = max(self.peak, self.now)

    def free(self, num_bytes: int) -> None:
        """Hold so much less."""
        self.now -= num_bytes

    def touch(self, num_bytes: int) -> None:
        """Take and free at once."""
        self.take(num_bytes)
        self.free(num_bytes)

    @contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Hold so much for the length of the block."""
        self.take(num_bytes)
        yield
        self.free(num_bytes)

    def once(self, name: str, num_bytes: int, at_most: int) -> None:
        """Allocate a shared tensor once: `at_most` bytes while it is computed, `num_bytes` from then on."""
        if name not in self.shared:
            self.shared.add(name)
            self.touch(at_most)
            self.take(num_bytes)
            self.shared_bytes += num_bytes

    def forget(self) -> None:
        """Free the shared tensors: another forward pass begins."""
        self.free(self.shared_bytes)
        self.shared.clear()
        self.shared_bytes = 0


def rms_norm(ledger: Ledger, rows: int, width: int, *, weighted: bool, unit_offset: bool = False) -> None:
    """Take the normed tensor of `rows` vectors: squares and their means on the way, in fp32."""
    wide, out, copied = rows * width * WIDE, rows * width * ledger.item, 0 if ledger.is_wide else rows * width * WIDE
    scaled = 2 if weighted and (ledger.is_wide or unit_offset) else 1
    with ledger.holding(copied + (width * WIDE if unit_offset else 0)):
        ledger.touch(wide + 2 * rows * WIDE)  # squares, their means, the factor
        ledger.touch(scaled * wide + rows * WIDE)
        ledger.touch(wide + out if copied else 0)
        ledger.touch(2 * out if copied and weighted and not unit_offset else 0)
    ledger.take(out)


def gated_ffn(ledger: Ledger, rows: int, ffn_size: int, hidden_size: int) -> None:
    """Take the output of a gated layer: gate, which becomes the product, and up beside it."""
    inner, out = rows * ffn_size * ledger.item, rows * hidden_size * ledger.item
    ledger.touch(2 * inner + out)
    ledger.take(out)


def plain_ffn(ledger: Ledger, rows: int, ffn_size: int, hidden_size: int) -> None:
    """Take the output of two projections: the first and its activation, then the activation and the output."""
    inner, out = rows * ffn_size * ledger.item, rows * hidden_size * ledger.item
    ledger.touch(max(2 * inner, inner + out))
    ledger.take(out)


def rotate(ledger: Ledger, elements: int, rotated: int, *, as_complex: bool) -> None:
    """Replace `elements` numbers by themselves with `rotated` of them turned, in fp32."""
    wide = rotated * WIDE
    copy = 0 if ledger.is_wide else wide
    if as_complex:
        ledger.touch(copy + wide + (0 if ledger.is_wide else rotated * ledger.item))
    else:
        ledger.touch(copy + 2 * wide)  # one half done, two products and their sum; or both halves and the whole
    if rotated < elements:  # joined with the part that is not turned
        ledger.touch((rotated + elements) * ledger.item)
    ledger.touch(elements * ledger.item)


def rotation_table(ledger: Ledger, name: str, tokens: int, dim: int, *, as_complex: bool) -> None:
    """Cosines and sines of `tokens` positions, shared by all layers with an equal rotation."""
    half = tokens * (dim // 2) * WIDE
    if as_complex:
        ledger.once(f"{name} complex", 2 * half, 4 * half + tokens * WIDE)
        return
    for part in ("cos", "sin"):
        ledger.once(f"{name} {part}", half, 4 * half + tokens * WIDE)
