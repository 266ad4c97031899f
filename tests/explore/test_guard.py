"""Only the page itself is answered: other hosts, other origins and other bodies are refused, and no name is markup."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from l4spec.explore.app import MOST_BYTES
from l4spec.explore.guard import HEADERS
from l4spec.explore.serve import ADDRESS, bound
from tests.cli.conftest import Run, run
from tests.explore.questions import ask, client

__all__ = ["run"]

HOSTILE = "<img src=x onerror=alert(1)>"
ONE_GPU = {"gpus": "1xh100-sxm"}
QUESTION = {"model": "tiny/scout", "fields": {}, "options": {}}


@pytest.fixture(scope="module")
def browser() -> TestClient:
    return client()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::1]", ""])
def test_another_host_gets_nothing(browser: TestClient, host: str) -> None:
    for answer in (
        browser.get("/", headers={"host": host}),
        browser.post("/api/plan", json=QUESTION, headers={"host": host}),
    ):
        assert (answer.status_code, answer.text) == (400, "Invalid host header")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_origin_gets_nothing(browser: TestClient, headers: dict[str, str]) -> None:
    answer = browser.post("/api/plan", json=QUESTION, headers=headers)
    assert (answer.status_code, answer.text) == (403, "another origin")
    preflight = browser.options("/api/plan", headers=headers | {"access-control-request-method": "POST"})
    assert preflight.status_code in (403, 405)
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_the_page_itself_is_answered(browser: TestClient) -> None:
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert browser.post("/api/plan", json=QUESTION, headers=own).status_code == 200
    assert browser.get("/", headers={"host": "localhost:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"model=scout", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"model": 1}', "application/json", 400),
        (b'{"model": "scout", "more": 1}', "application/json", 400),
        (b'{"model": "scout", "fields": {"text.hidden_size": 8}}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b" " * (MOST_BYTES + 1), "application/json", 413),
    ],
)
def test_a_body_that_is_no_question_is_refused(browser: TestClient, body: bytes, kind: str, code: int) -> None:
    answer = browser.post("/api/plan", content=body, headers={"content-type": kind})
    assert answer.status_code == code
    assert "Traceback" not in answer.text


def test_every_answer_has_the_headers_and_the_page_a_strict_policy(browser: TestClient) -> None:
    page, other = browser.get("/"), browser.get("/elsewhere")
    for answer in (page, other, browser.post("/api/plan", json=QUESTION), browser.get("/", headers={"host": "evil"})):
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert len(nonce) >= 20
    assert page.text.count(nonce) == 2
    assert browser.get("/").headers["content-security-policy"] != policy


def test_the_page_names_no_address_outside(browser: TestClient) -> None:
    html = browser.get("/").text
    assert "http:" not in html
    assert "https:" not in html
    assert "innerHTML" not in html


def test_a_hostile_name_is_text(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}.yaml"
    path.write_text(f'l4spec: 1\nextends: tiny/scout\nname: tiny\ndescription: "{HOSTILE}"\n', "utf-8")
    browser = client(str(path))
    html = browser.get("/").text
    assert "<img" not in html
    assert "&lt;img src=x" in html
    answer = browser.post("/api/plan", json={"model": str(path), "fields": {}, "options": ONE_GPU})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["verdict"].startswith("tiny fits")
    assert HOSTILE in answer.json()["command"]
    path.write_text(f'l4spec: 1\nextends: tiny/scout\nname: "{HOSTILE}"\n', "utf-8")
    assert HOSTILE in ask(browser, "model", model=str(path))["problems"][0]["text"]
    path.write_text(f'l4spec: 1\nextends: tiny/scout\nname: x\ndescription: "{HOSTILE}"\n', "utf-8")
    report = ask(browser, "report", model=str(path), options=ONE_GPU)["text"]
    assert "<img" not in report


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    browser = client()
    browser.get("/")
    for what in ("plan", "launch", "report"):
        ask(browser, what, target="vllm")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_one_clear_line(run: Run) -> None:
    with bound(0) as taken:
        assert taken.getsockname()[0] == ADDRESS
        done = run("explore", "tiny/scout", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 2
    assert "cannot serve on port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_serves_this_machine_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "l4spec", "explore", "tiny/scout"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert "l4spec explore" in answer.read().decode()
        finally:
            process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (130, "")


@pytest.mark.parametrize("arguments", [("no-such-model",), ("--port", "70000"), ("scout", "--set", "text.x=1")])
def test_wrong_arguments_are_refused_before_anything_is_served(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("explore", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")


def test_without_the_extra_one_line_names_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("l4spec.explore")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run("explore", "tiny/scout")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: the page needs starlette, uvicorn and jinja2 (pip install 'l4spec[explore]')\n",
    )
