"""Micro-batches in flight of a pipeline stage: one forward, one backward (1F1B), plain or interleaved.

Interleaved (arXiv:2104.04473, section 2.2; Megatron-LM, schedules.py): a stage has v chunks of layers. It runs pp
micro-batches through its first chunk, then the same through its second, and so on; backward from the last chunk to the
first. Stage s runs 2 (pp - s - 1) + (v - 1) pp passes of a chunk before its first backward pass, so that the first
stage keeps pp v + pp - 1 of them: pp (1 + (pp - 1) / (pp v)) micro-batches (arXiv:2205.05198, section 4.2.3), where
plain 1F1B keeps pp.
"""

from functools import lru_cache

from l4spec.units import ceil_div


def most_kept(chunks: tuple[int, ...], pp: int, stage: int, micro_batches: int) -> int:
    """Most bytes that a stage keeps at a time, of which a micro-batch keeps `chunks` in each of its chunks.

    Interleaved, `micro_batches` are a multiple of pp; others are rounded up.
    """
    if len(chunks) == 1:
        return min(pp - stage, micro_batches) * chunks[0]
    return _most_interleaved(chunks, pp, stage, pp * min(ceil_div(micro_batches, pp), 3))  # more change nothing


@lru_cache(maxsize=4096)
def _most_interleaved(chunks: tuple[int, ...], pp: int, stage: int, micro_batches: int) -> int:
    """The most after any forward pass; once each has a backward pass beside it, every `pp * v` passes are alike."""
    total = micro_batches * len(chunks)
    before = min(2 * (pp - stage - 1) + (len(chunks) - 1) * pp, total)
    most = 0
    for done in range(min(total - before, pp * len(chunks)) or 1):
        forward = _passes(min(before + done + 1, total), pp, len(chunks))
        backward = reversed(_passes(done, pp, len(chunks)))
        most = max(most, sum((f - b) * kept for f, b, kept in zip(forward, backward, chunks, strict=True)))
    return most


def _passes(number: int, pp: int, num_chunks: int) -> list[int]:
    """Number of the first `number` passes that each chunk has, in the order of passes."""
    rounds, rest = divmod(number, pp * num_chunks)
    return [rounds * pp + min(max(rest - chunk * pp, 0), pp) for chunk in range(num_chunks)]


__all__ = ["most_kept"]
