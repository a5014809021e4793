"""OpenAI's `/v1/completions`, in every field, with two things of our own: GPT-2's other ways of sampling may be given
beside OpenAI's fields, and `suffix` is done by writing several texts and taking those that the suffix fits best, since
GPT-2 was not trained to fill gaps.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gpt2.codec import Codec, StreamDecoder
from gpt2.config import GenerationConfig
from gpt2.continuation import Piece, TopLogProbs
from gpt2.hosting import Hosted
from gpt2.server.bodies import read_json, to_json
from gpt2.server.problems import Problem, problem_of
from gpt2.server.service import Service
from gpt2.server.settings import Settings
from gpt2.server.sse import event, event_stream
from gpt2.server.writing import LONG_TEXT, Texts, apart, leased, while_connected

INFILL_CANDIDATES = 8
"""Texts that are written for a `suffix` where best_of asks for no number."""

LONGEST_TOKEN = 128
"""Bytes, in GPT-2's vocabulary: what is longer than so many times the context is not even encoded."""

_Id = Annotated[int, Field(ge=0, lt=2**31)]
_TokenPrompt = Annotated[list[_Id], Field(min_length=1, max_length=1 << 18, fail_fast=True)]
_MAX_PROMPTS = 2048  # as OpenAI has it


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="A last chunk without choices brings the usage.")


class CompletionRequest(BaseModel):
    """OpenAI's request for completions; the fields after `user` are ours."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.7, "seed": 1}]
        },
    )

    model: str | None = Field(None, description="See /v1/models; the server's own by default.")
    prompt: (
        str
        | _TokenPrompt
        | Annotated[list[str], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[_TokenPrompt], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True)]
        | None
    ) = Field(None, description="Text, texts, token ids, or rows of them; by default a new document.")
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(16, description="Tokens to write at most.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(1.0, description="0 takes the most probable token.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(1.0, description="Nucleus sampling.")
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(1, description="Texts for each prompt.")
    best_of: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Write so many and give the n most probable (log-probability per token)."
    )
    echo: bool | None = Field(False, description="Give the prompt too.")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(None, description="Of the chosen and the k best tokens.")
    stop: str | Annotated[list[str], Field(max_length=4)] | None = Field(
        None, description="Ends a text, not part of it."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(None, description="The same gives the same text.")
    suffix: str | None = Field(
        None, description="What is to follow: texts are written, and ranked by how well it does."
    )
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = Field(
        None, description="Token id -> from -100 (never) to 100 (always)."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Ignored.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Keep only the k most probable tokens; 0 keeps all.")
    min_p: float = Field(0.0, description="Keep tokens at least this times as probable as the best.")
    typical_p: float = Field(1.0, description="Locally typical sampling.")
    repetition_penalty: float = Field(1.0, description="Above 1, what is in the text becomes less probable.")
    min_tokens: Annotated[int, Field(ge=0)] = Field(0, description="No end of text before so many tokens.")
    regex: Annotated[str, Field(max_length=10_000)] | None = Field(None, description="The whole text matches it.")
    json_schema: dict[str, Any] | None = Field(None, description="The text is JSON that fits it.")


def check_budget(prompts: Sequence[Sequence[int]], config: GenerationConfig, settings: Settings) -> None:
    """Refuse what would take too much, before anything is set aside for it.

    Raises:
        Problem: too many texts or tokens, or stop strings too long.
    """
    check_choices(len(prompts), config.num_samples, settings)
    tokens = config.num_samples * sum(len(prompt) + config.max_tokens for prompt in prompts)
    if tokens > settings.max_total_tokens:
        limit = settings.max_total_tokens
        message = f"max_tokens: expected at most {limit:,} tokens in a request, prompts and texts, got {tokens:,}"
        raise Problem(400, message, param="max_tokens", code="too_many_tokens")
    if any(len(stop) > settings.max_stop_length for stop in config.stop) or len(config.stop) > 16:
        message = f"stop: expected at most 16 strings of {settings.max_stop_length} characters"
        raise Problem(400, message, param="stop")


def check_choices(prompts: int, samples: int, settings: Settings) -> None:
    """As `check_budget`, of what is known before the prompts are encoded."""
    choices = prompts * samples
    if choices > settings.max_choices:
        message = (
            f"n: expected at most {settings.max_choices} texts in a request (prompts times best_of), got {choices}"
        )
        raise Problem(400, message, param="n", code="too_many_choices")


def codec_of(hosted: Hosted) -> Codec:
    """What a model's tokens mean.

    Raises:
        Problem: nobody knows, so nothing can be said in text.
    """
    codec = hosted.model.codec
    if codec is None:
        raise Problem(400, "model: expected one with a vocabulary, got one without", param="model")
    return codec


class Job:
    """A checked request: what is to be written."""

    def __init__(self, body: CompletionRequest, hosted: Hosted, settings: Settings) -> None:
        self.body, self.hosted = body, hosted
        self.name = hosted.model.name
        self.n = body.n or 1
        self.best_of = body.best_of or self.n
        if self.best_of < self.n:
            raise Problem(400, f"best_of: expected at least n = {self.n}, got {self.best_of}", param="best_of")
        if body.stream and self.best_of > self.n:
            raise Problem(
                400, "best_of: expected n where text is streamed: the best are known at the end", param="best_of"
            )
        if body.suffix and (body.echo or body.max_tokens == 0):
            raise Problem(400, "suffix: expected no echo and some max_tokens beside it", param="suffix")
        if body.stream_options is not None and not body.stream:
            raise Problem(400, "stream_options: expected stream = true beside it", param="stream_options")
        candidates = self.best_of
        if body.suffix and body.temperature != 0:
            candidates = max(self.best_of, INFILL_CANDIDATES)
        rows = self._rows()
        check_choices(len(rows), candidates, settings)
        self.prompts = self._prompts(rows)
        ranked = candidates > self.n or bool(body.suffix)
        self.config = self._config(candidates, 0 if ranked and body.logprobs is None else body.logprobs)
        check_budget(self.prompts, self.config, settings)
        self.created = int(time.time())
        self.id = "cmpl-" + secrets.token_hex(12)

    @property
    def codec(self) -> Codec:
        """What the tokens mean."""
        return codec_of(self.hosted)

    def _rows(self) -> list[Any]:
        given: Any = self.body.prompt
        return given if isinstance(given, list) and not isinstance(given[0], int) else [given]

    def _prompts(self, rows: list[Any]) -> list[list[int]]:
        prompts: list[list[int]] = []
        for row in rows:
            if isinstance(row, list):
                bad = next((token for token in row if token >= self.hosted.model.config.n_vocab), None)
                if bad is not None:
                    message = f"prompt: expected tokens from 0 to {self.hosted.model.config.n_vocab - 1}, got {bad}"
                    raise Problem(400, message, param="prompt", code="invalid_token")
            elif row and len(row) > LONGEST_TOKEN * self.hosted.model.config.n_ctx:
                message = f"prompt: {len(row):,} characters do not fit into {self.hosted.model.config.n_ctx} tokens"
                raise Problem(400, message, param="prompt", code="context_length_exceeded")
            prompts.append(row if isinstance(row, list) else self.codec.encode(row) if row else self._start())
        return prompts

    def _start(self) -> list[int]:
        """Where a document begins."""
        if self.codec.end_of_text is None:
            message = "prompt: expected one, since this model has no <|endoftext|> to begin from"
            raise Problem(400, message, param="prompt")
        return [self.codec.end_of_text]

    def _config(self, samples: int, logprobs: int | None) -> GenerationConfig:
        body = self.body
        try:
            bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        except ValueError:
            raise Problem(400, "logit_bias: expected token ids as keys", param="logit_bias") from None
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return GenerationConfig.from_options(
            max_tokens=16 if body.max_tokens is None else body.max_tokens,
            num_samples=samples,
            stop=[text for text in stop if text],
            seed=body.seed,
            logprobs=logprobs,
            echo=bool(body.echo),
            context="error",
            regex=body.regex,
            json_schema=body.json_schema,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            logit_bias=bias,
            **{
                name: getattr(body, name)
                for name in ("top_k", "min_p", "typical_p", "repetition_penalty", "min_tokens")
            },
        )

    def head(self) -> dict[str, Any]:
        """What every object of the answer begins with."""
        return {
            **{"id": self.id, "object": "text_completion", "created": self.created, "model": self.name},
            "system_fingerprint": self.hosted.fingerprint,
        }

    def new_choice(self) -> Choice:
        """A text of which nothing is written yet."""
        return Choice(self.codec, self.body.logprobs)


@dataclasses.dataclass
class _Entry:
    """A token, its log-probability, what else was probable, and where it begins in the text."""

    token: int
    value: float | None
    top: TopLogProbs | None
    offset: int


class Choice:
    """A text on its way, with OpenAI's lists of log-probabilities.

    Tokens come out together with their text: a token of half a character when the rest is there, and one of a stop
    string never.
    """

    def __init__(self, codec: Codec, logprobs: int | None) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.num_tokens = 0
        self.total_logprob = 0.0
        self.given: list[_Entry] = []
        self.tokens: list[int] = []
        self._codec, self._logprobs = codec, logprobs
        self._held: list[_Entry] = []
        self._decoder = StreamDecoder(codec)
        self._decoded = 0

    def add(self, piece: Piece, *, is_prompt: bool = False) -> list[_Entry]:
        """Take in a piece; which tokens come out with it."""
        self.text += piece.text
        self.finish_reason = piece.finish_reason
        if not is_prompt:
            self.num_tokens += len(piece.tokens)
            self.tokens += piece.tokens
            self.total_logprob += sum(value or 0.0 for value in piece.log_probabilities or ())
        values = piece.log_probabilities or (None,) * len(piece.tokens)
        tops = piece.top_log_probabilities or (None,) * len(piece.tokens)
        for token, value, top in zip(piece.tokens, values, tops, strict=True):
            self._held.append(_Entry(token, value, top, self._decoded))
            self._decoded += len(self._decoder.push(token))
        whole = piece.finish_reason == "length"
        out = [entry for entry in self._held if whole or entry.offset < len(self.text)]
        self._held = self._held[len(out) :]
        if piece.end is not None and self._codec.end_of_text is not None:
            out.append(_Entry(self._codec.end_of_text, *piece.end, len(self.text)))
        self.given += out
        return out

    def logprobs(self, entries: Sequence[_Entry]) -> dict[str, Any] | None:
        """OpenAI's four lists, or None if they are not asked for."""
        if self._logprobs is None:
            return None
        return {
            "tokens": [self._name(entry.token) for entry in entries],
            "token_logprobs": [entry.value for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }

    def object(self, index: int) -> dict[str, Any]:
        """The whole text as one of the answer's choices."""
        logprobs = self.logprobs(self.given)
        return {"text": self.text, "index": index, "logprobs": logprobs, "finish_reason": self.finish_reason}

    @property
    def mean_logprob(self) -> float:
        """Of a token of the text."""
        return self.total_logprob / max(1, self.num_tokens)

    def _top(self, entry: _Entry) -> Mapping[str, float] | None:
        if entry.value is None or entry.top is None:
            return None
        named = {self._name(token): value for token, value in entry.top}
        named.setdefault(self._name(entry.token), entry.value)
        return named

    def _name(self, token: int) -> str:
        """A token as text; one that is no text as OpenAI writes its bytes, so that no two have one name."""
        try:
            data = self._codec.token_bytes(token)
        except ValueError:  # of the padding behind the vocabulary
            return f"token:{token}"
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def endpoint_of(service: Service) -> Any:
    """What answers `/v1/completions`."""

    async def completions(request: Request) -> Response:
        body = await read_json(request, CompletionRequest, service.settings)
        seconds = service.settings.request_seconds
        if body.stream:
            return await while_connected(request, _begin_stream(body, service), seconds)
        return await while_connected(request, _answer(body, service), seconds)

    return completions


async def _answer(body: CompletionRequest, service: Service) -> Response:
    async with leased(service.host, body.model) as hosted:
        job = await apart(_is_long(body), Job, body, hosted, service.settings)
        kept, usage = await _write(job, service)
        choices = [choice.object(index) for index, choice in enumerate(kept)]
        return Response(to_json({**job.head(), "choices": choices, "usage": usage}), media_type="application/json")


def _is_long(body: CompletionRequest) -> bool:
    """Whether encoding its prompts takes a while."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt or ()
    texts = [text for text in (*prompts, body.suffix) if isinstance(text, str)]
    return sum(map(len, texts)) > LONG_TEXT


async def _write(job: Job, service: Service) -> tuple[list[Choice], dict[str, int]]:
    """The choices that are given, best first where they were ranked, those of the first prompt first."""
    rows = [[job.new_choice() for _ in range(job.config.num_samples)] for _ in job.prompts]
    texts = await Texts.begun(job.hosted, job.prompts, job.config, together=True)
    try:
        seen: set[tuple[int, int]] = set()
        async for number, piece in texts:
            first = (number, piece.sample) not in seen
            seen.add((number, piece.sample))
            rows[number][piece.sample].add(piece, is_prompt=first and job.config.echo)
    finally:
        texts.close()
        read = sum(map(len, job.prompts))
        written = sum(choice.num_tokens for row in rows for choice in row)
        service.metrics.wrote(read, written)
    if job.body.suffix:
        rows = [await _fitting(job, prompt, row) for prompt, row in zip(job.prompts, rows, strict=True)]
    elif job.best_of > job.n:
        rows = [sorted(row, key=lambda choice: -choice.mean_logprob) for row in rows]
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return [choice for row in rows for choice in row[: job.n]], usage


async def _fitting(job: Job, prompt: list[int], row: list[Choice]) -> list[Choice]:
    """The texts behind which the suffix is most probable, first; those after which it has no room, last."""
    suffix = job.codec.encode(job.body.suffix or "")
    whole = [prompt + job.codec.encode(choice.text) + suffix for choice in row]
    fits = [n for n, tokens in enumerate(whole) if len(tokens) <= job.hosted.model.config.n_ctx]
    config = GenerationConfig(max_tokens=0, echo=True, logprobs=0, context="error")
    texts = await Texts.begun(job.hosted, [whole[n] for n in fits], config, together=True)
    try:
        scored = await texts.completions()
    finally:
        texts.close()
    score = dict.fromkeys(range(len(row)), -float("inf"))
    for n, (done,) in zip(fits, scored, strict=True):
        score[n] = sum(value or 0.0 for value in (done.log_probabilities or [])[-len(suffix) :])
    return [row[n] for n in sorted(score, key=lambda n: -score[n])]


async def _begin_stream(body: CompletionRequest, service: Service) -> StreamingResponse:
    chunks = _stream(body, service)
    return event_stream(await anext(chunks), chunks)


async def _stream(body: CompletionRequest, service: Service) -> AsyncIterator[bytes]:
    async with leased(service.host, body.model) as hosted:
        job = await apart(_is_long(body), Job, body, hosted, service.settings)
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)

        def chunk(choices: list[dict[str, Any]], usage: Mapping[str, int] | None = None) -> bytes:
            value: dict[str, Any] = {**job.head(), "choices": choices}
            return event(to_json(value | {"usage": usage} if with_usage else value))

        if body.suffix:
            kept, usage = await _write(job, service)
            yield b""
            for index, choice in enumerate(kept):
                yield chunk([choice.object(index)])
        else:
            texts = await Texts.begun(hosted, job.prompts, job.config)
            yield b""  # from here on it is an answer
            rows: dict[int, Choice] = {}
            try:
                async for number, piece in texts:
                    index = number * job.n + piece.sample
                    is_prompt = index not in rows and job.config.echo
                    choice = rows[index] if index in rows else rows.setdefault(index, job.new_choice())
                    entries = choice.add(piece, is_prompt=is_prompt)
                    if piece.text or entries or piece.finish_reason:
                        part = {"text": piece.text, "index": index, "logprobs": choice.logprobs(entries)}
                        yield chunk([part | {"finish_reason": piece.finish_reason}])
            except Exception as error:
                yield event(to_json(problem_of(error).body))
                return
            finally:
                texts.close()
                read, written = sum(map(len, job.prompts)), sum(choice.num_tokens for choice in rows.values())
                service.metrics.wrote(read, written)
            usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        if with_usage:
            yield chunk([], usage)
        yield event(b"[DONE]")
