"""A tokenizer file is read or refused, and what it makes of a text is bounded; panics of the library are no end."""

import base64
import json
import os
import time
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given

from l4spec.errors import UserError
from l4spec.runtime.tokenizer import open_tokenizer
from tests.hostile.draws import RANDOMS, draws, size

pytest.importorskip("tokenizers")
TEXT = "The quick brown fox – 1,000 times.\n"


def good() -> dict[str, Any]:
    """A small tokenizer of words and their letters."""
    letters = {chr(code): code - 32 for code in range(32, 127)}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 200, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "_"}]},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "pair": [],
                           "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                           "special_tokens": {}},
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": None, "unk_token": " ", "fuse_unk": False, "byte_fallback": False,
                  "vocab": letters, "merges": []},
    }  # fmt: skip


ODD: tuple[Any, ...] = (None, True, -1, 0, 2**31, 2**64, 1e308, "", "x" * 1000, "(", "(a|a)*$", [], {}, [[]], "\ud800")


def bomb(random: Random) -> dict[str, Any]:
    """Steps that make much of little."""
    content = random.choice(["aa", "a" * size(random, 20_000), "\0" * 50])
    pattern = random.choice([{"String": "a"}, {"String": ""}, {"Regex": ""}, {"Regex": "a"}, {"Regex": "(a+)+$"}])
    step = random.choice(
        [
            {"type": "Replace", "pattern": pattern, "content": content},
            {"type": "Prepend", "prepend": content},
            {"type": "Metaspace", "replacement": content, "prepend_scheme": "always"},
        ]
    )
    steps = [step] * size(random, 200)
    if random.random() < 0.3:
        for _ in range(size(random, 60)):
            steps = [{"type": "Sequence", "normalizers": steps}]
    data = good()
    data[random.choice(["normalizer", "pre_tokenizer", "decoder"])] = {
        "type": "Sequence", "normalizers": steps, "pretokenizers": steps, "decoders": steps,
    }  # fmt: skip
    return data


def odd(random: Random) -> dict[str, Any]:
    """One value, anywhere, replaced by another."""
    data = good()
    holder: Any = data
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return data
        key = random.choice(keys)
        inner = holder[key]
        if not isinstance(inner, dict | list) or random.random() < 0.3:
            holder[key] = random.choice(ODD)
            return data
        holder = inner


def written(random: Random, folder: Path) -> Path:
    """A tokenizer file of some kind."""
    path = folder / random.choice(["tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer.model"])
    path.unlink(missing_ok=True)
    match random.choice(["bomb", "odd", "odd", "bytes", "pipe", "ranks", "deep"]):
        case "bomb":
            path.write_text(json.dumps(bomb(random)))
        case "odd":
            path.write_text(json.dumps(odd(random)))
        case "bytes":
            raw = bytearray(json.dumps(good()).encode())
            for _ in range(size(random, 20)):
                raw[random.randrange(len(raw))] = random.randrange(256)
            path.write_bytes(raw)
        case "pipe":
            os.mkfifo(path)
        case "deep":
            path.write_text("[" * size(random, 100_000))
        case _:
            lines = [base64.b64encode(bytes([i % 256]) * (1 + i // 256)) + b" %d" % i for i in range(300)]
            at = random.randrange(len(lines))
            lines[at] = random.choice(
                [b"", b"x", lines[at - 1], b"AA== -1", b"AA== " + b"9" * 400, random.randbytes(20)]
            )
            path.write_bytes(b"\n".join(lines))
    return path


@draws(300)
@given(RANDOMS)
def test_a_hostile_tokenizer_is_refused_or_stays_small(folder: Path, random: Random) -> None:
    path = written(random, folder)
    began = time.process_time()
    tracemalloc.start()
    refusal = refused(path, TEXT * size(random, 30))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refusal is None or str(refusal)
    assert peak < 100_000_000
    assert time.process_time() - began < 10


def refused(path: Path, text: str) -> UserError | None:
    """Why a file or a text is refused; None where the text became tokens, not too many."""
    try:
        tokenizer = open_tokenizer(path)
        ids = tokenizer.encode_prompt(text)
        tokenizer.decode([*ids[:1000], 0, 10**6])
    except UserError as error:
        return error
    assert len(ids) < 64 * len(text) + 2000
    return None


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/", "no such file"])
def test_what_is_no_file_is_refused_at_once(name: str) -> None:
    with pytest.raises(UserError):
        open_tokenizer(name)
