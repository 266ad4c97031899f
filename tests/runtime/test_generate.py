"""Generation: greedy as the reference, batches and chunks as one by one, stops, seeds, streams, bounded memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from l4spec.errors import UserError
from l4spec.runtime.model import Model
from tests.runtime.checkpoints.models import save_small, small_model
from tests.runtime.checkpoints.test_families import open_reference

NEW = 12
VOCAB = 200


def prompts(batch: int = 2, tokens: int = 37, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> Model:
    """Chunks of 16 tokens, and one layer that sees everything."""
    return small_model("llama4")


@torch.no_grad()
def greedy_without_cache(model: Model, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The definition: run everything again for each token."""
    for _ in range(count):
        ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
    return ids


@pytest.mark.parametrize("family", ["llama4", "llama", "mixtral", "deepseek_v3", "gemma2", "qwen3_moe"])
@pytest.mark.filterwarnings("ignore")
def test_greedy_generation_equals_the_references(family: str, tmp_path: Path) -> None:
    # transformers runs without its cache: with it, chunked layers disagree with its own full forward pass when a
    # chunk ends during generation
    model = save_small(family, tmp_path / "saved")
    reference, ids = open_reference(tmp_path / "saved"), prompts()
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
    expected = reference.generate(ids, max_new_tokens=NEW, **options)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW), expected)


@pytest.mark.parametrize("chunk", [1, 5, 16, 17, 1000])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 50])
def test_a_prompt_may_be_read_in_chunks_of_any_size(model: Model, tokens: int, chunk: int) -> None:
    ids = prompts(tokens=tokens)
    expected = greedy_without_cache(model, ids, NEW)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, prefill_chunk=chunk), expected)


@pytest.mark.parametrize("chunk", [3, 16, 1000])
def test_prompts_of_unequal_length_go_on_as_each_would_alone(model: Model, chunk: int) -> None:
    rows = [prompts(1, tokens, tokens)[0].tolist() for tokens in (1, 16, 40, 23)]
    alone = [model.generate([row], max_new_tokens=NEW)[0] for row in rows]
    assert model.generate(rows, max_new_tokens=NEW, prefill_chunk=chunk) == alone


def test_left_padding_by_a_mask_equals_lists(model: Model) -> None:
    rows = [prompts(1, 5)[0].tolist(), prompts(1, 20, 1)[0].tolist()]
    ids = torch.tensor([[7] * 15 + rows[0], rows[1]])
    mask = torch.tensor([[0] * 15 + [1] * 5, [1] * 20])
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW)
    assert torch.equal(generated[:, :20], ids)
    assert generated[:, 20:].tolist() == [row[-NEW:] for row in model.generate(rows, max_new_tokens=NEW)]


def test_a_stream_gives_the_same_tokens_one_at_a_time(model: Model) -> None:
    ids = prompts()
    whole = model.generate(ids, max_new_tokens=NEW)
    stream = model.stream(ids, max_new_tokens=NEW)
    assert torch.equal(next(stream), whole[:, 37])
    assert torch.equal(torch.stack(list(stream), dim=1), whole[:, 38:])


def test_a_sequence_ends_with_its_stop_token_and_is_padded_while_others_go_on(model: Model) -> None:
    ids = prompts()
    free = model.generate(ids, max_new_tokens=NEW)[:, 37:]
    stop = int(free[0, 3])
    ends = [row.index(stop) if stop in row else NEW - 1 for row in free.tolist()]
    result = model.generate(ids, max_new_tokens=NEW, stop_ids=[stop], pad_id=9)[:, 37:]
    assert result.shape[1] == max(ends) + 1
    for row, before, end in zip(result.tolist(), free.tolist(), ends, strict=True):
        assert row[: end + 1] == before[: end + 1]
        assert set(row[end + 1 :]) <= {9}
    lists = model.generate(ids.tolist(), max_new_tokens=NEW, stop_ids=[stop])
    assert [len(row) - 37 for row in lists] == [end + 1 for end in ends]


def test_generation_stops_when_every_sequence_has(model: Model) -> None:
    ids = prompts(1)
    first = int(model.generate(ids, max_new_tokens=1)[0, -1])
    assert model.generate(ids, max_new_tokens=500, stop_ids=[first]).shape == (1, 38)


def test_a_seed_repeats_and_another_differs(model: Model) -> None:
    def drawn(seed: int) -> list[int]:
        generated = model.generate(prompts(1), max_new_tokens=40, seed=seed, temperature=1.5, top_k=100, top_p=0.99)
        tokens: list[int] = generated[0, 37:].tolist()
        return tokens

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_drawing_from_the_single_most_likely_token_is_greedy(model: Model) -> None:
    greedy = model.generate(prompts(), max_new_tokens=NEW)
    assert torch.equal(model.generate(prompts(), max_new_tokens=NEW, temperature=2.0, top_k=1, seed=0), greedy)


@pytest.mark.parametrize("chunk", [3, 16, 1000])
def test_images_fill_their_places_across_chunks_of_the_prompt(model: Model, chunk: int) -> None:
    vision = model.graph.model.vision
    assert vision is not None
    model.image_token_id, per_tile = 500, vision.num_tokens_per_tile
    ids = prompts(2, 40)
    ids[0, 2 : 2 + per_tile] = ids[0, 20 : 20 + per_tile] = ids[1, 13 : 13 + per_tile] = 500
    side = vision.patch_embedding.image_size
    pixels = torch.rand(3, vision.patch_embedding.num_channels, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first = model(ids, pixel_values=pixels)[:, -1].argmax(-1)
    generated = model.generate(ids, pixel_values=pixels, max_new_tokens=3, prefill_chunk=chunk)
    assert torch.equal(generated[:, 40], first)
    assert torch.equal(generated, model.generate(ids, pixel_values=pixels, max_new_tokens=3))


def test_tokens_can_be_trained_on(model: Model) -> None:
    generated = model.generate(prompts(), max_new_tokens=3)
    model(generated).logsumexp(-1).mean().backward()
    grad = model.get_parameter("text.embedding.weight").grad
    assert grad is not None
    assert grad[generated.flatten()].abs().sum(-1).all()
    model.zero_grad()


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "at least one prompt"),
        ([[]], {}, "at least one token"),
        ([[1], []], {}, "at least one token"),
        ([[1, 512]], {}, "from 0 to 511, found 512"),
        ([[-1]], {}, "from 0 to 511"),
        ([[2**40]], {}, "from 0 to 511"),
        (torch.zeros(0, 3, dtype=torch.long), {}, "at least one token"),
        (torch.zeros(3, dtype=torch.long), {}, r"\[batch, tokens\]"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[1]], {"prefill_chunk": 0}, "prefill_chunk"),
        ([[1]], {"temperature": -1.0}, "temperature"),
        ([[1]], {"seed": 2**63}, "seed"),
        ([[1]], {"seed": -1}, "seed"),
        (torch.ones(1, 2, dtype=torch.long), {"attention_mask": torch.ones(1, 3)}, "shaped as"),
        (torch.ones(1, 2, dtype=torch.long), {"attention_mask": torch.tensor([[1, 0]])}, "on the left"),
        (torch.ones(1, 3, dtype=torch.long), {"attention_mask": torch.tensor([[1, 0, 1]])}, "on the left"),
    ],
    ids=str,
)
def test_what_cannot_be_gone_on_from_is_refused_before_the_first_token(
    model: Model, ids: list[list[int]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.stream(ids, **{"max_new_tokens": 4, **options})


LONG = """
import sys, torch, l4spec
from pathlib import Path

def peak_bytes():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024

torch.set_num_threads(1)
overrides = ["text.max_seq_len=200000", "text.parts.local.mask.size=512"]
overrides += [f"text.parts.global.{name}=1" for name in ("num_heads", "num_kv_heads")]
spec = l4spec.load("tiny/scout", overrides)
model = l4spec.build(l4spec.compile(spec), dtype="fp32")
count, chunk = int(sys.argv[1]), 1024
model.generate(torch.zeros(1, 2 * chunk, dtype=torch.long), max_new_tokens=2, prefill_chunk=chunk)
before = peak_bytes()
ids = torch.randint(0, 500, (1, count))
found = model.generate(ids, max_new_tokens=2, prefill_chunk=chunk)
assert found.shape == (1, count + 2)
cache = model.new_cache(1, count + 1).num_bytes
print(peak_bytes() - before, cache)
"""
ACTIVATIONS = 4 * 1024 * 4
"""Bytes per cached token of a chunk's scores against it: a block of queries, fp32, and the copies of a softmax."""


def extra_and_cache_bytes(num_tokens: int) -> tuple[int, int]:
    """Growth of the process's peak over a long prompt, and the bytes of its caches."""
    run = subprocess.run([sys.executable, "-c", LONG, str(num_tokens)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    extra, cache = map(int, run.stdout.split())
    return extra, cache


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory")
def test_a_long_prompt_needs_memory_for_its_cache_and_one_chunk() -> None:
    num_tokens = 16_000
    extra, cache = extra_and_cache_bytes(num_tokens)
    assert extra < 3 * cache + num_tokens * ACTIVATIONS
    assert extra < num_tokens * num_tokens  # one byte per pair of tokens would be more


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's memory")
def test_a_prompt_of_a_hundred_thousand_tokens_runs_in_bounded_memory() -> None:
    num_tokens = 100_000
    extra, cache = extra_and_cache_bytes(num_tokens)
    assert extra < 3 * cache + num_tokens * ACTIVATIONS
