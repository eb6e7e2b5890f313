"""The token-file format: what is written is read back, whole or not at all."""
import hashlib

import numpy as np
import pytest
from conftest import texts_of, write

from data import tokenfile
from data.tokenfile import folder_of, open_labels, open_split, read_meta, write_dataset
from data.tokenizer import get_tokenizer, normalise

TEXTS = ["The first text.", "Ein zweiter Text — mit Ümlauten.", "", "Three " * 5, "日本"]


def items():
    yield from (("val" if i == 1 else "train", text) for i, text in enumerate(TEXTS))


def write_mine(name="mine", items=items, source=None, **more):
    return write_dataset(name, items() if callable(items) else items, get_tokenizer(), source or {},
                         **more)


def test_round_trip(bin_dir):
    meta = write_mine(source={"files": ["a.txt"]})
    assert meta == read_meta("mine") and meta["source"] == {"files": ["a.txt"]}
    assert meta["fingerprint"] == get_tokenizer().fingerprint
    tokens, offsets = open_split("mine", "train")
    assert tokens.dtype == np.uint16 and offsets.dtype == np.int64
    assert texts_of("mine") == [normalise(TEXTS[i]) for i in (0, 3, 4)]  # without the empty one
    assert meta["splits"]["train"] == {"n_docs": 3, "n_tokens": len(tokens)}
    assert texts_of("mine", "val") == [normalise(TEXTS[1])]


def test_a_name_or_a_path(bin_dir, tmp_path):
    assert folder_of("mine") == bin_dir / "mine" and folder_of(tmp_path / "x") == tmp_path / "x"
    assert write_mine(str(tmp_path / "other"))["name"] == "other"
    assert texts_of(tmp_path / "other", "val") == [normalise(TEXTS[1])] and not bin_dir.exists()
    for name in ("a/b", "..", ".hidden", ""):
        with pytest.raises(SystemExit, match="--name"):
            write_mine(name)


def test_order_is_kept_over_many_batches(bin_dir):
    """More documents than are encoded at a time, by several threads."""
    write_mine(items=[("train", f"number {i}") for i in range(20_000)])
    assert texts_of("mine") == [f"number {i}" for i in range(20_000)]


def test_long_documents_are_cut(bin_dir):
    write_mine(items=[("train", "word " * 5000)])
    assert len(open_split("mine", "train")[0]) == tokenfile.MAX_TOKENS


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit("bad line"),
                                   OSError(28, "No space left on device")])
def test_an_interrupted_dataset_leaves_the_old_one(bin_dir, error):
    def failing():
        yield from items()
        raise error
    write_mine(source={"version": 1})
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        write_mine(items=failing, source={"version": 2})
    assert read_meta("mine")["source"] == {"version": 1}
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]
    write_mine(source={"version": 3})
    assert read_meta("mine")["source"] == {"version": 3}
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]


@pytest.mark.parametrize("items", [[], [("train", "")], [("val", "text")],
                                   [("train", "text"), ("val", " ")]])
def test_no_text_is_an_error(bin_dir, items):
    with pytest.raises(SystemExit, match="no text"):
        write_mine(items=items)
    assert not list(bin_dir.iterdir())


def test_damaged_or_missing_datasets_are_one_line(bin_dir):
    with pytest.raises(SystemExit, match="none yet"):
        read_meta("mine")
    write_mine("other")
    with pytest.raises(SystemExit, match="prepared are: other"):
        read_meta("mine")
    for damage, message in [(b"xx", "damaged"), (b"", "cannot open")]:
        write(bin_dir / "other" / "train.bin", damage)
        with pytest.raises(SystemExit, match=message):
            open_split("other", "train")
    write(bin_dir / "other" / "meta.json", "{")
    with pytest.raises(SystemExit, match="damaged"):
        read_meta("other")


def test_write_atomically(tmp_path):
    path = tmp_path / "file.json"
    for content in (b"one", b"another"):
        tokenfile.write_atomically(path, content)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    with pytest.raises(SystemExit, match="cannot write"):
        tokenfile.write_atomically(path / "file.json", b"")  # a file is no folder
    tokenfile.write_atomically(tmp_path / "absent" / "file.json", b"{}")
    assert (tmp_path / "absent" / "file.json").read_bytes() == b"{}"


def test_checksum(tmp_path):
    paths = [write(tmp_path / "a.txt", b"one"), write(tmp_path / "b.txt", b"two" * 1_000_000)]
    assert tokenfile.checksum(paths) == hashlib.sha256(b"one" + b"two" * 1_000_000).hexdigest()


def test_labels(bin_dir):
    """They stay with their documents, of which the empty one is left out."""
    items = [("test" if i == 1 else "train", text, i % 3) for i, text in enumerate(TEXTS)]
    assert write_mine(items=items, labels=["a", "b", "c"])["labels"] == ["a", "b", "c"]
    assert open_labels("mine", "train").tolist() == [0, 0, 1]
    assert open_labels("mine", "test").tolist() == [1]
    for damage in (b"", b"\0" * 8, b"\0" * 16 + b"\3" + b"\0" * 7):
        (bin_dir / "mine" / "train.labels.bin").write_bytes(damage)
        with pytest.raises(SystemExit, match="damaged"):
            open_labels("mine", "train")
    (bin_dir / "mine" / "train.labels.bin").unlink()
    with pytest.raises(SystemExit, match="cannot open"):
        open_labels("mine", "train")
    write_mine("plain")
    with pytest.raises(SystemExit, match="have no labels"):
        open_labels("plain", "train")


def test_special_tokens_are_read_only_where_allowed(bin_dir):
    items = [("train", "[E1] Mozart [/E1]")]
    for name, allow in (("with", ["[E1]", "[/E1]"]), ("without", [])):
        write_mine(name, items, allow=allow)
        tokens, _ = open_split(name, "train")
        assert (get_tokenizer().special["[E1]"] in tokens) == (name == "with")
