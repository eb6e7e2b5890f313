"""Odd and damaged Wikipedia pages and vocabularies: read, or refused in one line."""
import json

from conftest import write
from fuzzing import JSON, damaged, new_folder, succeeds
from hypothesis import given
from hypothesis import strategies as st

from data import wikipedia
from data.tokenizer import SHIPPED, get_tokenizer, normalise, parse_vocabulary

PAGE = {"rows": [{"row_idx": i, "row": {"text": "words"}, "truncated_cells": []} for i in range(3)],
        "num_rows_total": 3}


@given(damaged(json.dumps(PAGE).encode()) | st.builds(
    lambda key, value: json.dumps(PAGE | {key: value}).encode(),
    st.sampled_from(list(PAGE)), JSON) | JSON.map(json.dumps).map(str.encode))
def test_pages_of_wikipedia(content):
    try:
        texts, _ = wikipedia.parse_page(content, 0)
    except ValueError:
        return
    assert texts


LINES = SHIPPED.read_text().splitlines(keepends=True)[:280]
VOCABULARY = "".join(LINES)


@given(damaged(VOCABULARY.encode()) | st.permutations(LINES[270:]).map(
    lambda last: "".join(LINES[:270] + last).encode()))
def test_vocabularies(content):
    with new_folder() as folder:
        path = write(folder / "own.tiktoken", content)
        if succeeds(get_tokenizer, str(path)):
            own = get_tokenizer(str(path))
            assert own.decode(own.encode("Zażółć かぎ")) == normalise("Zażółć かぎ")
            again = get_tokenizer("another name", own.vocabulary)
            assert again.fingerprint == own.fingerprint
            assert parse_vocabulary(own.vocabulary)
