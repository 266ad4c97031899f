"""Memory of large gradients comes back to the next ones, and nothing else about them changes."""

import gc
import resource
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from l4spec.layers.common import kept_memory as kept
from l4spec.layers.common.checkpointing import CHECKPOINTING, Checkpointing
from l4spec.layers.common.grouped_linear import grouped_linear
from l4spec.layers.common.kept_memory import empty_kept, kept_memory
from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.model import RankModel
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.phase import OptimizerSpec
from l4spec.training.loop import LoopSettings, TrainBatch, train_steps
from l4spec.training.optimizer import make_optimizer
from tests.runtime.tiny import VOCAB, graph_of, llama4_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")
LIKE = torch.empty(0)
NUM_STEPS = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than these tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep memory of tensors of any size, so that a tiny model's is kept."""
    monkeypatch.setattr(kept, "SMALLEST", 1)


def test_memory_comes_back_when_no_tensor_uses_it_any_more(small_is_large: None) -> None:
    with kept_memory():
        first = empty_kept(LIKE, 3, 5)
        address, part = first.data_ptr(), first[1:].detach()
        del first
        second = empty_kept(LIKE, 3, 5)
        assert second.data_ptr() != address, "a part of the first is still there"
        del part
        again = empty_kept(LIKE, 4, 4)
        assert again.data_ptr() == address
        assert again.shape == (4, 4)
        again.fill_(2.0)
    assert float(again.sum()) == 32, "a tensor outlives the place where its memory is kept"


def test_nothing_is_kept_at_the_end_or_outside(small_is_large: None) -> None:
    with kept_memory(), kept_memory():
        del [empty_kept(LIKE, 2, 3)][:]
    assert not any(kept._PAGES.unused.values())
    outside = empty_kept(LIKE, 2, 3)
    del outside
    assert not any(kept._PAGES.unused.values())


def test_formats_are_those_of_the_other_tensor(small_is_large: None) -> None:
    with kept_memory():
        for dtype in (torch.float64, torch.bfloat16):
            made = empty_kept(torch.empty(0, dtype=dtype), 2, 3)
            assert (made.dtype, made.shape, made.is_contiguous()) == (dtype, (2, 3), True)


def test_the_gradient_is_the_kept_tensor_itself(small_is_large: None) -> None:
    weight = torch.randn(3, 4, 2, requires_grad=True)
    offsets = torch.tensor([1, 1, 3], dtype=torch.int32)
    x = torch.randn(3, 2)
    addresses: set[int] = set()
    expected = torch.zeros(3, 4, 2)
    expected[0], expected[2] = x[:1].sum(0), x[1:].sum(0)
    with kept_memory():
        for _ in range(3):
            weight.grad = None
            torch.autograd.backward(grouped_linear(x, weight, offsets).sum())
            gradient: Tensor | None = weight.grad
            assert gradient is not None
            assert torch.allclose(gradient, expected)
            addresses.add(gradient.data_ptr())
            gradient.fill_(float("nan"))  # the next step must overwrite rows of experts without tokens, too
            del gradient
    assert len(addresses) == 1, "the gradient was copied, or its memory was not kept"


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_training_with_kept_memory_is_the_same_to_the_bit(
    checkpointing: Checkpointing, microbatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for smallest in (1 << 60, 1):
        monkeypatch.setattr(kept, "SMALLEST", smallest)
        model, optimizer = _model_and_optimizer(checkpointing)
        losses = _train(model, optimizer, range(NUM_STEPS), microbatches)
        results.append((losses, {name: p.detach().clone() for name, p in model.named_parameters()}))
    (losses, weights), (kept_losses, kept_weights) = results
    assert len(set(losses)) == NUM_STEPS, "the weights change"
    assert kept_losses == losses
    assert all(torch.equal(kept_weights[name], weight) for name, weight in weights.items())


def test_a_run_that_is_continued_has_the_losses_of_one_that_never_stopped(small_is_large: None) -> None:
    model, optimizer = _model_and_optimizer("none")
    whole = _train(model, optimizer, range(NUM_STEPS), 2)
    model, optimizer = _model_and_optimizer("none")
    losses = _train(model, optimizer, range(2), 2)
    saved: Any = (model.state_dict(), optimizer.state_dict())
    model, optimizer = _model_and_optimizer("none")
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert losses + _train(model, optimizer, range(2, NUM_STEPS), 2) == whole


def test_steps_after_the_first_find_their_pages_cleared() -> None:
    weight = torch.randn(64, 512, 512, requires_grad=True)  # 64 MiB, more than the C library keeps
    x, offsets = torch.randn(64, 512), torch.arange(1, 65, dtype=torch.int32)

    def faults() -> Iterator[int]:
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            weight.grad = None
            torch.autograd.backward(grouped_linear(x, weight, offsets).sum())
            yield resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = weight.numel() * weight.element_size() // resource.getpagesize()
    gc.collect()
    assert list(faults())[-1] >= pages / 2, "without kept memory each step has new pages"
    weight.grad = None
    with kept_memory():
        assert list(faults())[-1] < pages / 10


def _model_and_optimizer(checkpointing: Checkpointing) -> tuple[RankModel, torch.optim.Optimizer]:
    model = distribute(build(graph_of(llama4_text()), "meta"), Layout(), device="cpu", seed=3, train=True)
    model.checkpointing = checkpointing
    return model, make_optimizer(model, OptimizerSpec(learning_rate=0.01))


def _train(
    model: RankModel, optimizer: torch.optim.Optimizer, steps: range, microbatches: int
) -> list[tuple[float, float]]:
    """Loss and gradients' norm of each step."""

    def batch_of(step: int) -> TrainBatch:
        ids: Tensor = torch.randint(VOCAB, (2, 13), generator=torch.Generator().manual_seed(step))
        return TrainBatch(ids[:, :-1], ids[:, 1:])

    settings = LoopSettings(steps.stop, clip=0.5, microbatches=microbatches)
    done = train_steps(model, optimizer, batch_of, settings, start=steps.start)
    return [(step.loss, step.gradient_norm) for step in done]
