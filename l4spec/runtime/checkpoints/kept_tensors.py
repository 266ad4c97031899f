"""One safetensors file of recomputable tensors: complete or absent, and refused if it contradicts its metadata.

Its metadata identifies the source of the tensors, and has the digest of their bytes.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from l4spec.errors import SpecError, UserError, os_reason
from l4spec.runtime.checkpoints.digests import new_digest
from l4spec.spec.files import require_regular

_DIGEST = "digest"
_HINT = "remove the file: it is made again"


def digest_of_tensors(tensors: Mapping[str, Tensor], *words: str) -> str:
    """32 hexadecimal digits that differ where names, shapes, formats, values or words do."""
    hasher = new_digest()
    for word in words:
        hasher.update(f"{len(word)}:{word}".encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hasher.update(tensor.flatten().view(torch.uint8).numpy())
    digest: str = hasher.hexdigest()
    return digest


def write_kept(path: Path, tensors: Mapping[str, Tensor], about: str) -> None:
    """Write a file that gets its name when it is complete. Raises UserError where it cannot be written."""
    ours = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(ours, {"about": about, _DIGEST: digest_of_tensors(ours)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".unfinished.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {os_reason(error)}") from None


def read_kept(path: Path, about: str) -> dict[str, Tensor]:
    """The tensors of a file. Raises UserError for one that is damaged, or of something else than `about`."""
    try:
        require_regular(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except SpecError as error:
        raise UserError(str(error)) from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0][:200]}", hint=_HINT) from None
    if metadata.get("about") != about:
        raise UserError(f"{path} is of another teacher, other tokens or other settings than its name says", hint=_HINT)
    if metadata.get(_DIGEST) != digest_of_tensors(tensors):
        raise UserError(f"{path} is damaged: its values are not those that were written", hint=_HINT)
    return tensors
