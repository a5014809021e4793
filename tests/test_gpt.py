"""What a user holds: loading, asking, changing, training and saving models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import oracle
from gpt2.codec import Codec, default_codec
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.errors import ConfigError, ModelNameError, PromptError, TensorMismatchError, TrainingError
from gpt2.gpt import Model, load_model, new_model, save_model, train_model

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\n")
CONFIG = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=32, n_embd=32, n_head=4, n_layer=2)


@pytest.fixture(scope="module")
def model() -> Model:
    made = new_model(CONFIG, codec=CODEC, name="tiny")
    made.set_parameters(oracle.random_tensors(CONFIG, scale=0.2))
    return made


def test_facts(model: Model) -> None:
    assert model.config == CONFIG
    assert model.num_parameters == sum(array.size for array in model.parameters().values())
    assert "tiny" in repr(model)


def test_parameters_are_copies(model: Model) -> None:
    before = model.logits([[1, 2, 3]])
    model.parameters()["wte"][:] = 0
    np.testing.assert_array_equal(model.logits([[1, 2, 3]]), before)


def test_set_some_parameters(model: Model) -> None:
    original = model.parameters()["wpe"]
    before = model.logits([[1, 2]])
    model.set_parameters({"wpe": original * 2})
    assert np.abs(model.logits([[1, 2]]) - before).max() > 1e-4
    model.set_parameters([("wpe", original)])
    np.testing.assert_array_equal(model.logits([[1, 2]]), before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wtf": np.zeros(3)}, "wtf: no such parameter"),
        ({"wpe": np.zeros((2, 32))}, r"wpe: expected shape \[32, 32\], got \[2, 32\]"),
        ({"ln_f/g": np.full(32, np.nan)}, "ln_f/g holds 32 numbers that are NaN"),
    ],
)
def test_set_wrong_parameters(model: Model, values: dict[str, np.ndarray], message: str) -> None:
    before = model.parameters()
    with pytest.raises(TensorMismatchError, match=message):
        model.set_parameters(values)
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name])


def test_logits_of_a_batch(model: Model) -> None:
    got = model.logits([[1, 2, 3], [4, 5, 6]])
    assert got.shape == (2, 3, CONFIG.n_vocab)
    assert got.dtype == np.float32
    expected = oracle.logits(CONFIG, oracle.random_tensors(CONFIG, scale=0.2), np.array([4, 5, 6]))
    np.testing.assert_allclose(got[1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], "shape"),
        ([[]], "shape"),
        ([[0.5]], "float64"),
        ([["a"]], "expected integers"),
        ([[-1]], "got -1 to -1"),
        ([[CONFIG.n_vocab]], "expected 0 to 258"),
        ([[0] * 33], "at most n_ctx = 32 positions, got 33"),
    ],
)
def test_bad_ids(model: Model, ids: list[list[int]], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.logits(ids)


def test_prompts_of_every_kind(model: Model) -> None:
    settings = {"max_tokens": 5, "seed": 3, "temperature": 0.7}
    text, tokens, batch = (model.generate(p, **settings) for p in ("the", CODEC.encode("the"), ["the", "a"]))
    assert text[0].tokens == tokens[0].tokens == batch[0].tokens
    assert len(batch) == 2
    assert model.generate(None, **settings)[0].tokens == model.generate([CODEC.end_of_text], **settings)[0].tokens
    assert "".join(piece.text for piece in model.stream("the", **settings)) == text[0].text


@pytest.mark.parametrize("prompt", ["", [], ["a", ""], [1, "a"], [[1]], 5.0, [True], [None], object()])
def test_bad_prompts(model: Model, prompt: object) -> None:
    with pytest.raises(PromptError, match="prompt: expected"):
        model.generate(prompt)  # type: ignore[arg-type]


def test_text_that_spells_the_special_token_stays_text(model: Model) -> None:
    (tokens,) = model.prompt_tokens("<|endoftext|>")
    assert CODEC.end_of_text not in tokens


def test_bad_options_are_named(model: Model) -> None:
    with pytest.raises(ConfigError, match="top_q: no such option; expected some of .*top_p"):
        model.generate("a", top_q=1)
    with pytest.raises(PromptError, match="num_beams: expected 1 where text is streamed"):
        model.stream("a", num_beams=2)


def test_batches_of_unequal_prompts_give_what_each_alone_gives(model: Model) -> None:
    prompts = ["the", "a longer prompt, the end", "x"]
    for settings in ({"temperature": 0}, {"seed": 9, "temperature": 1.5, "num_samples": 3}):
        together = model.generate(prompts, max_tokens=40, logprobs=2, **settings)
        alone = [done for prompt in prompts for done in model.generate(prompt, max_tokens=40, logprobs=2, **settings)]
        assert [done.tokens for done in together] == [done.tokens for done in alone]
        assert [done.log_probabilities for done in together] == [done.log_probabilities for done in alone]


def test_beam_search_through_the_network(model: Model) -> None:
    best = model.generate("the", num_beams=4, num_samples=2, max_tokens=6, logprobs=0)
    greedy = model.generate("the", temperature=0, max_tokens=6, logprobs=0)[0]
    totals = [sum(done.log_probabilities or []) / max(1, len(done.tokens)) for done in (*best, greedy)]  # type: ignore[arg-type]
    assert totals[0] >= totals[1]
    assert totals[0] >= totals[2] - 1e-5


def test_a_model_without_a_codec(tmp_path: Path) -> None:
    made = new_model(GPT2Config(n_vocab=11, n_ctx=8, n_embd=8, n_head=2, n_layer=1))
    save_model(made, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.codec is None
    assert len(loaded.generate([1, 2], max_tokens=4, seed=0)[0].tokens) == 4
    for prompt in ("a", None):
        with pytest.raises(PromptError, match="prompt: expected"):
            loaded.generate(prompt)
    with pytest.raises(PromptError, match="stop: expected a model with a codec"):
        loaded.generate([1], stop="x")


def test_gpt2s_vocabulary_is_the_default_where_it_fits(tmp_path: Path) -> None:
    for n_vocab, expected in ((50257, default_codec()), (50304, default_codec()), (50000, None)):
        config = GPT2Config(n_vocab=n_vocab, n_ctx=4, n_embd=2, n_head=1, n_layer=1)
        assert new_model(config).codec is expected


def test_load_by_path_and_errors(model: Model, tmp_path: Path) -> None:
    saved = save_model(model, tmp_path / "m", "huggingface", dtype="float16")
    assert saved == tmp_path / "m"
    loaded = load_model(str(tmp_path / "m"))
    assert loaded.codec is not None
    assert loaded.codec.encode("the the") == CODEC.encode("the the")
    np.testing.assert_allclose(loaded.logits([[1, 2]]), model.logits([[1, 2]]), atol=0.05)
    with pytest.raises(ModelNameError, match="expected a folder or one of bundled"):
        load_model("nothing-of-that-name")


def test_new_model_is_seeded() -> None:
    one, same, other = (new_model(CONFIG, seed=seed).parameters()["wte"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


TEXT = "the cat and the hat and the rat and the bat. " * 60


def test_training_from_files_and_fine_tuning(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    settings = TrainingConfig(steps=120, batch_size=4, learning_rate=5e-3, warmup_steps=5, eval_every=40)
    log = []
    base = new_model(CONFIG, codec=CODEC)
    before = base.parameters()
    tuned = train_model(file, model=base, training=settings, valid_data=[file], on_log=log.append)
    assert [entry.step for entry in log] == [40, 80, 120]
    assert log[-1].loss < 1.0 < log[0].loss
    assert log[-1].valid_loss is not None
    assert log[-1].valid_loss < 0.5
    for name, array in base.parameters().items():
        np.testing.assert_array_equal(array, before[name], err_msg="the base stays as it is")
    save_model(tuned, tmp_path / "tuned")
    np.testing.assert_array_equal(load_model(tmp_path / "tuned").logits([[1, 2]]), tuned.logits([[1, 2]]))


def test_training_anew_in_bfloat16_gives_a_float32_model() -> None:
    tokens = np.tile(np.arange(20), 50)
    config = GPT2Config(n_vocab=20, n_ctx=16, n_embd=16, n_head=2, n_layer=1)
    settings = TrainingConfig(
        steps=80, batch_size=4, learning_rate=1e-2, warmup_steps=5, precision="bfloat16", dropout=0.1
    )
    made = train_model(tokens, config=config, training=settings)
    assert made.network.compute_dtype == "float32"
    assert made.generate([3, 4, 5], max_tokens=4, temperature=0)[0].tokens == [6, 7, 8, 9]


def test_training_errors(tmp_path: Path, model: Model) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    with pytest.raises(ConfigError, match="expected one of model"):
        train_model(file)
    with pytest.raises(ConfigError, match="expected one of model"):
        train_model(file, model=model, config=CONFIG)
    for content, message in (
        (b"\xff\xfea\0", "expected UTF-8, got the byte 0xff at 0; is it UTF-16"),
        (b"caf\xe9 " * 9, "expected UTF-8, got the byte 0xe9 at 3"),
        (b"short", "expected at least"),
    ):
        file.write_bytes(content)
        with pytest.raises(TrainingError, match=message):
            train_model(file, model=model)
    with pytest.raises(TrainingError, match="expected a file, a folder or a pattern"):
        train_model(tmp_path / "none.txt", model=model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="found none"):
        train_model(tmp_path / "empty", model=model)
