"""Checkpoints of every Hugging Face family go both ways, and give the same logits in transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import l4spec
from l4spec.huggingface import FAMILIES as KNOWN_FAMILIES
from tests.runtime.checkpoints.models import (
    ALSO_CALLED,
    FAMILIES,
    OTHER_FAMILIES,
    SEEING,
    TURNED,
    assert_same_tensors,
    blank_model,
    save_small,
    small_model,
    tensors_of,
)

pytestmark = pytest.mark.filterwarnings("ignore")
LOGITS_BOUND = 2e-5
"""Of the largest logit: fp32 rounding over a few layers."""


def open_reference(folder: Path) -> Any:
    """The folder's model as transformers reads it; nothing missing, nothing left over."""
    import transformers

    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model, loading_info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(loading_info.values()), loading_info
    return model.eval()


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of all safetensors files of a folder."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
    return tensors


def logits_of(model: Any) -> torch.Tensor:
    """Logits of some tokens."""
    ids = torch.randint(0, 200, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = model(ids)
    logits: torch.Tensor = result if isinstance(result, torch.Tensor) else result.logits
    return logits


def assert_same_logits(left: Any, right: Any) -> None:
    ours, theirs = logits_of(left), logits_of(right)
    assert (ours - theirs).abs().max() <= LOGITS_BOUND * theirs.abs().max()


def test_every_family_that_is_imported_is_tested_here() -> None:
    language_models = {name for name, family in KNOWN_FAMILIES.items() if family.language_model_only}
    assert KNOWN_FAMILIES.keys() == FAMILIES.keys() | OTHER_FAMILIES.keys() | SEEING.keys() | language_models


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_in_transformers_and_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    model = save_small(family, tmp_path / "saved")
    reference = open_reference(tmp_path / "saved")
    assert reference.config.model_type == family
    assert_same_logits(model, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_loads_here_and_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    save_small(family, tmp_path / "first")
    reference = open_reference(tmp_path / "first")
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    reference.save_pretrained(tmp_path / "theirs")
    model = l4spec.open_model(tmp_path / "theirs")
    assert_same_logits(model, reference)
    l4spec.save_checkpoint(model, tmp_path / "ours")
    step, published = ALSO_CALLED.get(family, ("", ""))
    ours, theirs = (
        {name.replace(step, published): tensor for name, tensor in stored_tensors(tmp_path / side).items()}
        for side in ("ours", "theirs")
    )
    if family in TURNED:
        theirs = {name: tensor.mT if ".experts." in name else tensor for name, tensor in theirs.items()}
    assert_same_tensors(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_round_trip_through_many_files_is_exact_to_the_bit(family: str, dtype: str, tmp_path: Path) -> None:
    model = small_model(family, dtype)
    saved = l4spec.save_checkpoint(model, tmp_path / "saved", max_shard_bytes=50_000)
    assert saved.num_files > 1
    assert saved.layout == family
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()
    again = blank_model(family, dtype)
    l4spec.load_checkpoint(again, tmp_path / "saved")
    assert_same_tensors(tensors_of(again), tensors_of(model))


def test_no_file_exceeds_the_limit_but_one_that_holds_a_single_tensor(tmp_path: Path) -> None:
    l4spec.save_checkpoint(small_model("llama4"), tmp_path / "saved", max_shard_bytes=50_000)
    for path in (tmp_path / "saved").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118 - no mapping
        assert sum(sizes) <= 50_000 or len(sizes) == 1


def test_values_are_cast_to_the_models_number_format(tmp_path: Path) -> None:
    model, narrow = save_small("llama", tmp_path / "saved"), blank_model("llama", "bf16")
    l4spec.load_checkpoint(narrow, tmp_path / "saved")
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(model).items()}
    assert_same_tensors(tensors_of(narrow), expected)


def test_the_config_says_the_number_format_that_was_saved(tmp_path: Path) -> None:
    save_small("llama", tmp_path / "saved", "bf16")
    assert l4spec.open_model(tmp_path / "saved").dtype == torch.bfloat16
    assert l4spec.open_model(tmp_path / "saved", dtype="fp32").dtype == torch.float32


def test_saving_tells_how_far_it_is_and_ends_with_everything(tmp_path: Path) -> None:
    progress_calls: list[tuple[int, int]] = []
    saved = l4spec.save_checkpoint(
        small_model("llama"), tmp_path / "s", progress=lambda *pair: progress_calls.append(pair)
    )
    assert progress_calls == sorted(progress_calls)
    assert progress_calls[-1] == (saved.num_bytes, saved.num_bytes)
    loaded: list[tuple[int, int]] = []
    l4spec.load_checkpoint(blank_model("llama"), tmp_path / "s", progress=lambda *pair: loaded.append(pair))
    assert loaded == sorted(loaded)
    assert loaded[-1][0] == loaded[-1][1] > 0
