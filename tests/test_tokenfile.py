"""The token-file format: what is written is read back, whole or not at all."""
import json

import numpy as np
import pytest

from data.tokenfile import MAX_TOKENS, open_labels, open_split, read_meta, write_atomically, write_dataset
from data.tokenizer import get_tokenizer, normalise

TEXTS = ["The first text.", "Ein zweiter Text — mit Ümlauten.", "", "Three " * 5, "日本"]


def items():
    yield from (("val" if i == 1 else "train", text) for i, text in enumerate(TEXTS))


def test_round_trip(tmp_path):
    tokenizer = get_tokenizer()
    meta = write_dataset("mine", items(), tokenizer, {"files": ["a.txt"]}, tmp_path)
    assert meta == read_meta("mine", tmp_path) and meta["source"] == {"files": ["a.txt"]}
    assert meta["fingerprint"] == tokenizer.fingerprint
    tokens, offsets = open_split("mine", "train", tmp_path)
    assert tokens.dtype == np.uint16 and offsets.dtype == np.int64
    texts = [tokenizer.decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:])]
    assert texts == [normalise(TEXTS[i]) for i in (0, 3, 4)]  # in order, without the empty one
    assert meta["splits"]["train"] == {"n_docs": 3, "n_tokens": len(tokens)}
    tokens, offsets = open_split("mine", "val", tmp_path)
    assert tokenizer.decode(tokens) == normalise(TEXTS[1])


def test_order_is_kept_over_many_batches(tmp_path):
    """More documents than are encoded at a time, by several threads."""
    tokenizer = get_tokenizer()
    write_dataset("many", (("train", f"number {i}") for i in range(20_000)), tokenizer, {}, tmp_path)
    tokens, offsets = open_split("many", "train", tmp_path)
    assert len(offsets) == 20_001
    for i in (0, 127, 128, 8191, 8192, 19_999):
        assert tokenizer.decode(tokens[offsets[i]:offsets[i + 1]]) == f"number {i}"


def test_long_documents_are_cut(tmp_path):
    write_dataset("long", [("train", "word " * 5000)], get_tokenizer(), {}, tmp_path)
    assert len(open_split("long", "train", tmp_path)[0]) == MAX_TOKENS


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit("bad line"), OSError(28, "No space left on device")])
def test_an_interrupted_dataset_leaves_the_old_one(tmp_path, error):
    def failing():
        yield from items()
        raise error
    write_dataset("mine", items(), get_tokenizer(), {"version": 1}, tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        write_dataset("mine", failing(), get_tokenizer(), {"version": 2}, tmp_path)
    assert read_meta("mine", tmp_path)["source"] == {"version": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    write_dataset("mine", items(), get_tokenizer(), {"version": 3}, tmp_path)
    assert read_meta("mine", tmp_path)["source"] == {"version": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("empty", [[], [("train", "")], [("val", "text")], [("train", "text"), ("val", " ")]])
def test_no_text_is_an_error(tmp_path, empty):
    with pytest.raises(SystemExit, match="no text"):
        write_dataset("mine", empty, get_tokenizer(), {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_or_missing_datasets_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match="none yet"):
        read_meta("mine", tmp_path)
    write_dataset("other", items(), get_tokenizer(), {}, tmp_path)
    with pytest.raises(SystemExit, match="prepared are: other"):
        read_meta("mine", tmp_path)
    with open(tmp_path / "other" / "train.bin", "ab") as file:
        file.write(b"xx")
    with pytest.raises(SystemExit, match="damaged"):
        open_split("other", "train", tmp_path)
    (tmp_path / "other" / "train.bin").unlink()
    with pytest.raises(SystemExit, match="cannot open"):
        open_split("other", "train", tmp_path)
    (tmp_path / "other" / "meta.json").write_text("{")
    with pytest.raises(SystemExit, match="damaged"):
        read_meta("other", tmp_path)
    for name in ("a/b", "..", ".hidden"):
        with pytest.raises(SystemExit, match="--name"):
            write_dataset(name, items(), get_tokenizer(), {}, tmp_path)


def test_write_atomically(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, json.dumps({"a": 1}).encode())
    assert json.loads(path.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(SystemExit, match="cannot write"):
        write_atomically(path / "file.json", b"")  # a file is no folder
    write_atomically(tmp_path / "absent" / "file.json", b"{}")
    assert (tmp_path / "absent" / "file.json").read_bytes() == b"{}"


def test_labels(tmp_path):
    """They stay with their documents, of which the empty one is left out; what is damaged or absent is one line."""
    items = [("test" if i == 1 else "train", text, i % 3) for i, text in enumerate(TEXTS)]
    meta = write_dataset("mine", items, get_tokenizer(), {}, tmp_path, labels=["a", "b", "c"])
    assert meta["labels"] == ["a", "b", "c"]
    assert open_labels("mine", "train", tmp_path).tolist() == [0, 0, 1]
    assert open_labels("mine", "test", tmp_path).tolist() == [1]
    for damage in (b"", b"\0" * 8, b"\0" * 16 + b"\3" + b"\0" * 7):
        (tmp_path / "mine" / "train.labels.bin").write_bytes(damage)
        with pytest.raises(SystemExit, match="damaged"):
            open_labels("mine", "train", tmp_path)
    (tmp_path / "mine" / "train.labels.bin").unlink()
    with pytest.raises(SystemExit, match="cannot open"):
        open_labels("mine", "train", tmp_path)
    write_dataset("plain", [("train", "text")], get_tokenizer(), {}, tmp_path)
    with pytest.raises(SystemExit, match="have no labels"):
        open_labels("plain", "train", tmp_path)


def test_special_tokens_are_read_only_where_allowed(tmp_path):
    tokenizer, text = get_tokenizer(), "[E1] Mozart [/E1]"
    for name, allow in (("with", ["[E1]", "[/E1]"]), ("without", [])):
        write_dataset(name, [("train", text)], tokenizer, {}, tmp_path, allow=allow)
        tokens, _ = open_split(name, "train", tmp_path)
        assert (tokenizer.special["[E1]"] in tokens) == (name == "with")
