"""Documents packed into rows of one length: texts are cut where a row ends, images never are."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedRow:
    """`tokens + 1` ids in a row, which of them count in a loss, and the number of the document each belongs to.

    `is_text` is false for tokens that mark or represent an image or pad the row; `tiles` are [channels, size, size].
    """

    ids: list[int]
    learned: list[bool]
    is_text: list[bool]
    documents: list[int]
    num_bytes: int
    tiles: list[Tensor]


@dataclass(slots=True)
class RowBuilder:
    """A row of `length` ids as it is filled; `end_id` ends documents, and pads a row that no image fits into."""

    length: int
    end_id: int
    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    is_text: list[bool] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    tiles: list[Tensor] = field(default_factory=list)
    num_bytes: int = 0
    number: int = 1

    @property
    def is_full(self) -> bool:
        """True if the row has all its ids."""
        return len(self.ids) >= self.length

    def text(self, ids: Sequence[int], num_bytes: int, *, learned: bool) -> None:
        """A text of so many bytes."""
        self._add(ids, learned=learned, is_text=True)
        self.num_bytes += num_bytes

    def image(self, ids: Sequence[int], tiles: Sequence[Tensor]) -> bool:
        """An image, if all of it has room before the row's last id; else the row is filled, and False is returned."""
        if len(self.ids) + len(ids) >= self.length:
            self._add([self.end_id] * (self.length - len(self.ids)), learned=False, is_text=False)
            return False
        self._add(ids, learned=False, is_text=False)
        self.tiles.extend(tiles)
        return True

    def end(self) -> None:
        """End the document."""
        self._add([self.end_id], learned=True, is_text=True)
        self.number += 1

    def finish(self) -> PackedRow:
        """The row, cut at its length."""
        kept, whole = self.is_text[: self.length].count(True), self.is_text.count(True)
        return PackedRow(
            self.ids[: self.length],
            self.learned[: self.length],
            self.is_text[: self.length],
            self.documents[: self.length],
            round(self.num_bytes * kept / max(whole, 1)),
            self.tiles,
        )

    def _add(self, ids: Sequence[int], *, learned: bool, is_text: bool) -> None:
        self.ids.extend(ids)
        self.learned.extend([learned] * len(ids))
        self.is_text.extend([is_text] * len(ids))
        self.documents.extend([self.number] * len(ids))
