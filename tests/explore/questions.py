"""A client of the page without a browser, and random questions that a user could ask by moving controls."""

from typing import Any

from hypothesis import strategies as st
from starlette.testclient import TestClient

from l4spec.explore.app import make_app
from l4spec.explore.controls import controls_of
from l4spec.explore.explorer import Explorer

MODELS = ("scout", "maverick", "compare/deepseek-v3", "compare/gpt-oss-20b", "compare/llama-3.1-8b", "tiny/scout")
USUAL = {"gpus": "8xh100-sxm", "context": "8192", "batch": "8", "output_tokens": "512"}
CONTROLS = {model: controls_of(Explorer("scout").parent(model).data) for model in MODELS}
Data = dict[str, Any]


def client(named: str = "scout", base: tuple[str, ...] = ()) -> TestClient:
    """A browser's side of the page."""
    return TestClient(make_app(Explorer(named, base)), base_url="http://127.0.0.1:8000")


def ask(browser: TestClient, what: str, **question: Any) -> Data:
    """The reply to a question."""
    answer = browser.post(f"/api/{what}", json={"model": "scout", "fields": {}, "options": USUAL} | question)
    assert answer.status_code == 200, answer.text
    reply: Data = answer.json()
    return reply


@st.composite
def questions(draw: st.DrawFn) -> Data:
    """A model, some of its controls at a stop of theirs or at any number, and options as a user may write them."""
    model = draw(st.sampled_from(MODELS))
    moved = draw(st.lists(st.sampled_from(CONTROLS[model]), unique=True, max_size=4))
    fields = {each.path: str(draw(st.sampled_from(each.stops) | st.integers(1, 4 * each.value))) for each in moved}
    options = {
        "gpus": draw(st.sampled_from(["", "1xh100-sxm", "8xh200", "2x8xh100-sxm", "4xb200", "64xmi300x"])),
        "quantization": draw(st.sampled_from(["", "bf16", "fp8", "w4a16", "nvfp4"])),
        "kv_dtype": draw(st.sampled_from(["bf16", "fp8"])),
        "engine": draw(st.sampled_from(["", "vllm", "vllm-hybrid", "sglang-hybrid"])),
        "context": draw(st.sampled_from(["", "4096", "8Ki", "100k", "1M", "max"])),
        "output_tokens": draw(st.sampled_from(["", "1", "512"])),
        "batch": draw(st.sampled_from(["", "1", "7", "64", "1k"])),
        "usd_per_gpu_hour": draw(st.sampled_from(["", "2.5"])),
    }
    return {"model": model, "fields": fields, "options": options}
