"""Odd and damaged input of all kinds: it is read, or refused in one line, and nothing is left
half-written. The same inputs each time; FUZZ_EXAMPLES=2000 tries more of them.
"""
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import write
from hypothesis import given, settings
from hypothesis import strategies as st

import committee
import finetune
import pretrain
from data import wikipedia
from data.tokenfile import open_labels, open_split, read_meta, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer, normalise, open_tokenizer, parse_vocabulary

settings.register_profile("ours", derandomize=True, deadline=None, database=None,
                          max_examples=int(os.environ.get("FUZZ_EXAMPLES", 60)))
settings.load_profile("ours")

# Words that mean something to some reader, between any other characters.
ODD = ["", " ", "\n", "\r\n", "\r", '"', '""', ",", ";", "\t", "|", "\0", "\ufeff", "\u200b", "nan",
       "None", "NA", "null", "text", "label", "\u2028", "\x85", "\x1c", "é", "e\u0301", "かぎ", "कु",
       "한국", "שָׁלוֹם", "بِسْمِ", "ไทย", "😀", "[MASK]", "[E1]", "\\", "{", "[", "1", "1e999"]
TEXT = st.lists(st.sampled_from(ODD) | st.text(max_size=9), max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=4),
    max_leaves=12)


@contextmanager
def new_folder():
    """A folder (Path) that is empty again, or holds the dataset "mine" alone, at the end."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bin").mkdir()
        yield Path(folder)
        names = [path.name for path in (Path(folder) / "bin").iterdir()]
        assert names in ([], ["mine"])


def succeeds(function, *arguments):
    """Call a function. -> whether it succeeded; if not, it ended in one line."""
    try:
        function(*arguments)
    except SystemExit as error:
        if error.code != 2:  # argparse's, which has printed its line
            assert isinstance(error.code, str) and len(error.code.splitlines()) == 1, error.code
        return False
    return True


@st.composite
def damaged(draw, content):
    """content (bytes), in up to three places of which something is cut out or put in."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 1, 9, len(content)]))
        more = draw(st.binary(max_size=9) | TEXT.map(lambda text: text.encode("utf-8", "replace")))
        content = content[:start] + more + content[start + length:]
    return content


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
WORDS = "".join(LINES)


@given(damaged(WORDS.encode()) | st.permutations(LINES[270:]).map(
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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset with all the files that there can be -> name -> content (bytes)."""
    folder = tmp_path_factory.mktemp("whole") / "mine"
    items = [("train" if i % 5 else "test", f"number {i}", i % 2) for i in range(50)]
    write_dataset(str(folder), items, get_tokenizer("own", WORDS), {}, ["é", "b"])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.data())
def test_datasets(dataset, data):
    name = data.draw(st.sampled_from(sorted(dataset)))
    content = data.draw(damaged(dataset[name]))
    with new_folder() as folder:
        path = folder / "bin" / "mine"
        path.mkdir()
        for file in dataset:
            write(path / file, content if file == name else dataset[file])

        def read():
            return (read_meta(path), open_tokenizer(path)[0].fingerprint, *[
                [array.tolist() for array in (*open_split(path, split), open_labels(path, split))]
                for split in ("train", "test")])
        if succeeds(read):
            assert content == dataset[name] or json.loads(content) == json.loads(dataset[name])


# Values of the scripts' flags, sensible and senseless, which keep a run small.
VALUES = ["0", "1", "2", "3", "5", "16", "-1", "0.5", "0.99", "1e-9", "1e400", "nan", "inf", "-inf",
          "99999999999999999999", "", "x", "None", "auto", "é", "scratch", "float32", "cls"]
SMALL = ["--n_embd=16", "--n_head=2", "--block_size=16", "--batch_size=16", "--device=cpu"]
NEVER = {"help", "compile", "device", "dtype", "runs", "eval_interval", "n_members",
         "out_dir"}


def flags_of(script):
    """-> a strategy of command lines of a script (list of str): up to three flags, any values."""
    actions = [action for action in script.get_parser()._actions if action.dest not in NEVER]
    names = [action.option_strings[0] for action in actions if action.nargs != 0]
    switches = [action.option_strings[0] for action in actions if action.nargs == 0]
    flag = (st.tuples(st.sampled_from(names), st.sampled_from(VALUES)).map("=".join)
            | st.sampled_from(switches or ["--device=cpu"]))
    return st.lists(flag, max_size=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a dataset, a pre-trained run and a classifier -> the folder (Path)."""
    folder = tmp_path_factory.mktemp("runs")
    items = [("train" if i % 5 else "val", f"the number is {i}") for i in range(50)]
    write_dataset(str(folder / "texts"), items, get_tokenizer(), {})
    items = [("train" if i % 5 else "test", f"number {i}", i % 2) for i in range(50)]
    write_dataset(str(folder / "task"), items, get_tokenizer(), {}, ["even", "odd"])
    pretrain.main([f"--dataset={folder}/texts", f"--out_dir={folder}/run", *SMALL])
    for seed in (0, 1):
        finetune.main([f"--dataset={folder}/task", f"--init_from={folder}/run", "--epochs=1",
                       f"--seed={seed}", f"--out_dir={folder}/member-{seed}", "--device=cpu"])
    return folder


def run_once(function, tokens):
    """In place of committee.seconds_of, which runs a function for seconds."""
    function(tokens)
    return 1.0


@pytest.mark.parametrize("script", ["pretrain", "finetune", "committee"])
@given(data=st.data())
def test_flags(runs, script, data):
    module = {"pretrain": pretrain, "finetune": finetune, "committee": committee}[script]
    flags = data.draw(flags_of(module))
    with new_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(committee, "plot", lambda *args: None)  # it takes a second
        patch.setattr(committee, "seconds_of", run_once)
        before = {"pretrain": [f"--dataset={runs}/texts", *SMALL, "--epochs=0.5"],
                  "finetune": [f"--dataset={runs}/task", f"--init_from={runs}/run", "--epochs=1"],
                  "committee": [f"{runs}/member-*", "--no-latency"]}[script]
        succeeds(module.main, [*before, f"--out_dir={folder}/out", "--device=cpu", *flags])
        assert not list(folder.glob("out/*.tmp"))


@given(data=st.data())
def test_runs(runs, data):
    """Damage to any file of a run is said, or lies where nothing is read."""
    run, file = data.draw(st.sampled_from(
        [("run", "ckpt.pt"), ("member-0", "ckpt.pt"), ("member-0", "test.npz")]))
    whole = (runs / run / file).read_bytes()
    content = data.draw(damaged(whole))
    with new_folder() as folder:
        write(folder / file, content)
        read = committee.load_outputs if file == "test.npz" else pretrain.load_checkpoint
        arguments = ([str(folder)] if file == "test.npz" else folder,)
        if succeeds(read, *arguments):
            expected = read([str(runs / run)] if file == "test.npz" else runs / run)
            assert repr(read(*arguments)) == repr(expected)
