"""A first run of a model: forward, loss, a few tokens, with the time and memory they took."""

import resource
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.graph.layer_graph import LayerGraph
from l4spec.progress import Progress
from l4spec.runtime.model import Model
from l4spec.runtime.module_inventory import module_bytes

MOST_TOKENS = 512
FEWEST_TOKENS = 64
NUM_NEW_TOKENS = 8
_BEHIND_IMAGE = 16
_LOGIT_COPIES = 3
"""fp32 tensors as large as the logits that a loss needs at once."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of a run. `loss` is in nats per token, `blind_loss` = log(vocab_size) that of a uniform guess."""

    num_tokens: int
    num_image_tokens: int
    loss: float
    blind_loss: float
    forward_seconds: float
    generated: tuple[int, ...]
    prefill_seconds: float
    decode_seconds_per_token: float
    weight_bytes: int
    cache_bytes: int
    peak_bytes: int
    """Most memory of the whole process (CPU) or of all tensors (CUDA) so far."""


def num_trial_tokens(graph: LayerGraph) -> int:
    """Tokens of the prompt: enough to cross chunks and windows and to hold a tile where 512 are enough for that."""
    bounds = [entry.bound.size for node in graph.nodes for entry in node.declaration.cache if entry.bound.size]
    image = graph.model.vision.num_tokens_per_tile + _BEHIND_IMAGE if graph.model.vision else 0
    count = max(FEWEST_TOKENS, image, 3 * min(bounds, default=0) + 1)
    return max(1, min(count, MOST_TOKENS, graph.model.text.stack.width.max_seq_len - NUM_NEW_TOKENS))


def trial_bytes(graph: LayerGraph) -> int:
    """Approximate memory of a trial besides the weights: the logits; everything else is small."""
    return _LOGIT_COPIES * 4 * num_trial_tokens(graph) * graph.model.text.head.vocab_size


def run_trial(model: Model, seed: int = 0, progress: Progress | None = None) -> Trial:
    """Run random tokens through `model`, with a random tile if it has vision; `progress` counts passes."""
    progress = progress or (lambda done, total: None)
    ids, pixels, num_places = _inputs(model, seed)
    with torch.no_grad():
        model(ids[:, :1])  # what a first call sets up is not the model's time
        start = _now(model.device)
        logits = model(ids, pixel_values=pixels)
        forward_seconds = _now(model.device) - start
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
        del logits
    progress(1, 1 + NUM_NEW_TOKENS)
    cache = model.new_cache(1, ids.shape[1] + NUM_NEW_TOKENS - 1)
    times = [_now(model.device)]
    generated = []
    for token in model.stream(ids, pixel_values=pixels, max_new_tokens=NUM_NEW_TOKENS):
        generated.append(int(token))
        times.append(_now(model.device))
        progress(1 + len(generated), 1 + NUM_NEW_TOKENS)
    return Trial(
        num_tokens=ids.shape[1],
        num_image_tokens=num_places,
        loss=float(loss),
        blind_loss=float(torch.tensor(float(model.graph.model.text.head.vocab_size)).log()),
        forward_seconds=forward_seconds,
        generated=tuple(generated),
        prefill_seconds=times[1] - times[0],
        decode_seconds_per_token=(times[-1] - times[1]) / max(1, len(generated) - 1),
        weight_bytes=module_bytes(model),
        cache_bytes=cache.num_bytes,
        peak_bytes=_peak_bytes(model.device),
    )


def _inputs(model: Model, seed: int) -> tuple[Tensor, Tensor | None, int]:
    """Random token ids [1, tokens]; for a model that sees also a tile, with its places after the first token."""
    generator, graph = torch.Generator().manual_seed(seed), model.graph
    vocab_size, vision = graph.model.text.head.vocab_size, graph.model.vision
    num_tokens = num_trial_tokens(graph)
    if vision is None or vision.num_tokens_per_tile + 1 > num_tokens:
        return torch.randint(vocab_size, (1, num_tokens), generator=generator).to(model.device), None, 0
    if model.image_token_id is None:
        model.image_token_id = vocab_size - 1
    ids = torch.randint(min(vocab_size - 1, model.image_token_id), (1, num_tokens), generator=generator)
    ids[:, 1 : 1 + vision.num_tokens_per_tile] = model.image_token_id
    patches = vision.patch_embedding
    pixels = torch.rand(1, patches.num_channels, patches.image_size, patches.image_size, generator=generator)
    return ids.to(model.device), pixels.to(model.device), vision.num_tokens_per_tile


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
