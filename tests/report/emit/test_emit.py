"""Launches: every flag exists, commands read back, degrees multiply to the GPUs, and what cannot be said is refused."""

import json
import re
import shlex
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from l4spec.deploy import EMITTERS, LaunchRequest, emit, k8s, sglang, tensorrt_llm, torchtitan, vllm
from l4spec.deploy.launch import Command, written
from l4spec.errors import UserError
from planners.device.training_state import TrainSetting
from planners.plan import plan
from tests.planners.models import graph

KNOWN = Path(__file__).with_name("known")
TABLES = {
    "vllm": vllm.TABLE,
    "sglang": sglang.TABLE,
    "tensorrt-llm": tensorrt_llm.TABLE,
    "torchtitan": torchtitan.TABLE,
}
OWN = {"vllm": "vllm-hybrid", "sglang": "sglang-hybrid", "tensorrt-llm": "tensorrt-llm", "torchtitan": "ideal"}


def wanted(name: str, gpus: str, engine: str = "vllm-hybrid", *, images: int = 0, **asked: Any) -> LaunchRequest:
    model = graph(name)
    tiles = images * 17
    return LaunchRequest(plan(model, gpus=gpus, engine=engine, num_tiles=tiles, **asked), model, images=images)


def trained(name: str, gpus: str, batch: int, train: TrainSetting, **asked: Any) -> LaunchRequest:
    model = graph(name)
    return LaunchRequest(plan(model, gpus=gpus, mode="train", batch=batch, **asdict(train), **asked), model)


def commands(text: str) -> list[list[str]]:
    """The commands of a script, as a shell splits them, comments and here-documents left out."""
    text = re.sub(r"cat > \S+ <<'EOF'\n.*?\nEOF\n", "", text, flags=re.DOTALL)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [shlex.split(line) for line in lines]


def flags(argv: list[str]) -> dict[str, str]:
    """Long flags with their values; a switch is `yes`."""
    by_flag = {}
    for at, argument in enumerate(argv):
        if argument.startswith("--"):
            after = argv[at + 1] if at + 1 < len(argv) else "--"
            by_flag[argument] = "yes" if after.startswith("--") else after
    return by_flag


@pytest.mark.parametrize("engine", TABLES)
def test_every_flag_is_one_that_the_engine_documents(engine: str) -> None:
    known = (KNOWN / f"{engine}.txt").read_text(encoding="utf-8").splitlines()
    version = TABLES[engine].version
    assert f"{TABLES[engine].engine} {version}" in known[0], "the list is of another version"
    assert sorted(TABLES[engine].flags.keys() - set(known)) == []
    assert len(known) > 40


def test_a_flag_that_is_in_no_table_cannot_be_written() -> None:
    with pytest.raises(AssertionError, match="--tensor-paralel-size"):
        vllm.TABLE.written({"--tensor-paralel-size": 8})


def test_a_command_reads_back_as_it_was_meant() -> None:
    argv = ("vllm", "serve", "a model; rm -rf $HOME", "--limit-mm-per-prompt", '{"image": 2}', "--port", "8000")
    assert commands(written(Command("host-0", argv))) == [list(argv)]


def test_vllm_gets_the_numbers_of_the_plan() -> None:
    asked = wanted("scout", "8xH100", context=32768, batch=16, kv_dtype="fp8", memory_fraction=0.9, images=2)
    (argv,) = commands(emit("vllm", asked))
    assert argv[:4] == [*(f"{name}={value}" for name, value in vllm.cache_env(asked)), "vllm", "serve", argv[3]]
    assert argv[3] == "meta-llama/Llama-4-Scout-17B-16E"
    flags_of_server = flags(argv)
    expected = {
        "--tensor-parallel-size": "8",
        "--max-model-len": "32768",
        "--max-num-seqs": "16",
        "--kv-cache-dtype": "fp8",
        "--gpu-memory-utilization": "0.9",
    }
    assert expected.items() <= flags_of_server.items()
    assert json.loads(flags_of_server["--limit-mm-per-prompt"]) == {"image": 2}
    assert not {"--pipeline-parallel-size", "--data-parallel-size", "--enable-expert-parallel"} & flags_of_server.keys()


@pytest.mark.parametrize(
    ("engine", "degrees"),
    [
        ("vllm", ("--tensor-parallel-size", "--data-parallel-size", "--pipeline-parallel-size")),
        ("sglang", ("--tp-size", "--dp-size", "--pp-size")),
        ("tensorrt-llm", ("--tp_size", "--pp_size")),
    ],
)
@pytest.mark.parametrize(
    ("gpus", "layout"),
    [
        ("8xH100", {"tp": 8, "ep": 1, "pp": 1, "dp": 1}),
        ("8xH100", {"tp": 1, "ep": 8, "pp": 1, "dp": 1}),
        ("8xH100", {"tp": 2, "ep": 1, "pp": 2, "dp": 2}),
        ("4x8xH100", {"tp": 8, "ep": 1, "pp": 2, "dp": 2}),
        ("2x8xH100", {"tp": 1, "ep": 16, "pp": 1, "dp": 1}),
    ],
)
def test_degrees_of_all_servers_multiply_to_the_gpus(
    engine: str, degrees: tuple[str, ...], gpus: str, layout: dict[str, int]
) -> None:
    asked = wanted("scout", gpus, OWN[engine], quantization="fp8", context=4096, **layout)
    server_commands = [(argv, flags(argv)) for argv in commands(emit(engine, asked))]
    first = [server_flags for _, server_flags in server_commands if server_flags.get("--node-rank", "0") == "0"]
    total = 0
    for server_flags in first:
        size = 1
        for degree in degrees:
            size *= int(server_flags.get(degree, 1))
        total += size
    assert total == asked.cluster.num_gpus
    if engine != "tensorrt-llm":  # mpirun starts the others
        ranks = sorted(
            int(server_flags["--node-rank"]) for _, server_flags in server_commands if "--node-rank" in server_flags
        )
        spans = {int(server_flags["--nnodes"]) for _, server_flags in server_commands if "--nnodes" in server_flags}
        assert len(spans) <= 1
        assert ranks == sorted([*range(max(spans, default=0))] * len(first)) or not ranks


def test_servers_on_one_host_have_gpus_and_ports_of_their_own() -> None:
    argvs = commands(emit("vllm", wanted("scout", "8xH100", quantization="w4a16", tp=2, ep=1, pp=1, dp=4)))
    devices = [word.partition("=")[2] for argv in argvs for word in argv if word.startswith("CUDA_VISIBLE_DEVICES=")]
    assert sorted(",".join(devices).split(",")) == [str(index) for index in range(8)]
    assert len({flags(argv)["--port"] for argv in argvs}) == 4


def test_vllm_maps_expert_parallelism_to_data_parallel_attention() -> None:
    text = emit("vllm", wanted("scout", "2x8xH100", tp=8, ep=2, pp=1, dp=1))
    head, worker = commands(text)
    assert flags(head)["--data-parallel-size"] == flags(worker)["--data-parallel-size"] == "2"
    assert {"--enable-expert-parallel", "--headless"} <= flags(worker).keys()
    assert "--headless" not in flags(head)
    assert "whole experts" in text


def test_sglang_s_mesh_is_the_plan_s() -> None:
    (argv,) = commands(emit("sglang", wanted("scout", "8xH100", "sglang-hybrid", tp=4, ep=2, pp=1, dp=1, batch=8)))
    server_flags = flags(argv)
    assert (server_flags["--tp-size"], server_flags["--attn-dp-size"], server_flags["--ep-size"]) == ("8", "2", "2")
    assert server_flags["--max-running-requests"] == "8"
    assert server_flags["--chunked-prefill-size"] == str(2 * 8192), "SGLang divides it among attention groups"


@pytest.mark.parametrize(
    ("engine", "why", "asked"),
    [
        ("vllm", "do not divide", {"tp": 8, "ep": 4, "gpus": "4x8xH100"}),
        ("tensorrt-llm", "data parallel over all ranks or none", {"tp": 4, "ep": 2}),
        ("vllm", "int4-mixed", {"quantization": "int4-mixed"}),
        ("vllm", "cache in int8", {"kv_dtype": "int8"}),
        ("sglang", "cache in fp32", {"kv_dtype": "fp32"}),
        ("tensorrt-llm", "cache in int8", {"kv_dtype": "int8"}),
        ("vllm", "limits images", {"num_tiles": 3}),
        ("torchtitan", "--mode train", {}),
    ],
)
def test_what_an_engine_cannot_express_is_refused_with_the_reason(engine: str, why: str, asked: dict[str, Any]) -> None:
    model = graph("scout")
    launch_request = LaunchRequest(plan(model, **{"gpus": "8xH100", "context": 1024, **asked}), model)
    with pytest.raises(UserError, match=re.escape(why)):
        emit(engine, launch_request)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "k8s"])
def test_a_plan_of_training_is_not_served(engine: str) -> None:
    asked = trained("mobilellm-r1-950m", "8xH100", 8, TrainSetting())
    with pytest.raises(UserError, match="it serves"):
        emit(engine, asked)


def test_the_checkpoint_is_never_taken_silently() -> None:
    model = graph("behemoth")
    planned = plan(model, gpus="4x8xB200", quantization="fp8", engine="vllm-hybrid")
    unnamed = emit("vllm", LaunchRequest(planned, model))
    assert "Llama-4-Behemoth-288B-16E stands in its place, give --model" in unnamed
    named = emit("vllm", LaunchRequest(planned, model, model="me/mine"))
    assert "stands in its place" not in named
    assert all("me/mine" in argv for argv in commands(named))
    changed = wanted("scout", "8xH100")
    text = emit("vllm", LaunchRequest(changed.plan, changed.graph, changed=True))
    assert "meta-llama/Llama-4-Scout-17B-16E" not in text


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def test_kubernetes_runs_a_server_on_one_host_as_a_deployment() -> None:
    asked = wanted("scout", "16xH100", tp=8, ep=1, pp=1, dp=2)
    text = emit("k8s", asked)
    workload, service = documents(text)
    assert (workload["kind"], workload["spec"]["replicas"], service["kind"]) == ("Deployment", 2, "Service")
    pod = workload["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    argv, _ = vllm.arguments(asked, "meta-llama/Llama-4-Scout-17B-16E")
    assert tuple(container["command"]) == (*argv, "--port", "8000")
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert workload["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    objects, notes = k8s.emit_k8s(asked)
    assert documents(k8s.to_yaml(objects, notes, asked)) == list(objects)


def test_kubernetes_runs_a_server_over_hosts_as_a_group() -> None:
    workload, service = documents(emit("k8s", wanted("maverick", "4x8xH100", tp=8, ep=1, pp=2, dp=2)))
    assert workload["kind"] == "LeaderWorkerSet"
    group = workload["spec"]["leaderWorkerTemplate"]
    assert (workload["spec"]["replicas"], group["size"]) == (2, 2)
    leader, worker = (group[name]["spec"]["containers"][0]["command"] for name in ("leaderTemplate", "workerTemplate"))
    assert flags(leader)["--node-rank"] == flags(worker)["--node-rank"] == "$(LWS_WORKER_INDEX)"
    assert "--headless" in worker
    assert "--headless" not in leader
    labels = group["leaderTemplate"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def config_of(text: str) -> dict[str, Any]:
    match = re.search(r"<<'EOF'\n(.*?)\nEOF", text, re.DOTALL)
    assert match is not None
    return tomllib.loads(match[1])


def test_torchtitan_s_mesh_is_the_plan_s() -> None:
    train = TrainSetting(zero_stage=3, precision="fp8")
    text = emit("torchtitan", trained("scout", "64xH100", 512, train, tp=2, ep=4, pp=1, dp=8))
    config = config_of(text)
    mesh, step = config["parallelism"], config["training"]
    assert config["model"]["flavor"] == "17bx16e_irope"
    assert (mesh["tensor_parallel_degree"], mesh["expert_parallel_degree"]) == (2, 4)
    assert mesh["data_parallel_shard_degree"] * mesh["tensor_parallel_degree"] == 64
    assert mesh["expert_tensor_parallel_degree"] == 2
    assert (step["seq_len"], step["global_batch_size"], step["local_batch_size"]) == (8192, 512, 1)
    assert config["model"]["converters"] == ["quantize.linear.float8", "quantize.grouped_mm.float8"]
    assert config["quantize"]["grouped_mm"]["float8"]["fqns"] == ["experts"]
    argvs = commands(text)
    assert [flags(argv)["--node_rank"] for argv in argvs] == [str(rank) for rank in range(8)]


@pytest.mark.parametrize(
    ("name", "train", "why"),
    [
        ("scout", TrainSetting(zero_stage=1), "ZeRO stage 1"),
        ("scout", TrainSetting(zero_stage=3, optimizer="sgd"), "no optimizer sgd"),
        ("mobilellm-r1-950m", TrainSetting(zero_stage=3), "no flavor"),
        ("deepseek-v3", TrainSetting(zero_stage=3), "no flavor"),
    ],
)
def test_torchtitan_refuses_what_it_does_not_have(name: str, train: TrainSetting, why: str) -> None:
    with pytest.raises(UserError, match=why):
        emit("torchtitan", trained(name, "512xH100", 512, train))


@pytest.mark.parametrize("flavor", torchtitan.FLAVORS, ids=lambda flavor: flavor.flavor)
def test_every_flavor_has_the_shape_of_a_shipped_spec(flavor: torchtitan.Flavor) -> None:
    names = {"llama4": ("scout", "maverick"), "llama3": ("llama-3-8b", "llama-3.1-70b", "llama-3.1-405b")}[flavor.name]
    shapes = [torchtitan.shape_of(graph(name)) for name in names]
    numbers = (flavor.hidden_size, flavor.num_layers, flavor.num_heads, flavor.num_kv_heads, flavor.dense_size)
    assert (*numbers, flavor.num_experts, flavor.num_moe_layers) in shapes


def test_every_emitter_says_version_and_source() -> None:
    assert set(EMITTERS) == set(TABLES)
    assert all(table.version and table.source for table in (*TABLES.values(), k8s.TABLE))
