"""`l4spec build` and `l4spec generate`: a spec becomes a module, a miniature runs, a checkpoint speaks."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import l4spec
from l4spec.cli import build
from l4spec.cli.progress import progress_bar
from l4spec.library import shipped_specs
from l4spec.runtime import checkpoints, memory_check, smoke_run
from l4spec.runtime.generate import OptionFields
from l4spec.runtime.tokenizer import Message, open_tokenizer, stop_ids_of
from l4spec.units import gib
from tests.cli.conftest import Run
from tests.runtime.checkpoints.models import save_small
from tests.runtime.test_tokenizer import write_hugging_face, write_tiktoken


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of 512 ids in a folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "saved"
    save_small("llama4", folder)
    return folder


@pytest.mark.parametrize("name", sorted(shipped_specs()))
def test_every_shipped_spec_builds_on_meta_and_holds_what_the_planner_counts(name: str, run: Run) -> None:
    result = run("build", name, "--format", "json")
    assert result.exit_code == 0, result.stderr
    built = json.loads(result.stdout)
    assert built["agrees"] is True
    assert built["contents"]["by_part"] == built["planned_by_part"]
    assert built["trial"] is None


def test_an_upcycled_mixture_is_written_with_its_parents_logits(run: Run, tmp_path: Path) -> None:
    dense = tmp_path / "dense.yaml"
    text = {"hidden_size": 32, "vocab_size": 64, "max_seq_len": 64, "dtype": "fp32", "tie_embeddings": False}
    text |= {"norm": {"kind": "rmsnorm", "eps": 0.001}, "layers": [{"attention": "a", "ffn": "f", "repeat": 2}]}
    attention = {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mask": {"kind": "causal"}}
    attention["position"] = {"kind": "rope", "theta": 10000.0}
    parts = {"a": attention, "f": {"kind": "swiglu", "intermediate_size": 48}}
    dense.write_text(json.dumps({"l4spec": 1, "name": "dense", "text": text | {"parts": parts}}))
    router = {"score": "softmax", "renormalize": True}
    parts["f"] = {
        "kind": "moe",
        "num_experts": 4,
        "num_experts_per_token": 2,
        "intermediate_size": 48,
        "router": router,
    }
    sparse = tmp_path / "sparse.yaml"
    sparse.write_text(json.dumps({"l4spec": 1, "name": "sparse", "text": text | {"parts": parts}}))
    parent, child = str(tmp_path / "parent"), str(tmp_path / "child")
    assert run("build", str(dense), "--out", parent).exit_code == 0
    written = run("build", str(sparse), "--from", parent, "--upcycle", "--out", child)
    assert written.exit_code == 0, written.stderr
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected, logits = checkpoints.open_model(parent)(ids), checkpoints.open_model(child)(ids)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    alone = run("build", str(sparse), "--upcycle")
    assert alone.exit_code == 2
    assert "--from" in alone.stderr


def test_scout_is_shown_as_a_tree_with_every_part_as_planned(run: Run) -> None:
    result = run("build", "scout")
    assert "108,641,793,536" in result.stdout
    assert "as planned" in result.stdout
    assert "0–2, 4–6, 8–10, 12–14, …, 44–46 (36 ×)" in result.stdout
    assert "GQA (global)" in result.stdout
    assert "96,636,764,160" in result.stdout


def test_a_full_size_model_is_packed_on_meta_into_as_many_bytes_as_planned(run: Run) -> None:
    result = run("build", "scout", "--quantization", "w4a16", "--format", "json")
    assert result.exit_code == 0, result.stderr
    built = json.loads(result.stdout)
    assert built["contents"]["num_bytes"] == built["planned_bytes"] == 60_390_403_072
    assert built["contents"]["by_part"] == built["planned_by_part"]
    assert built["quantization"] == "w4a16"


def test_a_packed_miniature_is_written_and_speaks(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    result = run("build", "scout", "--scale", "tiny", "-q", "w4a16", "--out", str(folder))
    assert result.exit_code == 0, result.stderr
    assert "1,570,592 B of weights, 3,520 B of their shapes" in result.stderr
    assert "packed as w4a16-g16" in result.stdout
    spoken = run("generate", str(folder), "--ids", "1,2,3", "--max-new-tokens", "4", "--temperature", "0")
    assert spoken.exit_code == 0, spoken.stderr
    assert len(spoken.stdout.split()) >= 4


def test_a_scheme_that_no_checkpoint_can_hold_is_refused_before_anything_is_built(run: Run, tmp_path: Path) -> None:
    result = run("build", "tiny/scout", "-q", "awq-g16", "--out", str(tmp_path / "packed"))
    assert result.exit_code == 2
    assert "cannot be written in compressed-tensors' formats" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [("--scale", "tiny"), ("--scale", "1/64", "--layers", "4"), ("--layers", "4", "--set", "text.dtype=bf16")],
)
@pytest.mark.parametrize("name", ["tiny/scout", "tiny/deepseek"])
def test_a_miniature_runs(name: str, options: tuple[str, ...], run: Run) -> None:
    result = run("build", name, *options, "--format", "json")
    assert result.exit_code == 0, result.stderr
    built = json.loads(result.stdout)
    trial = built["trial"]
    assert abs(trial["loss"] - trial["blind_loss"]) < 0.5
    assert len(trial["generated"]) == 8
    assert trial["peak_bytes"] > trial["weight_bytes"] > 0
    assert trial["num_image_tokens"] == (4 if name == "tiny/scout" else 0)
    assert built["dtype"] == ("bf16" if "text.dtype=bf16" in options else "fp32")


def test_a_run_is_shown_with_its_time_and_memory(run: Run) -> None:
    result = run("build", "tiny/scout", "--device", "cpu", "--seed", "3")
    for word in ("forward", "nats per token", "ms per token", "peak"):
        assert word in result.stdout


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run: Run) -> None:
    def loss(seed: str) -> float:
        built = json.loads(run("build", "tiny/scout", "--device", "cpu", "--seed", seed, "--format", "json").stdout)
        value: float = built["trial"]["loss"]
        return value

    assert loss("1") == loss("1") != loss("2")


def test_a_checkpoint_is_written_and_opens(run: Run, tmp_path: Path) -> None:
    result = run("build", "tiny/maverick", "--out", str(tmp_path / "new"), "--dtype", "bf16")
    assert result.exit_code == 0, result.stderr
    assert "in the layout llama4" in result.stderr
    assert l4spec.open_model(tmp_path / "new").dtype == torch.bfloat16


@pytest.mark.parametrize(("options", "is_written"), [((), True), (("-q", "w8a16"), False)])
def test_declared_modules_are_written_with_their_model(
    options: tuple[str, ...], is_written: bool, run: Run, tmp_path: Path
) -> None:
    set_mtp = "text.mtp={block: {attention: attention, ffn: moe}, embedding: copy, head: copy}"
    result = run("build", "tiny/deepseek", "--set", set_mtp, "--out", str(tmp_path / "new"), *options)
    assert result.exit_code == 0, result.stderr
    assert ("text.mtp is left out of the checkpoint" in result.stderr) is not is_written
    spec = checkpoints.spec_of(tmp_path / "new")
    assert (spec.text.mtp is not None) is is_written
    if is_written:
        assert len(checkpoints.open_mtp(checkpoints.open_model(tmp_path / "new"), tmp_path / "new")) == 1


def test_what_does_not_fit_is_refused_before_it_is_allocated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: 24 << 30)
    result = run("build", "scout", "--device", "cpu")
    assert result.exit_code == 2
    assert "needs 203.5" in result.stderr
    assert "--layers 3 or --scale 1/4 fits" in result.stderr


def test_a_large_model_says_what_is_filled_and_how_much_is_free(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "filling" not in run("build", "tiny/scout", "--device", "cpu").stderr
    monkeypatch.setattr(build, "_LARGE_BYTES", 1 << 19)
    monkeypatch.setattr(memory_check, "_available", lambda: 2 << 30)
    monkeypatch.setattr(memory_check, "_cgroup_left", lambda: ())
    monkeypatch.setattr(memory_check, "_rlimits_left", lambda: ())
    graph = l4spec.compile(l4spec.load("tiny/scout"))
    size = gib(memory_check.weight_bytes(graph, "bf16"))
    result = run("build", "tiny/scout", "--device", "cpu", "--dtype", "bf16")
    assert f"filling {size} of weights of 2.00 GiB that are free on cpu" in result.stderr
    assert "filling" not in run("build", "tiny/scout").stderr


def test_no_bar_is_shown_for_a_model_that_is_not_filled(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool | None] = []

    def noted(label: str, wish: bool | None) -> Any:
        asked.append(wish)
        return progress_bar(label, False)

    monkeypatch.setattr(build, "progress_bar", noted)
    assert run("build", "tiny/scout").exit_code == 0
    assert asked == [False]


def test_memory_that_runs_out_all_the_same_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke_run, "run_trial", lambda *_: torch.empty(1 << 56, dtype=torch.uint8))
    result = run("build", "tiny/scout", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: memory ran out")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no such signal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_in_the_middle_of_a_save_leaves_nothing(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, whole = getattr(signal, name), checkpoints.save_checkpoint
    seen: list[Path] = []

    def stopped(done: int, total: int) -> None:
        seen.extend(tmp_path.rglob("*.safetensors"))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda model, out, **_: whole(model, out, progress=stopped))
    before = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    inherited = signal.signal(number, before)  # under nohup, or in the background, they are ignored
    try:
        result = run("build", "tiny/scout", "--out", str(tmp_path / "new"))
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, inherited)
    assert result.exit_code == (128 + number if name != "SIGINT" else 130)
    assert seen
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_where_asked_for_and_not_in_a_pipe(run: Run) -> None:
    assert "filling" not in run("build", "tiny/scout", "--device", "cpu").stderr
    shown = run("build", "tiny/scout", "--device", "cpu", "--progress").stderr
    assert "filling with random weights" in shown
    assert "running" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny/scout", "--scale", "2"), "tiny or a ratio"),
        (("tiny/scout", "--layers", "0"), "1 to 4 layers"),
        (("tiny/scout", "--layers", "5"), "1 to 4 layers"),
        (("tiny/scout", "--device", "tpu"), "expected cpu, cuda"),
        (("tiny/scout", "--device", "cuda:x"), "expected cpu, cuda"),
        (("tiny/scout", "--device", ""), "expected cpu, cuda"),
        (("tiny/scout", "--out", "."), "exists and is not empty"),
        (("tiny/scout", "--device", "cuda:99"), "is not there"),
        (("tiny/scout", "--device", "meta", "--out", "x"), "needs weights"),
        (("tiny/scout", "--dtype", "int4"), "int4"),
        (("tiny/scout", "--seed", "-1"), "seed"),
        (("nope",), "no spec named 'nope'"),
    ],
    ids=str,
)
def test_wrong_arguments_of_build_are_refused(arguments: tuple[str, ...], message: str, run: Run) -> None:
    result = run("build", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_that_holds_something_is_not_written_to(run: Run, checkpoint: Path) -> None:
    before = sorted(checkpoint.iterdir())
    result = run("build", "tiny/scout", "--out", str(checkpoint))
    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert sorted(checkpoint.iterdir()) == before


@pytest.mark.parametrize("name", [".", "", "../here"])
def test_the_folder_we_are_in_is_not_replaced(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = run("build", "tiny/scout", "--out", name)
    assert result.exit_code == 2
    assert "is the folder we are in (name a new one in it)" in result.stderr


def test_what_does_not_fit_the_model_is_refused_before_its_weights_are_read(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    assert "holds no weights" in run("generate", str(tmp_path), "--ids", "1").stderr
    assert "made for 4,096" in run("generate", str(tmp_path), "--ids", "1", "--max-new-tokens", "5k").stderr
    assert "from 0 to 511" in run("generate", str(tmp_path), "--ids", "512").stderr


def test_a_checkpoint_goes_on_from_ids_as_the_model_does(run: Run, checkpoint: Path) -> None:
    result = run("generate", str(checkpoint), "--ids", "1,2 3", "--max-new-tokens", "6", "--prefill-chunk", "2")
    assert result.exit_code == 0, result.stderr
    expected = l4spec.open_model(checkpoint).generate([[1, 2, 3]], max_new_tokens=6)[0][3:]
    assert [int(word) for word in result.stdout.split()] == expected


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch calls outdated
def test_a_compiled_checkpoint_says_the_same(run: Run, checkpoint: Path) -> None:
    result = run("generate", str(checkpoint), "--ids", "1,2 3", "--max-new-tokens", "6", "--dtype", "fp32", "--compile")
    assert result.exit_code == 0, result.stderr
    expected = l4spec.open_model(checkpoint, dtype="fp32").generate([[1, 2, 3]], max_new_tokens=6)[0][3:]
    assert [int(word) for word in result.stdout.split()] == expected


def test_generation_stops_behind_the_ids_that_are_given(run: Run, checkpoint: Path) -> None:
    first = run("generate", str(checkpoint), "--ids", "1", "--max-new-tokens", "1").stdout.strip()
    result = run("generate", str(checkpoint), "--ids", "1", "--stop-ids", first)
    assert result.stdout.split() == [first]


@pytest.mark.parametrize("write", [write_hugging_face, write_tiktoken])
def test_text_goes_in_and_out_with_a_tokenizer_file(write: object, run: Run, tmp_path: Path) -> None:
    name = "tokenizer.json" if write is write_hugging_face else "tokenizer.model"
    write(tmp_path / name)  # type: ignore[operator]
    model = l4spec.build(l4spec.compile(l4spec.load("tiny/scout", ["text.vocab_size=4096"])))
    l4spec.save_checkpoint(model, tmp_path / "saved")
    options = ("--temperature", "1", "--top-k", "50", "--top-p", "0.9", "--seed", "1", "--max-new-tokens", "8")
    outside = run("generate", str(tmp_path / "saved"), "--prompt", "the", "--tokenizer", str(tmp_path / name), *options)
    assert outside.exit_code == 0, outside.stderr
    shutil.copy(tmp_path / name, tmp_path / "saved" / name)
    beside = run("generate", str(tmp_path / "saved"), "--prompt", "the", *options)
    assert beside.stdout == outside.stdout
    chat = run("generate", str(tmp_path / "saved"), "--chat", "the", "--system", "Be brief.", *options)
    assert chat.exit_code == 0, chat.stderr

    reader = open_tokenizer(tmp_path / name)
    prompts = [
        reader.encode_prompt("the"),
        reader.encode_chat([Message("system", "Be brief."), Message("user", "the")]),
    ]
    stops = stop_ids_of(tmp_path / "saved") or reader.stop_ids
    drawn: OptionFields = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 1}
    drawn["stop_ids"] = stops
    for prompt, output in zip(prompts, (beside.stdout, chat.stdout), strict=True):
        ids = model.generate([prompt], **drawn)[0][len(prompt) :]
        assert output == "".join(reader.stream(token for token in ids if token not in stops)) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ids", ""), "expected token ids"),
        (("--ids", "1,x"), "expected token ids"),
        (("--ids", "-1"), "expected token ids"),
        (("--ids", "9" * 20), "expected token ids"),
        (("--ids", "512"), "from 0 to 511"),
        ((), "no tokenizer file"),
        (("--ids", "1", "--prompt", "x"), "one of --prompt"),
        (("--ids", "1", "--system", "x"), "--system goes with --chat"),
        (("--prompt", "x"), "no tokenizer file"),
        (("--ids", "1", "--max-new-tokens", "0"), "max_new_tokens"),
        (("--ids", "1", "--max-new-tokens", "5000"), "made for 4,096"),
        (("--ids", "1", "--temperature", "-1"), "temperature"),
        (("--ids", "1", "--temperature", "nan"), "temperature"),
        (("--ids", "1", "--top-p", "7"), "top_p"),
        (("--ids", "1", "--prefill-chunk", "0"), "prefill_chunk"),
        (("--ids", "1", "--device", "meta"), "holds no weights"),
        (("--prompt", "x", "--tokenizer", "/nowhere"), "tokenizer"),
    ],
    ids=str,
)
def test_wrong_arguments_of_generate_are_refused(
    arguments: tuple[str, ...], message: str, run: Run, checkpoint: Path
) -> None:
    result = run("generate", str(checkpoint), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"model_type": "bert"}', "\0", "[" * 50_000])
def test_a_folder_without_a_model_is_refused(content: str | None, run: Run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert run("generate", str(tmp_path), "--ids", "1").exit_code == 2
    assert run("generate", str(tmp_path / "missing"), "--ids", "1").exit_code == 2
