"""Looking inside: activations beside the oracle's, and what changes of them do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import oracle
from gpt2.checkpoints.names import expected_shapes
from gpt2.codec import default_codec
from gpt2.config import GPT2Config
from gpt2.errors import ConfigError, GenerationError, PromptError
from gpt2.gpt import Model, new_model, save_model
from gpt2.inspection import (
    Activations,
    ablate_heads,
    ablate_neurons,
    direction_between,
    find_induction,
    hook_names,
    inspect,
    lens_logits,
    logit_lens,
    patch,
    patch_effects,
    repeated_tokens,
    run_with_cache,
    run_with_hooks,
    steer,
    token_losses,
    with_hooks,
)
from gpt2.inspection.interventions import changes
from gpt2.inspection.reading import speller
from gpt2.model import GPT2

CONFIG = GPT2Config(n_vocab=61, n_ctx=24, n_embd=24, n_head=3, n_layer=3)
TENSORS = oracle.random_tensors(CONFIG, seed=3)
IDS = np.random.default_rng(4).integers(0, CONFIG.n_vocab, (2, 11))


def model_with(tensors: oracle.Arrays, config: GPT2Config = CONFIG, **options: bool) -> Model:
    network = GPT2(config, initialize=False, **options)
    network.set_tensors(tensors.items())
    return Model(network, None, name="tiny")


@pytest.fixture(scope="module")
def model() -> Model:
    return model_with(TENSORS)


@pytest.fixture(scope="module")
def cache(model: Model) -> Activations:
    return run_with_cache(model, IDS)[1]


# Reading


@pytest.mark.parametrize("fused", [False, True])
def test_activations_are_the_oracles(fused: bool) -> None:
    logits, seen = run_with_cache(model_with(TENSORS, fused=fused), IDS)
    assert list(seen) == hook_names(CONFIG)
    for row in range(len(IDS)):
        expected = oracle.activations(CONFIG, TENSORS, IDS[row])
        np.testing.assert_allclose(logits[row], expected.pop("logits"), atol=1e-4)
        assert set(expected) == set(seen)
        for name, values in expected.items():
            got = seen[name][row if len(seen[name]) > 1 else 0]
            assert got.dtype == np.float32
            possible = np.isfinite(values)  # scores of what may not be seen are -inf there, -1e9 here
            np.testing.assert_allclose(got[possible], values[possible], atol=2e-4, err_msg=name)
            assert (got[~possible] == -1e9).all()


def test_names_of_both_kinds_mean_the_same(cache: Activations) -> None:
    assert cache["h1/attn/pattern"] is cache["blocks.1.attn.hook_pattern"]
    assert cache["ln_f"] is cache["ln_final.hook_normalized"]
    assert cache["h2/in"] is cache["blocks.2.hook_resid_pre"]
    assert cache["h2/attn/q"] is cache["blocks.2.attn.hook_q"]
    assert cache.layers("hook_mlp_out").shape == (3, 2, 11, 24)
    assert "h0/attn" in cache
    assert "h9/attn" not in cache
    assert 7 not in cache


def test_only_what_is_asked_for_is_kept(model: Model) -> None:
    _, seen = run_with_cache(model, IDS, names=["h*/attn/pattern", "blocks.0.hook_resid_pre"])
    assert list(seen) == ["blocks.0.hook_resid_pre", *(f"blocks.{n}.attn.hook_pattern" for n in range(3))]
    with pytest.raises(ConfigError, match=r"expected one that was kept \(blocks.0.hook_resid_pre, .*got 'ln_f'"):
        seen["ln_f"]


def test_last_layer_of_the_lens_is_the_logits(model: Model, cache: Activations) -> None:
    logits = run_with_hooks(model, IDS)
    np.testing.assert_array_equal(lens_logits(model, cache["blocks.2.hook_resid_post"]), logits)
    first = oracle.activations(CONFIG, TENSORS, IDS[0])["blocks.0.hook_resid_post"]
    expected = oracle.norm(first, TENSORS["ln_f/g"], TENSORS["ln_f/b"]) @ TENSORS["wte"].T
    np.testing.assert_allclose(lens_logits(model, cache["blocks.0.hook_resid_post"])[0], expected, atol=2e-4)


def test_lens_and_losses_are_the_oracles(model: Model) -> None:
    lens = logit_lens(model, IDS[0], top=4)
    assert lens.stages == ("embedding", "layer 0", "layer 1", "layer 2")
    logits = oracle.logits(CONFIG, TENSORS, IDS[0])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    last = lens.predictions[-1]
    np.testing.assert_array_equal(last.top, np.argsort(-probabilities, axis=1)[:, :4])
    np.testing.assert_allclose(last.top_probabilities, -np.sort(-probabilities, axis=1)[:, :4], atol=1e-4)
    np.testing.assert_allclose(last.entropies, -(probabilities * np.log(probabilities)).sum(axis=1), atol=1e-3)
    came = probabilities[np.arange(10), IDS[0, 1:]]
    np.testing.assert_allclose(last.losses[:-1], -np.log(came), atol=1e-3)
    np.testing.assert_array_equal(last.ranks[:-1], (probabilities[:-1] > came[:, None]).sum(axis=1))
    assert np.isnan(last.losses[-1])
    assert last.ranks[-1] == -1
    losses = token_losses(model, IDS)
    assert np.isnan(losses[:, 0]).all()
    np.testing.assert_allclose(losses[0, 1:], -np.log(came), atol=1e-3)
    np.testing.assert_allclose(inspect(model, IDS[0]).losses[1:], losses[0, 1:], atol=1e-6)


def test_tokens_are_spelled_as_text_bytes_or_numbers() -> None:
    spell = speller(default_codec())
    assert [spell(token) for token in (15496, 47249, 50256, 50257)] == [
        "Hello",
        "\\xf0\\x9f\\x98",
        "<|endoftext|>",
        "[50257]",
    ]
    assert speller(None)(7) == "[7]"


# Changing


def test_changing_nothing_changes_no_bit(model: Model, cache: Activations) -> None:
    plain = np.asarray(model.network(IDS))
    for hooks in (
        (),
        ({"*": lambda value: None},),
        ({"*": lambda value: value},),
        ({"*": lambda value: value.copy()},),
        (ablate_heads([]), ablate_neurons([])),
        (steer("h1/mid", np.ones(24), 0.0),),
        (patch(cache, "*"),),
    ):
        np.testing.assert_array_equal(run_with_hooks(model, IDS, *hooks), plain)


@pytest.mark.parametrize("mean", [False, True])
def test_ablated_heads_are_rows_of_c_proj_that_are_zero(model: Model, cache: Activations, mean: bool) -> None:
    """The oracle knows of no hooks: what the heads would add is taken out of its weights, and a mean into its bias."""
    D, tensors = CONFIG.head_size, {name: array.copy() for name, array in TENSORS.items()}
    for layer, head in ((0, 1), (2, 0), (2, 2)):
        rows = tensors[f"h{layer}/attn/c_proj/w"][head * D : (head + 1) * D]
        if mean:
            tensors[f"h{layer}/attn/c_proj/b"] += cache[f"h{layer}/attn/z"].mean(axis=(0, 1))[head] @ rows
        rows[:] = 0
    got = run_with_hooks(model, IDS, ablate_heads([(0, 1), (2, 0), (2, 2)], mean_of=cache if mean else None))
    np.testing.assert_allclose(got[1], oracle.logits(CONFIG, tensors, IDS[1]), atol=1e-4)
    assert np.abs(got - run_with_hooks(model, IDS)).max() > 0.1


def test_ablated_neurons_are_rows_of_c_proj_that_are_zero(model: Model) -> None:
    tensors = {name: array.copy() for name, array in TENSORS.items()}
    tensors["h1/mlp/c_proj/w"][[5, 95]] = 0
    got = run_with_hooks(model, IDS, ablate_neurons([(1, 5), (1, 95)]))
    np.testing.assert_allclose(got[0], oracle.logits(CONFIG, tensors, IDS[0]), atol=1e-4)


def test_patching_everything_gives_the_other_text(model: Model, cache: Activations) -> None:
    other = (IDS + 1) % CONFIG.n_vocab
    theirs = run_with_hooks(model, IDS)
    for names in ("*", "hook_*embed", "h0/in", "h2/out", "ln_f"):
        np.testing.assert_array_equal(run_with_hooks(model, other, patch(cache, names)), theirs)
    every = range(CONFIG.n_head)
    patched = run_with_hooks(model, other, patch(cache, "blocks.*.attn.hook_z", heads=every), patch(cache, "h*/mlp"))
    assert np.abs(patched - theirs).max() > 0.1, "what comes from the embedding is still the other text's"


def test_patching_positions_and_heads(model: Model, cache: Activations) -> None:
    other = (IDS + 1) % CONFIG.n_vocab
    _, plain = run_with_cache(model, other)
    _, seen = run_with_cache(model, other, patch(cache, "h1/in", positions=[4, -2]))
    expected = plain["h1/in"].copy()
    expected[:, [4, 9]] = cache["h1/in"][:, [4, 9]]
    np.testing.assert_array_equal(seen["h1/in"], expected)
    np.testing.assert_array_equal(seen["h2/out"][:, :4], plain["h2/out"][:, :4])
    assert np.abs(seen["h2/out"][:, 4:] - plain["h2/out"][:, 4:]).max(axis=(0, 2)).min() > 1e-3
    for name, axis in (("h2/attn/pattern", 2), ("h2/attn/z", 1), ("h0/attn/k", 1)):
        _, seen = run_with_cache(model, other, patch(cache, name, positions=7, heads=[0, 2]))
        expected = plain[name].copy()
        head = {2: (slice(None), [0, 2], 7), 1: (slice(None), 7, [0, 2])}[axis]
        expected[head] = cache[name][head]
        np.testing.assert_array_equal(seen[name], expected)


def test_steering_is_a_sum(model: Model) -> None:
    direction = np.random.default_rng(0).normal(size=24)
    _, plain = run_with_cache(model, IDS)
    _, seen = run_with_cache(model, IDS, steer("blocks.1.hook_resid_pre", direction, 2.0, positions=[0, -1]))
    expected = plain["h1/in"].copy()
    expected[:, [0, 10]] += np.float32(2) * direction.astype(np.float32)
    np.testing.assert_array_equal(seen["h1/in"], expected)
    tensors = {**TENSORS, "wpe": TENSORS["wpe"] + direction.astype(np.float32)}
    got = run_with_hooks(model, IDS, steer("blocks.0.hook_resid_pre", direction))
    np.testing.assert_allclose(got[0], oracle.logits(CONFIG, tensors, IDS[0]), atol=1e-4)


def test_a_long_direction_has_a_length() -> None:
    """Of float32 numbers too, whose squares are none."""
    assert steer("h0/in", np.ones(16), 1e30).record["length"] == pytest.approx(4e30)


def test_direction_is_between_the_ends_of_texts(model: Model, cache: Activations) -> None:
    _, other = run_with_cache(model, [7, 8, 9])
    for name in ("blocks.1.hook_resid_pre", "h1/in", "h2/attn/z", "h0/mlp/gelu"):
        expected = cache[name][:, -1].mean(axis=0) - other[name][0, -1]
        np.testing.assert_allclose(direction_between(model, name, IDS, [7, 8, 9]), expected, atol=1e-5)
    towards = run_with_hooks(model, [7, 8, 9], steer("h2/out", direction_between(model, "h2/out", IDS[0], [7, 8, 9])))
    np.testing.assert_allclose(towards[0, -1], run_with_hooks(model, IDS[0])[0, -1], atol=1e-4)
    for name in ("wpe", "h*/in", "h0/attn/scores"):
        with pytest.raises(ConfigError, match=r"name: expected the name of one activation of each token, .* got"):
            direction_between(model, name, [1], [2])


def test_hooks_say_what_they_change(model: Model, cache: Activations) -> None:
    tables = (
        ablate_heads([(2, 0), (0, 1), (0, 1)]),
        ablate_neurons([(1, n) for n in range(14)], mean_of=cache),
        patch(cache, ["h1/in", "h2/attn/z"], positions=-1, heads=None),
        patch(cache, "h2/attn/z", heads=np.array([0, 2])),
        steer("h1/in", np.full(24, 0.5), -2.0, positions=[0, 3]),
        {"h0/in": lambda value: None},
        ablate_heads([]),
        {},
    )
    seen = inspect(model, IDS[0], *tables[:2], *tables[4:])
    assert seen.weights_sha256 == model.engine.weights_sha256
    found = changes(tables)
    assert json.loads(json.dumps(found)) == list(found)
    assert [record["said"] for record in found] == [
        "without heads 0.1, 2.0",
        f"with the mean of neurons {', '.join(f'1.{n}' for n in range(12))} and 2 more",
        "with another text's blocks.1.hook_resid_pre, blocks.2.attn.hook_z at tokens -1",
        "with another text's blocks.2.attn.hook_z, heads 0, 2",
        "steered at h1/in by a vector of length 4.899 at tokens 0, 3",
        "hooks at h0/in",
    ]
    assert found[0] == {"kind": "ablated heads", "said": found[0]["said"], "heads": [[0, 1], [2, 0]], "to": "zero"}
    assert (found[1]["neurons"], found[1]["to"]) == ([[1, n] for n in range(14)], "mean")
    assert seen.changes == (*found[:2], *found[4:])
    assert seen.changed == "; ".join(record["said"] for record in seen.changes)
    assert inspect(model, IDS[0]).changes == ()


def test_hooks_act_in_turn_and_may_return_or_change(model: Model) -> None:
    def doubled(value: np.ndarray) -> np.ndarray:
        return value * 2

    def one_more(value: np.ndarray) -> None:
        value += 1

    _, plain = run_with_cache(model, IDS)
    _, seen = run_with_cache(
        model, IDS, {"h1/attn/q": doubled}, {"blocks.1.attn.hook_q": one_more, "h1/attn/v": doubled}
    )
    np.testing.assert_array_equal(seen["h1/attn/q"], plain["h1/attn/q"] * 2 + 1)
    np.testing.assert_array_equal(seen["h1/attn/k"], plain["h1/attn/k"])
    np.testing.assert_array_equal(seen["h1/attn/v"], plain["h1/attn/v"] * 2)


def test_a_model_with_hooks_writes(model: Model) -> None:
    options = {"max_tokens": 6, "seed": 1, "num_samples": 3}
    plain = [completion.tokens for completion in model.generate([1, 2, 3], **options)]
    assert [c.tokens for c in with_hooks(model).generate([1, 2, 3], **options)] == plain
    hooked = with_hooks(model, ablate_heads([(0, 0)]), steer("h1/mid", 3 * np.ones(24)))
    tokens = [1, 2, 3]
    for _ in range(6):  # without a cache, one token after another
        logits = run_with_hooks(model, tokens, ablate_heads([(0, 0)]), steer("h1/mid", 3 * np.ones(24)))
        tokens.append(int(logits[0, -1].argmax()))
    assert hooked.generate([1, 2, 3], max_tokens=6, temperature=0)[0].tokens == tokens[3:]
    np.testing.assert_allclose(hooked.logits([tokens])[0, 7], logits[0, -1], atol=1e-5)


def test_a_mixed_network_can_be_looked_into() -> None:
    network = GPT2(CONFIG, initialize=False, dtype="mixed_bfloat16")
    network.set_tensors(oracle.random_tensors(CONFIG, scale=0.1).items())
    mixed = Model(network, None, name="mixed")
    logits, seen = run_with_cache(mixed, IDS, {"*": lambda value: None})
    np.testing.assert_array_equal(logits, np.asarray(network(IDS)))
    assert {seen[name].dtype for name in seen} == {np.dtype(np.float32)}


def test_patch_effects_are_those_of_single_patches(model: Model) -> None:
    ids = IDS[0]
    other = ids.copy()
    other[4] = (ids[4] + 1) % CONFIG.n_vocab
    logits, theirs = run_with_cache(model, other)
    base = run_with_hooks(model, ids)

    def divergence(got: np.ndarray) -> float:
        p, q = (np.exp(row) / np.exp(row).sum() for row in (logits[0, -1].astype(float), got[0, -1].astype(float)))
        return float((p * np.log(p / q)).sum())

    for site, by, shape in (
        ("hook_resid_pre", "position", (3, 11)),
        ("attn.hook_z", "position", (3, 11)),
        ("attn.hook_z", "head", (3, 3)),
    ):
        effects = patch_effects(model, ids, other, site=site, by=by)
        assert effects.shape == shape
        for layer, place in ((0, 2), (1, 1), (2, shape[1] - 1)):
            chosen = {"positions": place} if by == "position" else {"heads": [place]}
            got = run_with_hooks(model, ids, patch(theirs, f"blocks.{layer}.{site}", **chosen))
            assert effects[layer, place] == pytest.approx(1 - divergence(got) / divergence(base), abs=1e-3)
    effects = patch_effects(model, ids, other)
    np.testing.assert_allclose(effects[0], np.arange(11) == 4, atol=1e-4)  # they part at token 4, and nowhere else
    np.testing.assert_allclose(effects[:, :4], 0, atol=1e-4)


# Induction heads


def wired() -> Model:
    """Two layers wired by hand to repeat what they have seen: the one head of each that does something is head 0.

    Channels: the token (20), the position (20), and room for the token before (20), each one-hot. The norms undo
    themselves, as mean and variance of such vectors are always the same. Head 0.0 looks at the position before its own
    and copies the token there to the room; head 1.0 looks for its own token in that room, so at what came after it, and
    copies the token there to the token's channels, which the head reads.
    """
    n, sharp = 20, 400.0
    config = GPT2Config(n_vocab=n, n_ctx=n, n_embd=3 * n, n_head=2, n_layer=2)
    one = np.eye(n, dtype=np.float32)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(config).items()}
    tensors["wte"][:, :n] = tensors["wpe"][:, n : 2 * n] = one
    for name, ones in (("h0/ln_1", 2), ("h1/ln_1", 3)):
        mean = ones / (3 * n)
        tensors[f"{name}/g"][:] = np.sqrt(mean - mean**2 + 1e-5)
        tensors[f"{name}/b"][:] = mean
    tensors["ln_f/g"][:] = 3.0  # so that what is repeated is certain
    token, position, room = slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n)
    for layer, query, key, to, moved in ((0, position, position, room, 1), (1, token, room, token, 0)):
        attn = tensors[f"h{layer}/attn/c_attn/w"]
        attn[query, :n] = sharp * np.roll(one, -moved, axis=1)
        attn[key, 3 * n : 4 * n] = one
        attn[token, 6 * n : 7 * n] = one
        tensors[f"h{layer}/attn/c_proj/w"][:n, to] = one * (5.0 if layer else 1.0)
    return model_with(tensors, config)


def test_an_induction_head_that_was_wired_by_hand_is_found() -> None:
    model = wired()
    found = find_induction(model, length=10, rows=4, trials=6)
    assert found.found == ((1, 0),)
    # The first token has none before it and copies itself, so of ten looks one is shared between it and the second.
    assert found.scores[1, 0] == pytest.approx(0.95, abs=1e-3)
    assert sorted(found.scores.ravel())[-2] < 0.3
    assert found.best.heads == ((1, 0),)
    assert found.first_loss > 3
    assert found.second_loss < 0.6, "nearly all of it where the look is shared"
    assert found.gain > 3
    assert found.shuffled_gain < 0, "what is repeated is wrong then"
    assert found.best.second_loss > 5
    drawn = {one.heads: one for one in found.random}
    assert set(drawn) <= {((0, 0),), ((0, 1),), ((1, 1),)}
    for idle in (((0, 1),), ((1, 1),)):
        if idle in drawn:
            assert drawn[idle].second_loss == pytest.approx(found.second_loss, abs=1e-5)
    if ((0, 0),) in drawn:
        assert drawn[((0, 0),)].second_loss > 5, "since it copies what the other looks for"


def test_repeated_tokens(model: Model) -> None:
    ids = repeated_tokens(model, length=12, rows=3, seed=5)
    np.testing.assert_array_equal(ids[:, :12], ids[:, 12:])
    assert {len(set(row)) for row in ids.tolist()} == {12}
    np.testing.assert_array_equal(ids, repeated_tokens(model, length=12, rows=3, seed=5))
    assert (ids != repeated_tokens(model, length=12, rows=3, seed=6)).any()
    assert set(repeated_tokens(model, length=2, rows=9, among=[7, 9, 7]).ravel()) == {7, 9}
    own = new_model(GPT2Config(n_ctx=16, n_embd=2, n_head=1, n_layer=1))
    ids = repeated_tokens(own, length=7)
    assert ids.shape == (8, 15)
    assert (ids[:, 0] == 50256).all()
    assert (ids[:, 1:] != 50256).all()


# Refusals


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            {"blocks.3.hook_resid_pre": lambda value: value},
            "hooks: expected names such as .* layers 0 to 2, got 'blocks.3",
        ),
        (
            {"h0/in": lambda value: value[:, 1:]},
            r"hook_resid_pre: expected .* \[2, 11, 24\] \(B T C\), got \[2, 10, 24\]",
        ),
        ([1], "hooks: expected tables of name and function, got list"),
        (ablate_heads([(0, 3)]), "heads: expected numbers from 0 to 2, got 3"),
        (ablate_heads([(3, 0)]), "layers 0 to 2, got 'blocks.3.attn.hook_z'"),
        (ablate_neurons([(0, 96)]), "neurons: expected numbers from 0 to 95, got 96"),
        (steer("h0/in", np.ones(23)), r"direction: expected an array of shape \[24\] for h0/in, got \[23\]"),
        (steer("h0/in", np.ones(24), positions=11), "positions: expected -11 to 10, got 11"),
    ],
)
def test_bad_hooks_are_refused(model: Model, hooks: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_with_hooks(model, IDS, hooks)  # type: ignore[arg-type]
    assert "Exception encountered" not in str(caught.value), "the error alone, not what Keras makes of it"


def test_what_goes_wrong_in_a_hook_comes_out_as_it_was(model: Model) -> None:
    wrong = ZeroDivisionError("mine")

    def hook(value: np.ndarray) -> None:
        raise wrong

    for run in (run_with_hooks, lambda m, ids, h: with_hooks(m, h).generate(ids[0].tolist(), max_tokens=1)):
        with pytest.raises(ZeroDivisionError) as caught:
            run(model, IDS, {"blocks.1.mlp.hook_post": hook})
        assert caught.value is wrong


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_hooks_that_leave_no_numbers_are_told_so(model: Model, bad: float) -> None:
    with pytest.raises(GenerationError, match="logits: expected numbers under these hooks, got NaN or infinity"):
        run_with_hooks(model, IDS, {"h2/out": lambda value: value * bad})
    hooked = with_hooks(model, {"h2/out": lambda value: value * bad})
    for ask in (lambda: hooked.generate([1, 2], max_tokens=1), lambda: hooked.logits(IDS)):
        with pytest.raises(GenerationError, match="logits: expected numbers under these hooks"):
            ask()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: ablate_heads([(0, -1)]), r"heads: expected numbers from 0 on, got \(0, -1\)"),
        (lambda m, c: ablate_heads([3]), "heads: expected pairs of two whole numbers, got 3"),
        (lambda m, c: ablate_heads([(0.7, 1.2)]), r"heads: expected pairs of two whole numbers, got \(0.7, 1.2\)"),
        (lambda m, c: patch(c, positions=1.5), r"positions: expected whole numbers, got \[1.5\]"),
        (lambda m, c: patch(c, "h0/attn/z", heads=1), "heads: expected whole numbers, got 1"),
        (lambda m, c: steer("h0/in", np.ones(24), np.nan), "strength: expected one by which .* got nan"),
        (lambda m, c: steer("h0/in", np.ones(24), 1e39), r"strength: expected one by which .* got 1e\+39"),
        (lambda m, c: steer("h0/in", np.full(24, np.nan)), "direction: expected finite numbers"),
        (lambda m, c: find_induction(m, length=5, seed=-1), "seed: expected a whole number of at least 0, got -1"),
        (lambda m, c: find_induction(m, length=5, seed=1.5), "seed: expected a whole number of at least 0, got 1.5"),
        (lambda m, c: find_induction(m, length=5.5), "length: expected 2 to 12 tokens for this model, got 5.5"),
        (lambda m, c: find_induction(m, length=2, among=[1.5, 2]), r"among: expected whole numbers, got \[1.5, 2\]"),
        (lambda m, c: logit_lens(m, IDS[0], top=1.5), "top: expected 1 to 61, got 1.5"),
        (lambda m, c: find_induction(m, length=5, trials=-1), "trials: expected a whole number of at least 0, got -1"),
        (
            lambda m, c: run_with_hooks(m, IDS[:, :5], patch(c, "h0/in")),
            r"patch: .* shape \[2, 5, 24\], got \[2, 11, 24\]",
        ),
        (lambda m, c: run_with_hooks(m, IDS, patch(c, "h0/in", heads=[0])), r"heads: expected none, .* got \[0\]"),
        (lambda m, c: run_with_cache(m, IDS, names="nothing"), "names: expected names such as .*, got 'nothing'"),
        (lambda m, c: logit_lens(m, IDS[0], top=0), "top: expected 1 to 61, got 0"),
        (lambda m, c: lens_logits(m, np.ones((1, 2, 3))), r"residual: expected .*\(B, T, 24\), got \[1, 2, 3\]"),
        (lambda m, c: repeated_tokens(m, length=13), "length: expected 2 to 12 tokens for this model, got 13"),
        (
            lambda m, c: repeated_tokens(m, length=3, among=[5, 6]),
            "length: expected 2 to 2 tokens for this model, got 3",
        ),
        (lambda m, c: repeated_tokens(m, among=[61]), "among: expected 0 to 60, got 61"),
        (lambda m, c: patch_effects(m, [1], [2], by="layer"), "by: expected position or head, got 'layer'"),
        (
            lambda m, c: patch_effects(m, [1], [2], by="head"),
            "site: expected an activation of each head, .*'hook_resid_pre'",
        ),
        (
            lambda m, c: patch_effects(m, [1], [2], site="attn.hook_pattern"),
            "site: expected .* got 'attn.hook_pattern'",
        ),
        (lambda m, c: find_induction(m, length=5, rows=1), "rows: expected a whole number of at least 2, got 1"),
    ],
)
def test_bad_arguments_are_refused(
    model: Model, cache: Activations, call: Callable[[Model, Activations], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(model, cache)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("text", "expected token ids, since this model's folder has no vocabulary"),
        ([[1, 2], [3]], "expected rows of equally many tokens, got 2, 1"),
        ([], "expected text, a list of texts, token ids or None"),
        ([61], "expected 0 to 60, got 61"),
        (np.zeros((1, 25), int), "expected at most n_ctx = 24 positions, got 25"),
        *(
            (bad, "prompt: expected text, a list of texts, token ids or None, got ")
            for bad in (np.array([1.5, 2.0]), [1.5, 2.0], [None], [[1], 2], np.array(5), 5)
        ),
        ([[1.5, 2.0]], "ids: expected integers of shape"),
    ],
)
def test_bad_prompts_are_refused(model: Model, prompt: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        run_with_cache(model, prompt)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="expected one text, got 2"):
        inspect(model, IDS)
    with pytest.raises(PromptError, match="other: expected as many tokens as the text has, 2, got 1"):
        patch_effects(model, [1, 2], [3])
    with pytest.raises(PromptError, match="other: expected a text after which something else is foretold"):
        patch_effects(model, [1, 2], [1, 2])


# Beside transformers


@pytest.mark.reference
def test_patterns_and_hidden_states_are_transformers(model: Model, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = save_model(model, tmp_path / "tiny", "huggingface")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        out = theirs(torch.tensor(IDS), output_attentions=True, output_hidden_states=True)
    logits, seen = run_with_cache(model, IDS)
    np.testing.assert_allclose(logits, out.logits.numpy(), atol=1e-4)
    for n in range(3):
        np.testing.assert_allclose(seen[f"h{n}/attn/pattern"], out.attentions[n].numpy(), atol=1e-5)
        np.testing.assert_allclose(seen[f"h{n}/in"], out.hidden_states[n].numpy(), atol=1e-4)
    np.testing.assert_allclose(seen["ln_f"], out.hidden_states[3].numpy(), atol=1e-4)
