"""examples/new_kind: a package that was never named in l4spec brings a layer kind that everything works with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "new_kind"
PUBLISHED = 1_170_340_608
"""Parameters of LFM2-1.2B by its model card."""


class Installed:
    """Commands that see the example's package."""

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the example's folder."""
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, timeout=300, check=False)

    def l4spec(self, *arguments: str) -> str:
        """What a command of l4spec prints."""
        done = self.python("-m", "l4spec.cli", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command of l4spec says as JSON."""
        return json.loads(self.l4spec(*arguments, "--format", "json"))


@pytest.fixture
def installed(with_new_kind: None) -> Installed:
    """The package is on the path of what the test starts."""
    return Installed()


def test_without_the_package_the_kind_is_unknown() -> None:
    command = [sys.executable, "-m", "l4spec.cli", "validate", str(EXAMPLE / "tiny.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "short_conv" in done.stderr


def test_the_kind_is_listed_and_described_to_editors(installed: Installed) -> None:
    assert "Gated short convolution" in installed.l4spec("ls", "kinds")
    schema = json.loads(installed.l4spec("schema"))
    assert schema["$defs"]["ShortConvSpec"]["properties"]["kernel_size"]["minimum"] == 2


def test_specs_that_use_the_kind_are_valid_and_drawn(installed: Installed) -> None:
    assert installed.l4spec("validate", "lfm2-1.2b.yaml", "tiny.yaml").count(": ok (") == 2
    assert "CCACCACCACACACAC" in installed.l4spec("show", "lfm2-1.2b.yaml")


def test_a_mistake_in_a_field_of_the_kind_is_named_with_its_place(installed: Installed, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    lines = ["l4spec: 1", f"extends: {EXAMPLE / 'tiny.yaml'}", "name: x", "text:", "  parts:", "    conv: {kernel: 5}"]
    wrong.write_text("\n".join(lines), encoding="utf-8")
    done = installed.python("-m", "l4spec.cli", "validate", str(wrong))
    assert done.returncode == 2
    assert "6:12: text.parts.conv.kernel: unknown field (did you mean 'kernel_size'?)" in done.stderr


def test_the_plan_counts_the_published_parameters(installed: Installed) -> None:
    assert "all 1 claims hold" in installed.l4spec("verify", "lfm2-1.2b.yaml")
    assert installed.json("plan", "lfm2-1.2b.yaml")["params"]["total"] == PUBLISHED


def test_the_plan_knows_that_the_cache_of_a_convolution_does_not_grow(installed: Installed) -> None:
    planned = {tokens: installed.json("plan", "lfm2-1.2b.yaml", "--context", str(tokens)) for tokens in (1_000, 9_000)}
    caches = {tokens: plan["kv_cache"]["layers"] for tokens, plan in planned.items()}
    for layers in caches.values():
        (conv,) = [layer for layer in layers if layer["kind"] == "short_conv"]
        assert (conv["num_layers"], conv["tokens_kept"]) == (10, 2)
        assert conv["bytes"] == 2 * 2048 * 2  # the 2 tokens before the newest, 2048 channels in bf16
    assert caches[9_000] != caches[1_000]


def test_tensor_parallelism_cuts_the_kind_like_a_feed_forward_layer(installed: Installed) -> None:
    one, four = (
        installed.json("plan", "lfm2-1.2b.yaml", "--gpus", f"{tp}xH100", "--tp", str(tp))["memory_per_device"]
        for tp in (1, 4)
    )
    whole = 2 * (33 * 2048 + 6 * 2 * 64)  # every GPU holds all norms, of the stream and of queries and keys, in bf16
    assert 4 * (four["weights_bytes"] - whole) == one["weights_bytes"] - whole


@pytest.mark.parametrize("spec", ["lfm2-1.2b.yaml", "tiny.yaml"])
def test_the_module_holds_what_is_planned(installed: Installed, spec: str) -> None:
    built = installed.json("build", spec)
    assert built["agrees"] is True
    assert built["contents"]["num_parameters"] == installed.json("plan", spec)["params"]["total"]


def test_a_run_measures_what_is_declared(installed: Installed) -> None:
    measured = installed.json("measure", "tiny.yaml", "--prefill", "40", "--decode", "2", "--train")
    assert measured["agrees"] is True
    assert "attention (conv)" in json.dumps(measured)


def test_a_package_of_kinds_may_be_imported_before_l4spec(installed: Installed) -> None:
    code = (
        "import l4spec_short_conv, l4spec; print(l4spec.load('tiny.yaml').name, 'torch' in __import__('sys').modules)"
    )
    done = installed.python("-c", code)
    assert done.stdout.split() == ["tiny-lfm2", "False"], done.stderr


def test_a_model_of_the_kind_is_saved_and_read_back(installed: Installed, tmp_path: Path) -> None:
    code = f"""
import l4spec, torch
model = l4spec.build(l4spec.compile(l4spec.load("tiny.yaml")))
l4spec.save_checkpoint(model, "{(tmp_path / "saved").as_posix()}")
again = l4spec.build(l4spec.compile(l4spec.load("{(tmp_path / "saved" / "spec.yaml").as_posix()}")), seed=None)
l4spec.load_checkpoint(again, "{(tmp_path / "saved").as_posix()}")
ids = torch.arange(20)[None]
print(torch.equal(model(ids), again(ids)))
"""
    done = installed.python("-c", code)
    assert done.stdout.split() == ["True"], done.stderr


def test_the_tests_of_the_package_pass(installed: Installed) -> None:
    done = installed.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_short_conv.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_a_package_whose_kind_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    metadata = tmp_path / "broken_kind-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-kind\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text("[l4spec.layers]\nbroken = broken_kind:KIND\n", encoding="utf-8")
    (tmp_path / "broken_kind.py").write_text("import no_such_module\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "l4spec.cli", "ls", "kinds"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "L4SPEC_OWN_KINDS_ONLY": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the layer kind 'broken_kind:KIND' of broken-kind cannot be used: ")


def test_a_routed_kind_of_another_package_is_planned_with_its_all_to_all(installed: Installed) -> None:
    """3 layers send a token's 64 bf16 numbers to one expert and back, of which half stays on one of two ranks."""
    one, two = (
        installed.json("plan", "switch.yaml", "--gpus", f"{ep}xH100", "--ep", str(ep), "--batch", "2") for ep in (1, 2)
    )
    sent = {row["axis"]: row["bytes_per_token"] for row in two["communication"]}
    assert sent == {"ep": 3 * 2 * 64 * 2 // 2}
    experts = 3 * 4 * 2 * 96 * 64 * 2
    assert one["memory_per_device"]["weights_bytes"] - two["memory_per_device"]["weights_bytes"] == experts // 2
    (ffn,) = [row for row in two["latency"]["decode"]["by_kind"] if row["name"].startswith("ffn")]
    assert ffn["links_seconds"] > 0
    trained = installed.json("plan", "switch.yaml", "--gpus", "2xH100", "--ep", "2", "--mode", "train", "--batch", "2")
    assert {row["what"] for row in trained["train_traffic"]["rows"] if row["axis"] == "ep"} >= {
        "routed tokens, forward",
        "routed tokens, backward",
    }


@pytest.mark.parametrize("layout", [(), ("--ep", "2"), ("--tp", "2")], ids=["alone", "ep2", "tp2"])
def test_a_routed_kind_of_another_package_measures_what_is_planned(
    installed: Installed, layout: tuple[str, ...]
) -> None:
    measured = installed.json("measure", "switch.yaml", "--prefill", "24", "--decode", "2", "--batch", "2", *layout)
    assert measured["agrees"] is True
    assert ("all-to-all" in json.dumps(measured)) == ("--ep" in layout)
