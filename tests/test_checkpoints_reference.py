"""Checkpoints and networks against Hugging Face's transformers: each reads what the other wrote, to the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from gpt2 import checkpoints
from gpt2.checkpoints import huggingface
from gpt2.codec import Codec, default_codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError
from gpt2.gpt import load_model

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = GPT2Config(n_vocab=211, n_ctx=24, n_embd=24, n_head=3, n_layer=3)
TENSORS = oracle.random_tensors(CONFIG, seed=5)
IDS = np.random.default_rng(1).integers(0, CONFIG.n_vocab, (2, 24))
TOLERANCE = 1e-4
"""Between two float32 networks whose sums run in different orders; the logits are of the order of 10."""


def their_model(config: GPT2Config = CONFIG) -> Any:
    """Theirs, with random weights at which every part matters."""
    settings = transformers.GPT2Config(
        vocab_size=config.n_vocab,
        n_positions=config.n_ctx,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_layer=config.n_layer,
    )
    model = transformers.GPT2LMHeadModel(settings).eval()
    tensors = {huggingface.hf_name(name): torch.tensor(array) for name, array in TENSORS.items()}
    missing, unexpected = model.transformer.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith(("attn.bias", "attn.masked_bias")) for name in missing)
    return model


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


def read_exactly(folder: Path) -> None:
    config, tensors = checkpoints.read(folder)
    assert config == CONFIG
    for name, array in tensors:
        np.testing.assert_array_equal(array, TENSORS[name], err_msg=name)


def test_the_network_is_theirs(tmp_path: Path) -> None:
    """And both are the oracle's, so an error would have to be made three times."""
    model = their_model()
    model.save_pretrained(tmp_path)
    read_exactly(tmp_path)
    expected = their_logits(model)
    np.testing.assert_allclose(load_model(tmp_path).logits(IDS), expected, atol=TOLERANCE)
    np.testing.assert_allclose(oracle.logits(CONFIG, TENSORS, IDS[0]), expected[0], atol=TOLERANCE)


def test_without_the_head_as_the_released_files_are(tmp_path: Path) -> None:
    """`GPT2Model` saves names without the prefix `transformer.`, as openai-community/gpt2 has them."""
    their_model().transformer.save_pretrained(tmp_path)
    read_exactly(tmp_path)


def test_they_read_what_we_write(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m", CONFIG, TENSORS.items(), format="huggingface")
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    assert theirs.dtype == torch.float32
    np.testing.assert_array_equal(their_logits(theirs), their_logits(their_model()))


def test_shards_both_ways(tmp_path: Path) -> None:
    their_model().save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    read_exactly(tmp_path / "theirs")

    (tmp_path / "ours").mkdir()
    huggingface.write(tmp_path / "ours", CONFIG, TENSORS.items(), None, "float32", max_shard_bytes=30_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(their_logits(theirs), their_logits(their_model()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_of_theirs(tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    their_model().to(kind).save_pretrained(tmp_path)
    assert checkpoints.describe(tmp_path).dtype == dtype
    for name, array in checkpoints.read(tmp_path)[1]:
        expected = torch.tensor(TENSORS[name]).to(kind).to(torch.float32).numpy()
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_float16_of_ours(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m", CONFIG, TENSORS.items(), format="huggingface", dtype="float16")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m", dtype=torch.float16)
    for name, parameter in theirs.transformer.named_parameters():
        ours = next(ours for ours in TENSORS if huggingface.hf_name(ours) == name)
        np.testing.assert_array_equal(parameter.detach().numpy(), TENSORS[ours].astype(np.float16), err_msg=name)


def test_through_every_format_and_back_to_them(tmp_path: Path) -> None:
    their_model().save_pretrained(tmp_path / "0")
    for n, format in enumerate(("openai", "native", "huggingface")):
        config, tensors = checkpoints.read(tmp_path / str(n))
        checkpoints.write(tmp_path / str(n + 1), config, tensors, format=format)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "3")
    np.testing.assert_array_equal(their_logits(theirs), their_logits(their_model()))


@pytest.mark.parametrize(
    "settings",
    [{"activation_function": "gelu"}, {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False}],
)
def test_their_variants_that_compute_something_else_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    shape = {"vocab_size": 50, "n_positions": 8, "n_embd": 8, "n_head": 2, "n_layer": 1}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **settings)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointFormatError, match=next(iter(settings))):
        checkpoints.read(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointFormatError, match="expected model_type gpt2, got 'llama'"):
        checkpoints.read(tmp_path)


def test_the_tokenizer_that_we_write(tmp_path: Path) -> None:
    codec = default_codec()
    config = GPT2Config(n_vocab=codec.n_vocab, n_ctx=16, n_embd=4, n_head=2, n_layer=1)
    folder = tmp_path / "m"
    tensors = oracle.random_tensors(config).items()
    checkpoints.write(folder, config, tensors, format="huggingface", codec=codec)
    texts = ["Hello world", " it's 2024, naïve café!\n\n\tx  y", "日本語 🙂", "a\u00a0b\r\n  "]
    for tokenizer in (
        transformers.GPT2Tokenizer.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    ):
        for text in texts:
            assert tokenizer(text)["input_ids"] == codec.encode(text)
            assert tokenizer.decode(codec.encode(text), clean_up_tokenization_spaces=False) == text
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", codec.end_of_text)
        assert tokenizer("<|endoftext|>")["input_ids"] == [codec.end_of_text]
        assert tokenizer.model_max_length == config.n_ctx


def test_tokens_added_by_transformers_come_and_go(tmp_path: Path) -> None:
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(_written(tmp_path / "m", default_codec()))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|bot|>"], "pad_token": "[PAD]"})
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=4, n_head=2, n_layer=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    for name, data in default_codec().files("huggingface").items():
        (tmp_path / "theirs" / name).write_bytes(data)  # as older versions leave it
    codec = checkpoints.codec_of(tmp_path / "theirs", len(tokenizer))
    assert codec is not None
    specials = ("<|endoftext|>", "<|user|>", "<|bot|>", "[PAD]")
    assert codec.special_tokens == {token: tokenizer.convert_tokens_to_ids(token) for token in specials}
    again = transformers.AutoTokenizer.from_pretrained(_written(tmp_path / "again", codec))
    text = "<|user|>Hello<|bot|> world[PAD]"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"] == codec.encode(text, allowed_special=set(specials))


def _written(folder: Path, codec: Codec) -> Path:
    config = GPT2Config(n_vocab=codec.n_vocab, n_ctx=16, n_embd=4, n_head=2, n_layer=1)
    checkpoints.write(folder, config, oracle.random_tensors(config).items(), format="huggingface", codec=codec)
    return folder


def test_generate_of_theirs_runs_on_what_we_write(tmp_path: Path) -> None:
    """Greedy text of theirs is ours, so `generation_config.json` is sound too."""
    checkpoints.write(tmp_path / "m", CONFIG, TENSORS.items(), format="huggingface")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m")
    prompt = IDS[0, :4]
    found = theirs.generate(torch.tensor(prompt[None]), max_new_tokens=12, do_sample=False)[0, 4:].tolist()
    ours = load_model(tmp_path / "m").generate(prompt, max_tokens=12, temperature=0)[0].tokens
    assert ours == found
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"] is None
