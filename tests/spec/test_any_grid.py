"""Towers for images of any sides: what their fields rule out together, and their miniatures."""

from typing import Any

import pytest

import l4spec
from l4spec.errors import SpecError
from l4spec.spec.scale import scale_spec

SPEC = "compare/qwen3-vl-4b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vision.tower.learned_positions=false"], "there are no learned positions to interpolate"),
        (["vision.tower.class_token=last"], "a class token has no place in a grid"),
        (["vision.tower.position_grid=5000"], "learned positions are too many"),
        (["vision.deepstack.blocks=[11,5]"], "expected ascending blocks, found"),
        (["vision.deepstack.blocks=[5,24]"], "the tower has blocks 0 to 23, found 24"),
        (["vision.deepstack.adapter.spatial_merge_size=4"], "must fold as the adapter does"),
        (["vision.deepstack.adapter.output_size=64"], "must be as wide as the adapter's"),
        (["text.layers=[{attention: attention, ffn: ffn}]"], "3 outputs for the 1 blocks of the text are too many"),
        (["vision.image_size=752"], "the grid of 47 patches does not fold by 2 \\(spatial_merge_size\\)"),
        (["text.parts.attention.head_dim=64"], "position.sections have 64 pairs, and 32 of a head turn"),
        (["text.parts.attention.position.sections.row=40"], "do not fit in turns into 84"),
    ],
)
def test_fields_that_rule_each_other_out_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        l4spec.load(SPEC, overrides)


@pytest.mark.parametrize("options", [{"scale": "tiny"}, {"num_layers": 2}, {"scale": "tiny", "num_layers": 1}])
def test_a_miniature_has_no_more_outputs_of_blocks_than_either_stack_has_blocks(options: dict[str, Any]) -> None:
    small = scale_spec(l4spec.load(SPEC), **options)
    assert small.vision is not None
    assert small.vision.deepstack is not None
    blocks = small.vision.deepstack.blocks
    assert len(blocks) == min(3, small.text.num_layers, small.vision.tower.num_layers)
    assert blocks[-1] < small.vision.tower.num_layers
    assert l4spec.compile(small).by_id[f"text.layers.{len(blocks) - 1}.deepstack"].layer == len(blocks) - 1


def test_image_vectors_enter_the_embedding_and_the_first_blocks() -> None:
    graph = l4spec.compile(l4spec.load(SPEC))
    takers = [edge.target for edge in graph.edges if edge.source == "vision.join"]
    assert takers == ["text.merge", *(f"text.layers.{index}.deepstack" for index in range(3))]
    sources = [graph.inputs_of(f"vision.deepstack.layers.{index}.adapter")[0] for index in range(3)]
    assert sources == [f"vision.layers.{block}.ffn_add" for block in (5, 11, 17)]
