"""Logits of a teacher for each batch, kept on disk: students that see the same tokens share its forward passes.

A file per step, named by the digest of the teacher (spec and weights), the batch (tokens and documents, in order) and
the selection of its logits. Another teacher, other data or another order have other files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from l4spec.runtime.checkpoints.kept_tensors import digest_of_tensors, read_kept, write_kept
from l4spec.runtime.parallel.model import RankModel
from l4spec.spec.recipe.phase import DistillPhase
from l4spec.training.loop import TrainBatch


@dataclass(frozen=True, slots=True)
class TeacherCache:
    """Logits of one teacher, all of each token or the `top_k` largest of logits / `temperature`."""

    folder: Path
    teacher: str
    top_k: int | None
    temperature: float

    @classmethod
    def of(cls, folder: Path, teacher: RankModel, phase: DistillPhase) -> "TeacherCache":
        """The cache of a phase. A dynamic weight needs the teacher's loss, and so all logits."""
        spec = teacher.graph.model.spec.model_dump_json()
        digest = digest_of_tensors(dict(teacher.state_dict()), spec)
        return cls(folder, digest, None if phase.weighting == "dynamic" else phase.top_k, phase.temperature)

    def logits(self, batch: TrainBatch, run: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """Logits [sequences, tokens, vocab] on the CPU or where `run` makes them, and whether they were there.

        Those that were not kept are -inf. Raises UserError for a file that is damaged or foreign.
        """
        given = {"input_ids": batch.input_ids, **batch.inputs}
        kept = "all" if self.top_k is None else f"{self.top_k} at {self.temperature!r}"
        key = digest_of_tensors(given, self.teacher, kept)
        path = self.folder / self.teacher[:16] / f"{key}.safetensors"
        if path.exists():
            return _whole(read_kept(path, key)), True
        logits = run()
        write_kept(path, self._kept(logits), key)
        return logits, False

    def _kept(self, logits: Tensor) -> dict[str, Tensor]:
        vocab = logits.shape[-1]
        if self.top_k is None or self.top_k >= vocab:
            return {"logits": logits}
        places = (logits / self.temperature).topk(self.top_k, dim=-1).indices
        size = torch.tensor([vocab], dtype=torch.int32)
        return {"values": logits.gather(-1, places), "places": places.int(), "vocab_size": size}


def _whole(tensors: dict[str, Tensor]) -> Tensor:
    if "logits" in tensors:
        return tensors["logits"]
    values, places = tensors["values"], tensors["places"].long()
    whole = torch.full((*values.shape[:-1], int(tensors["vocab_size"])), float("-inf"), dtype=values.dtype)
    return whole.scatter(-1, places, values)
