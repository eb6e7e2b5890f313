"""The token-file format: what is written is read back, whole or not at all."""
import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
from conftest import IS_WINDOWS, OWN, texts_of, write

from data import files, tokenfile
from data.files import checksum, write_atomically
from data.tokenfile import MAX_TOKENS, Dataset, write_dataset
from data.tokenizer import get_tokenizer, normalise

TEXTS = ["The first text.", "Ein zweiter Text — mit Ümlauten.", "", "Three " * 5, "日本"]


def items():
    yield from (("val" if i == 1 else "train", text) for i, text in enumerate(TEXTS))


def write_mine(name="mine", items=items, source=None, tokenizer=None, **more):
    return write_dataset(name, items() if callable(items) else items,
                         tokenizer or get_tokenizer(), source or {}, **more)


def test_round_trip(bin_dir):
    source = {"files": ["caf\udce9.txt"], "日本": "\ud800"}  # names that are not UTF-8
    meta, dataset = write_mine(source=source), Dataset("mine")
    assert meta == dataset.meta and meta["source"] == source and dataset.name == "mine"
    assert meta["fingerprint"] == get_tokenizer().fingerprint == dataset.tokenizer.fingerprint
    tokens, offsets = dataset.split("train")
    assert dataset.split("train")[0] is tokens  # opened once
    assert tokens.dtype == np.uint16 and offsets.dtype == np.int64
    assert texts_of("mine") == [normalise(TEXTS[i]) for i in (0, 3, 4)]  # without the empty one
    assert meta["splits"]["train"] == {"n_docs": 3, "n_tokens": len(tokens), "n_lost": 0}
    assert texts_of("mine", "val") == [normalise(TEXTS[1])]


def test_many_and_long_documents(bin_dir):
    """More than are encoded at a time, by several threads; white space does not count as text."""
    texts = [f"number {i}" for i in range(20_000)]
    blank = "\n" * 40_000 + "word " + " " * 60_000 + "word"
    write_mine(items=[("train", text) for text in [*texts, "word " * 5000, blank]])
    assert texts_of("mine") == [*texts, " ".join(["word"] * MAX_TOKENS), "word word"]


@pytest.mark.parametrize("text, lost", [
    ("word " * 4096, "WARNING: 50.0%"), ("日本 " * 40_000, "WARNING: 9"), ("word " * 2200, "6.9%"),
    ("word " * 2049, ""), (np.zeros(MAX_TOKENS, np.uint16), "")])
def test_lost_text_is_named(bin_dir, capsys, text, lost):
    write_mine(items=[("train", text)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + bool(lost)
    if lost:
        assert lines[1].startswith(lost) and "to keep it, put a blank line (.txt) or" in lines[1]


@pytest.mark.parametrize("failing", ["items", "moving the old one", "moving the new one"])
def test_a_dataset_that_fails_leaves_the_old_one(bin_dir, monkeypatch, failing):
    def bad_items():
        yield from items()
        raise OSError("bad line")

    def rename(path, target, move=os.rename):
        if Path(path).name == ("mine" if failing == "moving the old one" else "new"):
            raise PermissionError(13, "Permission denied")
        return move(path, target)
    write_mine(source={"version": 1})
    with monkeypatch.context() as patch:
        if failing != "items":
            patch.setattr(os, "rename", rename)
            patch.setattr(files, "PAUSES", [0])
        with pytest.raises(SystemExit, match="^cannot write dataset mine to .*: (bad|Perm)"):
            write_mine(items=bad_items if failing == "items" else items, source={"version": 2})
    assert Dataset("mine").meta["source"] == {"version": 1}
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]
    write(bin_dir / "mine" / ".DS_Store", "of a program that shows folders")
    write_mine(source={"version": 3})
    assert Dataset("mine").meta["source"] == {"version": 3}
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]


@pytest.mark.parametrize("items, empty", [
    ([], "train"), ([("train", "")], "train"), ([("val", "text")], "train"),
    ([("train", "text"), ("val", " ")], "val")])
def test_no_text_is_an_error(bin_dir, items, empty):
    with pytest.raises(SystemExit, match=f"no text for {empty}$"):
        write_mine(items=items)
    assert not list(bin_dir.iterdir())


def test_missing_and_damaged_files(bin_dir):
    """A line that names the file and says to prepare the dataset again."""
    with pytest.raises(SystemExit, match="none yet"):
        Dataset("mine")
    write_mine(items=[("train", text, 0) for text in TEXTS], tokenizer=OWN, labels=["one", "two"])
    with pytest.raises(SystemExit, match="prepared are: mine"):
        Dataset("other")

    def read():
        dataset = Dataset("mine")
        return dataset.tokenizer, dataset.split("train"), dataset.labels("train")
    read()
    rng = random.Random(0)
    for path in (bin_dir / "mine").iterdir():
        whole = path.read_bytes()
        for i in rng.choices(range(len(whole)), k=20):
            flipped = bytes([whole[i] ^ 1 << rng.randrange(8)])
            for damage in (flipped + whole[i + 1:], b"", flipped + whole[i:]):
                write(path, whole[:i] + damage)
                with pytest.raises(SystemExit, match=rf"{path.name}.*; prepare it again$"):
                    read()
        path.unlink()
        with pytest.raises(SystemExit, match=f"cannot open .*{path.name}|not prepared"):
            read()
        write(path, whole)
    read()


def test_a_path_and_names_that_are_refused(bin_dir, tmp_path):
    assert write_mine(str(tmp_path / "other"))["name"] == "other"
    assert texts_of(tmp_path / "other", "val") == [normalise(TEXTS[1])] and not bin_dir.exists()
    for name in ("a/b", "..", ".hidden", ""):
        with pytest.raises(SystemExit, match="--name"):
            write_mine(name)


def test_a_dataset_carries_its_vocabulary(bin_dir, tmp_path):
    write_mine(tokenizer=OWN)
    (bin_dir / "mine").rename(tmp_path / "moved")
    tokenizer = Dataset(tmp_path / "moved").tokenizer
    assert tokenizer.fingerprint == OWN.fingerprint and tokenizer.vocabulary == OWN.vocabulary
    write_mine("shipped")
    assert get_tokenizer().vocabulary is None
    assert not (bin_dir / "shipped" / tokenfile.VOCABULARY).exists()


def test_a_typo_in_the_name_deletes_no_files(bin_dir, tmp_path):
    for file in ("chapter.txt", "pytorch_model.bin", "train.bin"):  # the last one of nanoGPT's
        path = tmp_path / file.partition(".")[0] / file
        path.parent.mkdir()
        write(path, "precious")
        refusal = re.escape(f"{path.parent} holds {file}, which is no part of")
        with pytest.raises(SystemExit, match=refusal):
            write_mine(str(path.parent))
        with pytest.raises(SystemExit, match="cannot write dataset "):
            write_mine(str(path))
        assert path.read_text() == "precious"


@pytest.mark.skipif(IS_WINDOWS, reason="Windows lets few users make links")
@pytest.mark.parametrize("link", ["mine", ""])
def test_what_a_link_names_is_written_and_the_link_stays(bin_dir, tmp_path, link):
    """The dataset's folder or data/bin is a link to a large disk, at first to nothing there."""
    bin_dir.parent.mkdir(exist_ok=True)
    (bin_dir / link).parent.mkdir(exist_ok=True)
    (bin_dir / link).symlink_to(tmp_path / "disk" / link)
    for version in (1, 2):
        write_mine(source={"version": version})
        assert (bin_dir / link).is_symlink()
        assert Dataset(tmp_path / "disk" / "mine").meta["source"] == {"version": version}
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["mine"]
    link, target = tmp_path / "link.txt", tmp_path / "disk" / "file.txt"
    link.symlink_to(target)
    write_atomically(link, b"text")
    assert link.is_symlink() and target.read_bytes() == b"text"


def test_a_file_that_another_program_holds_open(bin_dir, tmp_path, monkeypatch):
    """On Windows it cannot be renamed for a moment; then it can."""
    pauses = []
    monkeypatch.setattr(files.time, "sleep", pauses.append)

    def refuse(name, n_times):
        results = [PermissionError(13, "Permission denied")] * n_times + [DEFAULT] * 9
        monkeypatch.setattr(os, name, Mock(wraps=getattr(os, name), side_effect=results))
    refuse("replace", 3)
    write_atomically(tmp_path / "file", b"text")
    assert (tmp_path / "file").read_bytes() == b"text" and len(pauses) == 3
    write_mine()
    refuse("rename", 2)
    write_mine(source={"version": 2})
    assert Dataset("mine").meta["source"] == {"version": 2} and len(pauses) == 5
    refuse("replace", 9)
    with pytest.raises(SystemExit, match="cannot write .*file: Permission denied"):
        write_atomically(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"text" and 2 < sum(pauses) < 10


@pytest.mark.skipif(IS_WINDOWS, reason="Windows locks files and folders that are in use")
def test_two_processes_that_write_the_same(tmp_path):
    """Each file and each dataset is the one's or the other's, and nothing else is left."""
    program = (
        "import sys\nfrom data.files import write_atomically\n"
        "from data.tokenfile import write_dataset\n"
        "from data.tokenizer import get_tokenizer\n"
        "me, folder = sys.argv[1:]\n"
        "for i in range(100):\n"
        "    write_dataset(folder + '/both', [('train', me)] * 9, get_tokenizer(), {'me': me})\n"
        "    write_atomically(folder + '/file', me.encode() * 99_999)\n")
    processes = [subprocess.Popen([sys.executable, "-c", program, me, tmp_path], text=True,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                 for me in ("one", "two")]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    me = Dataset(tmp_path / "both").meta["source"]["me"]
    assert texts_of(tmp_path / "both") == [me] * 9
    assert (tmp_path / "file").read_text() in ("one" * 99_999, "two" * 99_999)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "file"]


@pytest.mark.parametrize("end, message", [
    ("os.kill(os.getpid(), signal.SIGTERM)", "interrupted\n"),
    ("resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))",  # like a disk that is full
     "cannot write dataset DATASET to DATASET: File too large\n")])
def test_a_signal_or_a_full_disk_leaves_the_old_dataset(bin_dir, end, message):
    pytest.importorskip("resource")
    write_mine()
    program = (
        "import os, resource, signal, sys\nfrom data.flags import run_script\n"
        "from data.tokenfile import write_dataset\nfrom data.tokenizer import get_tokenizer\n"
        "def items():\n    for i in range(20_000):\n        yield 'train', 'other text'\n"
        f"    {end}\n    yield 'train', 'last text'\n"
        "run_script(lambda: write_dataset(sys.argv[1], items(), get_tokenizer(), {}))\n")
    done = subprocess.run([sys.executable, "-c", program, bin_dir / "mine"], capture_output=True,
                          text=True)
    assert done.stderr == message.replace("DATASET", str(bin_dir / "mine"))
    assert done.returncode == 1 and texts_of("mine")[0] == normalise(TEXTS[0])
    assert [path.name for path in bin_dir.iterdir()] == ["mine"]


def test_checksum(tmp_path):
    one, two = write(tmp_path / "a", b"another"), write(tmp_path / "b", b"two" * 1_000_000)
    expected = hashlib.sha256(b"another" + b"two" * 1_000_000).hexdigest()
    assert checksum([one, two]) == expected


def test_labels(bin_dir):
    """They stay with their documents, of which the empty one is left out."""
    items = [("test" if i == 1 else "train", text, i % 3) for i, text in enumerate(TEXTS)]
    write_mine(items=[*items, ("train", "[E1]", 2)], labels=["a", "b", "c"], allow=["[E1]"])
    dataset = Dataset("mine")
    assert dataset.split("train")[0][-1] == get_tokenizer().special["[E1]"]
    assert dataset.label_names == ["a", "b", "c"]
    assert dataset.labels("train").tolist() == [0, 0, 1, 2]
    assert dataset.labels("test").tolist() == [1]
    write_mine("plain")
    with pytest.raises(SystemExit, match="have no labels"):
        Dataset("plain").labels("train")
