"""A plan as `trtllm-serve`.

TensorRT-LLM's --tp_size counts all ranks of a pipeline stage and is expert-parallel times tensor-parallel ranks of the
experts; attention is either tensor parallel over all of them or, with --enable_attention_dp, data parallel over all. So
it expresses ep only with tp 1.
"""

from l4spec.deploy.checkpoints import checkpoint
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
from planners.catalog.engine_formats import TENSORRT_LLM_FORMATS

PORT = 8000
TABLE = FlagTable(
    engine="TensorRT-LLM",
    version="1.3",
    source="tensorrt_llm/commands (trtllm-serve) and nvidia.github.io/TensorRT-LLM 1.3.0rc11, trtllm-serve",
    flags={
        "--tp_size": "tp, or ep with --enable_attention_dp: all ranks of a stage",
        "--pp_size": "pp",
        "--ep_size": "ep",
        "--enable_attention_dp": "attention repeated, sequences divided",
        "--gpus_per_node": "GPUs of a host",
        "--max_seq_len": "context",
        "--max_batch_size": "sequences of a rank",
        "--max_num_tokens": "prefill chunk",
        "--enable_chunked_prefill": "prompts longer than a chunk",
        "--kv_cache_dtype": "format of the cache",
        "--free_gpu_memory_fraction": "memory fraction, of what is free after loading",
        "--host": "address that answers requests",
        "--port": "HTTP port",
    },
)
KV_DTYPES = {"bf16": "auto", "fp8": "fp8"}


def emit_tensorrt_llm(request: LaunchRequest) -> Emission:
    """The commands of every host. Raises UserError for what TensorRT-LLM cannot express."""
    asked = request.plan.deployment
    if asked.mode != "serve":
        refuse(TABLE.engine, "it serves, and the plan is of training", "leave --mode train out, or --emit torchtitan")
    model, notes = checkpoint(request)
    argv = ("trtllm-serve", model, *TABLE.written(_flags(request)))
    server_list = servers(request, TABLE.engine, request.plan.layout.dp, PORT)
    notes += (*_notes(request), *dp_note(request))
    if len(server_list[0].hosts) > 1:
        notes += (f"{HEAD}, host-1, … stand for the addresses of the hosts; mpirun starts a process a GPU on them",)
    commands = tuple(_command(server, argv, request.cluster.gpus_per_host) for server in server_list)
    return Emission(TABLE, commands, notes)


def _flags(request: LaunchRequest) -> dict[str, object]:
    layout, asked = request.plan.layout, request.plan.deployment
    if layout.ep > 1 and layout.tp > 1:
        reason = (
            f"attention is data parallel over all ranks or none, not over ep {layout.ep} with tp {layout.tp} inside"
        )
        refuse(TABLE.engine, reason, "choose --tp 1 or --ep 1")
    if asked.kv_dtype not in KV_DTYPES:
        refuse(TABLE.engine, f"it keeps no cache in {asked.kv_dtype}", f"--kv-dtype {', '.join(KV_DTYPES)}")
    if asked.quantization == "fp16" and asked.kv_dtype == "bf16":
        refuse(TABLE.engine, "a cache is kept in the model's format or in fp8, not bf16 beside fp16", "--kv-dtype fp8")
    if asked.quantization not in TENSORRT_LLM_FORMATS and not asked.as_published:
        refuse(
            TABLE.engine,
            f"it reads no weights packed as {asked.quantization}",
            f"it reads {', '.join(TENSORRT_LLM_FORMATS)}",
        )
    return {
        "--tp_size": layout.tp * layout.ep,
        "--pp_size": layout.pp if layout.pp > 1 else None,
        "--ep_size": layout.ep if layout.ep > 1 else None,
        "--enable_attention_dp": layout.ep > 1,
        "--max_seq_len": asked.max_context or asked.context,
        "--max_batch_size": request.sequences,
        "--max_num_tokens": max(asked.prefill_chunk, request.sequences or 0),
        "--enable_chunked_prefill": asked.context > asked.prefill_chunk,
        "--kv_cache_dtype": KV_DTYPES[asked.kv_dtype],
        "--free_gpu_memory_fraction": request.memory_fraction,
    }


def _command(server: LaunchedServer, argv: tuple[str, ...], room: int) -> Command:
    """On several hosts mpirun, typed on the first one, starts the server and its workers."""
    argv += TABLE.written({"--host": "0.0.0.0", "--port": server.port})
    if len(server.hosts) == 1:
        return Command(server.hosts[0], argv, server.env)
    hosts = ",".join(f"{host}:{room}" for host in server.hosts)
    start = ("mpirun", "-n", str(len(server.hosts) * room), "-H", hosts, "trtllm-llmapi-launch")
    return Command(server.hosts[0], (*start, *argv, *TABLE.written({"--gpus_per_node": room})), server.env)


def _notes(request: LaunchRequest) -> tuple[str, ...]:
    asked, notes = request.plan.deployment, [*request.load_notes]
    if asked.as_published and asked.quantization not in ("bf16", "fp16"):
        notes.append(f"the published checkpoint is stored as planned ({asked.quantization}), and its config says how")
    elif needed := TENSORRT_LLM_FORMATS[asked.quantization]:
        notes.append(f"--model has to name {needed}: no flag packs weights")
    if asked.kv_dtype == "bf16":
        notes.append("a cache of the model's own format is --kv_cache_dtype auto")
    if request.graph.model.vision is not None:
        notes.append("it has no limit of images per request")
    if asked.engine != "tensorrt-llm":
        notes.append(f"planned by the cache policy of {asked.engine}; it keeps its own: --engine tensorrt-llm")
    return tuple(notes)
