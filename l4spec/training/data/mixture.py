"""Sources, mixed by weight and packed into rows of one length; row n of a run is a pure function of seed and n."""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from l4spec.errors import UserError
from l4spec.runtime.images import image_ids
from l4spec.runtime.images.prompt import PATCH
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.spec.files import require_regular
from l4spec.spec.model import VisionSpec
from l4spec.spec.recipe import DataSpec
from l4spec.spec.recipe.data import DialogueSource, FileSource, SyntheticSource
from l4spec.spec.recipe.pictures import Scene
from l4spec.tiling import TileGrid
from l4spec.training.data.dialogues import dialogues_of
from l4spec.training.data.pictures import blank, draw_picture
from l4spec.training.data.rows import PackedRow, RowBuilder
from l4spec.training.data.synthetic import HELD_OUT, TextDocument, TextSegment, document, document_of
from l4spec.training.data.tokens import Codec, make_codec
from l4spec.training.loop import PIXELS, TrainBatch

SAMPLE_DOCUMENTS = 400
"""Documents of each source that byte pairs are learned from."""
CAPTIONED = 0.5
"""Share of pictures among the documents that replace data with images in a miniature's run."""


class Mixture:
    """The data of a recipe, tokenized on use; `vision` is that of the model that sees its pictures."""

    def __init__(self, spec: DataSpec, seed: int, folder: Path, vision: VisionSpec | None = None) -> None:
        self.spec, self.seed, self.folder, self.vision = spec, seed, folder, vision
        self.codec: Codec = make_codec(spec.tokenizer, self._sample(), folder, sees=spec.marks_images)

    @property
    def image_token_id(self) -> int | None:
        """The token whose places image vectors take; None without pictures."""
        return self.codec.id_of(PATCH) if self.spec.marks_images else None

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

        Another `stream` (a phase's name) has other rows. Pictures are `pixel_values` in the order of their places.
        """
        rows = [self.row(step * sequences + row, tokens, weights, stream) for row in range(sequences)]
        return self._as_batch(rows, weights, answers_only=answers_only)

    def held_out(self, sequences: int, tokens: int, weights: Mapping[str, float]) -> tuple[TrainBatch, float]:
        """Rows that are never trained on, and bytes per token."""
        rows = [self.row(HELD_OUT + row, tokens, weights) for row in range(sequences)]
        num_text = sequences * tokens - sum(row.is_text.count(False) for row in rows)
        return self._as_batch(rows, weights), sum(row.num_bytes for row in rows) / max(num_text, 1)

    def row(self, index: int, tokens: int, weights: Mapping[str, float], stream: str = "") -> PackedRow:
        """Row `index`: documents of one drawn source until it is full, the last one cut; an image never is."""
        draw = random.Random(f"{self.seed} {stream} {index}")
        names = sorted(weights)
        name = draw.choices(names, [weights[name] for name in names])[0]
        row = RowBuilder(tokens + 1, self.codec.end_id)
        while not row.is_full:
            for segment in self.document(name, draw, is_held_out=index >= HELD_OUT):
                if segment.picture is None:
                    text = segment.text
                    row.text(self.codec.encode(text), len(text.encode()), learned=segment.learned)
                elif not self._add_picture(row, name, segment.picture):
                    break
            else:
                row.end()
        return row.finish()

    def _add_picture(self, row: RowBuilder, name: str, picture: Scene) -> bool:
        """A picture of one tile, as its source shows it; false where the row had no room for it."""
        source, vision = self.spec.sources[name], self.vision
        if not source.has_pictures:
            return row.image(self._image_ids(0), ())
        assert vision is not None, "who is shown pictures has a tower"
        is_blank = isinstance(source, SyntheticSource) and source.pictures == "blank"
        sizes = vision.image_size, vision.num_channels
        tile = blank(*sizes) if is_blank else draw_picture(picture, *sizes)
        return row.image(self._image_ids(vision.num_tokens_per_tile), (tile,))

    def _image_ids(self, num_patches: int) -> list[int]:
        return image_ids(TileGrid(1, 1), num_patches, self.codec, global_tile=False)

    def _as_batch(
        self, rows: Sequence[PackedRow], weights: Mapping[str, float], *, answers_only: bool = False
    ) -> TrainBatch:
        """Rows as tensors. With pictures there are always `pixel_values`, perhaps of no tiles, for the tower's
        ranks.
        """
        ids = torch.tensor([row.ids for row in rows])
        documents = torch.tensor([row.documents for row in rows])
        labels = ids[:, 1:].masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
        for counts in [[row.is_text for row in rows], *([[row.learned for row in rows]] if answers_only else [])]:
            labels = labels.masked_fill(~torch.tensor(counts)[:, 1:], IGNORED)
        inputs = {"sequence_ids": documents[:, :-1]}
        if self.vision is not None and any(self.spec.sources[name].has_pictures for name in weights):
            shape = self.vision.num_channels, self.vision.image_size, self.vision.image_size
            tiles = [tile for row in rows for tile in row.tiles]
            inputs[PIXELS] = torch.stack(tiles) if tiles else torch.empty(0, *shape)
        return TrainBatch(ids[:, :-1], labels, inputs)

    def document(self, name: str, draw: random.Random, *, is_held_out: bool) -> TextDocument:
        """A document of a source, drawn from those to train on or from those that are held out.

        Raises UserError for a file that cannot be read.
        """
        source = self.spec.sources[name]
        if isinstance(source, SyntheticSource):
            index = draw.randrange(HELD_OUT) + (HELD_OUT if is_held_out else 0)
            return document_of(source, self.seed, index)
        if isinstance(source, FileSource):
            trained, kept = _documents_of(self._paths(source.files), self.spec.held_out)
            return (TextSegment(draw.choice(kept if is_held_out else trained)),)
        if isinstance(source, DialogueSource):
            return draw.choice(dialogues_of(self._paths(source.files), self.spec.held_out, is_held_out=is_held_out))
        index = draw.randrange(HELD_OUT) + (HELD_OUT if is_held_out else 0)
        if source.has_pictures and draw.random() < CAPTIONED:
            return document("pictures", 0, self.seed, index)
        return document("language", sorted(self.spec.sources).index(name), self.seed, index)

    def require_rejected(self, name: str, source: DialogueSource) -> None:
        """Raise UserError where a dialogue that may be trained on has no rejected answer."""
        dialogues = dialogues_of(self._paths(source.files), self.spec.held_out, is_held_out=False)
        missing = sum(dialogue[-1].rejected is None for dialogue in dialogues)
        if missing:
            hint = '"rejected" in each line'
            raise UserError(f"{missing:,} dialogues of the source {name!r} have no rejected answer", hint=hint)

    def _paths(self, files: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(self.folder / file) for file in files)

    def _sample(self) -> Iterator[str]:
        for name in sorted(self.spec.sources):
            draw = random.Random(f"sample {name}")
            for _ in range(SAMPLE_DOCUMENTS):
                yield "".join(segment.text for segment in self.document(name, draw, is_held_out=False))


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
