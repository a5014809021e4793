"""The server as a process: OpenAI's own client, /v2, limits, keys, slow and hostile clients, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from gpt2 import gpt_core_v2, open_model
from gpt2.contract import Call
from gpt2.server import versions
from gpt2.server.app import create_app, new_service
from gpt2.server.gate import PUBLIC, scope_of
from gpt2.server.keys import Keys
from gpt2.server.settings import Settings
from servers import Running, serving

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with serving(home) as running:
        yield running
        assert running.process.poll() is None  # nothing that was sent has ended it


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def post(server: Running, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, headers={**JSON, **headers}, timeout=60)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def wait_for(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def figure(server: Running, name: str) -> float:
    text = httpx.get(server.url + "/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


# OpenAI's client


def test_a_completion_is_what_the_model_writes(client: openai.OpenAI) -> None:
    done = client.completions.create(model="bundled", prompt="Once upon a time", max_tokens=20, seed=7, stop=["\n"])
    with_python = open_model().generate("Once upon a time", max_tokens=20, seed=7, stop="\n")[0]
    assert done.choices[0].text == with_python.text
    assert done.choices[0].finish_reason == with_python.finish_reason
    assert done.usage is not None
    assert done.usage.prompt_tokens == 4
    assert done.usage.completion_tokens == len(with_python.tokens)
    assert done.object == "text_completion"
    assert done.id.startswith("cmpl-")
    assert done.system_fingerprint is not None


def test_streams_join_to_the_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "bundled", "prompt": ["The king", "A fox"], "max_tokens": 40, "n": 2, "seed": 3}
    options |= {"logprobs": 2, "stop": [" the", ".\n"], "temperature": 0.8}
    whole = client.completions.create(**options)
    texts, logprobs, reasons = [""] * 4, [[] for _ in range(4)], [None] * 4
    usage = None
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for part in chunk.choices:
            texts[part.index] += part.text
            reasons[part.index] = part.finish_reason or reasons[part.index]
            if part.logprobs is not None:
                logprobs[part.index] += zip(
                    part.logprobs.tokens, part.logprobs.token_logprobs, part.logprobs.text_offset, strict=True
                )
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    for choice, streamed in zip(whole.choices, logprobs, strict=True):
        facts = choice.logprobs
        assert streamed == list(zip(facts.tokens, facts.token_logprobs, facts.text_offset, strict=True))
        assert " the" not in choice.text
        assert "".join(facts.tokens).startswith(choice.text)  # the last token may go on into the stop string
        for token, value, top in zip(facts.tokens, facts.token_logprobs, facts.top_logprobs, strict=True):
            assert top[token] == value
            assert value <= max(top.values())


def test_echo_gives_the_models_own_log_likelihoods(client: openai.OpenAI) -> None:
    """As lm-eval asks: token ids, one more token, prompt + 1 entries, and identical floats for the greedy token."""
    tokens = [464, 5822, 531, 326, 339, 561, 467]
    done = client.completions.create(
        model="bundled", prompt=tokens, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    facts = done.choices[0].logprobs
    assert len(facts.tokens) == len(tokens) + 1
    assert facts.token_logprobs[0] is None
    assert facts.top_logprobs[0] is None
    logits = open_model().logits([tokens])[0].astype(np.float64)
    own = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [own[n, token] for n, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(facts.token_logprobs[1:-1], wanted, atol=1e-4)
    assert facts.token_logprobs[-1] == max(facts.top_logprobs[-1].values())
    for n, (value, top) in enumerate(list(zip(facts.token_logprobs, facts.top_logprobs, strict=True))[1:-1]):
        assert (value == max(top.values())) == (int(own[n].argmax()) == tokens[n + 1])


def test_the_end_of_text_has_its_entry_too(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model="bundled", prompt=[464, 5822], max_tokens=1, logprobs=1, echo=True, logit_bias={"50256": 100}
    )
    choice = done.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.logprobs.tokens[-1] == "<|endoftext|>"
    assert len(choice.logprobs.tokens) == 3
    assert choice.text == "The fox"[:3] + choice.text[3:]
    assert "<|endoftext|>" not in choice.text


def test_tokens_that_are_no_text_keep_apart(client: openai.OpenAI) -> None:
    """Two halves of characters would both be U+FFFD."""
    done = client.completions.create(model="bundled", prompt="🦊🐺", max_tokens=0, echo=True, logprobs=5)
    facts = done.choices[0].logprobs
    assert done.choices[0].text == "🦊🐺"
    assert any(token.startswith("bytes:\\x") for token in facts.tokens)
    assert all(len(top) >= 5 for top in facts.top_logprobs[1:])


def test_best_of_gives_the_most_probable(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "bundled", "prompt": "The wolf", "max_tokens": 12, "seed": 5, "logprobs": 0}

    def mean(choice: Any) -> float:
        return float(np.mean(choice.logprobs.token_logprobs))

    every = client.completions.create(n=6, **options).choices
    best = client.completions.create(n=2, best_of=6, **options)
    ranked = sorted(every, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in every)


def test_suffix_prefers_what_it_fits(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "bundled", "prompt": "Once upon a", "max_tokens": 6, "seed": 2}
    suffix = " and the king said"
    every = [choice.text for choice in client.completions.create(n=8, **options).choices]
    chosen = client.completions.create(suffix=suffix, **options).choices[0].text
    model = open_model()

    def fit(text: str) -> float:
        done = model.generate("Once upon a" + text + suffix, max_tokens=0, echo=True, logprobs=0)[0]
        return sum(done.log_probabilities[-len(model.codec.encode(suffix)) :])

    assert chosen in every
    assert fit(chosen) >= max(map(fit, every)) - 1e-3
    streamed = client.completions.create(suffix=suffix, stream=True, **options)
    assert "".join(part.choices[0].text for part in streamed) == chosen


def test_seed_bias_and_our_own_fields(client: openai.OpenAI) -> None:
    def text(**options: Any) -> str:
        return client.completions.create(model="bundled", prompt="The", max_tokens=8, **options).choices[0].text

    assert text(seed=1) == text(seed=1)
    assert text(seed=-1) == text(seed=2**64 - 1 - 2**64)
    assert text(logit_bias={"257": 100}) == " a" * 8
    assert text(temperature=0) == text(extra_body={"top_k": 1})
    assert re.fullmatch("[0-9]{3}", text(extra_body={"regex": "[0-9]{3}"}))
    assert client.completions.create(model="bundled", prompt=None, max_tokens=3).usage.prompt_tokens == 1


def test_text_never_becomes_a_special_token(client: openai.OpenAI, server: Running) -> None:
    done = client.completions.create(model="bundled", prompt="<|endoftext|>", max_tokens=0, echo=True)
    assert done.usage.prompt_tokens == 7
    assert len(post(server, "/tokenize", {"prompt": "<|endoftext|>"}).json()["tokens"]) == 7


def test_models(client: openai.OpenAI, server: Running, home: Path) -> None:
    from gpt2.store import bundled_path

    shutil.copytree(bundled_path(), home / "models" / "copy")
    assert [model.id for model in client.models.list()] == ["bundled", "copy"]
    assert client.models.retrieve("copy").object == "model"
    same = {"prompt": "The", "max_tokens": 5, "seed": 1}
    assert client.completions.create(model="copy", **same).choices[0].text == (
        client.completions.create(model="bundled", **same).choices[0].text
    )
    assert client.models.delete("copy").deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="copy", **same)
    assert caught.value.code == "model_not_found"
    for name in ("../x", "src", "/etc", "%2e%2e", "a" * 300, "x\0", "bundled@1", ".", "é", "a@b@c", "con"):
        assert post(server, "/v1/completions", {"model": name}).status_code == 404
    assert httpx.delete(server.url + "/v1/models/bundled").status_code == 404


# Refusals

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [50257]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**63]}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": "x " * 600}, "prompt"),
    ({"max_tokens": 600}, "prompt"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 100, "prompt": ["a", "b"]}, "n"),
    ({"best_of": 21}, "best_of"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": "a" * 1001}, "stop"),
    ({"stop": 1}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"suffix": "x", "echo": True}, "suffix"),
    ({"top_z": 1}, "top_z"),
    ({"regex": "("}, "regex"),
    ({"regex": "a", "json_schema": {}}, "json_schema"),
    ({"min_p": 2}, "min_p"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_refusals_name_the_parameter(server: Running, body: dict[str, Any], param: str) -> None:
    response = post(server, "/v1/completions", {"prompt": "x", **body})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_a_request_at_the_limit_of_the_context(client: openai.OpenAI) -> None:
    done = client.completions.create(model="bundled", prompt=[262] * 511, max_tokens=1, temperature=0)
    assert done.usage.total_tokens == 512
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="bundled", prompt=[262] * 512, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"json_schema": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"prompt": "a", "prompt": 5}',
        b"\0" * 1000,
    ],
    ids=lambda body: str(body[:12]),
)
def test_bodies_that_are_no_request(server: Running, body: bytes) -> None:
    for path in ("/v1/completions", "/v2/query", "/tokenize"):
        response = post(server, path, body)
        assert response.status_code == (200 if not body and path != "/tokenize" else 400)
        if body:
            error_of(response)


def test_sizes_and_kinds_of_bodies(server: Running) -> None:
    assert post(server, "/v1/completions", b'{"prompt": "' + b"a" * (5 << 20) + b'"}').status_code == 413
    assert post(server, "/v1/completions", b"{}", **{"content-type": "text/plain"}).status_code == 415

    def flood() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * (1 << 20)

    with contextlib.suppress(httpx.TransportError):  # the connection is cut, or the answer comes first
        response = httpx.post(server.url + "/v1/completions", content=flood(), headers=JSON)
        assert response.status_code == 413
    assert httpx.get(server.url + "/v1/nothing").status_code == 404
    assert httpx.get(server.url + "/v1/completions").status_code == 405
    error_of(httpx.get(server.url + "/v1/completions"))
    assert httpx.get(server.url + "/health", headers={"x": "y" * 40_000}).status_code in (400, 431)


def test_other_hosts_and_pages_are_turned_away(server: Running) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.", "[::2]"):
        assert httpx.get(server.url + "/health", headers={"host": host}).status_code in (400, 403)
    for origin in ("https://evil.example", "null", "http://localhost", "http://127.0.0.1:1"):
        response = post(server, "/v1/completions", {"max_tokens": 1}, origin=origin)
        assert response.status_code == 403
    assert post(server, "/v1/completions", {"max_tokens": 1}, origin=server.url).status_code == 200


def test_request_ids_and_logs_without_prompts(server: Running) -> None:
    secret = "my-secret-prompt"
    response = post(server, "/v1/completions", {"prompt": secret, "max_tokens": 1}, **{"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    other = httpx.get(server.url + "/v1/models/%0d%0aforged", headers={"x-request-id": "bad id"})
    assert re.fullmatch("req-[0-9a-f]{16}", other.headers["x-request-id"])
    wait_for(lambda: "forged" in server.log and "mine-1" in server.log)
    assert secret not in server.log
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert any(line["path"] == "/v1/models/\r\nforged" for line in lines)
    assert not any(line.startswith("forged") for line in server.lines)


# The versioned API


def test_v2_answers_as_python_does(server: Running) -> None:
    request = {"prompt": "The king", "max_tokens": 12, "num_samples": 2, "seed": 9, "logprobs": 1, "stop": ["."]}
    answer = post(server, "/v2/query", request).json()
    python = gpt_core_v2.query_via_api(gpt_core_v2.QueryRequest(**{**request, "stop": (".",)}))
    assert [sample["text"] for sample in answer["samples"]] == [sample.text for sample in python.samples]
    assert answer["samples"][0]["tokens"][0]["logprob"] == python.samples[0].tokens[0].logprob
    assert answer["prompt_tokens"] == 2
    events = post(server, "/v2/query", {**request, "stream": True}).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    texts = ["", ""]
    for event in map(json.loads, (line.removeprefix("data: ") for line in events[:-2])):
        texts[event["sample"]] += event["text"]
    assert texts == [sample.text for sample in python.samples]
    assert post(server, "/v2/query", {"prompt": [464], "max_tokens": 3}).status_code == 200
    for bad in ({"max_tokens": -1}, {"top_k": 1.5}, {"prompt": [1, -1]}, {"context": "x"}, {"nothing": 1}):
        response = post(server, "/v2/query", bad)
        assert response.status_code == 400
        assert error_of(response)["param"] in (*bad, "tokens")
    assert httpx.get(server.url + "/v2/models").json()["models"][0]["name"] == "bundled"


def test_inspect_as_in_python(server: Running) -> None:
    body = {"prompt": "The king </script>", "layer": 7, "top": 2}
    python = gpt_core_v2.inspect_via_api(gpt_core_v2.InspectRequest(**body))  # type: ignore[arg-type]
    seen = post(server, "/v2/inspect", body).json()
    assert seen["model"] == "bundled", "the server's default"
    assert seen["tokens"] == [
        {"id": token.id, "text": token.text, "loss": token.loss and pytest.approx(token.loss, abs=1e-4)}
        for token in python.tokens
    ]
    assert [stage["name"] for stage in seen["stages"]] == [stage.name for stage in python.stages]
    np.testing.assert_allclose(seen["attention"][2][-1], python.attention[2][-1], atol=2e-4)  # type: ignore[index]
    for bad, param in (
        ({"prompt": "x " * 300}, "prompt"),
        ({"prompt": "x", "layer": 8}, "layer"),
        ({"prompt": "x", "top": 0}, "top"),
        ({"prompt": "x", "model": "../x"}, "model"),
        ({"prompt": [50257]}, None),
        ({"layer": 0}, "prompt"),
        ({"prompt": "x", "nothing": 1}, "nothing"),
    ):
        response = post(server, "/v2/inspect", bad)
        assert response.status_code in (400, 404), bad
        if param:
            assert error_of(response)["param"] == param


def test_a_third_version_is_a_file_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy gpt_core_v3 stands beside version 2."""
    toy = ModuleType("gpt_core_v3")
    toy.ROUTES = (Call("GET", "/models", "query", gpt_core_v2.list_models_via_api, None, gpt_core_v2.ModelList),)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpt_core_v3", toy)
    monkeypatch.setattr(versions, "VERSIONS", {**versions.VERSIONS, "v3": "gpt_core_v3"})
    app = create_app(new_service(Settings()))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as session:
            return [await session.get(f"/v{version}/models") for version in (2, 3)]

    second, third = asyncio.run(ask())
    assert second.status_code == third.status_code == 200
    assert second.json() == third.json()


def test_tokenizer_routes(server: Running) -> None:
    assert post(server, "/tokenize", {"prompt": "Hello world", "add_special_tokens": False}).json() == {
        "tokens": [15496, 995],
        "count": 2,
        "max_model_len": 512,
    }
    assert post(server, "/detokenize", {"tokens": [15496, 995]}).json() == {"prompt": "Hello world"}
    assert post(server, "/detokenize", {"tokens": [99999]}).status_code == 400
    assert httpx.get(server.url + "/tokenizer_info").json()["eos_token"] == "<|endoftext|>"


def test_the_document_and_its_page(server: Running) -> None:
    document = httpx.get(server.url + "/openapi.json").json()
    assert "/v1/completions" in document["paths"]
    assert "/v2/query" in document["paths"]
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"]
    page = httpx.get(server.url + "/docs").text
    assert "Once upon a time" in page
    assert "<script" not in page


BLOCKS = re.findall(
    r"```(python|sh)\n(.*?)```", (Path(__file__).parent.parent / "docs/server.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize(("kind", "text"), BLOCKS)
def test_the_documents_examples_run(server: Running, tmp_path: Path, kind: str, text: str) -> None:
    if kind == "sh" and not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("needs curl and bash")
    text = text.replace("http://127.0.0.1:8000", server.url)
    command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euc", text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert '"error":{' not in done.stdout


# Keys


def test_every_route_is_classified_and_closed_without_a_key() -> None:
    service = new_service(Settings())
    secrets = {scope: service.keys.create(scope, scope) for scope in ("query", "train", "admin")}
    app = create_app(service)
    routes = [(method, route.path) for route in app.app.routes for method in route.methods]  # type: ignore[attr-defined]
    assert len(routes) > 10

    async def status(method: str, path: str, **headers: str | bytes) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as session:
            return (await session.request(method, "http://localhost" + path, headers=headers)).status_code

    async def check() -> None:
        for method, template in routes:
            path = re.sub(r"\{\w+\}", "nobody", template)
            scope = scope_of(method, path)
            assert scope is not None, f"{method} {path} is not in gate.ACCESS"
            if scope == PUBLIC:
                continue
            for tried in (path, "/" + path, path + "/", path + "/%2e%2e/health"):
                for way in (method, "HEAD", "PUT"):
                    assert await status(way, tried) == 401, (way, tried)
                    assert await status(way, tried, authorization="Bearer wrong") == 401
                    assert await status(way, tried, authorization="Bearer é".encode("latin-1")) == 401
            assert await status(method, path) == 401
            assert await status(method, path, authorization="Basic " + secrets["admin"]) == 401
            assert await status(method, path, authorization="Bearer " + secrets["admin"], host="evil.example") == 403
            lower = {"query": (), "train": ("query",), "admin": ("query", "train")}[scope]
            for weak in lower:
                assert await status(method, path, authorization="Bearer " + secrets[weak]) == 403
        assert await status("GET", "/health") == 200
        assert await status("GET", "/v1/models", authorization="Bearer " + secrets["query"]) == 200
        assert await status("GET", "/metrics", authorization="bearer " + secrets["admin"]) == 200
        service.keys.remove("query")
        assert await status("GET", "/v1/models", authorization="Bearer " + secrets["query"]) == 401

    asyncio.run(check())
    text = service.keys.path.read_text()
    assert not any(secret in text for secret in secrets.values())
    assert service.keys.path.stat().st_mode & 0o077 == 0


def test_a_broken_key_file_lets_nobody_in() -> None:
    keys = Keys()
    keys.path.parent.mkdir(parents=True)
    keys.path.write_text('[{"id": 1}]')
    app = create_app(new_service(Settings()))

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as session:
            return (await session.get("/v1/models")).status_code

    assert asyncio.run(ask()) == 503


def test_rates_are_limited() -> None:
    app = create_app(new_service(Settings(requests_per_minute=3)))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as session:
            return [await session.get("/v1/models") for _ in range(5)]

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


def test_no_public_address_without_a_key() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpt2", "serve", "--host", "0.0.0.0", "--port", "0"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "expected an API key" in done.stderr


# Clients that leave, wait, or are many


@pytest.mark.parametrize("clients", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_a_client_that_leaves_is_forgotten_at_once(server: Running, clients: int) -> None:
    post(server, "/v1/completions", {"prompt": "x", "max_tokens": 5})
    wait_for(lambda: figure(server, "gpt2_texts_writing") == 0)
    files, threads = server.open_files(), server.threads()
    for n in range(clients):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps({"prompt": "Once", "max_tokens": 500, "n": 2, "stream": n % 2 == 0})
        connection.request("POST", "/v1/completions", body, JSON)
        if n % 2 == 0:
            connection.getresponse().read(20)
        connection.close()
    started = time.monotonic()
    wait_for(lambda: figure(server, "gpt2_texts_writing") == figure(server, "gpt2_texts_waiting") == 0)
    assert time.monotonic() - started < 5  # finished, they would take much longer
    wait_for(lambda: server.open_files() <= files + 2)
    assert server.threads() <= threads + 2


def test_a_full_queue_says_when_to_come_again(home: Path) -> None:
    with serving(home, "--max-waiting", "4") as small:
        long = {"prompt": "Once", "max_tokens": 500, "logit_bias": {"50256": -100}}
        response = post(small, "/v1/completions", {**long, "n": 5})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert error_of(response)["code"] == "queue_full"


@pytest.mark.parametrize("connections", [200, pytest.param(500, marks=pytest.mark.slow)])
def test_slow_connections_do_not_stop_others(server: Running, connections: int) -> None:
    slow = []
    for n in range(connections):
        connection = socket.create_connection(("127.0.0.1", server.port))
        if n % 2:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        else:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            )
        slow.append(connection)
    slow[1].settimeout(30)
    for _ in range(5):
        assert post(server, "/v1/completions", {"prompt": "x", "max_tokens": 4}).status_code == 200
    assert slow[1].recv(100).startswith(b"HTTP/1.1 408")  # after ten seconds
    for connection in slow:
        connection.close()


def test_many_clients_each_get_what_they_get_alone(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        return client.completions.create(model="bundled", prompt="The", max_tokens=30, seed=seed).choices[0].text

    alone = [text(seed) for seed in range(24)]
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: text(n)})) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(24)] == alone


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_is_orderly(home: Path, number: int) -> None:
    """SIGTERM, or SIGHUP: the stream that is open ends well, new requests are not taken, and the status is 0."""
    with serving(home) as server:
        assert httpx.get(server.url + "/ready").status_code == 200
        body = json.dumps({"prompt": "Once", "max_tokens": 400, "stream": True, "logit_bias": {"50256": -100}})
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/v1/completions", body, JSON)
        response = connection.getresponse()
        response.read(50)
        server.process.send_signal(number)
        rest = response.read().decode()
        assert rest.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in rest
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log
