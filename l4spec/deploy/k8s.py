"""A plan as Kubernetes objects that run vLLM.

A server on one host is a pod of a Deployment; one over several hosts is a group of a LeaderWorkerSet, whose controller
gives each pod its index and the leader's address (docs.vllm.ai, deployment/frameworks/lws).
"""

import re
from typing import Any

from l4spec.deploy.checkpoints import checkpoint
from l4spec.deploy.launch import FlagTable, LaunchedServer, LaunchRequest, heading, refuse, servers
from l4spec.deploy.vllm import IMAGE, MASTER_PORT, PORT, arguments, cache_env
from l4spec.deploy.vllm import TABLE as VLLM
from planners.catalog.engine_formats import VLLM_FORMATS

TABLE = FlagTable(
    engine="Kubernetes",
    version="apps/v1, leaderworkerset.x-k8s.io/v1",
    source="kubernetes.io Deployment, Service; docs.vllm.ai deployment/frameworks/lws",
    flags={
        "Deployment": "servers on one host",
        "LeaderWorkerSet": "servers over several hosts",
        "Service": "their port",
    },
)
_DEVICES = {"AMD": ("amd.com/gpu", IMAGE.replace("vllm-openai", "vllm-openai-rocm"))}
"""By vendor the resource of its device plugin, and the image of vLLM; NVIDIA's is the default."""
_SHARED_MEMORY = {"name": "shm", "emptyDir": {"medium": "Memory"}}
_NAME_LENGTH = 50


def emit_k8s(request: LaunchRequest) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The objects, and notes on them. Raises UserError for settings that they cannot express."""
    server_list = servers(request, "Kubernetes", request.plan.layout.dp, PORT)
    model, notes = checkpoint(request, VLLM_FORMATS.online)
    words, more = arguments(request, model)
    argv = tuple(map(_literal, words))
    name = _name(request.graph.name)
    notes += (
        *more,
        f"the pods run {_device(request)[1]}; its flags are those of vLLM {VLLM.version}",
        "HF_TOKEN is read from the secret hf-token, if there is one",
    )
    if any(server.devices for server in server_list):
        notes += ("the device plugin gives each pod GPUs of its own, several pods to a host",)
    workload = (
        _group(name, server_list, argv, request)
        if len(server_list[0].hosts) > 1
        else _deployment(name, server_list, argv, request)
    )
    return (workload, _service(name, leaders=len(server_list[0].hosts) > 1)), notes


def to_yaml(objects: tuple[dict[str, Any], ...], notes: tuple[str, ...], request: LaunchRequest) -> str:
    """The objects as YAML documents below comments with the plan and the notes."""
    import yaml

    return "\n".join(heading(TABLE, request, notes)) + "\n" + yaml.safe_dump_all(objects, sort_keys=False, width=120)


def _literal(word: str) -> str:
    """A word of a command, escaped: Kubernetes replaces `$(NAME)` by variables, and `$$` by `$`."""
    return word.replace("$", "$$")


def _name(model: str) -> str:
    """A DNS label from the model's name: letters, digits and hyphens, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:_NAME_LENGTH].strip("-")
    if not name:
        refuse("Kubernetes", f"no letter of {model!r} is allowed in the name of an object")
    return name if name[0].isalpha() else f"m-{name}"


def _device(request: LaunchRequest) -> tuple[str, str]:
    """The name of a GPU as a resource, and the image that runs on it."""
    return _DEVICES.get(request.hardware.description.partition(" ")[0], ("nvidia.com/gpu", IMAGE))


def _container(name: str, argv: tuple[str, ...], num_gpus: int, request: LaunchRequest) -> dict[str, Any]:
    token = {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}
    env = [{"name": key, "value": value} for key, value in cache_env(request)]
    resource, image = _device(request)
    return {
        "name": name,
        "image": image,
        "command": list(argv),
        "env": [*env, {"name": "HF_TOKEN", "valueFrom": token}],
        "resources": {"limits": {resource: num_gpus}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _answering(container: dict[str, Any]) -> dict[str, Any]:
    """The same container where the API server runs."""
    probe = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10, "failureThreshold": 360}
    return {**container, "ports": [{"containerPort": PORT}], "startupProbe": probe}


def _deployment(
    name: str, server_list: tuple[LaunchedServer, ...], argv: tuple[str, ...], request: LaunchRequest
) -> dict[str, Any]:
    size = request.cluster.num_gpus // len(server_list)
    container = _answering(_container("vllm", (*argv, *VLLM.written({"--port": PORT})), size, request))
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": len(server_list),
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container], "volumes": [_SHARED_MEMORY]},
            },
        },
    }


def _group(
    name: str, server_list: tuple[LaunchedServer, ...], argv: tuple[str, ...], request: LaunchRequest
) -> dict[str, Any]:
    size, room = len(server_list[0].hosts), request.cluster.gpus_per_host
    together: dict[str, object] = {
        "--nnodes": size,
        "--node-rank": "$(LWS_WORKER_INDEX)",
        "--master-addr": "$(LWS_LEADER_ADDRESS)",
        "--master-port": MASTER_PORT,
    }
    leader = _answering(_container("vllm-leader", (*argv, *VLLM.written({**together, "--port": PORT})), room, request))
    worker = _container("vllm-worker", (*argv, *VLLM.written({**together, "--headless": True})), room, request)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": len(server_list),
            "leaderWorkerTemplate": {
                "size": size,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": {"app": name, "role": "leader"}},
                    "spec": {"containers": [leader], "volumes": [_SHARED_MEMORY]},
                },
                "workerTemplate": {"spec": {"containers": [worker], "volumes": [_SHARED_MEMORY]}},
            },
        },
    }


def _service(name: str, *, leaders: bool) -> dict[str, Any]:
    selector = {"app": name, "role": "leader"} if leaders else {"app": name}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": PORT, "targetPort": PORT}]},
    }
