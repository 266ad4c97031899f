"""Sources, mixed by weight and packed into rows of one length; row n of a run is a pure function of seed and n."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.spec.files import require_regular
from l4spec.spec.recipe import DataSpec
from l4spec.spec.recipe.data import FileSource, SyntheticSource
from l4spec.training.data.synthetic import HELD_OUT, TextDocument, TextSegment, document, document_of
from l4spec.training.data.tokens import Codec, make_codec
from l4spec.training.loop import TrainBatch

SAMPLE_DOCUMENTS = 400
"""Documents of each source that byte pairs are learned from."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """`tokens + 1` ids in a row, which of them count in a loss, and the number of the document each belongs to."""

    ids: list[int]
    learned: list[bool]
    documents: list[int]
    num_bytes: int


class Mixture:
    """The data of a recipe, tokenized when it is asked for."""

    def __init__(self, spec: DataSpec, seed: int, folder: Path) -> None:
        self.spec, self.seed, self.folder = spec, seed, folder
        self.codec: Codec = make_codec(spec.tokenizer, self._sample(), folder)

    def batch(
        self,
        step: int,
        sequences: int,
        tokens: int,
        weights: Mapping[str, float],
        *,
        answers_only: bool = False,
        stream: str = "",
    ) -> TrainBatch:
        """The batch of a step: packed rows [sequences, tokens], whose labels stay within their document.

        Another `stream` (a phase's name) has other rows.
        """
        rows = [self.row(step * sequences + row, tokens, weights, stream) for row in range(sequences)]
        return _as_batch(rows, answers_only=answers_only)

    def held_out(self, sequences: int, tokens: int, weights: Mapping[str, float]) -> tuple[TrainBatch, float]:
        """Rows that are never trained on, and bytes a token."""
        rows = [self.row(HELD_OUT + row, tokens, weights) for row in range(sequences)]
        return _as_batch(rows), sum(row.num_bytes for row in rows) / (sequences * tokens)

    def row(self, index: int, tokens: int, weights: Mapping[str, float], stream: str = "") -> PackedRow:
        """Row `index`: documents of one drawn source until it is full, the last one cut."""
        draw = random.Random(f"{self.seed} {stream} {index}")
        names = sorted(weights)
        name = draw.choices(names, [weights[name] for name in names])[0]
        ids: list[int] = []
        learned: list[bool] = []
        documents: list[int] = []
        num_bytes = number = 0
        while len(ids) <= tokens:
            number += 1
            for segment in self._document(name, draw, is_held_out=index >= HELD_OUT):
                piece = self.codec.encode(segment.text)
                ids += piece
                learned += [segment.learned] * len(piece)
                num_bytes += len(segment.text.encode())
            ids.append(self.codec.end_id)
            learned.append(True)
            documents += [number] * (len(ids) - len(documents))
        share = (tokens + 1) / len(ids)
        end = tokens + 1
        return PackedRow(ids[:end], learned[:end], documents[:end], round(num_bytes * share))

    def _document(self, name: str, draw: random.Random, *, is_held_out: bool) -> TextDocument:
        source = self.spec.sources[name]
        if isinstance(source, SyntheticSource):
            index = draw.randrange(HELD_OUT) + (HELD_OUT if is_held_out else 0)
            return document_of(source, self.seed, index)
        if isinstance(source, FileSource):
            trained, kept = _documents_of(tuple(str(self.folder / file) for file in source.files), self.spec.held_out)
            return (TextSegment(draw.choice(kept if is_held_out else trained)),)
        index = draw.randrange(HELD_OUT) + (HELD_OUT if is_held_out else 0)
        return document("language", sorted(self.spec.sources).index(name), self.seed, index)

    def _sample(self) -> Iterator[str]:
        for name in sorted(self.spec.sources):
            draw = random.Random(f"sample {name}")
            for _ in range(SAMPLE_DOCUMENTS):
                yield "".join(segment.text for segment in self._document(name, draw, is_held_out=False))


def weights_of(spec: DataSpec, own: Mapping[str, float]) -> dict[str, float]:
    """Weights of sources: a phase's own, or those of `data`."""
    return dict(own) if own else {name: source.weight for name, source in spec.sources.items()}


@lru_cache(maxsize=8)
def _documents_of(files: tuple[str, ...], held_out: float) -> tuple[Sequence[str], Sequence[str]]:
    """Documents to train on, and the last ones, which are held out. Raises UserError for a file that cannot be read."""
    documents: list[str] = []
    for file in files:
        require_regular(Path(file))
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}") from None
        documents += [part for part in text.split("\n\n") if part.strip()]
    if len(documents) < 2:
        raise UserError(f"{', '.join(files)}: expected at least two documents, which empty lines divide")
    kept = max(1, round(len(documents) * held_out))
    return documents[:-kept], documents[-kept:]


def _as_batch(rows: Sequence[PackedRow], *, answers_only: bool = False) -> TrainBatch:
    ids = torch.tensor([row.ids for row in rows])
    documents = torch.tensor([row.documents for row in rows])
    labels = ids[:, 1:].masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
    if answers_only:
        learned: Tensor = torch.tensor([row.learned for row in rows])
        labels = labels.masked_fill(~learned[:, 1:], IGNORED)
    return TrainBatch(ids[:, :-1], labels, {"sequence_ids": documents[:, :-1]})
