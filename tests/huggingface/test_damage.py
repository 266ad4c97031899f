"""A damaged config is imported or refused; nothing else ever happens."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.errors import SpecError
from l4spec.huggingface import export_config, import_config
from tests.huggingface.releases import RELEASES

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


def places(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every field of a config and of the mappings in it."""
    for key, value in config.items():
        yield config, key
        if isinstance(value, dict):
            yield from places(value)


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_config_is_refused_in_words_or_comes_back(data: st.DataObject) -> None:
    config = copy.deepcopy(RELEASES[data.draw(st.sampled_from(sorted(RELEASES)))])
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(list(places(config))))
        if data.draw(st.booleans()):
            holder[key] = data.draw(values)
        else:
            del holder[key]
        if not config:
            return
    try:
        imported = import_config(config)
    except SpecError:
        return
    assert export_config(imported.spec)["model_type"] == config["model_type"]
