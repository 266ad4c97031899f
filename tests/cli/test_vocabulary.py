"""`l4spec vocabulary`: what a vocabulary adds to a model, and what a text takes by its tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from l4spec.huggingface.opening import graph_of
from planners.catalog import engine
from planners.counts.kv_cache import plan_cache
from tests.cli.conftest import Run

pytest.importorskip("tokenizers")
TEXT = "the cat sat on the mat and the dog sat on the cat; der Hund saß auf der Matte. " * 20


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two tokenizers, the second of which has more tokens, and a text."""
    from l4spec.training.data.tokens import train_bpe

    small, large, text = tmp_path / "small.json", tmp_path / "large.json", tmp_path / "text.txt"
    train_bpe([TEXT], 270).save(small)
    train_bpe([TEXT], 330).save(large)
    text.write_text(TEXT, encoding="utf-8")
    return small, large, text


def rows(run: Run, *arguments: str) -> list[dict[str, Any]]:
    result = run("vocabulary", *arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    made: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return made


def test_a_token_more_is_a_row_of_embedding_and_head(run: Run) -> None:
    small, large = rows(run, "scout", "--size", "128256", "--size", "202048")
    more, width = 202_048 - 128_256, 5120
    assert large["params"] - small["params"] == 2 * more * width
    assert large["vocabulary_params"] == 2 * 202_048 * width
    assert large["flops_per_token"] - small["flops_per_token"] == 2 * more * width
    assert small["tokens_per_byte"] is None


def test_a_text_is_counted_by_each_tokenizer(run: Run, files: tuple[Path, Path, Path]) -> None:
    import tokenizers

    small, large, text = map(str, files)
    made = rows(run, "tiny/scout", "--tokenizer", small, "--tokenizer", large, "--text", text)
    assert [row["vocab_size"] for row in made] == [384, 384]
    for row in made:
        ids = tokenizers.Tokenizer.from_file(row["tokenizer"]).encode(TEXT, add_special_tokens=False).ids
        assert (row["num_tokens"], row["num_bytes"]) == (len(ids), len(TEXT.encode()))
        assert row["flops_per_byte"] == pytest.approx(row["flops_per_token"] * len(ids) / len(TEXT.encode()))
    assert made[1]["tokens_per_byte"] < made[0]["tokens_per_byte"]
    graph = graph_of("tiny/scout")
    cached = plan_cache(graph, engine("ideal"), dtype="bf16", context=1, batch=1).bytes_per_token_unbounded
    assert made[0]["kv_bytes_per_byte"] == pytest.approx(cached * made[0]["tokens_per_byte"])


def test_the_table_compares_with_the_first(run: Run, files: tuple[Path, Path, Path]) -> None:
    small, large, text = map(str, files)
    printed = run("vocabulary", "tiny/scout", "--tokenizer", small, "--tokenizer", large, "--text", text).stdout
    assert "% tokens of what" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: --size: nothing to compare"),
        (("--size", "9", "--text", "any.txt"), "error: --text: needs --tokenizer"),
        (("--tokenizer", "none.json"), "none.json"),
        (("--size", "0"), "--size"),
        (("--tokenizer", "{small}", "--text", "none.txt"), "none.txt: cannot read the file"),
        (("--tokenizer", "{small}", "--text", "{empty}"), "holds no text"),
        (("--tokenizer", "{text}"), "expected a token in base64"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Run, files: tuple[Path, Path, Path], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty.txt").touch()
    names = {"small": files[0], "text": files[2], "empty": tmp_path / "empty.txt"}
    result = run("vocabulary", "tiny/scout", *(argument.format(**names) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
