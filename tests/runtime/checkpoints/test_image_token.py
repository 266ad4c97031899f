"""The image token of a checkpoint's config is the one whose places image vectors take."""

import json
from pathlib import Path

import pytest

import l4spec
from tests.runtime.checkpoints.models import blank_model, small_graph, small_model


@pytest.mark.parametrize("name", ["image_token_index", "image_token_id"])
def test_the_image_token_of_a_checkpoint_is_the_models(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    l4spec.save_checkpoint(small_model("llama4"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: 102}))
    opened = l4spec.open_model(folder, verify=False)
    assert opened.image_token_id == 102
    assert l4spec.build(l4spec.compile(l4spec.load(folder)), device="meta").image_token_id == 102
    loaded = blank_model("llama4")
    l4spec.load_checkpoint(loaded, folder, verify=False)
    assert loaded.image_token_id == 102


def test_a_model_whose_config_names_no_image_token_keeps_its_own() -> None:
    assert l4spec.build(small_graph("llama4"), device="meta").image_token_id is None
    scout = l4spec.build(l4spec.compile(l4spec.load("scout", ["text.hidden_size=5120"])), device="meta")
    assert scout.image_token_id == 200092
