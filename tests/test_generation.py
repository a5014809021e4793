"""The token loop: seeds, batches, stop strings, windows, log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeEngine
from gpt2.batch import MAX_ROWS
from gpt2.codec import Codec, default_codec
from gpt2.config import GenerationConfig
from gpt2.continuation import StopMatcher
from gpt2.errors import ConfigError, ContextLengthError, PromptError
from gpt2.generation import generate, stream
from gpt2.sampling import log_softmax


def options(**values: object) -> GenerationConfig:
    return GenerationConfig.from_options(**{"max_tokens": 12, "seed": 5, **values})


def bytes_codec() -> Codec:
    """256 bytes and `<|endoftext|>` (256): no merges."""
    return Codec.from_merges("#version: 0.2\n")


def scripted(text: str, codec: Codec) -> FakeEngine:
    """An engine that always writes `text` and then ends, whatever it is fed after the first token."""
    tokens = [*codec.encode(text), codec.end_of_text]

    def function(so_far: list[int]) -> np.ndarray:
        logits = np.full(codec.n_vocab, -50.0)
        logits[tokens[min(len(so_far) - 1, len(tokens) - 1)]] = 50.0
        return logits

    return FakeEngine(codec.n_vocab, 1024, function)


def test_same_seed_same_text_and_another_seed_another() -> None:
    engine = FakeEngine(50)
    first, again, other = (generate(engine, None, [[1, 2]], options(seed=seed))[0].tokens for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 12


def test_no_seed_differs_between_calls() -> None:
    engine = FakeEngine(50)
    assert (
        generate(engine, None, [[1]], options(seed=None, max_tokens=30))[0].tokens
        != generate(engine, None, [[1]], options(seed=None, max_tokens=30))[0].tokens
    )


def test_samples_and_prompts_do_not_depend_on_each_other() -> None:
    engine = FakeEngine(50)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    together = generate(engine, None, prompts, options(num_samples=7, max_tokens=20))
    assert len(together) == 21 > MAX_ROWS
    for number, prompt in enumerate(prompts):
        alone = generate(engine, None, [prompt], options(num_samples=7, max_tokens=20))
        assert [c.tokens for c in alone] == [c.tokens for c in together[7 * number : 7 * number + 7]]
    # The third sample is the third sample, however many are asked for.
    assert generate(engine, None, [[4]], options(num_samples=3, max_tokens=20))[2].tokens == together[9].tokens
    assert len({tuple(c.tokens) for c in together}) == 21


def test_samples_share_the_reading_of_their_prompt() -> None:
    engine = FakeEngine(50)
    generate(engine, None, [[1, 2, 3, 4, 5]], options(num_samples=4, max_tokens=2))
    assert sum(len(tokens) > 1 for tokens in engine.fed) == 1


def test_greedy_takes_the_best_token() -> None:
    engine = FakeEngine(50)
    tokens = generate(engine, None, [[3]], options(temperature=0, max_tokens=5))[0].tokens
    so_far = [3]
    for token in tokens:
        assert token == int(np.argmax(engine.function(so_far).astype(np.float32)))
        so_far.append(token)


def test_end_of_text_ends_and_is_not_in_the_text() -> None:
    codec = bytes_codec()
    (done,) = generate(scripted("Hello", codec), codec, [[1]], options(max_tokens=50))
    assert (done.text, done.finish_reason, done.tokens) == ("Hello", "stop", codec.encode("Hello"))


def test_min_tokens_holds_the_end_back() -> None:
    codec = bytes_codec()
    (done,) = generate(scripted("Hi", codec), codec, [[1]], options(max_tokens=50, min_tokens=9))
    assert len(done.tokens) >= 9


def test_max_tokens_ends_with_length() -> None:
    codec = bytes_codec()
    (done,) = generate(scripted("Hello", codec), codec, [[1]], options(max_tokens=3))
    assert (done.text, done.finish_reason) == ("Hel", "length")


@pytest.mark.parametrize(
    ("stop", "text"),
    [("\n\n", "one two"), (["two", "one t"], ""), ("zzz", "one two\n\nthree"), ("ee", "one two\n\nthr"), ("o", "")],
)
def test_stop_strings(stop: str | list[str], text: str) -> None:
    codec = bytes_codec()
    (done,) = generate(scripted("one two\n\nthree", codec), codec, [[1]], options(max_tokens=50, stop=stop))
    assert done.text == text
    assert done.finish_reason == "stop"


def test_streamed_pieces_join_to_the_completion_and_never_leak_a_stop() -> None:
    codec = bytes_codec()
    engine = scripted("a é 😀 end <en> </end> tail", codec)
    config = options(max_tokens=99, stop=["</end>"])
    pieces = list(stream(engine, codec, [[1]], config))
    assert "".join(piece.text for piece in pieces) == "a é 😀 end <en> "
    assert "�" not in "".join(piece.text for piece in pieces)
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert "a é 😀 end <en> ".startswith(shown)
    assert [piece.finish_reason for piece in pieces][-1] == "stop"
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_half_a_character_at_the_end_is_shown_as_one_replacement() -> None:
    codec = bytes_codec()
    (done,) = generate(scripted("a😀", codec), codec, [[1]], options(max_tokens=3))
    assert done.text == "a�"


def reference_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character over the full text: the slow definition."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.text("ab<", max_size=4), max_size=12),
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3),
)
def test_stop_matcher_equals_the_full_text_definition(pieces: list[str], stops: list[str]) -> None:
    expected, stopped = reference_stop("".join(pieces), stops)
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        assert expected.startswith(shown)
    shown += matcher.flush()
    assert (shown, matcher.stopped) == (expected, stopped)


def test_log_probabilities_are_the_models_own() -> None:
    engine = FakeEngine(50)
    (done,) = generate(engine, None, [[7, 8]], options(logprobs=3, temperature=0.3, top_k=5, max_tokens=4))
    assert done.log_probabilities is not None
    assert done.top_log_probabilities is not None
    so_far = [7, 8]
    for token, value, top in zip(done.tokens, done.log_probabilities, done.top_log_probabilities, strict=True):
        expected = log_softmax(np.asarray(engine.function(so_far), np.float32))
        assert value == float(expected[token])
        assert top is not None
        assert [pair[0] for pair in top] == np.argsort(-expected, kind="stable")[:3].tolist()
        assert [pair[1] for pair in top] == [float(expected[pair[0]]) for pair in top]
        so_far.append(token)


def test_greedy_log_probability_is_the_same_float_as_the_top_one() -> None:
    (done,) = generate(FakeEngine(50), None, [[7]], options(logprobs=1, temperature=0))
    assert done.log_probabilities == [top[0][1] for top in done.top_log_probabilities or [] if top]


def test_echo_scores_the_prompt() -> None:
    codec = bytes_codec()
    engine = FakeEngine(codec.n_vocab)
    prompt = codec.encode("abc")
    (done,) = generate(engine, codec, [prompt], options(logprobs=2, echo=True, max_tokens=0))
    assert done.text == "abc"
    assert done.tokens == prompt
    assert done.log_probabilities is not None
    assert done.log_probabilities[0] is None
    for n in (1, 2):
        expected = log_softmax(np.asarray(engine.function(prompt[:n]), np.float32))[prompt[n]]
        assert done.log_probabilities[n] == float(expected)
    (longer,) = generate(engine, codec, [prompt], options(logprobs=2, echo=True, max_tokens=2, temperature=0))
    assert longer.tokens[:3] == prompt
    assert longer.log_probabilities is not None
    assert len(longer.log_probabilities) == len(longer.tokens) == 5
    assert longer.log_probabilities[:3] == done.log_probabilities


def test_sliding_window_goes_on_past_the_context() -> None:
    engine = FakeEngine(50, n_ctx=8)
    (done,) = generate(engine, None, [[1, 2, 3]], options(max_tokens=40))
    assert len(done.tokens) == 40
    # What is read again is the newer half of the window, ending in the newest token.
    whole = [1, 2, 3, *done.tokens]
    windows = [tokens for tokens in engine.fed[1:] if len(tokens) > 1]
    assert windows[0] == whole[5:9]
    assert {len(window) for window in windows} == {4}


def test_window_of_one_row_does_not_change_another() -> None:
    prompts = [[1, 2, 3, 4, 5, 6], [7]]
    together = generate(FakeEngine(50, n_ctx=8), None, prompts, options(max_tokens=30))
    for prompt, done in zip(prompts, together, strict=True):
        assert generate(FakeEngine(50, n_ctx=8), None, [prompt], options(max_tokens=30))[0].tokens == done.tokens


def test_a_prompt_longer_than_the_context_keeps_its_end() -> None:
    prompt = list(range(20))
    long = generate(FakeEngine(50, n_ctx=8), None, [prompt], options())[0].tokens
    assert long == generate(FakeEngine(50, n_ctx=8), None, [prompt[-8:]], options())[0].tokens


def test_context_error_is_raised_before_anything_is_computed() -> None:
    engine = FakeEngine(50, n_ctx=8)
    with pytest.raises(ContextLengthError, match=r"expected at most 8 tokens .* got 5 \+ 4"):
        stream(engine, None, [[1] * 5], options(max_tokens=4, context="error"))
    assert len(generate(engine, None, [[1] * 5], options(max_tokens=3, context="error"))[0].tokens) == 3
    with pytest.raises(ContextLengthError, match="log-probabilities"):
        generate(engine, None, [[1] * 9], options(echo=True, logprobs=0))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[]], "expected at least one token"), ([[1], [50]], "expected tokens from 0 to 49, got 50"), ([[-1]], "got -1")],
)
def test_bad_prompts(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generate(FakeEngine(50), None, prompts, options())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_tokens", value) for value in (-1, 1.5, True, "3")],
        *[("num_samples", value) for value in (0, -2)],
        *[("logprobs", value) for value in (-1, True)],
        *[("stop", value) for value in ("", [""], [1])],
        *[("seed", value) for value in ("x", 1.0)],
        *[("context", "shrink"), ("echo", 1), ("temperature", -1), ("top_p", 0), ("temperture", 1)],
    ],
)
def test_bad_options_name_themselves(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        options(**{name: value})


def test_real_codec_streams_text() -> None:
    codec = default_codec()
    (done,) = generate(scripted("Hello wörld 😀", codec), codec, [[1]], options(max_tokens=50))
    assert done.text == "Hello wörld 😀"
