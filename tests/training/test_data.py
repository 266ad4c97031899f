"""What a step trains on depends on seed and step alone; labels stay in their document; held-out text is other text."""

from pathlib import Path

import pytest
import torch

from l4spec.errors import UserError
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.spec.recipe import DataSpec
from l4spec.training.data.mixture import Mixture, weights_of
from l4spec.training.data.synthetic import HELD_OUT, TASKS, document
from l4spec.training.data.tokens import LLAMA4_SPECIAL, ByteCodec, train_bpe

TWO = {"a": {"kind": "synthetic", "task": "stories"}, "b": {"kind": "synthetic", "task": "questions", "weight": 3.0}}


def mixture(sources: dict[str, object] | None = None, **others: object) -> Mixture:
    return Mixture(DataSpec.model_validate({"sources": sources or TWO, **others}), 3, Path())


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    first, again = (mixture().batch(7, 4, 50, {"a": 1.0, "b": 3.0}) for _ in range(2))
    other = mixture().batch(8, 4, 50, {"a": 1.0, "b": 3.0})
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)


def test_larger_batches_hold_the_rows_of_smaller_ones() -> None:
    small = torch.cat([mixture().batch(step, 2, 40, {"a": 1.0}).input_ids for step in (0, 1)])
    assert torch.equal(mixture().batch(0, 4, 40, {"a": 1.0}).input_ids, small)


def test_no_label_is_in_another_document_and_every_other_token_has_the_next_one() -> None:
    batch = mixture().batch(0, 6, 80, {"a": 1.0, "b": 3.0})
    ids, labels, documents = batch.input_ids, batch.labels, batch.inputs["sequence_ids"]
    ends = ids == ByteCodec.end_id
    assert torch.equal(labels == IGNORED, ends)
    inside = ~ends[:, :-1]
    assert torch.equal(labels[:, :-1][inside], ids[:, 1:][inside])
    assert torch.equal(documents[:, 1:] != documents[:, :-1], ends[:, :-1])


def test_only_answers_count_where_they_alone_are_learned() -> None:
    made = mixture().batch(0, 4, 80, {"b": 1.0}, answers_only=True)
    learned = made.labels[made.labels != IGNORED]
    assert set(learned.tolist()) <= {*b"0123456789", ByteCodec.end_id}
    assert bool((made.labels == IGNORED).any())


@pytest.mark.parametrize("task", TASKS)
def test_held_out_documents_are_others(task: str) -> None:
    trained = {document(task, 2, 0, index) for index in range(40)}
    assert document(task, 2, 0, 5) in trained
    assert len(trained) > 10
    if task in ("language", "stories"):
        assert document(task, 2, 0, HELD_OUT + 5) not in trained


def test_sources_come_by_weight() -> None:
    rows = [mixture().row(index, 20, {"a": 1.0, "b": 3.0}) for index in range(400)]
    share = sum(row.ids[0] == ord("Q") for row in rows) / len(rows)
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 400) ** 0.5)  # four deviations of a binomial


def test_files_are_divided_into_documents_of_which_the_last_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"document {index:03}" for index in range(20)))
    spec = DataSpec.model_validate({"sources": {"f": {"kind": "file", "files": ["text.txt"]}}, "held_out": 0.2})
    made = Mixture(spec, 0, tmp_path)
    trained = made.codec.decode(made.batch(0, 8, 64, weights_of(spec, {})).input_ids.flatten().tolist())
    other, _ = made.held_out(8, 64, weights_of(spec, {}))
    assert "document 019" not in trained
    assert "document 003" not in made.codec.decode(other.input_ids.flatten().tolist())
    with pytest.raises(UserError, match="cannot read"):
        Mixture(DataSpec.model_validate({"sources": {"f": {"kind": "file", "files": ["no"]}}}), 0, tmp_path).row(
            0, 8, {"f": 1.0}
        )


def test_byte_pairs_are_learned_alike_each_time_and_read_back() -> None:
    texts = ["".join(segment.text for segment in document("language", 0, 0, index)) for index in range(200)]
    first, again = (train_bpe(texts, 400) for _ in range(2))
    assert first.vocab_size == 400
    assert first.encode(texts[0]) == again.encode(texts[0])
    assert first.decode(first.encode(texts[0])) == texts[0]
    assert all(first.tokenizer.token_to_id(token) is not None for token in LLAMA4_SPECIAL)
    assert len(first.encode(texts[0])) < len(texts[0].encode()) / 2
