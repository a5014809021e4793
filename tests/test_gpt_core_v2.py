"""The versioned API: its contract, and what it does."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from gpt2 import gpt_core_v2 as api
from gpt2.config import TrainingConfig
from gpt2.errors import CheckpointError, ConfigError, GPT2Error, ModelNameError, PromptError, QueueFullError

CONTRACT = """
API_VERSION = 2
query_model(prompt: 'str | None' = None, *, model: 'str | None' = None, max_tokens: 'int' = 128, temperature: 'float' = 1.0, top_k: 'int' = 0, top_p: 'float' = 1.0, seed: 'int | None' = None, stop: 'str | list[str] | None' = None, **options: 'Any') -> 'str'
stream_model(prompt: 'str | None' = None, *, model: 'str | None' = None, **options: 'Any') -> 'Iterator[str]'
query_via_api(request: 'QueryRequest') -> 'QueryResponse'
list_models_via_api() -> 'ModelList'
load_model_via_api(name: 'str | None' = None) -> 'LoadedModel'
unload_model_via_api(name: 'str | None' = None) -> 'LoadedModel'
train_via_api(request: 'TrainRequest') -> 'TrainResponse'
start_training(request: 'TrainRequest') -> 'JobStatus'
list_jobs() -> 'JobList'
job_status(job_id: 'str') -> 'JobStatus'
cancel_job(job_id: 'str') -> 'JobStatus'
pause_job(job_id: 'str') -> 'JobStatus'
resume_job(job_id: 'str') -> 'JobStatus'
job_events(job_id: 'str', after: 'int' = 0) -> 'list[JobEvent]'
inspect_via_api(request: 'InspectRequest') -> 'InspectResponse'
save_model_via_api(request: 'SaveRequest') -> 'SaveResponse'
QueryRequest: prompt: str | tuple[int, ...] | None, model: str | None, max_tokens: int, num_samples: int, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float, repetition_penalty: float, frequency_penalty: float, presence_penalty: float, logit_bias: dict[int, float], min_tokens: int, stop: tuple[str, ...], seed: int | None, logprobs: int | None, echo: bool, context: str, regex: str | None, json_schema: str | None, stream: bool
QueryToken: id: int, logprob: float | None, top: tuple[tuple[int, float], ...] | None
QuerySample: text: str, finish_reason: str, tokens: tuple[QueryToken, ...]
QueryResponse: model: str, samples: tuple[QuerySample, ...], prompt_tokens: int
QueryEvent: sample: int, text: str, tokens: tuple[QueryToken, ...], finish_reason: str | None
ModelInfo: name: str, format: str, num_parameters: int, n_ctx: int
ModelList: models: tuple[ModelInfo, ...]
LoadedModel: name: str, loaded: bool, engine: str | None, precision: str | None, num_parameters: int | None, n_ctx: int | None
TrainRequest: training_files: tuple[str, ...], name: str, model: str | None, size: str | None, validation_files: tuple[str, ...], training: TrainingConfig, epochs: float | None, automatic: tuple[str, ...]
TrainResponse: model: str, log: tuple[LogEntry, ...]
JobStatus: id: str, name: str, status: str, step: int, steps: int | None, checkpoints: tuple[str, ...], error: str | None, created: int, started: int | None, finished: int | None
JobList: jobs: tuple[JobStatus, ...]
JobEvent: number: int, created: int, level: str, kind: str, message: str, data: dict[str, Any] | None
InspectRequest: prompt: str | tuple[int, ...], model: str | None, layer: int | None, top: int
InspectToken: id: int, text: str, loss: float | None
InspectGuess: id: int, text: str, probability: float
InspectStage: name: str, top: tuple[tuple[InspectGuess, ...], ...], ranks: tuple[int | None, ...]
InspectResponse: model: str, n_layer: int, n_head: int, tokens: tuple[InspectToken, ...], stages: tuple[InspectStage, ...], attention: tuple[tuple[tuple[float, ...], ...], ...] | None
SaveRequest: model: str, path: str, format: str, dtype: str
SaveResponse: path: str, format: str, num_parameters: int
POST /query query QueryRequest QueryResponse
GET /models query None ModelList
POST /inspect query InspectRequest InspectResponse
POST /models/{name}/load query None LoadedModel
POST /models/{name}/unload admin None LoadedModel
POST /train train TrainRequest JobStatus
POST /save train SaveRequest SaveResponse
GET /jobs train None JobList
GET /jobs/{job_id} train None JobStatus
POST /jobs/{job_id}/cancel train None JobStatus
POST /jobs/{job_id}/pause train None JobStatus
POST /jobs/{job_id}/resume train None JobStatus
GET /jobs/{job_id}/events train None JobEvent
"""  # noqa: E501


def test_contract() -> None:
    """What others have built on: a change here needs a gpt_core_v3.py, not a new snapshot."""
    lines = [f"API_VERSION = {api.API_VERSION}"]
    functions = (api.query_model, api.stream_model, api.query_via_api, api.list_models_via_api)
    loading = (api.load_model_via_api, api.unload_model_via_api)
    jobs = (api.start_training, api.list_jobs, api.job_status, api.cancel_job, api.pause_job, api.resume_job)
    for function in (
        *functions,
        *loading,
        api.train_via_api,
        *jobs,
        api.job_events,
        api.inspect_via_api,
        api.save_model_via_api,
    ):
        lines.append(f"{function.__name__}{inspect.signature(function)}")
    queries = (api.QueryRequest, api.QueryToken, api.QuerySample, api.QueryResponse, api.QueryEvent)
    models = (api.ModelInfo, api.ModelList, api.LoadedModel)
    trainings = (api.TrainRequest, api.TrainResponse, api.JobStatus, api.JobList, api.JobEvent)
    looks = (api.InspectRequest, api.InspectToken, api.InspectGuess, api.InspectStage, api.InspectResponse)
    for kind in (*queries, *models, *trainings, *looks, api.SaveRequest, api.SaveResponse):
        lines.append(f"{kind.__name__}: " + ", ".join(f"{f.name}: {f.type}" for f in dataclasses.fields(kind)))
    for route in api.ROUTES:
        request = None if route.request is None else route.request.__name__
        lines.append(f"{route.method} {route.path} {route.scope} {request} {route.response.__name__}")
    assert lines == CONTRACT.strip().splitlines()


def test_query_is_repeatable_and_streamable() -> None:
    settings = {"max_tokens": 12, "seed": 4, "temperature": 0.9, "top_k": 40}
    text = api.query_model("Once upon a time", **settings)
    assert text
    assert text == api.query_model("Once upon a time", **settings)
    assert text == "".join(api.stream_model("Once upon a time", **settings))
    assert not text.startswith("Once")
    assert api.query_model("Once upon a time", max_tokens=0) == ""


def test_stop_and_options() -> None:
    settings = {"max_tokens": 60, "seed": 4, "top_k": 40}
    text = api.query_model("The king", **settings)
    cut = api.query_model("The king", stop="e", **settings)
    assert cut == text[: text.index("e")]
    with pytest.raises(ConfigError, match="top_z: no such option"):
        api.query_model("x", top_z=1)


def test_models_are_opened_and_closed_on_demand() -> None:
    opened = api.load_model_via_api()
    assert opened == api.LoadedModel("bundled", True, opened.engine, "float32", 19_315_456, 512)
    assert (None, "auto", "float32", None) in api._open
    assert api.unload_model_via_api() == api.LoadedModel("bundled", loaded=False)
    assert (None, "auto", "float32", None) not in api._open
    assert api.query_model("x", max_tokens=1)
    with pytest.raises(ModelNameError, match="got 'nobody'"):
        api.load_model_via_api("nobody")


def test_models_are_named() -> None:
    with pytest.raises(ModelNameError, match="got 'nobody'"):
        api.query_model("x", model="nobody")


def test_train_save_query(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Mary had a little lamb whose fleece was white as snow. " * 40)
    settings = TrainingConfig(
        steps=6, batch_size=1, sequence_length=64, learning_rate=1e-3, warmup_steps=1, eval_every=3
    )
    done = api.train_via_api(api.TrainRequest((str(file),), "lamb", validation_files=(str(file),), training=settings))
    assert done.model == "lamb"
    assert [entry.step for entry in done.log] == [3, 6]
    assert done.log[1].loss < done.log[0].loss
    saved = api.save_model_via_api(api.SaveRequest("lamb", str(tmp_path / "lamb"), "huggingface"))
    assert saved.format == "huggingface"
    assert saved.num_parameters > 10_000_000
    queries = [api.query_model("Mary had a", model=m, max_tokens=6, temperature=0) for m in ("lamb", saved.path)]
    assert queries[0] == queries[1]


def test_bad_requests(tmp_path: Path) -> None:
    for request in (
        api.TrainRequest(("x.txt",), ""),
        api.TrainRequest(("x.txt",), "a/b"),
        api.TrainRequest(("x.txt",), "a", model="bundled", size="124M"),
    ):
        with pytest.raises(ModelNameError):
            api.train_via_api(request)
    with pytest.raises(GPT2Error, match="x.txt"):
        api.train_via_api(api.TrainRequest((str(tmp_path / "x.txt"),), "a"))
    with pytest.raises(ConfigError, match="format: expected one of native"):
        api.save_model_via_api(api.SaveRequest("bundled", str(tmp_path / "m"), "pickle"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="found a file"):
        api.save_model_via_api(api.SaveRequest("bundled", str(tmp_path / "file")))


def test_inspect() -> None:
    """Beside what `model.logits` gives, and what is refused."""
    import numpy as np

    from gpt2 import encode, load_model

    model = load_model()
    ids = encode("The king said")
    logits = model.logits([ids])[0].astype(float)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    seen = api.inspect_via_api(api.InspectRequest("The king said", layer=7, top=2))
    assert [token.id for token in seen.tokens] == ids
    assert [token.text for token in seen.tokens] == ["The", " king", " said"]
    assert seen.tokens[0].loss is None
    assert seen.tokens[2].loss == pytest.approx(-np.log(probabilities[1, ids[2]]), abs=1e-3)
    assert (seen.n_layer, seen.n_head, len(seen.stages), seen.stages[-1].name) == (8, 4, 9, "layer 7")
    best = seen.stages[-1].top[1]
    assert [guess.id for guess in best] == np.argsort(-probabilities[1])[:2].tolist()
    assert best[0].probability == pytest.approx(probabilities[1].max(), abs=1e-4)
    assert seen.stages[-1].ranks == (*((probabilities[t] > probabilities[t, ids[t + 1]]).sum() for t in (0, 1)), None)
    assert seen.attention is not None
    assert [[len(row) for row in head] for head in seen.attention] == [[1, 2, 3]] * 4
    assert sum(seen.attention[3][2]) == pytest.approx(1, abs=1e-3)
    assert api.inspect_via_api(api.InspectRequest(tuple(ids))).attention is None
    for request, error, message in (
        (api.InspectRequest("x", layer=8), ConfigError, "layer: expected 0 to 7, got 8"),
        (api.InspectRequest("x", top=21), ConfigError, "top: expected 1 to 20, got 21"),
        (api.InspectRequest(""), PromptError, "prompt: expected text or token ids, got nothing"),
        (api.InspectRequest("x " * 300), PromptError, "prompt: expected at most 256 tokens"),
        (api.InspectRequest((50257,)), PromptError, "ids: expected 0 to 50256, got 50257"),
        (api.InspectRequest("x", model="nobody"), ModelNameError, "got 'nobody'"),
    ):
        with pytest.raises(error, match=message):
            api.inspect_via_api(request)


def test_few_inspections_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2 import store
    from gpt2.inspection import hosted

    inspector = hosted.Inspector()
    for _ in range(1 + hosted.MAX_WAITING):
        inspector._turns.acquire()
    with pytest.raises(QueueFullError, match="inspect: 3 are being done or wait"):
        inspector.inspect(store.bundled_path(), [1], top=1)
    inspector._turns.release()
    first = inspector.inspect(store.bundled_path(), [1, 2], top=1)
    assert first.ids.tolist() == [1, 2]
    opened = inspector._open
    inspector.inspect(store.bundled_path(), [1], top=1)
    assert inspector._open is opened
    inspector._open = None
    monkeypatch.setattr(hosted, "MAX_PARAMETERS", 1000)
    with pytest.raises(ConfigError, match="model: expected at most 1,000 parameters to look into, got 1"):
        inspector.inspect(store.bundled_path(), [1], top=1)


def test_no_more_than_a_few_models_stay_loaded(tmp_path: Path) -> None:
    from gpt2.config import GPT2Config
    from gpt2.gpt import new_model, save_model

    for n in range(api.MAX_LOADED + 1):
        save_model(new_model(GPT2Config(n_vocab=50257, n_ctx=8, n_embd=2, n_head=1, n_layer=1)), tmp_path / str(n))
        api.query_model("x", model=str(tmp_path / str(n)), max_tokens=1)
    assert len(api._open) == api.MAX_LOADED
