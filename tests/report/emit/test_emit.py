"""Launches: every flag exists, commands read back, degrees multiply to the GPUs, and what cannot be said is refused."""

import json
import os
import re
import shlex
import subprocess
import time
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import l4spec
from l4spec.deploy import EMITTERS, LaunchRequest, emit, k8s, sbatch, sglang, tensorrt_llm, torchtitan, vllm
from l4spec.deploy.checkpoints import known_checkpoint, known_checkpoints
from l4spec.deploy.launch import Command, written
from l4spec.errors import UserError
from l4spec.quantization.scheme import scheme_named
from planners.device.training_state import TrainSetting
from planners.plan import plan
from planners.request import PlanRequest
from tests.planners.models import graph

KNOWN = Path(__file__).with_name("known")
TABLES = {
    "vllm": vllm.TABLE,
    "sglang": sglang.TABLE,
    "tensorrt-llm": tensorrt_llm.TABLE,
    "torchtitan": torchtitan.TABLE,
}
OWN = {"vllm": "vllm-hybrid", "sglang": "sglang-hybrid", "tensorrt-llm": "tensorrt-llm", "torchtitan": "ideal"}


def requested(name: str, gpus: str, engine: str = "vllm-hybrid", *, images: int = 0, **asked: Any) -> LaunchRequest:
    model = graph(name)
    tiles = images * 17
    return LaunchRequest(plan(model, gpus=gpus, engine=engine, num_tiles=tiles, **asked), model, images=images)


def trained(name: str, gpus: str, batch: int, train: TrainSetting, **asked: Any) -> LaunchRequest:
    model = graph(name)
    options = {name: value for name, value in asdict(train).items() if name in PlanRequest.model_fields}
    options["sequence_parallel"] = "on" if train.sequence_parallel else "off"
    return LaunchRequest(plan(model, gpus=gpus, mode="train", batch=batch, **options, **asked), model)


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
    asked = requested("scout", "8xH100", context=32768, batch=16, kv_dtype="fp8", memory_fraction=0.9, images=2)
    (argv,) = commands(emit("vllm", asked))
    assert argv[:4] == [*(f"{name}={value}" for name, value in vllm.cache_env(asked)), "vllm", "serve", argv[3]]
    assert argv[3] == "meta-llama/Llama-4-Scout-17B-16E-Instruct"
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
    asked = requested("scout", gpus, OWN[engine], quantization="fp8", context=4096, **layout)
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
    argvs = commands(emit("vllm", requested("scout", "8xH100", quantization="w4a16", tp=2, ep=1, pp=1, dp=4)))
    devices = [word.partition("=")[2] for argv in argvs for word in argv if word.startswith("CUDA_VISIBLE_DEVICES=")]
    assert sorted(",".join(devices).split(",")) == [str(index) for index in range(8)]
    assert len({flags(argv)["--port"] for argv in argvs}) == 4


def test_vllm_maps_expert_parallelism_to_data_parallel_attention() -> None:
    text = emit("vllm", requested("scout", "2x8xH100", tp=8, ep=2, pp=1, dp=1))
    head, worker = commands(text)
    assert flags(head)["--data-parallel-size"] == flags(worker)["--data-parallel-size"] == "2"
    assert {"--enable-expert-parallel", "--headless"} <= flags(worker).keys()
    assert "--headless" not in flags(head)
    assert "whole experts" in text


def test_sglang_s_mesh_is_the_plan_s() -> None:
    (argv,) = commands(emit("sglang", requested("scout", "8xH100", "sglang-hybrid", tp=4, ep=2, pp=1, dp=1, batch=8)))
    server_flags = flags(argv)
    assert (server_flags["--tp-size"], server_flags["--attn-dp-size"], server_flags["--ep-size"]) == ("8", "2", "2")
    assert server_flags["--max-running-requests"] == "8"
    assert server_flags["--chunked-prefill-size"] == str(2 * 8192), "SGLang divides it among attention groups"


@pytest.mark.parametrize(
    ("engine", "why", "asked"),
    [
        ("vllm", "and there are 16", {"tp": 8, "ep": 4, "gpus": "4x8xH100"}),
        ("sglang", "ep 6 does not divide 16", {"tp": 1, "ep": 6, "gpus": "6xH200", "quantization": "fp8"}),
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
    assert "path/to/Llama-4-Behemoth-288B-16E is a placeholder, give --model" in unnamed
    named = emit("vllm", LaunchRequest(planned, model, model="me/mine"))
    assert "is a placeholder" not in named
    assert all("me/mine" in argv for argv in commands(named))
    changed = requested("scout", "8xH100")
    text = emit("vllm", LaunchRequest(changed.plan, changed.graph, changed=True))
    assert "meta-llama/" not in text


PUBLISHED = (
    # blog.vllm.ai 2025-04-05, Llama 4 in vLLM, and vllm-project/vllm's 405B in fp8 on one host of 8
    ("scout", {"gpus": "8xH100", "context": 1_000_000}, "meta-llama/Llama-4-Scout-17B-16E-Instruct", "1000000"),
    ("scout", {"gpus": "8xH200", "context": 3_600_000}, "meta-llama/Llama-4-Scout-17B-16E-Instruct", "3600000"),
    (
        "maverick",
        {"gpus": "8xH100", "quantization": "fp8-experts", "context": 430_000},
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
        "430000",
    ),
    (
        "maverick",
        {"gpus": "8xH200", "quantization": "fp8-experts", "context": 1_000_000},
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
        "1000000",
    ),
    (
        "compare/llama-3.1-405b",
        {"gpus": "8xH100", "quantization": "fp8-ffn"},
        "meta-llama/Llama-3.1-405B-Instruct-FP8",
        "8192",
    ),
)


@pytest.mark.parametrize(("name", "asked", "checkpoint", "tokens"), PUBLISHED)
def test_published_launches_come_out_as_published(
    name: str, asked: dict[str, Any], checkpoint: str, tokens: str
) -> None:
    request = requested(name, **asked)
    assert request.plan.fits
    (argv,) = commands(emit("vllm", request))
    assert argv[argv.index("serve") + 1] == checkpoint
    given = flags(argv)
    assert (given["--tensor-parallel-size"], given["--max-model-len"]) == ("8", tokens)
    assert "--quantization" not in given, "the checkpoint's own config says how it is packed"
    assert not {"--pipeline-parallel-size", "--data-parallel-size"} & given.keys()


def test_no_launch_names_weights_that_are_stored_otherwise_or_hold_less() -> None:
    in_int4 = emit("vllm", requested("scout", "8xH100", quantization="w4a16"))
    assert "meta-llama/" not in in_int4
    assert "path/to/Llama-4-Scout-17B-16E-w4a16 stands for a checkpoint in w4a16, give --model" in in_int4
    packed_while_loading = emit("vllm", requested("maverick", "8xH200", quantization="fp8"))
    assert "serve meta-llama/Llama-4-Maverick-17B-128E-Instruct " in packed_while_loading.replace("\\\n", " ")
    assert "Instruct-FP8 is published in fp8-experts: plan with -q fp8-experts" in packed_while_loading
    for known in known_checkpoints().values():
        assert all(each.max_tokens > 100_000 and len(each.source) > 10 for each in known)


def test_known_checkpoints_are_of_shipped_specs_in_schemes_that_exist() -> None:
    shipped = {(one.name, plan(one).params.total) for one in map(graph, ("scout", "maverick"))}
    for name in ("compare/llama-3.1-405b", "compare/llama-3.1-70b", "compare/llama-3.1-8b"):
        shipped.add((graph(name).name, plan(graph(name)).params.total))
    assert known_checkpoints().keys() == shipped
    assert all(scheme_named(each.scheme) for known in known_checkpoints().values() for each in known)


def test_a_model_of_the_same_name_and_another_shape_gets_no_published_checkpoint() -> None:
    spec = l4spec.load("scout", ["text.parts.moe.num_experts=32"])
    model = l4spec.compile(spec)
    asked = LaunchRequest(plan(model, gpus="16xH100", engine="vllm-hybrid", tp=8, pp=2), model)
    assert known_checkpoint(asked, "bf16") is None


@pytest.mark.parametrize(
    ("name", "gpus", "asked", "steps"),
    [
        ("scout", "8xH100", {}, 1),
        ("maverick", "2x8xH100", {"tp": 8, "pp": 2}, 2),
        ("scout", "8xH100", {"quantization": "w4a16", "tp": 2, "dp": 4, "ep": 1, "pp": 1}, 4),
    ],
)
def test_a_slurm_script_starts_every_command_on_its_node(
    name: str, gpus: str, asked: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    request = requested(name, gpus, **asked)
    script = tmp_path / "job.sh"
    script.write_text(emit("sbatch", request), encoding="utf-8")
    fake = {
        "scontrol": "printf 'node7\\nnode9\\n'",
        "srun": 'line=$(printf "%s\\037" "$@"); echo "$line" >> "$OUT"; sleep 0.2',  # one write a step
    }
    for command, body in fake.items():
        (tmp_path / command).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / command).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    environment["SLURM_JOB_NODELIST"] = "node[7,9]"
    subprocess.run(["bash", str(script)], env=environment, check=True, timeout=30)
    time.sleep(0.3)
    started = [line.split("\037")[:-1] for line in (tmp_path / "out").read_text().splitlines()]
    assert len(started) == steps
    nodes = {next(word for word in argv if word.startswith("--nodelist=")).partition("=")[2] for argv in started}
    assert nodes == ({"node7", "node9"} if request.cluster.num_hosts == 2 else {"node7"})
    direct = [[word.replace("host-0", "node7") for word in argv] for argv in commands(emit("vllm", request))]
    launched = [argv[argv.index("vllm") :] for argv in started]
    assert sorted(launched) == sorted(argv[argv.index("vllm") :] for argv in direct)
    options = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert f"#SBATCH --nodes={request.cluster.num_hosts}" in options
    assert {line.split()[1].partition("=")[0] for line in options} <= sbatch.TABLE.flags.keys()


def test_a_slurm_script_of_training_runs_torchtitan() -> None:
    train = TrainSetting(zero_stage=3)
    text = emit("sbatch", trained("scout", "64xH100", 512, train, tp=2, ep=4))
    assert text.count("torchtitan.train") == 8
    assert '--rdzv_endpoint "${hosts[0]}:' in text
    assert "wait -n" not in text


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def test_kubernetes_runs_a_server_on_one_host_as_a_deployment() -> None:
    asked = requested("scout", "16xH100", tp=8, ep=1, pp=1, dp=2)
    text = emit("k8s", asked)
    workload, service = documents(text)
    assert (workload["kind"], workload["spec"]["replicas"], service["kind"]) == ("Deployment", 2, "Service")
    pod = workload["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    argv, _ = vllm.arguments(asked, "meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert tuple(container["command"]) == (*argv, "--port", "8000")
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert workload["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    objects, notes = k8s.emit_k8s(asked)
    assert documents(k8s.to_yaml(objects, notes, asked)) == list(objects)


def test_kubernetes_runs_a_server_over_hosts_as_a_group() -> None:
    workload, service = documents(emit("k8s", requested("maverick", "4x8xH100", tp=8, ep=1, pp=2, dp=2)))
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
