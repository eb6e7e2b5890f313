"""Odd and damaged files, any flags: read, or refused in one line, and nothing is left half-written.
The inputs are the same each time; FUZZ_EXAMPLES=2000 tries more of them."""
import csv
import gzip
import io
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import texts_of, write
from test_agnews import table
from test_dbpedia import archive

import committee
import finetune
import pretrain
from data import custom, dbpedia, fewrel, wikipedia
from data.rows import cell_text, read_rows
from data.tokenfile import Dataset
from data.tokenizer import SHIPPED, get_tokenizer, normalise, parse_vocabulary

pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

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


# Values of the scripts' flags, sensible and senseless, which keep a run small.
VALUES = ["0", "1", "2", "3", "5", "16", "-1", "0.5", "0.99", "1e-9", "1e400", "nan", "inf", "-inf",
          "99999999999999999999", "", "x", "None", "auto", "é", "scratch", "float32", "cls"]
SMALL = ["--n_layer=1", "--n_embd=16", "--n_head=2", "--block_size=16", "--batch_size=16",
         "--device=cpu"]
NEVER = {"help", "compile", "device", "dtype", "runs", "eval_interval", "n_members", "out_dir"}


def flags_of(script):
    """-> a strategy of command lines of a script (list of str): up to three flags, any values."""
    actions = [action for action in script.get_parser()._actions if action.dest not in NEVER]
    names = [action.option_strings[0] for action in actions if action.nargs != 0]
    switches = [action.option_strings[0] for action in actions if action.nargs == 0]
    flag = (st.tuples(st.sampled_from(names), st.sampled_from(VALUES)).map("=".join)
            | st.sampled_from(switches or ["--device=cpu"]))
    return st.lists(flag, max_size=3)


@pytest.mark.parametrize("script", ["pretrain", "finetune", "committee"])
@given(data=st.data())
def test_flags(runs, weather, script, data):
    module = {"pretrain": pretrain, "finetune": finetune, "committee": committee}[script]
    flags = data.draw(flags_of(module))
    with new_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(committee, "seconds_of", lambda function, tokens: len(function(tokens)))
        before = {"pretrain": [f"--dataset={weather}/plain", *SMALL, "--epochs=0.5"],
                  "finetune": [f"--dataset={weather}/labelled", f"--init_from={runs}/run",
                               "--epochs=1"],
                  "committee": [f"{runs}/member-*", "--no-latency"]}[script]
        succeeds(module.main, [*before, f"--out_dir={folder}/out", "--device=cpu", *flags])
        assert not list(folder.glob("out/*.tmp"))


@given(data=st.data())
def test_outputs(runs, data):
    """Damage to the test.npz of a run is said, or lies where nothing is read."""
    member = runs / "member-0"
    content = data.draw(damaged((member / "test.npz").read_bytes()))
    with new_folder() as folder:
        write(folder / "test.npz", content)
        if succeeds(committee.load_outputs, [str(folder)]):
            read, expected = (committee.load_outputs([str(run)]) for run in (folder, member))
            assert repr(read) == repr(expected)


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


@given(damaged("".join(LINES).encode()) | st.permutations(LINES[270:]).map(
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


def as_csv(rows, separator=","):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerows([["text", "label"], *rows])
    return file.getvalue()


def as_json(rows, ending):
    rows = [{"text": text, "label": label} for text, label in rows]
    return json.dumps(rows) if ending == ".json" else "\n".join([*map(json.dumps, rows), ""])


@st.composite
def files(draw):
    """-> ending, content (bytes) of a table or text, in any encoding, maybe damaged."""
    ending = draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".txt", ".CSV"]))
    rows = [(f"number {i}", "ab"[i % 2]) for i in range(draw(st.integers(0, 30)))]
    rows += draw(st.lists(st.tuples(TEXT, TEXT), max_size=5))
    if "json" in ending:
        content = as_json(rows, ending)
        content += "".join(json.dumps(row) + "\n" for row in draw(st.lists(JSON, max_size=2)))
    elif ending == ".txt":
        content = draw(st.sampled_from(["\n\n", "\n"])).join(text for text, _ in rows)
    else:
        content = as_csv(rows, draw(st.sampled_from(",;\t|")))
    encoding = draw(st.sampled_from(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"]))
    content = draw(damaged(content.encode(encoding, "replace")))
    if draw(st.booleans()):
        return ending + ".gz", draw(st.just(gzip.compress(content, mtime=0)) | damaged(
            gzip.compress(content, mtime=0)))
    return ending, content


@given(files(), st.booleans())
def test_own_files(file, with_labels):
    ending, content = file
    with new_folder() as folder:
        path, name = folder / f"a{ending}", str(folder / "bin" / "mine")
        path.write_bytes(content)
        flags = [f"--source={path}", f"--name={name}", *["--label=label"] * with_labels]
        if succeeds(custom.main, flags):
            texts = {normalise(cell_text(row.get("text")) or "")
                     for _, row in read_rows(path, wanted=["text"])}
            dataset = Dataset(name)
            train, other = (set(texts_of(name, split)) for split in dataset.meta["splits"])
            assert texts >= train | other
            # Documents for pre-training are compared with capitals, which the vocabulary lacks.
            assert not (with_labels and train & other)
            assert all(map(cell_text, dataset.meta.get("labels", [])))


@given(st.lists(st.tuples(TEXT, TEXT)), st.sampled_from([".csv", ".jsonl", ".json"]),
       st.sampled_from(",;\t|"))
def test_tables_that_are_whole(rows, ending, separator):
    """What a program has written is read as it was, except blank rows and spaces around cells."""
    rows = [row for row in rows if "".join(row).isprintable() and "".join(row).strip()]
    with new_folder() as folder:
        content = as_csv(rows, separator) if ending == ".csv" else as_json(rows, ending)
        path = write(folder / f"a{ending}", content)
        read = [row for _, row in read_rows(path, wanted=["label", "text"])]
        assert [(row["text"].strip(), row["label"].strip()) for row in read] == [
            (text.strip(), label.strip()) for text, label in rows]


SENTENCE = {"tokens": ["Old", "name", "is", "here"], "h": ["", "Q1", [[0, 1]]],
            "t": ["", "Q2", [[3]]]}


@given(st.data())
def test_fewrel(data):
    rows = [SENTENCE | {"tokens": [f"old{i}", "name", "is", "here"]} for i in range(40)]
    for _ in range(data.draw(st.integers(0, 2))):
        row = rows[data.draw(st.integers(0, 39))]
        row[data.draw(st.sampled_from(["tokens", "h", "t"]))] = data.draw(JSON)
    content = {"P1": rows[:20], "P2": rows[20:]} | data.draw(st.just({}) | st.dictionaries(
        TEXT, JSON, max_size=2))
    content = data.draw(damaged(json.dumps(content).encode()))
    names = data.draw(st.just(b"{}") | JSON.map(json.dumps).map(str.encode) | damaged(
        b'{"P1": ["capital", ""], "P2": ["same", ""]}'))
    with new_folder() as folder:
        path = write(folder / "train_wiki.json", content)
        write(folder / "pid2name.json", names)
        succeeds(fewrel.main, [f"--source={path}", f"--name={folder / 'bin' / 'mine'}", "--markers",
                               "--n_train=5", "--n_test=2", "--fewer=keep"])


@given(st.data())
def test_dbpedia(data):
    members = {f"dbpedia_csv/{split}.csv": table(42, 14, split).encode()
               for split in ("train", "test")}
    with new_folder() as folder:
        path = archive(folder / "a.tgz", {
            name: data.draw(st.just(rows) | damaged(rows)) for name, rows in members.items()})
        whole = path.read_bytes()[10:]  # without the header, which holds the time
        path.write_bytes(path.read_bytes()[:10] + data.draw(st.just(whole) | damaged(whole)))
        succeeds(dbpedia.main, [f"--source={path}", f"--name={folder / 'bin' / 'mine'}",
                                "--n_train=2", "--n_test=1", "--fewer=keep"])
