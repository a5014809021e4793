"""Text as transformers writes it: greedy and beam search on the same weights, small ones and 124M."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt2.gpt import Model, load_model

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def pair(folder: Path, **shape: int):  # type: ignore[no-untyped-def]
    """A random model of transformers', and ours from what it saved."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    if config.n_embd < 100:  # small weights would make every continuation alike
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return pair(tmp_path_factory.mktemp("small"), vocab_size=120, n_positions=64, n_embd=32, n_layer=3, n_head=4)


PROMPTS = ([5], [1, 2, 3, 4], list(range(30)))


def theirs_generate(theirs, prompt: list[int], **options: object) -> list[int]:  # type: ignore[no-untyped-def]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **options)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy(small: tuple[object, Model], prompt: list[int]) -> None:
    theirs, ours = small
    expected = theirs_generate(theirs, prompt, max_new_tokens=24)
    assert ours.generate(prompt, max_tokens=24, temperature=0)[0].tokens == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("beams", [2, 5])
def test_beam_search(small: tuple[object, Model], prompt: list[int], beams: int) -> None:
    theirs, ours = small
    expected = theirs_generate(theirs, prompt, max_new_tokens=12, num_beams=beams)
    assert ours.generate(prompt, max_tokens=12, num_beams=beams)[0].tokens == expected


def test_124m(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path)
    assert ours.num_parameters == 124_439_808
    ids = np.random.default_rng(0).integers(0, 50257, (2, 200))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(ours.logits(ids), expected, atol=1e-3)
    prompt = ids[0, :20].tolist()
    assert ours.generate(prompt, max_tokens=12, temperature=0)[0].tokens == theirs_generate(
        theirs, prompt, max_new_tokens=12
    )
