"""A plan as `vllm serve`.

vLLM's expert parallelism spreads whole experts over the tensor- and data-parallel ranks of one engine together
(vllm/model_executor/layers/fused_moe/config.py); attention is repeated over data-parallel ranks, each with sequences of
its own. So the mesh's ep is vLLM's data parallelism with --enable-expert-parallel, and the mesh's dp is servers apart.
"""

import json

from l4spec.deploy.checkpoints import checkpoint, weight_flags
from l4spec.deploy.launch import (
    HEAD,
    Command,
    Emission,
    FlagTable,
    LaunchedServer,
    LaunchRequest,
    dp_note,
    refuse,
    servers,
)
from l4spec.units import ceil_div
from planners.catalog.engine_formats import VLLM_FORMATS

PORT = 8000
MASTER_PORT = 29501
IMAGE = "vllm/vllm-openai:v0.33.0"
TABLE = FlagTable(
    engine="vLLM",
    version="0.33.0",
    source="vllm/engine/arg_utils.py and vllm/entrypoints/common/cli_args.py of the wheel",
    flags={
        "--tensor-parallel-size": "tp",
        "--pipeline-parallel-size": "pp",
        "--data-parallel-size": "ep: attention repeated, sequences divided",
        "--enable-expert-parallel": "experts divided over tensor- and data-parallel ranks",
        "--nnodes": "hosts of a server",
        "--node-rank": "this host",
        "--master-addr": "the first host",
        "--master-port": "its port for torch.distributed",
        "--headless": "no API server on hosts but the first",
        "--port": "HTTP port",
        "--dtype": "format of unquantized weights",
        "--quantization": "scheme",
        "--kv-cache-dtype": "format of the cache",
        "--max-model-len": "context",
        "--max-num-seqs": "sequences of a data-parallel rank",
        "--max-num-batched-tokens": "prefill chunk",
        "--gpu-memory-utilization": "memory fraction",
        "--limit-mm-per-prompt": "images of a prompt",
        "--disable-hybrid-kv-cache-manager": "every layer keeps every token",
    },
)
KV_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8"}
"""Names of cache formats in plans and in vLLM (vllm/config/cache.py, CacheDType)."""
_HYBRID = (("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE", "1"),)
"""Without it vLLM turns its hybrid cache manager off for chunked attention (vllm/config/vllm.py)."""


def emit_vllm(request: LaunchRequest) -> Emission:
    """The commands of every host. Raises UserError for what vLLM cannot express."""
    model, notes = checkpoint(request, VLLM_FORMATS.online)
    server_list = servers(request, TABLE.engine, request.plan.layout.dp, PORT)
    argv, more = arguments(request, model)
    commands = tuple(command for server in server_list for command in commands_of(server, argv, cache_env(request)))
    notes += (*more, *dp_note(request), *_host_note(server_list[0]))
    return Emission(TABLE, commands, notes)


def arguments(request: LaunchRequest, model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The command of a server without the arguments that differ by host, and notes on it."""
    layout, asked = request.plan.layout, request.plan.deployment
    if asked.mode != "serve":
        refuse(TABLE.engine, "it serves, and the plan is of training", "leave --mode train out, or --emit torchtitan")
    notes = [*request.load_notes, *_expert_notes(request)]
    dtype, quantization = weight_flags(VLLM_FORMATS, TABLE.engine, request, notes)
    if asked.kv_dtype not in KV_DTYPES:
        known = ", ".join(KV_DTYPES)
        refuse(TABLE.engine, f"it keeps no cache in {asked.kv_dtype}", f"--kv-dtype {known}")
    flags: dict[str, object] = {
        "--tensor-parallel-size": layout.tp,
        "--pipeline-parallel-size": layout.pp if layout.pp > 1 else None,
        "--data-parallel-size": layout.ep if layout.ep > 1 else None,
        "--enable-expert-parallel": layout.ep > 1,
        "--dtype": dtype,
        "--quantization": quantization,
        "--kv-cache-dtype": KV_DTYPES[asked.kv_dtype],
        "--max-model-len": asked.max_context or asked.context,
        "--max-num-seqs": request.sequences,
        "--max-num-batched-tokens": max(asked.prefill_chunk, request.sequences or 0),
        "--gpu-memory-utilization": request.memory_fraction,
        "--limit-mm-per-prompt": _images(request, notes),
        "--disable-hybrid-kv-cache-manager": asked.engine == "vllm",
    }
    if asked.engine not in ("vllm", "vllm-hybrid"):
        notes.append(f"planned by the cache policy of {asked.engine}; vLLM keeps its own: --engine vllm-hybrid or vllm")
    return ("vllm", "serve", model, *TABLE.written(flags)), tuple(notes)


def commands_of(server: LaunchedServer, argv: tuple[str, ...], env: tuple[tuple[str, str], ...]) -> tuple[Command, ...]:
    """One command a host: the first answers requests, the others work for it."""
    env += server.env
    if len(server.hosts) == 1:
        return (Command(server.hosts[0], (*argv, *TABLE.written({"--port": server.port})), env),)
    commands = []
    for rank, host in enumerate(server.hosts):
        flags: dict[str, object] = {
            "--nnodes": len(server.hosts),
            "--node-rank": rank,
            "--master-addr": server.hosts[0],
            "--master-port": MASTER_PORT,
            "--headless": rank > 0,
            "--port": None if rank else server.port,
        }
        commands.append(Command(host, (*argv, *TABLE.written(flags)), env))
    return tuple(commands)


def cache_env(request: LaunchRequest) -> tuple[tuple[str, str], ...]:
    """The variable without which chunked layers keep every token."""
    chunked = any(layer.law == "chunk" for layer in request.plan.kv_cache.layers)
    return _HYBRID if chunked and request.plan.deployment.engine == "vllm-hybrid" else ()


def _host_note(server: LaunchedServer) -> tuple[str, ...]:
    """Note on the placeholders of addresses."""
    if len(server.hosts) == 1:
        return ()
    return (f"{HEAD}, host-1, … stand for the addresses of the hosts, in the order of the mesh's ranks",)


def _expert_notes(request: LaunchRequest) -> list[str]:
    layout = request.plan.layout
    if layout.ep == 1:
        return []
    ranks = layout.tp * layout.ep
    if request.num_experts < ranks:
        reason = f"it divides whole experts over tp x ep = {ranks} GPUs, and there are {request.num_experts}"
        refuse(TABLE.engine, reason, "choose --tp 1 or another --ep")
    most = ceil_div(request.num_experts, ranks)
    notes = [f"ep{layout.ep} is data-parallel attention over {layout.ep} ranks with expert parallelism"]
    if request.num_experts % ranks:
        notes.append(f"{request.num_experts} experts on {ranks} GPUs: the fullest hold {most}, the others one less")
    if layout.tp > 1:
        cut = ceil_div(request.num_experts, layout.ep)
        bytes_there = "the same bytes" if most * layout.tp == cut else "up to an expert more"
        notes.append(
            f"inside an expert vLLM does not use tp: a GPU holds {most} whole experts, "
            f"where the plan cuts {cut} into {layout.tp}: {bytes_there}, other messages"
        )
    if layout.pp > 1:
        notes.append("vLLM lays pipeline stages inside a data-parallel rank, where the plan lays them outermost")
    return notes


def _images(request: LaunchRequest, notes: list[str]) -> str | None:
    """As many images as were planned, none included; nothing for a model without vision."""
    if request.graph.model.vision is None:
        return None
    if request.plan.deployment.num_tiles and not request.images:
        refuse(TABLE.engine, "it limits images, and tiles were planned", "give --images instead of --tiles")
    if not request.images:
        notes.append("no images were planned, so none are allowed: --images changes it")
    return json.dumps({"image": request.images})
