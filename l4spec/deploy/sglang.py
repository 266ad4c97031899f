"""A plan as `sglang.launch_server`.

SGLang's --tp-size counts all ranks of a pipeline stage; --attn-dp-size divides them into data-parallel groups for
attention and --ep-size into expert-parallel ones, with tensor parallelism inside each. That is the mesh of the plan:
tp x ep ranks with attention repeated over ep, and experts cut by ep and inside by tp.
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
    refuse,
    servers,
)
from planners.catalog.engine_formats import SGLANG_FORMATS

PORT = 30000
INIT_PORT = 20000
TABLE = FlagTable(
    engine="SGLang",
    version="0.5.23",
    source="sglang/srt/arg_groups/fields/*.py of the wheel",
    flags={
        "--model-path": "checkpoint",
        "--tp-size": "tp x ep: all ranks of a stage",
        "--pp-size": "pp",
        "--dp-size": "dp on one host: copies of the model",
        "--attn-dp-size": "ep: attention repeated, sequences divided",
        "--ep-size": "ep",
        "--dist-init-addr": "the first host",
        "--nnodes": "hosts of a server",
        "--node-rank": "this host",
        "--host": "address that answers requests",
        "--port": "HTTP port",
        "--dtype": "format of unquantized weights",
        "--quantization": "scheme",
        "--kv-cache-dtype": "format of the cache",
        "--context-length": "context",
        "--max-running-requests": "sequences of a server",
        "--chunked-prefill-size": "prefill chunk, of all attention groups together",
        "--mem-fraction-static": "memory fraction",
        "--enable-multimodal": "images at all",
        "--limit-mm-data-per-request": "images of a request",
    },
)
KV_DTYPES = {"bf16": "bfloat16", "fp8": "fp8_e4m3"}


def emit_sglang(request: LaunchRequest) -> Emission:
    """The commands of every host. Raises UserError for what SGLang cannot express."""
    layout, asked = request.plan.layout, request.plan.deployment
    if asked.mode != "serve":
        refuse(TABLE.engine, "it serves, and the plan is of training", "leave --mode train out, or --emit torchtitan")
    model, notes = checkpoint(request, SGLANG_FORMATS.online)
    copies = 1 if request.cluster.num_hosts == 1 else layout.dp
    flags, more = _flags(request, model, own_copies=copies == 1)
    server_list = servers(request, TABLE.engine, copies, PORT)
    notes += more
    if copies > 1:
        notes += (f"dp{layout.dp} is that many servers of their own: put SGLang's router in front of them",)
    if len(server_list[0].hosts) > 1:
        notes += (f"{HEAD}, host-1, … stand for the addresses of the hosts, in the order of the mesh's ranks",)
    return Emission(TABLE, tuple(command for server in server_list for command in _commands(server, flags)), notes)


def _flags(request: LaunchRequest, model: str, *, own_copies: bool) -> tuple[dict[str, object], tuple[str, ...]]:
    layout, asked = request.plan.layout, request.plan.deployment
    notes = [*request.load_notes, *_layout_notes(request)]
    dtype, quantization = weight_flags(SGLANG_FORMATS, TABLE.engine, request, notes)
    if asked.kv_dtype not in KV_DTYPES:
        refuse(TABLE.engine, f"it keeps no cache in {asked.kv_dtype}", f"--kv-dtype {', '.join(KV_DTYPES)}")
    images = _images(request, notes)
    flags: dict[str, object] = {
        "--model-path": model,
        "--tp-size": layout.tp * layout.ep,
        "--pp-size": layout.pp if layout.pp > 1 else None,
        "--dp-size": layout.dp if own_copies and layout.dp > 1 else None,
        "--attn-dp-size": layout.ep if layout.ep > 1 else None,
        "--ep-size": layout.ep if layout.ep > 1 else None,
        "--dtype": dtype,
        "--quantization": quantization,
        "--kv-cache-dtype": KV_DTYPES[asked.kv_dtype],
        "--context-length": asked.max_context or asked.context,
        "--max-running-requests": None if request.sequences is None else request.sequences * layout.ep,
        "--chunked-prefill-size": asked.prefill_chunk * layout.ep,
        "--mem-fraction-static": request.memory_fraction,
        "--enable-multimodal": images is not None,
        "--limit-mm-data-per-request": images,
    }
    if asked.engine != "sglang-hybrid":
        notes.append(f"planned by the cache policy of {asked.engine}; SGLang keeps its own: --engine sglang-hybrid")
    return flags, tuple(notes)


def _commands(server: LaunchedServer, flags: dict[str, object]) -> tuple[Command, ...]:
    start = ("python", "-m", "sglang.launch_server")
    if len(server.hosts) == 1:
        server_flags = flags | {"--host": "0.0.0.0", "--port": server.port}
        return (Command(server.hosts[0], (*start, *TABLE.written(server_flags)), server.env),)
    commands = []
    for rank, host in enumerate(server.hosts):
        server_flags = flags | {
            "--dist-init-addr": f"{server.hosts[0]}:{INIT_PORT}",
            "--nnodes": len(server.hosts),
            "--node-rank": rank,
            "--host": None if rank else "0.0.0.0",
            "--port": None if rank else server.port,
        }
        commands.append(Command(host, (*start, *TABLE.written(server_flags)), server.env))
    return tuple(commands)


def _layout_notes(request: LaunchRequest) -> list[str]:
    layout = request.plan.layout
    notes = []
    if request.num_experts % layout.ep:
        reason = f"its ranks hold as many experts each, and ep {layout.ep} does not divide {request.num_experts}"
        refuse(TABLE.engine, reason, "choose another --ep")
    if layout.ep > 1:
        notes.append(
            f"SGLang cuts dense and shared feed-forward layers and the vocabulary over all {layout.tp * layout.ep} "
            f"ranks of a stage, where the plan repeats them over ep: less memory a GPU, one more gather"
        )
    if layout.pp > 1 and request.graph.num_layers % layout.pp:
        notes.append(f"{request.graph.num_layers} layers do not divide by pp {layout.pp}; SGLang may cut elsewhere")
    return notes


def _images(request: LaunchRequest, notes: list[str]) -> str | None:
    """The limit of images per request; None if none were planned, and then images are not enabled."""
    if request.plan.deployment.num_tiles and not request.images:
        refuse(TABLE.engine, "it limits images, and tiles were planned", "give --images instead of --tiles")
    if request.graph.model.vision is not None and not request.images:
        notes.append("no images were planned, so they are not enabled: --images changes it")
    return json.dumps({"image": request.images}) if request.images else None
