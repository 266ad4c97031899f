"""Loading: headers first, and only when all of them are right, tensor by tensor from mapped files into the model."""

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from l4spec.errors import Place, Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface.tokens import image_token_of
from l4spec.progress import Progress
from l4spec.runtime.checkpoints.digests import Unchanged, require_undamaged
from l4spec.runtime.checkpoints.headers import TensorHeader, read_headers, read_json
from l4spec.runtime.checkpoints.layout import StoredTensor
from l4spec.runtime.checkpoints.mapped import MappedFiles, ReadByName
from l4spec.runtime.checkpoints.match import Key, hub_layout_of, require_match
from l4spec.runtime.checkpoints.meta_names import meta_layout
from l4spec.runtime.checkpoints.packed_load import fill, matched
from l4spec.runtime.checkpoints.regions import part, stored_part
from l4spec.runtime.module_inventory import module_tensors

if TYPE_CHECKING:
    from l4spec.runtime.model import Model

Read = Callable[[StoredTensor], Tensor]
_REFUSED = re.compile(r"GLOBAL ([\w.]{1,100})")
"""Pattern of the call that torch refused in a pickle; the rest of its message advises to trust the file."""
_SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


def load_checkpoint(
    model: "Model", directory: Path | str, *, verify: bool = True, progress: Progress | None = None
) -> None:
    """Load `model` from a checkpoint directory: safetensors of Hugging Face or of ours, or Meta's `consolidated.*.pth`.

    The layout is found by the names. Values are cast to the model's number format. Files are memory-mapped and copied
    tensor by tensor, so that the model is in memory only once. Every header is checked before anything is copied: on
    UserError, which names every missing, extra, misshapen, truncated or packed tensor, the model is unchanged. With
    `verify`, files are first compared with the digests that `save_checkpoint` wrote. A quantized model loads only
    checkpoints that `save_checkpoint` wrote of the same scheme, without conversion. A file that changes while it is
    read is reported afterwards.
    """
    targets = module_tensors(model)
    if any(target.is_meta for target in targets.values()):
        raise UserError("the model is on the meta device and cannot hold weights", hint="build it on cpu or cuda")
    folder = checked_folder(directory)
    before = Unchanged.of(folder)
    check = partial(require_undamaged, folder) if verify else _nothing
    with ExitStack() as files:
        if model.quantization is not None:
            _load_packed(model, folder, files, check, progress)
        else:
            tensors, read = open_stored(model.graph, folder, files)
            check()
            copy_stored(tensors, read, targets, progress)
    before.require()
    if model.graph.model.vision is not None and (named := image_token_of(_config(Path(directory)))) is not None:
        model.image_token_id = named


def _load_packed(
    model: "Model", directory: Path, files: ExitStack, check: Callable[[], None], progress: Progress | None
) -> None:
    """Fill a quantized model from a checkpoint of the same scheme."""
    headers = read_headers(directory)
    layout = hub_layout_of(model.graph, frozenset(), model_type_of(directory))
    packed_targets = matched(model, layout, headers)
    opened = mapped_files(headers, files)
    check()
    targets = module_tensors(model)
    fill(
        model,
        packed_targets,
        lambda name: opened.tensor(headers[name].file, name),
        lambda stored, source: copy_stored([stored], lambda _: source, targets, None),
    )
    if progress:
        progress(1, 1)


def open_stored(graph: LayerGraph, directory: Path | str, files: ExitStack) -> tuple[tuple[StoredTensor, ...], Read]:
    """The tensors of a model in a checkpoint directory, checked by every header, and a function that maps one of them.

    Files stay mapped while `files` is open; only the parts that are read are loaded into memory, and they are released
    again (`MappedFiles`). Raises UserError as `load_checkpoint` does.
    """
    directory = checked_folder(directory)
    if any(directory.glob("*.pth")):
        return _open_meta(graph, directory, files)
    return _open_safetensors(graph, directory, files)


def checked_folder(directory: Path | str) -> Path:
    """The path of an existing folder. Raises UserError."""
    path = Path(directory)
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):
        is_folder = False
    if not is_folder:
        raise UserError(f"{str(path)[:200]!r} is no checkpoint folder")
    return path


def _open_safetensors(graph: LayerGraph, directory: Path, files: ExitStack) -> tuple[tuple[StoredTensor, ...], Read]:
    headers = read_headers(directory)
    layout = hub_layout_of(graph, frozenset(headers), model_type_of(directory))
    tensors = require_match(layout, {(0, name): header for name, header in headers.items()})
    opened = mapped_files(headers, files)
    return tensors, lambda stored: opened.tensor(headers[stored.name].file, stored.name)


def mapped_files(headers: Mapping[str, TensorHeader], files: ExitStack) -> MappedFiles:
    """Every file of these tensors, each opened once, so that errors occur before the first copy."""
    opened = MappedFiles(_mapped)
    files.callback(opened.close)
    for path in dict.fromkeys(header.file for header in headers.values()):
        opened.open(path)
    return opened


def _mapped(path: Path) -> ReadByName:
    try:
        get: ReadByName = safe_open(path, framework="pt", device="cpu").get_tensor
    except (SafetensorError, OSError) as error:
        raise UserError([Problem(f"cannot be read: {error}", place=Place(path.name))]) from None
    return get


def _config(directory: Path) -> Mapping[str, Any]:
    """Contents of config.json; empty if there is none."""
    config = directory / "config.json"
    data = read_json(config) if config.is_file() else None
    return data if isinstance(data, dict) else {}


def model_type_of(directory: Path) -> str | None:
    """`model_type` of config.json; None if it has none."""
    model_type = _config(directory).get("model_type")
    return model_type if isinstance(model_type, str) else None


def _open_meta(graph: LayerGraph, directory: Path, files: ExitStack) -> tuple[tuple[StoredTensor, ...], Read]:
    paths = _rank_files(directory)
    layout = meta_layout(graph, len(paths))
    if layout is None:
        raise UserError(f"{directory} is a checkpoint of Meta's Llama 4, which this model is not")
    headers: dict[Key, TensorHeader] = {}
    for rank, path in enumerate(paths):
        for name, tensor in _unpickled(path).items():
            dtype = _SAFETENSORS_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
            headers[rank, name] = TensorHeader(tuple(tensor.shape), dtype, path)
    opened = MappedFiles(lambda path: _unpickled(path).__getitem__)
    files.callback(opened.close)
    return require_match(layout, headers), lambda stored: opened.tensor(paths[stored.rank], stored.name)


def _rank_files(directory: Path) -> list[Path]:
    """`consolidated.pth`, or `consolidated.00.pth`, `.01` … without a gap."""
    paths = sorted(directory.glob("*.pth"))
    expected = [directory / f"consolidated.{rank:02d}.pth" for rank in range(len(paths))]
    if paths not in (expected, [directory / "consolidated.pth"]):
        names = ", ".join(path.name for path in paths)
        raise UserError(f"expected consolidated.00.pth, consolidated.01.pth … without a gap, found {names}")
    return paths


def _unpickled(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a torch file, mapped; nothing but tensors, containers and bytes is ever unpickled."""
    place = Place(path.name)
    _require_stored_plainly(path)
    try:
        with torch.serialization.safe_globals(_UNREAD):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        unsafe = _REFUSED.search(str(error))
        reason = f"it names {unsafe[1]}, which is refused" if unsafe else "it is truncated or another kind of file"
        raise UserError([Problem(f"is no torch file of weights alone: {reason}", place=place)]) from None
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise UserError([Problem("expected a mapping from names to tensors", place=place)])
    tensors = {name: value for name, value in data.items() if isinstance(value, Tensor)}
    if problems := [Problem(why, name[:200], place) for name, value in tensors.items() if (why := _not_plain(value))]:
        raise UserError(problems)
    return tensors


def _require_stored_plainly(path: Path) -> None:
    """Raise UserError for a file that would unpack to more than it is, or that is none."""
    place = Place(path.name)
    try:
        if not path.is_file():
            raise UserError([Problem("is no file", place=place)])
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise UserError([Problem(f"cannot be read: {error.strerror}", place=place)]) from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        message = "is no torch file of weights alone: it is truncated or another kind of file"
        raise UserError([Problem(message, place=place)]) from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError([Problem("is no torch file of weights alone: it is compressed", place=place)])


def _not_plain(tensor: Tensor) -> str:
    """Error message for a tensor that is not plain, with one value per element on the CPU; empty for a plain one."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"expected a plain tensor, found {'a nested one' if tensor.is_nested else tensor.layout}"
    if tensor.device.type != "cpu" or tensor.is_quantized or type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"expected a plain tensor, found one on {tensor.device} of type {type(tensor).__name__}"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return "expected a value for each place, found fewer that are repeated"
    return ""


class _Unread:
    """Stands for states in Meta's checkpoints that are not read: they would be copied as often as they are named."""

    def __new__(cls, *_: object) -> "_Unread":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


_UNREAD: list[Any] = [(_Unread, "io.BytesIO"), (_Unread, "_io.BytesIO"), (_Unread, "_codecs.encode")]


def _nothing() -> None:
    """Placeholder for the comparison of files with their digests."""


def copy_stored(
    tensors: Iterable[StoredTensor], read: Read, targets: Mapping[str, Tensor], progress: Progress | None
) -> None:
    """Copy stored tensors into those of the model, cast to their number format."""
    tensors = tuple(tensors)
    total, done = sum(stored.numel for stored in tensors), 0
    with torch.no_grad():
        for stored in tensors:
            source = read(stored) if stored.pieces else None
            for piece in stored.pieces:
                assert source is not None
                box = stored_part(source.view(stored.view or stored.shape), piece)
                _copy_slices(part(targets[piece.tensor], piece.region), box)
            done += stored.numel
            if progress:
                progress(done, total)


def _copy_slices(target: Tensor, source: Tensor) -> None:
    """A stack of experts goes one by one: casting or transposing on the way to a device takes a copy."""
    if target.dim() == 3:
        for one, other in zip(target, source, strict=True):
            one.copy_(other)
    else:
        target.copy_(source)
