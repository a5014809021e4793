"""Faults and attacks against the server, each with its answer; `docs/robustness.md` is the table of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2 import checkpoints, store
from gpt2.checkpoints.names import expected_shapes
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointError, ModelInUseError, ModelLockedError
from gpt2.hosting import Host
from gpt2.jobs.records import Records
from gpt2.server.app import create_app, new_service
from gpt2.server.problems import problem_of
from gpt2.server.run import _listen, new_server
from gpt2.server.service import Service
from gpt2.server.settings import Settings
from gpt2.server.writing import leased
from servers import Running, serving

JSON = {"content-type": "application/json"}
TINY = GPT2Config(n_vocab=50257, n_ctx=64, n_embd=16, n_head=2, n_layer=1)
ROOT = Path(__file__).parent.parent


def write_tiny(folder: Path, poison: int | None = None) -> None:
    """A random model; at one position its embedding can be so large that its sums overflow."""
    rng = np.random.default_rng(0)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in expected_shapes(TINY).items():
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
            if name == "wpe" and poison is not None:
                values[poison] = 3e38
            yield name, values

    checkpoints.write(folder, TINY, tensors())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("robust")
    write_tiny(home / "models" / "tiny")
    write_tiny(home / "models" / "poisoned", poison=20)
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with serving(home, "--model", "tiny") as running:
        yield running
        assert running.process.poll() is None  # nothing that was sent has ended it
        assert running.stop() == 0


def post(server: Running, path: str, body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """The application in this process, with what runs beside it."""
    gate = create_app(service)
    transport = httpx.ASGITransport(gate, raise_app_exceptions=False)
    async with (
        gate.app.router.lifespan_context(gate.app),  # type: ignore[attr-defined]
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client


def tiny_service(**options: Any) -> Service:
    write_tiny(store.models_folder() / "tiny")
    return new_service(Settings(model="tiny", **options))


# The engine


def test_a_poisoned_weight_ends_its_text_and_no_other(server: Running) -> None:
    """Position 20 gives NaN: texts that come so far get a typed 500, those beside them what they get alone."""
    short = {"model": "poisoned", "prompt": [464], "max_tokens": 15, "seed": 4, "logit_bias": {"50256": -100}}
    long = {**short, "max_tokens": 40}
    alone = post(server, "/v1/completions", short).json()["choices"][0]["text"]
    found: dict[int, httpx.Response] = {}

    def ask(number: int) -> None:
        found[number] = post(server, "/v1/completions", long if number % 2 else short)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, response in found.items():
        if number % 2:
            assert response.status_code == 500
            assert error_of(response)["code"] == "generation_failed"
        else:
            assert response.json()["choices"][0]["text"] == alone
    with httpx.stream("POST", server.url + "/v1/completions", json={**long, "stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert len(lines) > 10


def test_weights_that_are_not_finite_are_never_served(server: Running, home: Path) -> None:
    broken = home / "models" / "broken"
    shutil.copytree(home / "models" / "tiny", broken)
    with (broken / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\x7f")  # a NaN
    response = post(server, "/v1/completions", {"model": "broken", "max_tokens": 1})
    assert response.status_code == 500
    assert error_of(response)["code"] == "model_unreadable"
    assert str(home) not in response.text
    assert post(server, "/v1/completions", {"max_tokens": 1}).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_scheduler_shows_and_is_replaced() -> None:
    """A thread that ends by a bug: who waits gets a 500, /ready says 503, and soon texts are written again."""
    service = tiny_service(revive_seconds=0.5)

    async def check() -> None:
        async with running(service) as client:
            assert (await client.post("/v1/completions", json={"max_tokens": 2})).status_code == 200
            assert (await client.get("/ready")).status_code == 200
            (hosted,) = service.host.open_models

            def broken() -> None:
                raise MemoryError("a bug of the test")

            hosted.scheduler._admit = broken  # type: ignore[method-assign]
            response = await client.post("/v1/completions", json={"max_tokens": 2})
            assert response.status_code == 500
            assert error_of(response)["code"] == "internal_error"
            assert not hosted.scheduler.alive
            assert service.host.open_models != [hosted] or (await client.get("/ready")).status_code == 503
            for _ in range(30):  # nobody asks for the model, and it comes back nevertheless
                await asyncio.sleep(0.5)
                if (await client.get("/ready")).status_code == 200:
                    break
            assert (await client.get("/ready")).status_code == 200
            assert (await client.post("/v1/completions", json={"max_tokens": 2})).status_code == 200

    asyncio.run(check())


def test_a_step_that_does_not_end_is_not_ready() -> None:
    service = tiny_service(stuck_seconds=0.2)

    async def check() -> None:
        async with running(service) as client:
            await client.post("/v1/completions", json={"max_tokens": 1})
            (hosted,) = service.host.open_models
            go_on = threading.Event()
            feed = hosted.model.engine.feed
            hosted.model.engine.feed = lambda *args, **named: go_on.wait(30) and feed(*args, **named)  # type: ignore
            asking = asyncio.ensure_future(client.post("/v1/completions", json={"max_tokens": 1}))
            await asyncio.sleep(1)
            response = await client.get("/ready")
            go_on.set()
            assert response.status_code == 503
            assert "not answering: tiny" in error_of(response)["message"]
            assert (await client.get("/health")).status_code == 200
            assert (await asking).status_code == 200
            assert (await client.get("/ready")).status_code == 200

    asyncio.run(check())


def test_what_nobody_foresaw_is_a_json_500_that_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Starlette's own answer was plain text, before it was told otherwise."""
    service = tiny_service()

    def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(store, "list_models", broken)

    async def check() -> httpx.Response:
        async with running(service) as client:
            return await client.get("/v1/models")

    response = asyncio.run(check())
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in {
        record.fields["request_id"] for record in caplog.records if hasattr(record, "fields") and record.exc_info
    }


def test_who_leaves_while_a_model_is_opened_keeps_no_place() -> None:
    """A lease whose client had left was never given back, and with it the model could not be closed any more."""
    write_tiny(store.models_folder() / "tiny")
    write_tiny(store.models_folder() / "other")
    host = Host("tiny", max_open=1)

    async def check() -> None:
        async def ask() -> None:
            async with leased(host, "tiny"):
                raise AssertionError("not reached")

        asking = asyncio.ensure_future(ask())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        for _ in range(100):
            if host.open_models and not host.open_models[0].users:
                break
            await asyncio.sleep(0.1)
        async with leased(host, "other") as hosted:
            assert hosted.model.name == "other"

    asyncio.run(check())
    host.close()


def test_too_slow_an_answer_is_a_504() -> None:
    service = tiny_service(request_seconds=0.0)

    async def check() -> httpx.Response:
        async with running(service) as client:
            return await client.post("/v1/completions", json={"max_tokens": 50})

    response = asyncio.run(check())
    assert response.status_code == 504
    assert error_of(response)["code"] == "too_slow"


def test_models_are_opened_and_closed_on_demand(server: Running, home: Path) -> None:
    write_tiny(home / "models" / "spare")

    def change(name: str, what: str) -> httpx.Response:
        return httpx.post(f"{server.url}/v2/models/{name}/{what}", timeout=60)

    assert change("spare", "load").json() == {
        **{"name": "spare", "loaded": True, "engine": "litert", "precision": "float32"},
        **{"num_parameters": TINY.num_parameters, "n_ctx": 64},
    }
    assert change("spare", "unload").json()["loaded"] is False
    assert change("spare", "unload").json()["loaded"] is False
    assert change("nobody", "load").status_code == change("nobody", "unload").status_code == 404


def test_a_model_in_use_is_not_closed() -> None:
    write_tiny(store.models_folder() / "tiny")
    host = Host("tiny")
    with host.lease(), pytest.raises(ModelInUseError, match="used by 1") as caught:
        host.close_model("tiny")
    assert (problem_of(caught.value).status, problem_of(caught.value).code) == (409, "model_in_use")
    assert host.close_model("tiny")
    host.close()


@pytest.mark.slow
def test_a_loss_that_is_no_number_fails_the_job(server: Running, home: Path) -> None:
    form = {"file": ("text.txt", b"Mary had a little lamb whose fleece was white as snow. " * 100)}
    file = httpx.post(server.url + "/v1/files", files=form, data={"purpose": "fine-tune"}).json()["id"]
    training = {"steps": 5, "batch_size": 1, "sequence_length": 32}
    request = {"training_files": [file], "name": "never", "model": "poisoned", "training": training}
    job = f"{server.url}/v2/jobs/{post(server, '/v2/train', request).json()['id']}"
    end = time.monotonic() + 200
    while (facts := httpx.get(job).json())["finished"] is None:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert facts["status"] == "failed"
    assert "loss" in facts["error"] or "gradient" in facts["error"]
    assert not (home / "models" / "never").exists()
    assert post(server, "/v1/completions", {"max_tokens": 2}).status_code == 200


# The disk

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_507_whatever_it_has_become() -> None:
    def raised(error: Exception, cause: BaseException | None) -> Exception:
        try:
            raise error from cause
        except Exception as caught:
            return caught

    for error in (FULL, raised(CheckpointError("x: cannot be written"), FULL), raised(RuntimeError(), FULL)):
        assert (problem_of(error).status, problem_of(error).code) == (507, "disk_full")
    assert problem_of(sqlite3.OperationalError("database or disk is full")).status == 507
    assert problem_of(sqlite3.OperationalError("database is locked")).status == 500
    assert problem_of(OSError(errno.EIO, "I/O error")).status == 500


@pytest.mark.parametrize("with_job", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(tmp_path: Path, with_job: bool) -> None:
    """A real one, of 24 MB: uploads and saves get 507, a job fails and says why, and text is written all the time."""
    write_tiny(tmp_path / "models" / "tiny")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=24m none {disk} && cp -r {tmp_path}/models {disk} && exec "
    namespace = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*namespace, script + "true"], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    serve = f"env GPT2_HOME={disk} TMPDIR={disk} {sys.executable} -m gpt2 serve --port 0 --model tiny"
    process = subprocess.Popen([*namespace, script + serve], stderr=subprocess.PIPE, text=True)
    try:
        server = Running(process)

        def upload(size: int) -> httpx.Response:
            form = {"file": ("text.txt", b"Mary had a little lamb. " * (size // 24))}
            return httpx.post(server.url + "/v1/files", files=form, data={"purpose": "fine-tune"}, timeout=60)

        first = upload(100_000).json()["id"]
        assert post(server, "/v2/save", {"model": "tiny", "path": "before"}).status_code == 200
        statuses = [upload(3 << 20).status_code for _ in range(8)]
        assert set(statuses) == {200, 507}
        while (size := (1 << 20)) and upload(size).status_code == 200:
            pass
        kept = httpx.get(server.url + "/v1/files?limit=100").json()["data"]
        response = post(server, "/v2/save", {"model": "tiny", "path": "after"})
        assert (response.status_code, error_of(response)["code"]) == (507, "disk_full")
        names = [model["id"] for model in httpx.get(server.url + "/v1/models").json()["data"]]
        assert "before" in names
        assert "after" not in names
        if with_job:
            small = {
                "training_files": [first],
                "name": "new",
                "training": {"steps": 5, "batch_size": 1, "precision": "float32"},
            }
            ordered = post(server, "/v2/train", small)
            if ordered.status_code == 200:
                job = f"{server.url}/v2/jobs/{ordered.json()['id']}"
                end = time.monotonic() + 100
                while (facts := httpx.get(job).json())["finished"] is None:
                    assert time.monotonic() < end
                    time.sleep(0.2)
                assert facts["status"] == "failed"
                assert "No space left" in facts["error"]
            else:
                assert ordered.status_code == 507
        assert post(server, "/v1/completions", {"max_tokens": 3}).status_code == 200
        assert httpx.get(server.url + "/ready").status_code == 200
        for file in kept:
            if file["id"] != first:
                assert httpx.delete(f"{server.url}/v1/files/{file['id']}").status_code == 200
        assert post(server, "/v2/save", {"model": "tiny", "path": "after"}).status_code == 200
        assert server.stop() == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_two_servers_save_under_one_name(home: Path, server: Running, rounds: int) -> None:
    """Round after round one of them gets it, the other a 409, and what is there can be asked."""
    with serving(home, "--model", "tiny") as other:
        codes = set()
        for number in range(rounds):
            path = f"both-{number}"
            answers: list[httpx.Response] = []
            threads = [
                threading.Thread(
                    target=lambda s=s, path=path, answers=answers: answers.append(
                        post(s, "/v2/save", {"model": "tiny", "path": path})
                    )
                )
                for s in (server, other)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(answer.status_code for answer in answers) == [200, 409]
            codes |= {error_of(answer)["code"] for answer in answers if answer.status_code == 409}
            if number == 0:
                assert post(other, "/v1/completions", {"model": path, "max_tokens": 1}).status_code == 200
            assert httpx.delete(f"{server.url}/v1/models/{path}").status_code == 200
        assert codes <= {"model_locked", "name_taken"}


def test_a_model_that_is_being_written_is_locked(home: Path, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_HOME", str(home))
    with store.writing("Taken"):
        response = post(server, "/v2/save", {"model": "tiny", "path": "taken"})
        assert (response.status_code, error_of(response)["code"]) == (409, "model_locked")
        with pytest.raises(ModelLockedError), store.writing("taken"):
            pass
    assert post(server, "/v2/save", {"model": "tiny", "path": "taken"}).status_code == 200


# Strangers' names, bodies and bytes


@pytest.mark.parametrize("examples", [50, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_no_name_leads_out_of_the_store(tmp_path: Path, examples: int) -> None:
    """Names of models, files, jobs: whatever they are, the tree outside is as it was, and no answer is a 5xx."""
    service = tiny_service()
    outside = tmp_path / "outside"
    write_tiny(outside)

    def tree() -> dict[str, tuple[int, int]]:
        left_alone = [outside, *outside.rglob("*"), *store.models_folder().rglob("*")]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in left_alone}

    before = tree()
    part = st.sampled_from(
        ["..", ".", "/", "\\", "%2e%2e", "%2f", "\0", "outside", str(outside), "tiny", "@", "~", ":"]
    )
    names = st.one_of(st.lists(part, min_size=1, max_size=6).map("".join), st.text(min_size=1, max_size=300))

    async def check() -> None:
        async with running(service) as client:

            @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(names)
            def each(name: str) -> None:
                found.append(name)

            found: list[str] = []
            await asyncio.to_thread(each)
            for name in found:
                if name in ("tiny", "bundled"):
                    continue
                bodies = {
                    "/v1/completions": {"model": name, "max_tokens": 1},
                    "/v2/query": {"model": name, "max_tokens": 1},
                    "/v2/save": {"model": name, "path": "new"},
                    "/v2/train": {"training_files": [name], "name": "x", "model": name},
                    "/v1/fine_tuning/jobs": {"model": "tiny", "training_file": name},
                }
                with contextlib.suppress(UnicodeEncodeError):
                    for path, body in bodies.items():
                        response = await client.post(path, content=json.dumps(body), headers=JSON)
                        assert 400 <= response.status_code < 500, (path, name, response.text)
                    response = await client.post(
                        "/v2/save", content=json.dumps({"model": "tiny", "path": name}), headers=JSON
                    )
                    if response.status_code == 200:
                        store.remove(name)
                    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
                    for path in ("/v1/models/", "/v1/files/", "/v1/fine_tuning/jobs/"):
                        response = await client.get(path + quoted)
                        assert response.status_code in (400, 404), (path, name, response.text)
                    for path in (f"/v1/models/{quoted}", f"/v1/files/{quoted}"):
                        assert (await client.delete(path)).status_code in (400, 404), (path, name)

    asyncio.run(check())
    after = tree()
    after.pop(str(store.models_folder()), None)
    assert {path: state for path, state in after.items() if path in before} == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.name not in ("outside", "home")] == []


RAW: list[tuple[bytes, bytes]] = [
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
    (b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
    (b"GET /health HTTP/1.1\r\n\r\n", b"400|403"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400|403"),
    (b"nonsense\r\n\r\n", b"400"),
    (b"\x16\x03\x01\x02\x00\x01\x00", b"400|"),
    (b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400|431"),
    (b"GET /health?" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400|431"),
    (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
    (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n", b"400|413"),
    (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}", b"400"),
    (
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"400",
    ),
    (
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"400|501",
    ),
    (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data\r\n"
        b"Content-Length: 3\r\n\r\nabc",
        b"400",
    ),
    (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 9\r\n\r\n--x\r\nabc\n",
        b"400",
    ),
    (b"GET /v1/models/%00%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
    (b"GET /v1/models/%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
    (b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403|404"),
    (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"4.."),
    (b"TRACE /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
    (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"200|4.."),
]


@pytest.mark.parametrize(("sent", "wanted"), RAW, ids=[str(sent[:40]) for sent, _ in RAW])
def test_bytes_that_are_hardly_http(server: Running, sent: bytes, wanted: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
            while b"\r\n\r\n" not in answer and (part := connection.recv(65536)):
                answer += part
    status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    assert re.fullmatch(wanted, status[1] if status else b""), answer
    assert b"X-Evil" not in answer.split(b"\r\n\r\n")[0]
    assert httpx.get(server.url + "/health").status_code == 200


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    """asyncio turns Nagle's algorithm off only where the socket names its protocol; every answer took 40 ms more."""
    with _listen(Settings(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_who_takes_no_answer_is_cut_off(tmp_path: Path) -> None:
    """It would keep its place, and a model, as long as it liked."""
    service = tiny_service(write_seconds=0.5, port=0)
    new = (records := Records()).new_file_path()
    new.write_bytes(b"x" * (40 << 20))
    file = records.add_file(new, "large.txt", "fine-tune")
    server = new_server(service)
    with _listen(service.settings) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        try:
            with socket.create_connection(listening.getsockname(), timeout=30) as connection:
                connection.sendall(f"GET /v1/files/{file.id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                seen = False
                for _ in range(100):  # the server's side of the connection goes, though nothing was read
                    time.sleep(0.05)
                    seen = seen or bool(server.server_state.connections)
                    if seen and not server.server_state.connections:
                        break
                assert seen
                assert not server.server_state.connections
                taken = 0
                with contextlib.suppress(ConnectionError):
                    while part := connection.recv(1 << 20):
                        taken += len(part)
                assert taken < 40 << 20
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def test_a_file_that_is_removed_while_it_is_asked_for() -> None:
    """Between the look whether it is there and its opening it could go, and that was a 500. Schemathesis found it."""
    service = tiny_service()
    new = (records := Records()).new_file_path()
    new.write_text("Mary had a little lamb.")
    file = records.add_file(new, "text.txt", "fine-tune")

    async def check() -> list[httpx.Response]:
        async with running(service) as client:
            whole = await client.get(f"/v1/files/{file.id}/content")
            records.file_path(file.id).unlink()
            return [whole, await client.get(f"/v1/files/{file.id}/content")]

    whole, gone = asyncio.run(check())
    assert (whole.text, whole.headers["content-length"]) == ("Mary had a little lamb.", "23")
    assert gone.status_code == 404
    assert "was removed meanwhile" in error_of(gone)["message"]


def test_a_model_that_is_removed_while_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for files: its name was there, its folder no more."""
    service = tiny_service()
    gone = store.models_folder() / "gone"
    names, resolve = store.list_models, store.resolve_name
    monkeypatch.setattr(store, "list_models", lambda: [*names(), "gone"])
    monkeypatch.setattr(store, "resolve_name", lambda name: gone if name == "gone" else resolve(name))

    async def check() -> None:
        async with running(service) as client:
            listed = await client.get("/v1/models")
            assert [model["id"] for model in listed.json()["data"]] == ["bundled", "tiny"]
            assert (await client.get("/v1/models/gone")).status_code == 404
            response = await client.post("/v1/completions", json={"model": "gone", "max_tokens": 1})
            assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")

    asyncio.run(check())


def test_a_field_given_twice_is_refused(server: Running) -> None:
    for body in (b'{"prompt": "a", "prompt": "b"}', b'{"logit_bias": {"1": 1, "1": 2}}'):
        response = httpx.post(server.url + "/v1/completions", content=body, headers=JSON)
        assert response.status_code == 400
        assert error_of(response)["code"] == "duplicate_field"


def peak(server: Running) -> int:
    """The most memory that the process has had, MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1]) // 1024  # type: ignore


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_what_is_refused_takes_no_memory(server: Running) -> None:
    """Numbers that would take gigabytes are refused before anything is set aside for them.

    A list of a million wrong values took 14 s and 1.8 GB, since each fault was written down.
    """
    huge: list[dict[str, Any]] = [
        {"n": 2**63},
        {"n": 128, "max_tokens": 2**31 - 1},
        {"best_of": 20, "n": 20, "max_tokens": 2**31 - 1, "prompt": ["x"] * 100},
        {"max_tokens": 2**63},
        {"logprobs": 2**63},
        {"prompt": [[464]] * 100_000},
        {"prompt": ["x"] * 100_000},
        {"prompt": [464] * 500_000},
        {"prompt": "x" * 3_000_000},
        {"stop": ["x" * 1_000_000]},
        {"stop": ["x"] * 100_000},
        {"logit_bias": {str(n): 1 for n in range(100_000)}},
        {"prompt": [1, "a"] * 300_000},
        {"prompt": [["a"]] * 300_000},
        {"stop": [1] * 1_000_000},
        {"logit_bias": {str(n): 1000 for n in range(100_000)}},
        {"regex": "(a{1,1000}){1,1000}" * 100},
        {"regex": r"(\p{L}{1,500}){1,500}", "max_tokens": 30},
        {"regex": "(a|a)*" * 1000},
        {"regex": "a" * 100_000},
        {"top_k": -1},
        {"seed": 2**64},
        {"user": 5},
    ]
    with contextlib.suppress(httpx.HTTPError):
        post(server, "/v1/completions", {"prompt": "x" * 3_000_000, "max_tokens": 1})  # what the first large body takes
    before = peak(server)
    for body in huge:
        response = post(server, "/v1/completions", {"prompt": [464], **body})
        assert response.status_code == 400, (list(body), response.text[:300])
        error_of(response)
    assert peak(server) - before < 200  # bodies of megabytes are held, and parsed


def test_long_texts_are_encoded_beside_other_requests(server: Running) -> None:
    """A megabyte of one character: tiktoken's tokens, and /health answers while they are made."""
    import tiktoken

    from gpt2.codec import default_codec

    codec = default_codec()
    assert isinstance(codec._encoding, tiktoken.Encoding)  # what they are compared with is tiktoken itself
    for text in ("a" * 1_000_000, "🦊" * 250_000):
        answered = []
        done = threading.Event()

        def watch(answered: list[int] = answered, done: threading.Event = done) -> None:
            with httpx.Client(base_url=server.url) as client:
                while not done.is_set():
                    answered.append(client.get("/health").status_code)

        watcher = threading.Thread(target=watch)
        watcher.start()
        response = post(server, "/tokenize", {"prompt": text})
        refused = post(server, "/v1/completions", {"prompt": text})
        done.set()
        watcher.join()
        assert response.json()["tokens"] == codec._encoding.encode_ordinary(text)
        assert error_of(refused)["code"] in ("context_length_exceeded", "too_many_tokens")
        assert len(answered) > 10
        assert set(answered) == {200}


# Many clients


@pytest.mark.parametrize("seconds", [3, pytest.param(120, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_many_clients_for_a_while(home: Path, seconds: int) -> None:
    """Twenty of them, in all ways of asking, some leaving early: no error, and nothing is left."""
    with serving(home, "--model", "bundled") as server:
        end = time.monotonic() + seconds
        errors: list[str] = []
        counts = [0] * 20

        def client(number: int) -> None:
            with httpx.Client(base_url=server.url, timeout=120) as session:
                while time.monotonic() < end:
                    body = {"prompt": f"The king {counts[number]}", "max_tokens": 24, "seed": number}
                    try:
                        if number % 5 == 0:
                            session.post("/v2/query", json=body).raise_for_status()
                        elif number % 5 in (1, 2):
                            with session.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
                                stream.raise_for_status()
                                for line in stream.iter_lines():
                                    if number % 5 == 2 and counts[number] % 3 == 0:
                                        break  # leaves
                                    if '"error"' in line:
                                        errors.append(line)
                        else:
                            session.post("/v1/completions", json={**body, "n": 2, "logprobs": 2}).raise_for_status()
                    except httpx.HTTPError as error:
                        errors.append(repr(error))
                    counts[number] += 1

        threads = [threading.Thread(target=client, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert min(counts) >= 1
        wait_until_idle(server)
        assert server.stop() == 0
        assert "Traceback" not in server.log


def wait_until_idle(server: Running) -> None:
    for _ in range(100):
        text = httpx.get(server.url + "/metrics").text
        if "gpt2_texts_writing 0.0" in text and "gpt2_texts_waiting 0.0" in text:
            return
        time.sleep(0.1)
    raise AssertionError(text)


# The table


def test_the_table_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text)
    assert len(rows) > 60
    for module, name in rows:
        path = ROOT / "tests" / f"{module}.py"
        assert path.exists(), module
        assert f"def {name}(" in path.read_text(encoding="utf-8"), f"{module}::{name}"
