"""Training jobs: OpenAI's routes and our own against a real server; kills of the job and of the server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gpt2 import gpt_core_v2 as api
from gpt2 import store
from gpt2.errors import ConfigError, JobError, ModelNameError, NameTakenError, QueueFullError
from gpt2.jobs import records as records_module
from gpt2.jobs.records import Order, Records
from servers import Running, serving

TEXT = "Mary had a little lamb whose fleece was white as snow, and everywhere that Mary went the lamb was sure to go. "
SETTINGS = {
    **{"steps": 30, "batch_size": 1, "sequence_length": 64, "learning_rate": 1e-3, "warmup_steps": 1, "dropout": 0.1},
    **{"eval_every": 10, "save_every": 5},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with serving(home) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def wait_for(condition: Callable[[], Any], seconds: float = 100) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def post(server: Running, path: str, body: Any = None) -> Any:
    response = httpx.post(server.url + path, json=body or {}, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def status(server: Running, job: str) -> dict[str, Any]:
    return httpx.get(f"{server.url}/v2/jobs/{job}").json()


def upload(client: openai.OpenAI, name: str = "text.txt", content: str = TEXT * 60) -> str:
    return client.files.create(file=(name, content.encode()), purpose="fine-tune").id


def test_a_whole_fine_tuning_by_openais_client(client: openai.OpenAI, server: Running) -> None:
    lines = "".join(json.dumps({"prompt": "Who had a lamb?", "completion": f" {n}: {TEXT}"}) + "\n" for n in range(30))
    file = client.files.create(file=("lamb.jsonl", lines.encode()), purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose) == ("lamb.jsonl", len(lines), "fine-tune")
    assert client.files.content(file.id).read() == lines.encode()
    assert file.id in [each.id for each in client.files.list()]
    job = client.fine_tuning.jobs.create(
        model="bundled",
        training_file=file.id,
        suffix="lamb",
        seed=5,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 2, "learning_rate_multiplier": 20}},
        },
    )
    assert job.status == "queued"
    assert job.method is not None
    done = wait_for(lambda: (j := client.fine_tuning.jobs.retrieve(job.id)).finished_at and j)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model.startswith("ft-bundled-lamb-")
    assert done.trained_tokens > 0
    assert done.seed == 5
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    assert [int(event.id.split("-")[1]) for event in events] == sorted(
        (int(event.id.split("-")[1]) for event in events), reverse=True
    )
    losses = [event.data["train_loss"] for event in reversed(events) if event.type == "metrics"]
    assert losses[-1] < losses[0]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints[0].metrics.train_loss == losses[-1]
    for name in (done.fine_tuned_model, checkpoints[0].fine_tuned_model_checkpoint):
        text = client.completions.create(model=name, prompt="Mary had a", max_tokens=8, temperature=0).choices[0].text
        assert "lamb" in text
    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    assert job.id in [each.id for each in client.fine_tuning.jobs.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(job.id)


def test_checkpoints_answer_while_the_job_goes_on(client: openai.OpenAI, server: Running) -> None:
    """Also: pause, resume, events as they come, cancel, saving a checkpoint under a name."""
    request = {"training_files": [upload(client)], "name": "long", "training": {**SETTINGS, "steps": 4000}}
    job = post(server, "/v2/train", request)["id"]
    waiting = post(server, "/v2/train", {**request, "name": "second"})["id"]
    first = wait_for(lambda: status(server, job)["checkpoints"])[0]
    answer = post(server, "/v2/query", {"model": first, "prompt": "Mary had", "max_tokens": 4})
    assert answer["model"] == first
    assert status(server, job)["status"] == "running"
    assert status(server, waiting)["status"] == "queued"
    post(server, f"/v2/jobs/{waiting}/cancel")
    assert status(server, waiting)["status"] == "cancelled"
    post(server, f"/v2/jobs/{job}/pause")
    wait_for(lambda: status(server, job)["status"] == "paused")
    stopped = status(server, job)["step"]
    post(server, "/v2/save", {"model": "long@last", "path": "kept", "format": "huggingface", "dtype": "float16"})
    assert post(server, "/v2/query", {"model": "kept", "prompt": "Mary had", "max_tokens": 2})["model"] == "kept"
    post(server, f"/v2/jobs/{job}/resume")
    wait_for(lambda: status(server, job)["step"] > stopped)
    kinds = []
    with httpx.stream("GET", f"{server.url}/v2/jobs/{job}/events", timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                kinds.append(json.loads(line[6:])["kind"])
                if kinds.count("metrics") == 3 and kinds[-1] == "metrics":
                    post(server, f"/v2/jobs/{job}/cancel")
            if line == "data: [DONE]":
                break
    assert status(server, job)["status"] == "cancelled"
    assert "message" in kinds
    assert httpx.get(f"{server.url}/v2/jobs/{job}/events", params={"after": "x"}).status_code == 400
    assert httpx.post(f"{server.url}/v2/jobs/{job}/resume", json={}).status_code == 409
    names = [each["name"] for each in httpx.get(server.url + "/v2/jobs").json()["jobs"]]
    assert names[-2:] == ["long", "second"]


def test_refusals(client: openai.OpenAI, server: Running, tmp_path: Path) -> None:
    file = upload(client)
    (tmp_path / "secret.txt").write_text(TEXT)

    def refused(path: str, body: dict[str, Any]) -> tuple[int, str | None]:
        response = httpx.post(server.url + path, json=body)
        return response.status_code, response.json()["error"]["param"]

    train = {"training_files": [file], "name": "new"}
    assert refused("/v2/train", {**train, "training_files": [str(tmp_path / "secret.txt")]}) == (400, "training_files")
    assert refused("/v2/train", {**train, "training_files": []}) == (400, "training_files")
    for name in ("../x", "a/b", "", "bundled", "a@b", "x" * 65):
        assert refused("/v2/train", {**train, "name": name})[0] == 404
    assert refused("/v2/train", {**train, "model": "/etc"})[0] == 404
    assert refused("/v2/train", {**train, "model": "bundled", "size": "124M"})[0] == 404
    assert refused("/v2/train", {**train, "size": "1T"}) == (400, "size")
    assert refused("/v2/train", {**train, "training": {"steps": -1}}) == (400, "training")
    assert refused("/v2/train", {**train, "training": {"nothing": 1}}) == (400, "training")
    assert refused("/v2/train", {**train, "epochs": 0}) == (400, "epochs")
    assert refused("/v2/save", {"model": "bundled", "path": "../x"})[0] == 404
    assert refused("/v2/save", {"model": str(store.bundled_path()), "path": "x"})[0] == 404
    assert refused("/v2/save", {"model": "bundled", "path": "x", "format": "pickle"})[0] == 400
    assert refused("/v1/fine_tuning/jobs", {"model": "bundled", "training_file": "file-x"}) == (400, "training_file")
    assert refused("/v1/fine_tuning/jobs", {"model": "nobody", "training_file": file})[0] == 404
    assert httpx.get(server.url + "/v2/jobs/nobody").status_code == 404
    assert httpx.post(server.url + "/v1/files", json={}).status_code == 415
    assert httpx.post(server.url + "/v1/files", files={"file": ("x", b"x")}).status_code == 400
    many = {f"f{n}": ("x", b"x") for n in range(50)}
    assert httpx.post(server.url + "/v1/files", files=many, data={"purpose": "fine-tune"}).status_code == 400
    strange = client.files.create(file=("../../a\nb.txt", b"text"), purpose="fine-tune")
    assert "/" not in strange.filename
    assert httpx.get(server.url + "/v1/files?limit=0").status_code == 400
    assert len(client.files.list(limit=1).data) == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("bad.jsonl", '{"text": "a"}\n{"prompt": "b"}\n', "line 2"),
        ("chat.jsonl", '{"messages": []}\n', "no chat format"),
        ("nan.jsonl", "nonsense\n", "line 1: expected JSON"),
        ("empty.txt", "", "text"),
    ],
)
def test_bad_files_fail_with_the_reason(
    client: openai.OpenAI, server: Running, name: str, content: str, why: str
) -> None:
    job = client.fine_tuning.jobs.create(model="bundled", training_file=upload(client, name, content))
    done = wait_for(lambda: (j := client.fine_tuning.jobs.retrieve(job.id)).finished_at and j)
    assert done.status == "failed"
    assert why in done.error.message


def processes_of(server: Running) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(folder.name)] * (parent == server.process.pid)
    return found


@pytest.mark.slow
def test_killed_jobs_and_servers_end_with_the_same_weights(tmp_path: Path) -> None:
    """kill -9 of the job, then of the server; SIGTERM to a third; the weights are those of an undisturbed job."""
    with serving(tmp_path) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        request = {"training_files": [upload(client)], "training": {**SETTINGS, "steps": 40}}
        undisturbed = post(server, "/v2/train", {**request, "name": "undisturbed"})["id"]
        job = post(server, "/v2/train", {**request, "name": "disturbed"})["id"]
        wait_for(lambda: status(server, undisturbed)["status"] == "succeeded")
        wait_for(lambda: status(server, job)["checkpoints"])
        os.kill(processes_of(server)[0], signal.SIGKILL)
        before = status(server, job)["checkpoints"]
        wait_for(lambda: status(server, job)["checkpoints"] != before)
        children = processes_of(server)
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))  # no orphan
    with serving(tmp_path) as server:
        found = status(server, job)
        if found["status"] != "succeeded":
            before = found["checkpoints"]
            wait_for(lambda: status(server, job)["checkpoints"] != before)
            children = processes_of(server)
            assert server.stop() == 0
            assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    with serving(tmp_path) as server:
        wait_for(lambda: status(server, job)["status"] == "succeeded")
        messages = httpx.get(f"{server.url}/v2/jobs/{job}/events").text
        assert "interrupted; it goes on" in messages
    one, other = (
        (tmp_path / "models" / name / "model.safetensors").read_bytes() for name in ("undisturbed", "disturbed")
    )
    assert one == other


@pytest.mark.slow
def test_two_servers_share_a_store_and_its_jobs(tmp_path: Path) -> None:
    """One job runs at a time, whoever was asked; kill -9 of the server whose process it is, and the other goes on."""
    with serving(tmp_path) as one, serving(tmp_path) as other:
        client = openai.OpenAI(base_url=one.url + "/v1", api_key="none")
        request = {"training_files": [upload(client)], "training": {**SETTINGS, "steps": 60}}
        jobs = [
            post(server, "/v2/train", {**request, "name": f"job-{n}"})["id"] for n, server in enumerate((one, other))
        ]
        wait_for(lambda: status(one, jobs[0])["checkpoints"])
        assert status(other, jobs[0])["status"] == "running"
        assert status(other, jobs[1])["status"] == "queued"
        running = [len(processes_of(server)) for server in (one, other)]
        assert sum(running) == 1
        victim, left = (one, other) if running[0] else (other, one)
        victim.process.kill()
        victim.process.wait()
        wait_for(lambda: status(left, jobs[1])["status"] == "succeeded", 250)
        assert status(left, jobs[0])["status"] == "succeeded"
        assert post(left, "/v2/query", {"model": "job-0", "prompt": "Mary", "max_tokens": 2})["model"] == "job-0"
        assert left.stop() == 0


def test_from_python(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 60)
    request = api.TrainRequest(
        (str(tmp_path / "text.txt"),), "mine", epochs=1, automatic=("sequence_length", "batch_size")
    )
    job = api.start_training(request)
    try:
        with pytest.raises(NameTakenError):
            api.start_training(request)
        assert [each.id for each in api.list_jobs().jobs] == [job.id]
        done = wait_for(lambda: (j := api.job_status(job.id)).finished and j)
        assert done.status == "succeeded", done.error
        assert api.query_model("Mary", model="mine", max_tokens=2)
        assert [event.kind for event in api.job_events(job.id)].count("metrics") >= 1
        with pytest.raises(JobError, match="succeeded"):
            api.cancel_job(job.id)
    finally:
        from gpt2.jobs.supervisor import stop_supervising

        stop_supervising()


def test_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records()
    job = records.create(Order("one", ("a",), training={"steps": 3}))
    assert Records().job(job.id) == job
    assert records.update(job.id, step=2).step == 2
    with pytest.raises(NameTakenError):
        records.create(Order("one", ("a",)))
    with pytest.raises(ModelNameError):
        records.create(Order("../one", ("a",)))
    with pytest.raises(JobError, match="pauses"):
        records.ask(job.id, "run")
    assert records.ask(job.id, "pause").status == "paused"
    assert records.ask(job.id, "run").status == "queued"
    assert records.ask(job.id, "cancel").status == "cancelled"
    monkeypatch.setattr(records_module, "MAX_QUEUED", 1)
    records.create(Order("two", ("a",)))
    with pytest.raises(QueueFullError):
        records.create(Order("three", ("a",)))
    with pytest.raises(ConfigError, match="automatic"):
        api.start_training(api.TrainRequest(("a",), "x", automatic=("steps",)))
