"""Text to ids and back, with small tokenizer files made here."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.errors import UserError
from l4spec.runtime.tiktoken_file import NUM_SPECIAL, cut_for_tiktoken, special_ids
from l4spec.runtime.tokenizer import Message, TextTokenizer, find_tokenizer, open_tokenizer, stop_ids_of

MERGES = [b"th", b"the", b" the", "ü".encode(), b"\n\n", b"us", b"er"]
PUBLISHED_IDS = {
    "<|begin_of_text|>": 200000,
    "<|end_of_text|>": 200001,
    "<|header_start|>": 200005,
    "<|header_end|>": 200006,
    "<|eom|>": 200007,
    "<|eot|>": 200008,
    "<|python_start|>": 200016,
    "<|finetune_right_pad|>": 200018,
    "<|image_start|>": 200080,
    "<|image_end|>": 200081,
    "<|tile_x_separator|>": 200084,
    "<|tile_y_separator|>": 200085,
    "<|image|>": 200090,
    "<|patch|>": 200092,
    "<|vision_reserved_special_token_1047|>": 201133,
    "<|reasoning_thinking_start|>": 201142,
}
"""meta-llama/llama-models models/llama4/tokenizer.py and the published generation configs."""


def write_tiktoken(path: Path) -> Path:
    """A tiktoken file of all bytes and a few merges."""
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    path.write_bytes(b"".join(base64.b64encode(token) + f" {i}\n".encode() for i, token in enumerate(tokens)))
    return path


def write_hugging_face(path: Path) -> Path:
    """A byte-level tokenizer.json of a few words, with Llama 4's special tokens and a begin-of-text token in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = list(special_ids(0))[:20]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    begin = tokenizer.token_to_id(names[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], begin)]
    )
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module", params=["tiktoken", "hugging_face"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "tiktoken":
        return open_tokenizer(write_tiktoken(folder / "tokenizer.model"))
    return open_tokenizer(write_hugging_face(folder / "tokenizer.json"))


def test_llama_4s_special_tokens_have_their_published_ids() -> None:
    ids = special_ids(200_000)
    assert {name: ids[name] for name in PUBLISHED_IDS} == PUBLISHED_IDS
    assert len(ids) == NUM_SPECIAL == len(set(ids.values()))
    assert max(ids.values()) == 202_047


@given(text=st.text(max_size=60))
@settings(max_examples=200)
def test_text_comes_back_whole_at_once_and_in_pieces(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.stream(iter(ids))) == text


def test_a_stream_never_gives_half_a_character(tokenizer: TextTokenizer) -> None:
    text = "a👩‍🔬ü世"
    pieces = list(tokenizer.stream(iter(tokenizer.encode(text))))
    assert len(pieces) > 3
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_bytes_that_are_no_text_do_not_hold_a_stream_up_for_ever(tokenizer: TextTokenizer) -> None:
    broken = tokenizer.encode("é")[:1] * 40 if len(tokenizer.encode("é")) > 1 else tokenizer.encode("ö")[:1] * 40
    pieces = tokenizer.stream(iter(broken))
    assert next(pieces)


def test_the_spelling_of_a_special_token_is_plain_text_unless_asked_for(tokenizer: TextTokenizer) -> None:
    text, end = "a<|eot|>b", tokenizer.id_of("<|eot|>")
    assert end is not None
    assert end not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, special=True).count(end) == 1
    assert tokenizer.decode(tokenizer.encode(text, special=True)) == "ab"
    assert end not in tokenizer.encode_prompt(text)


def test_a_prompt_begins_with_the_begin_of_text_token(tokenizer: TextTokenizer) -> None:
    begin = tokenizer.id_of("<|begin_of_text|>")
    assert tokenizer.encode_prompt("the")[0] == begin
    assert tokenizer.encode_prompt("the")[1:] == tokenizer.encode("the")


def test_a_dialogue_is_in_llama_4s_format(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode_chat([Message("system", "Be brief."), Message("user", "the <|eot|>")])
    expected = (
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBe brief.<|eot|>"
        "<|header_start|>user<|header_end|>\n\nthe "
    )
    assert ids[: len(tokenizer.encode(expected, special=True))] == tokenizer.encode(expected, special=True)
    answer = tokenizer.encode("<|eot|><|header_start|>assistant<|header_end|>\n\n", special=True)
    assert ids[-len(answer) :] == answer
    assert ids.count(answer[0]) == 2


def test_llama_4s_stop_tokens_are_found(tokenizer: TextTokenizer) -> None:
    expected = tuple(tokenizer.id_of(name) for name in ("<|end_of_text|>", "<|eom|>", "<|eot|>"))
    assert tokenizer.stop_ids == expected


def test_merges_are_used_and_ids_beyond_them_are_special(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(write_tiktoken(tmp_path / "tokenizer.model"))
    assert tokenizer.encode("the the") == [257, 258]
    assert tokenizer.vocab_size == 256 + len(MERGES) + NUM_SPECIAL
    assert tokenizer.id_of("<|begin_of_text|>") == 256 + len(MERGES)


def test_ids_without_text_are_no_error(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode([10**6, *tokenizer.encode("the")]) == "the"


@pytest.mark.parametrize("letter", ["a", " ", "\n", "ü"])
def test_very_long_runs_are_cut_and_come_back(letter: str, tmp_path: Path) -> None:
    text = letter * 60_000 + "x " + letter * 30_000
    pieces = list(cut_for_tiktoken(text))
    assert "".join(pieces) == text
    assert len(pieces) >= 3
    tokenizer = open_tokenizer(write_tiktoken(tmp_path / "tokenizer.model"))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "256 of 256 single bytes"),
        (b"AA== 0\n", "255 of 256"),
        (b"AA== 1\n", "expected a new token of rank 0, found rank 1"),
        (b"AA== 0\nAA== 1\n", "model:2: expected a new token of rank 1"),
        (b"!!!! 0\n", "model:1: expected a token in base64"),
        (b"AA==\n", "expected a token in base64"),
        (b"AA== x\n", "expected a token in base64"),
        (b"AA== 99999999999999999999\n", "expected a token in base64"),
        (b"\x00\xff\xfe" * 50, "expected a token in base64"),
    ],
)
def test_a_file_that_is_no_tiktoken_model_is_refused_with_its_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_tokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "x" * 400, "a\0b"])
def test_a_tokenizer_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        open_tokenizer(tmp_path / name)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tiktoken", None)
    with pytest.raises(UserError, match=r"needs the package tiktoken \(pip install 'l4spec\[text\]'\)"):
        open_tokenizer(write_tiktoken(tmp_path / "tokenizer.model"))


def test_a_tokenizer_without_headers_has_no_chat_format(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"lacks <\|begin_of_text\|>"):
        open_tokenizer(tmp_path / "tokenizer.json").encode_chat([Message("user", "a")])


def test_the_tokenizer_beside_a_checkpoint_is_found(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    write_tiktoken(tmp_path / "tokenizer.model")
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.model"
    write_hugging_face(tmp_path / "tokenizer.json")
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.json"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ()),
        ({"config.json": {"eos_token_id": 2}}, (2,)),
        ({"config.json": {"text_config": {"eos_token_id": [7, 8]}}}, (7, 8)),
        ({"config.json": {"eos_token_id": 2}, "generation_config.json": {"eos_token_id": [3, 4]}}, (3, 4)),
        ({"config.json": {"eos_token_id": 2}, "generation_config.json": {}}, (2,)),
        ({"config.json": {"eos_token_id": None}}, ()),
        ({"config.json": {"eos_token_id": "2"}}, ()),
        ({"config.json": []}, ()),
    ],
    ids=str,
)
def test_stop_ids_are_those_of_the_generation_config_or_else_the_config(
    files: dict[str, object], expected: tuple[int, ...], tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert stop_ids_of(tmp_path) == expected
