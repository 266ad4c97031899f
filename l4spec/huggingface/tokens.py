"""Token ids that a config carries along and that a running model needs."""

from collections.abc import Mapping
from typing import Any

_NAMES = ("image_token_id", "image_token_index", "media_placeholder_token_id")


def image_token_of(config: Mapping[str, Any]) -> int | None:
    """The token whose places image vectors take, by the config or the fields carried from it; None if it names none."""
    values = (config.get(name) for name in _NAMES)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)
