"""The token-file format: what is written is read back, whole or not at all."""
import hashlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import texts_of, write

from data import tokenfile
from data.tokenfile import folder_of, open_labels, open_split, read_meta, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer, normalise, open_tokenizer

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
    assert meta["splits"]["train"] == {"n_docs": 3, "n_tokens": len(tokens), "n_longest": 0}
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


def test_long_documents_are_cut_and_that_is_said(bin_dir, capsys):
    write_mine(items=[("train", "word " * 5000), ("train", "short")])
    assert len(open_split("mine", "train")[0]) == tokenfile.MAX_TOKENS + 1
    assert "\n1 documents are cut to 2,048 tokens" in capsys.readouterr().out


def test_white_space_is_not_counted_as_text(bin_dir):
    write_mine(items=[("train", "\n" * 40_000 + "word " + " " * 60_000 + "word")])
    assert len(open_split("mine", "train")[0]) == 2


def test_a_dataset_that_fails_leaves_the_old_one(bin_dir):
    def failing():
        yield from items()
        raise SystemExit("bad line")
    write_mine(source={"version": 1})
    with pytest.raises(SystemExit, match="^bad line$"):
        write_mine(items=failing, source={"version": 2})
    assert read_meta("mine")["source"] == {"version": 1}
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]
    write_mine(source={"version": 3})
    assert read_meta("mine")["source"] == {"version": 3}
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]


@pytest.mark.parametrize("items, lacking", [
    ([], "train"), ([("train", "")], "train"), ([("val", "text")], "train"),
    ([("train", "text"), ("val", " ")], "val")])
def test_no_text_is_an_error(bin_dir, items, lacking):
    with pytest.raises(SystemExit, match=f"no text for {lacking}$"):
        write_mine(items=items)
    assert not list(bin_dir.iterdir())


def test_missing_datasets_and_those_of_older_versions(bin_dir):
    with pytest.raises(SystemExit, match="none yet"):
        read_meta("mine")
    write_mine("other")
    with pytest.raises(SystemExit, match="prepared are: other"):
        read_meta("mine")
    path = bin_dir / "other" / "meta.json"
    meta = json.loads(path.read_bytes())
    meta.pop("checksum")
    write(path, json.dumps(meta))
    with pytest.raises(SystemExit, match="meta.json was prepared by an older version; prepare it"):
        open_split("other", "train")


def test_any_bit_that_is_flipped_and_any_cut_is_noticed(bin_dir):
    """In all files: a line that names the file and says to prepare the dataset again."""
    rng = random.Random(0)
    own = get_tokenizer("own", SHIPPED.read_text())
    write_dataset("mine", [("train", text, 0) for text in TEXTS], own, {}, ["one", "two"])

    def read():
        open_tokenizer("mine")
        return open_split("mine", "train"), open_labels("mine", "train")
    read()
    for path in (bin_dir / "mine").iterdir():
        whole = path.read_bytes()
        damages = [whole[:rng.randrange(len(whole))] for _ in range(10)] + [b""]
        for _ in range(30):
            i, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            damages.append(whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1:])
        for damage in damages:
            write(path, damage)
            with pytest.raises(SystemExit, match=rf"{path.name}.*; prepare it again$") as error:
                read()
            assert "\n" not in str(error.value)
        path.unlink()
        with pytest.raises(SystemExit, match=f"cannot open .*{path.name}|not prepared"):
            read()
        write(path, whole)
    read()


def test_a_dataset_carries_its_vocabulary(bin_dir, tmp_path):
    vocabulary = write(tmp_path / "own.tiktoken", "".join(
        SHIPPED.read_text().splitlines(keepends=True)[:300]))
    own = get_tokenizer(str(vocabulary))
    write_dataset("mine", items(), own, {})
    vocabulary.unlink()
    get_tokenizer.cache_clear()
    (bin_dir / "mine").rename(tmp_path / "moved")
    tokenizer, checksums = open_tokenizer(tmp_path / "moved")
    assert tokenizer.fingerprint == own.fingerprint and tokenizer.vocabulary == own.vocabulary
    assert "vocabulary.tiktoken" in checksums and get_tokenizer().vocabulary is None
    write_mine("shipped")
    assert open_tokenizer("shipped")[0].fingerprint == get_tokenizer().fingerprint
    assert not (bin_dir / "shipped" / tokenfile.VOCABULARY).exists()


def test_a_slip_in_the_name_costs_no_files(bin_dir, tmp_path):
    (tmp_path / "thesis").mkdir()
    path = write(tmp_path / "thesis" / "chapter.txt", "text")
    with pytest.raises(SystemExit, match="thesis holds chapter.txt, which is no part of a dataset"):
        write_mine(str(path.parent))
    (tmp_path / "models").mkdir()
    model = write(tmp_path / "models" / "pytorch_model.bin", "precious")
    with pytest.raises(SystemExit, match="models holds pytorch_model.bin, which is no part of"):
        write_mine(str(model.parent))
    assert model.read_text() == "precious"
    with pytest.raises(SystemExit, match="cannot write dataset .*Not a directory"):
        write_mine(str(path))
    assert path.read_text() == "text"


def run(program, *arguments, **options):
    """A Python program (str) as a process of its own, not waited for."""
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], text=True,
                            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **options)


def test_two_processes_that_write_the_same(tmp_path):
    """Each file and each dataset is the one's or the other's, and nothing else is left."""
    program = (
        "import sys\nfrom data.tokenfile import write_atomically, write_dataset\n"
        "from data.tokenizer import get_tokenizer\n"
        "me, folder = sys.argv[1:]\n"
        "for i in range(100):\n"
        "    write_dataset(folder + '/both', [('train', me)] * 9, get_tokenizer(), {'me': me})\n"
        "    write_atomically(folder + '/file', me.encode() * 99_999)\n")
    processes = [run(program, me, tmp_path) for me in ("one", "two")]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    me = read_meta(tmp_path / "both")["source"]["me"]
    assert texts_of(tmp_path / "both") == [me] * 9
    assert (tmp_path / "file").read_text() in ("one" * 99_999, "two" * 99_999)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "file"]


@pytest.mark.parametrize("end, message", [
    ("os.kill(os.getpid(), signal.SIGTERM)", "interrupted\n"),
    ("resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))",  # like a disk that is full
     "cannot write dataset DATASET: File too large\n")])
def test_an_end_from_outside_leaves_the_old_dataset(bin_dir, end, message):
    pytest.importorskip("resource")
    write_mine()
    program = (
        "import os, resource, signal, sys\nfrom data.flags import run_script\n"
        "from data.tokenfile import write_dataset\nfrom data.tokenizer import get_tokenizer\n"
        "def items():\n    for i in range(20_000):\n        yield 'train', 'other text'\n"
        f"    {end}\n    yield 'train', 'last text'\n"
        "run_script(lambda: write_dataset(sys.argv[1], items(), get_tokenizer(), {}))\n")
    process = run(program, bin_dir / "mine")
    assert process.communicate()[1] == message.replace("DATASET", str(bin_dir / "mine"))
    assert process.returncode == 1 and texts_of("mine")[0] == normalise(TEXTS[0])
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]


def test_names_that_are_not_utf8(bin_dir):
    source = {"files": [os.fsdecode(b"caf\xe9.txt")], "日本": "\ud800"}
    write_mine(source=source)
    assert read_meta("mine")["source"] == source


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
    write_mine("plain")
    with pytest.raises(SystemExit, match="have no labels"):
        open_labels("plain", "train")


def test_special_tokens_are_read_only_where_allowed(bin_dir):
    items = [("train", "[E1] Mozart [/E1]")]
    for name, allow in (("with", ["[E1]", "[/E1]"]), ("without", [])):
        write_mine(name, items, allow=allow)
        tokens, _ = open_split(name, "train")
        assert (get_tokenizer().special["[E1]"] in tokens) == (name == "with")
