"""The codec against both tokenizers of Hugging Face (one and the same from transformers 5 on), made from our own files.

By choice, text becomes a special token here only where the caller allows it; Hugging Face always allows it.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.codec import END_OF_TEXT, decode, default_codec, encode

pytestmark = pytest.mark.reference
transformers = pytest.importorskip("transformers")

# Unicode's tables differ in age among the libraries, so only characters that all of them know.
texts = st.text(st.characters(exclude_categories=["Cn", "Cs"]), max_size=40)
texts = st.one_of(texts, st.tuples(texts, st.just(END_OF_TEXT), texts).map("".join))


@pytest.fixture(scope="module", params=["GPT2TokenizerFast", "GPT2Tokenizer"])
def peer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface")
    for name, content in default_codec().files("huggingface").items():
        (folder / name).write_bytes(content)
    return getattr(transformers, request.param).from_pretrained(str(folder))


@settings(max_examples=2_000, deadline=None, derandomize=True)
@given(texts)
def test_texts_as_hugging_face_has_them(peer, text):
    assert encode(text, allowed_special={END_OF_TEXT}) == peer.encode(text, add_special_tokens=False)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 50256), max_size=20))
def test_tokens_as_hugging_face_has_them(peer, tokens):
    assert decode(tokens) == peer.decode(tokens, clean_up_tokenization_spaces=False)
