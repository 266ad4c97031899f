"""Training with context parallelism and virtual stages: laws, published runs, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import CHECKPOINTING
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import chunks_of_stages, illegal_reason
from planners.catalog import hardware, quantization
from planners.clusters.training_search import search_training
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import training_collectives
from planners.counts.weights import scheme_of
from planners.device.stages import every_stage, stages
from planners.device.training_state import TrainingState, TrainSetting, stage_state
from planners.evidence.rows import published_rows
from planners.evidence.training_replay import predict_training
from planners.plan import plan
from planners.plan_types import Plan
from planners.search.search_request import SearchRequest
from planners.timing.machine import Machine
from planners.timing.training_step import TrainLoad, TrainModel
from tests.planners.models import graph
from tests.strategies import graphs

BF16 = scheme_of(quantization("bf16"))
PER_GPU = ("tokens_per_s_per_gpu", "model_tflops_per_gpu")


def states(model: LayerGraph, train: TrainSetting, layout: Layout, tokens: int, sequences: int) -> list[TrainingState]:
    """Of each stage, for a batch of `sequences` of `tokens` tokens on a data-parallel rank."""
    cut = every_stage(model, BF16, layout.tp, layout.ep, layout.pp, train.virtual_stages)
    return [stage_state(model, train, layout, stage).with_batch(tokens // layout.cp, sequences) for stage in cut]


def trained(name: str, **options: Any) -> Plan:
    return plan(graph(name), mode="train", **options)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sampled_from(CHECKPOINTING), st.sampled_from((1, 3)), st.sampled_from((None, "megatron")))
def test_more_context_parallelism_never_raises_the_memory_of_a_device(
    model: LayerGraph, checkpointing: Any, zero_stage: int, trainer: str | None
) -> None:
    if illegal_reason(model, Layout(cp=2), trains=True):
        return
    train = TrainSetting(checkpointing=checkpointing, zero_stage=zero_stage, trainer=trainer)
    (one,), (two,), (four,) = (states(model, train, Layout(cp=cp), 256, 2) for cp in (1, 2, 4))
    assert two.optimizer <= one.optimizer
    assert four.optimizer <= two.optimizer
    assert four.activations <= two.activations
    assert four.weights <= two.weights <= one.weights


@pytest.mark.parametrize("name", ["scout", "maverick", "llama-3.1-8b", "gemma-2-27b", "deepseek-v3"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_device_keeps_its_share_of_the_tokens(name: str, checkpointing: Any) -> None:
    """Of the last stage exactly, since logits are more than blocks of a ring; no stage ever keeps more."""
    train = TrainSetting(checkpointing=checkpointing, zero_stage=1)
    for pp in (1, 2):
        whole = states(graph(name), train, Layout(pp=pp), 8192, 4)
        cut = states(graph(name), train, Layout(pp=pp, cp=4), 8192, 4)
        assert all(part.activations <= all_of.activations for part, all_of in zip(cut, whole, strict=True))
        assert cut[-1].activations * 4 == whole[-1].activations


def test_ranks_along_cp_share_states_as_data_parallel_ones_do() -> None:
    """Megatron reduces gradients over its dp x cp: of experts over that by ep."""
    model, train = graph("scout"), TrainSetting(zero_stage=3)
    for layouts in ((Layout(dp=8, ep=2), Layout(dp=2, ep=2, cp=4)), (Layout(dp=4, tp=2), Layout(cp=4, tp=2))):
        (one,), (other,) = (states(model, train, layout, 8192, 4) for layout in layouts)
        assert (one.weights, one.gradients, one.optimizer) == (other.weights, other.gradients, other.optimizer)
        assert one.gathered == other.gathered


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sampled_from(CHECKPOINTING), st.sampled_from(((2, 2), (2, 3), (3, 2))))
def test_an_interleaved_pipeline_has_the_layers_and_parameters_of_a_plain_one(
    model: LayerGraph, checkpointing: Any, degrees: tuple[int, int]
) -> None:
    pp, v = degrees
    if illegal_reason(model, Layout(pp=pp), virtual_stages=v):
        return
    plain, cut = every_stage(model, BF16, 1, 1, pp), every_stage(model, BF16, 1, 1, pp, v)
    assert sum(stage.num_params for stage in cut) == sum(stage.num_params for stage in plain)
    assert sorted(layer for stage in cut for layer in stage.layers) == list(range(model.num_layers))
    train = TrainSetting(checkpointing=checkpointing, virtual_stages=v)
    different = stages(model, BF16, 1, 1, pp, v)
    most, some = (
        max(stage_state(model, train, Layout(pp=pp), stage).with_batch(64, 4 * pp).activations for stage in listed)
        for listed in (cut, different)
    )
    assert some == most


@pytest.mark.parametrize("name", ["llama-3.1-70b", "scout", "maverick"])
def test_more_virtual_stages_never_lengthen_the_bubble_nor_keep_less(name: str) -> None:
    asked = {"gpus": "64xH200", "tp": 8, "pp": 4, "ep": 1, "dp": 2, "batch": 32, "micro_batch": 1, "zero_stage": 1}
    plans = [trained(name, virtual_stages=v, checkpointing="none", **asked) for v in (1, 2, 3, 4, 6)]
    seconds = [made.latency.step_time_seconds or 0.0 for made in plans if made.latency]
    if name != "maverick":  # whose layers by turns with and without experts some divisions put on one stage
        assert seconds == sorted(seconds, reverse=True)
    assert all(made.memory_per_device.activation_bytes >= plans[0].memory_per_device.activation_bytes for made in plans)
    loads = [TrainLoad(sequences=64, length=64, num_devices=8, pp=8, virtual_stages=v) for v in range(1, 9)]
    assert [load.bubble for load in loads] == [7 / (64 * v) for v in range(1, 9)]  # arXiv:2104.04473, section 2.2.2


def test_chunks_in_step_with_a_model_s_pattern_put_all_global_layers_on_some_stages() -> None:
    """Every fourth layer of Maverick is global, and at 256K tokens they take most of the time."""
    asked = {"gpus": "512xH100", "tp": 8, "ep": 4, "pp": 4, "cp": 4, "context": 262_144, "batch": 32, "micro_batch": 1}
    of_four, of_two = (trained("maverick", virtual_stages=v, checkpointing="full", **asked) for v in (3, 6))
    assert of_four.latency is not None
    assert of_two.latency is not None
    assert (of_four.latency.step_time_seconds or 0) * 1.2 < (of_two.latency.step_time_seconds or 0)
    num_global = [[sum(layer % 4 == 3 for layer in chunk) for chunk in stage] for stage in chunks_of_stages(48, 4, 6)]
    assert [sum(stage) for stage in num_global] == [0, 6, 0, 6]


def test_without_degrees_above_one_nothing_changes() -> None:
    plain = trained("scout", gpus="16xH200", batch=16)
    same = trained("scout", gpus="16xH200", batch=16, cp=1, virtual_stages=1)
    assert same.model_copy(update={"request": {}}) == plain.model_copy(update={"request": {}})


@pytest.mark.parametrize("id_", ["TRN-0017", "TRN-0027", "TRN-0034"])
def test_a_plan_takes_as_long_as_the_replay_of_a_published_run(id_: str) -> None:
    """Runs with CP 2, with CP 2 and VP 5, and with VP 5 (NVIDIA/dgxc-benchmarking)."""
    row = next(row for row in published_rows() if row.id == id_)
    degrees = {name: row.number(name) for name in ("tp", "pp", "ep", "dp")}
    made = trained(
        row.model.lower(),
        gpus=f"{row.n_gpus}xH100",
        batch=row.number("batch_or_concurrency"),
        context=row.number("isl"),
        cp=row.noted(r"CP (\d+)", 1),
        virtual_stages=row.noted(r"VP (\d+)", 1),
        micro_batch=1,
        checkpointing="none",
        precision=row.precision_weights,
        trainer="megatron",
        zero_stage=1,
        gradient_bytes=2,
        **degrees,
    )
    replayed = predict_training(row)
    assert made.latency is not None
    assert not isinstance(replayed, str)
    assert made.latency.step_time_seconds == pytest.approx(replayed[0], rel=1e-9)
    assert made.latency.step_time_seconds == pytest.approx(row.published, rel=0.15)
    assert any("not run by l4spec.distribute" in note for note in made.latency.notes)


@pytest.mark.parametrize("id_", ["TRN-0027", "TRN-0034", "TRN-0039", "TRN-0055", "TRN-0101", "TRN-0109", "TRN-0137"])
def test_published_runs_with_virtual_stages_fit(id_: str) -> None:
    """They ran: with sequence parallelism and gradients in bf16, which are NVIDIA's defaults and not in the rows."""
    row = next(row for row in published_rows() if row.id == id_)
    name = {"LLAMA3.1_405B": "llama-3.1-405b", "LLAMA3_70B (SFT)": "llama-3-70b", "Qwen3_235B_a22B": "qwen3-235b-a22b"}
    ep = min(row.number("ep") or 1, row.number("dp") or 1)  # an ep of theirs that spans tp is cut by tp here
    made = trained(
        name.get(row.model, row.model.lower()),
        gpus=f"{row.n_gpus}x{'GB200' if 'GB200' in row.hardware else 'H100'}",
        batch=row.number("batch_or_concurrency"),
        context=row.number("isl"),
        tp=row.number("tp"),
        pp=row.number("pp"),
        ep=ep,
        dp=(row.number("dp") or 1) // ep,
        cp=row.noted(r"CP (\d+)", 1),
        virtual_stages=row.noted(r"VP (\d+)", 1),
        micro_batch=1,
        checkpointing="none",
        zero_stage=1,
        trainer="megatron",
        sequence_parallel="on",
        gradient_bytes=2,
    )
    assert made.fits


def test_a_long_context_that_does_not_fit_is_suggested_to_be_divided_as_llama_3_was() -> None:
    """Llama 3 405B took cp 16 at 131,072 tokens (arXiv:2407.21783, table 4)."""
    whole = trained("llama-3.1-405b", gpus="512xH100", context=131_072)
    assert not whole.fits
    (divided,) = [each for each in whole.suggestions if "context parallelism" in each.change]
    assert "--cp 16" in divided.command
    assert trained("llama-3.1-405b", gpus="512xH100", context=131_072, cp=16).fits
    assert not trained("llama-3.1-405b", gpus="512xH100", context=131_072, cp=8).fits


def test_a_search_of_training_plans_each_candidate_with_context_parallelism() -> None:
    asked = SearchRequest(
        mode="train", gpus="64xH100", train_tokens=10**12, deadline=365 * 86_400.0, cp=2, precision="bf16"
    )
    answer = search_training(graph("scout"), asked)
    assert answer.ranked
    assert all(row.layout.cp == 2 for row in answer.ranked)
    with pytest.raises(UserError, match="prefills divided among ranks"):
        SearchRequest(cp=2, prompt_tokens=8, output_tokens=8).check_level()


def test_what_a_device_sends_grows_with_virtual_stages_and_falls_with_context_parallelism() -> None:
    model, train = graph("llama-3.1-8b"), TrainSetting(checkpointing="full", zero_stage=1)

    def sent(layout: Layout, v: int = 1) -> dict[tuple[str, str], tuple[int, int]]:
        setting = replace(train, virtual_stages=v)
        load = StepTokens.of(setting, layout, 8192, 8 * layout.dp)
        stage = every_stage(model, BF16, layout.tp, layout.ep, layout.pp, v)[1 if layout.pp > 2 else 0]
        listed = training_collectives(model, setting, layout, load, stage)
        return {(each.axis, each.tensor): (each.calls, each.payload) for each in listed}

    plain, interleaved = sent(Layout(pp=4)), sent(Layout(pp=4), 4)
    for tensor in ("activations, forward", "gradients, backward"):
        assert interleaved["pp", tensor] == tuple(4 * number for number in plain["pp", tensor])
    whole, cut = sent(Layout(tp=2, dp=2)), sent(Layout(tp=2, dp=2, cp=4))
    assert cut["tp", "activations, forward"][1] * 4 == whole["tp", "activations, forward"][1]
    assert cut["dp_ep_cp", "dense weights of blocks"] == whole["dp_ep", "dense weights of blocks"]
    block = 32 * 2 * (1024 // 2) * 2 * 8 * 8192 // 4  # layers, keys and values, width on a rank of tp, bytes, tokens
    rings = {tensor: payload for (axis, tensor), (_, payload) in cut.items() if axis == "cp"}
    assert rings == {
        "keys and values, forward": 4 * block,
        "keys and values, backward": 2 * 4 * block,
        "keys and values, recomputed": 4 * block,
    }


@pytest.mark.parametrize(("length", "layers"), [(65_536, 12), (8192, 48)])
def test_chunked_layers_pass_nothing_between_whole_chunks(length: int, layers: int) -> None:
    """Scout has 36 layers of chunks of 8,192 tokens, and 12 that see everything."""
    model, layout, train = graph("scout"), Layout(cp=4), TrainSetting(checkpointing="none")
    (stage,) = stages(model, BF16, 1, 1, 1)
    listed = training_collectives(model, train, layout, StepTokens.of(train, layout, length, 1), stage)
    calls = {each.tensor: each.calls for each in listed if each.axis == "cp"}
    assert calls == {"keys and values, forward": layers, "keys and values, backward": 2 * layers}


@pytest.mark.parametrize(
    ("mask", "sees"),
    [
        ("{kind: chunked, size: 100}", lambda query, key: query // 100 == key // 100),
        ("{kind: chunked, size: 80}", lambda query, key: query // 80 == key // 80),
        ("{kind: sliding_window, size: 30}", lambda query, key: query - key < 30),
    ],
)
def test_the_busiest_rank_has_the_pairs_that_masks_show(mask: str, sees: Callable[[int, int], bool]) -> None:
    """Counted one by one. Of a causal mask all ranks have as many, and so they have of chunks of whole pieces."""
    length, cp = 240, 3
    owner = [min(token // 40, 2 * cp - 1 - token // 40) for token in range(length)]
    pairs, causal = [0] * cp, [0] * cp
    for query, key in combinations_with_replacement(range(length), 2):
        causal[owner[key]] += 1  # the later of the two is the query
        pairs[owner[key]] += sees(key, query)
    assert len(set(causal)) == 1
    every = attention_seconds("{kind: causal}", length, 1)
    assert attention_seconds("{kind: causal}", length, cp) == pytest.approx(every)
    whole, cut = (attention_seconds(mask, length, degree) for degree in (1, cp))
    of_a_pair = (every - whole) / (sum(causal) - sum(pairs))  # weights take as long under every mask
    assert (cut - whole) / of_a_pair == pytest.approx(max(pairs) * cp - sum(pairs), rel=1e-6, abs=1e-3)


def attention_seconds(mask: str, length: int, cp: int) -> float:
    """Seconds of all devices in the attention of one sequence."""
    model = graph("llama-3.1-8b", f"text.parts.attention.mask={mask}")
    timed = TrainModel(model, BF16, Machine(hardware("h100-sxm"), 8), None)
    kinds = timed.time(TrainLoad(sequences=1, length=length, num_devices=cp, cp=cp)).by_kind
    return cp * next(kind.compute_seconds for kind in kinds if kind.name.startswith("attention"))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("scout", {"cp": 4, "context": 8190}, "cp=4 trains on 8 equal pieces .* 8,190 tokens .*: 8,184 are one"),
        ("qwen3-next-80b-a3b", {"cp": 2}, "cp=2 is for attention by gqa or mla, and .* is gated_delta_net"),
        ("scout", {"virtual_stages": 2, "pp": 1}, "virtual_stages: needs a pipeline"),
        ("scout", {"virtual_stages": 2}, "2 virtual stages need a pipeline, and pp=1"),
        ("scout", {"virtual_stages": 26, "pp": 2, "batch": 2}, "pp=2 x 26 virtual stages exceeds the 48 layers"),
        ("scout", {"virtual_stages": 2, "pp": 4, "batch": 6}, "need a multiple of pp=4 micro-batches, .* has 6"),
        ("scout", {"virtual_stages": 0}, "virtual_stages: expected 1 to 1,024"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        trained(name, **options)


def test_limits_are_whole_numbers_of_pieces_and_of_rounds() -> None:
    made = trained(
        "scout", gpus="64xH100", tp=8, pp=4, ep=1, dp=1, cp=2, virtual_stages=2, batch=4, micro_batch=1, context=16_384
    )
    assert made.max_context
    assert made.max_context % 4 == 0
    assert (made.max_batch or 0) % 4 == 0


def test_embedding_and_head_may_be_chunks_of_their_own_where_a_pipeline_is_interleaved() -> None:
    """NVIDIA ran Llama-3.1-405B's 126 blocks in 16 x 8 chunks (Megatron-Bridge's performance summary)."""
    made = trained(
        "llama-3.1-405b", gpus="256xGB200", batch=1536, tp=4, pp=16, virtual_stages=8, micro_batch=1, zero_stage=1
    )
    assert made.layout.pp == 16
    with pytest.raises(UserError, match="pp=16 x 9 virtual stages exceeds the 126 layers"):
        trained("llama-3.1-405b", gpus="256xGB200", batch=1536, tp=4, pp=16, virtual_stages=9)
