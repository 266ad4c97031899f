"""Writing a spec as readable YAML: short mappings on one line, and comments on sources."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from l4spec.spec.yaml_scalars import read_plain

WIDTH = 118
_INDENT = "  "


def to_yaml(data: Mapping[str, Any], *, head: Sequence[str] = (), notes: Mapping[str, str] | None = None) -> str:
    """`data` as YAML: `head` as comment lines on top, and `notes` as a comment after the key at their path.

    Paths are dotted (`text.parts.moe`). Reading the result back gives `data`.
    """
    lines = [f"# {_comment(line)}".rstrip() for line in head]
    for key, value in data.items():
        if isinstance(value, dict) and lines:
            lines.append("")
        lines += _entry(key, value, "", key, notes or {})
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    """A text that stays in its line, whatever name a config gave to a field: the rest is written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _entry(key: str, value: Any, indent: str, path: str, notes: Mapping[str, str]) -> list[str]:
    name = _scalar(key)
    short = f"{indent}{name}: {_flow(value)}"
    comment = f"  # {_comment(notes[path])}" if path in notes else ""
    if not _is_long(value) and len(short) <= WIDTH and "\n" not in short:
        return [short + comment]
    if isinstance(value, dict):
        inner = [_entry(k, v, indent + _INDENT, f"{path}.{k}", notes) for k, v in value.items()]
        return [f"{indent}{name}:{comment}", *(line for lines in inner for line in lines)]
    if isinstance(value, list):
        return [f"{indent}{name}:{comment}", *_items(value, indent + _INDENT)]
    return [short + comment]


def _items(items: Sequence[Any], indent: str) -> list[str]:
    lines: list[str] = []
    for item in items:
        short = f"{indent}- {_flow(item)}"
        if not isinstance(item, dict) or (not _is_long(item) and len(short) <= WIDTH):
            lines.append(short)
            continue
        inner = [line for key, value in item.items() for line in _entry(key, value, indent + _INDENT, "", {})]
        lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
    return lines


def _is_long(value: Any) -> bool:
    """True if a value is written on several lines although it would fit on one."""
    if isinstance(value, dict):
        nested = [item for item in value.values() if isinstance(item, dict | list) and item]
        return bool(nested)
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return str(text).removesuffix("\n").removesuffix("\n...")


def _scalar(key: str) -> str:
    return _flow(key)


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, which quotes strings that would be read as other types; this one includes types of `l4spec`."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal values are written out each time: a spec is for people."""
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    plain = value.isascii() and "\n" not in value and (not value or read_plain(value) == value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _text)
