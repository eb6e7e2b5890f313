"""Odd and damaged raw files: they are read, or refused in one line."""
import csv
import gzip
import io
import json

from conftest import texts_of, write
from fuzzing import JSON, TEXT, damaged, new_folder, succeeds
from hypothesis import given
from hypothesis import strategies as st
from test_agnews import table
from test_dbpedia import archive

from data import custom, dbpedia, fewrel
from data.rows import cell_text, read_rows
from data.tokenfile import Dataset
from data.tokenizer import normalise


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
