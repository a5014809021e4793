"""Foreign formats as their own libraries write them: torch.save, and Keras Hub where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import foreign
from gpt2 import checkpoints
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError
from gpt2.gpt import load_model
from test_checkpoints import CONFIG, TENSORS, assert_holds_exactly

pytestmark = pytest.mark.reference


def test_nanogpts_checkpoint_by_torch_save(tmp_path: Path) -> None:
    """With an optimizer that has taken a step, tensors among the numbers, and a head that shares the embedding."""
    torch = pytest.importorskip("torch")
    arrays = {name: torch.tensor(np.ascontiguousarray(a)) for name, a in foreign.nano_arrays(TENSORS).items()}
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"]
    parameters = [torch.nn.Parameter(value.clone()) for value in arrays.values()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = {
        "model": {f"_orig_mod.{name}": value for name, value in arrays.items()},
        "optimizer": optimizer.state_dict(),
        "model_args": foreign.nano_args(CONFIG),
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.4),
        "config": {"dataset": "x", "learning_rate": 6e-4, "compile": True, "init_from": "scratch"},
    }
    torch.save(saved, tmp_path / "ckpt.pt")
    assert_holds_exactly(tmp_path / "ckpt.pt")
    # As `crop_block_size` leaves it: a part of what was a larger table.
    table = torch.cat([arrays["transformer.wpe.weight"], torch.zeros(8, CONFIG.n_embd)])
    saved["model"]["_orig_mod.transformer.wpe.weight"] = table[: CONFIG.n_ctx]
    torch.save(saved, tmp_path / "ckpt.pt")
    assert_holds_exactly(tmp_path / "ckpt.pt")
    torch.save(saved, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointFormatError, match="a bare pickle is refused"):
        checkpoints.read(tmp_path / "ckpt.pt")


def test_keras_hubs_own_preset(tmp_path: Path) -> None:
    """Its logits and its ids. The extra `reference` brings Keras Hub, but not for every Python and machine."""
    pytest.importorskip("tensorflow_text")  # without it Keras Hub is there, but not its tokenizer
    hub = pytest.importorskip("keras_hub")
    import keras

    codec = Codec.from_merges("a b\nab c")
    files = codec.files("huggingface")
    merges = files["merges.txt"].decode().splitlines()[1:]
    config = GPT2Config(n_vocab=codec.n_vocab, n_ctx=16, n_embd=12, n_head=3, n_layer=2)
    backbone = hub.models.GPT2Backbone(
        vocabulary_size=config.n_vocab,
        num_layers=2,
        num_heads=3,
        hidden_dim=12,
        intermediate_dim=48,
        max_sequence_length=16,
    )
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    tokenizer = hub.models.GPT2Tokenizer(vocabulary=json.loads(files["vocab.json"]), merges=merges)
    preprocessor = hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)
    hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor).save_to_preset(str(tmp_path / "preset"))
    ids = rng.integers(0, config.n_vocab, (2, 16))
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    expected = keras.ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))
    model = load_model(tmp_path / "preset")
    assert (checkpoints.detect(tmp_path / "preset"), model.config) == ("keras_hub", config)
    np.testing.assert_allclose(model.logits(ids), expected, atol=1e-4)
    assert model.codec is not None
    assert model.codec.encode("abcab cab") == np.array(tokenizer("abcab cab")).tolist()
