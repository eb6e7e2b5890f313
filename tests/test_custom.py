"""One's own text and tables, from the command to the token files."""
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT, examples_of, texts_of, write

from data import custom
from data.tokenfile import Dataset


def test_text_end_to_end(tmp_path, bin_dir, capsys):
    texts = [f"number {i}" for i in range(100)]
    path = write(tmp_path / "a.txt", "\n\n".join([*texts, "x", texts[3], texts[3]]))
    custom.main(["--name=mine", f"--source={path}", "--min_words=2"])
    val, train = texts_of("mine", "val"), texts_of("mine")
    assert len(val) == 5 and sorted(val + train) == sorted(texts)
    source = Dataset("mine").meta["source"]
    assert source["files"] == [str(path)] and source["seed"] == 0
    assert source["skipped"] == {"shorter than 2 words": 1, "duplicates": 2}
    assert "2 duplicates\n" in capsys.readouterr().out
    custom.main(["--name=mine", f"--source={path}", "--n_val=30", "--seed=1"])
    assert len(texts_of("mine", "val")) == 30
    path = write(tmp_path / "a.json", json.dumps([{"abstract": text} for text in texts]))
    custom.main(["--name=mine", f"--source={path}", "--text=abstract"])
    assert [texts_of("mine", "val"), texts_of("mine")] == [val, train]


def test_mistakes(tmp_path, bin_dir, capsys):
    path = write(tmp_path / "a.txt", "one\n\ntwo\n\nthree")
    table = write(tmp_path / "a.csv", "text,topic\nx,y\n")
    one = write(tmp_path / "one.txt", "one two three")
    for flags, message in [
        ([f"--source={one}"], "^1 of 1 documents validate, .*more documents$"),
        ([f"--source={path}", "--n_val=3"], "^3 of 3 documents validate, .*lower --n_val"),
        ([f"--source={path}", "--n_test=3"], "--n_test: only for a set with --label; leave it out"),
        ([f"--source={path}", "--fewer=keep"], "--fewer: only for a set with --label"),
        ([f"--source={path}", "--label=a", "--n_val=3"], "--n_val: only for a set without --label"),
        ([f"--source={path}", "--label=text"], "--label=text: is the column of the texts too"),
        ([f"--source={path}", "--label=a"], r"a.txt: unknown ending; can read \.csv, "),
        ([f"--source={table}", "--label="], "needs one column \"\"; there are 'text', 'topic'"),
    ]:
        with pytest.raises(SystemExit, match=message):
            custom.main(["--name=mine", *flags])
    for flags in (["--source"], [f"--source={path}", "--n_val=0"]):
        with pytest.raises(SystemExit):
            custom.main(["--name=mine", *flags])
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not bin_dir.exists()


@pytest.mark.parametrize("ending", [".csv", ".jsonl.gz"])
def test_labels_end_to_end(tmp_path, bin_dir, capsys, ending):
    rows = [{"id": i, "message": f"number {i},\nof \"{i}\"", "topic": ("b", "a", 7)[i % 3]}
            for i in range(90)]

    def table(rows):
        if "json" in ending:
            return "".join(json.dumps(row) + "\n" for row in rows)
        doubled = [row["message"].replace('"', '""') for row in rows]
        lines = [f'{row["id"]};"{text}";{row["topic"]}' for row, text in zip(rows, doubled)]
        # as a spreadsheet writes it
        return "\n".join(["id;Message ; TOPIC", *lines, ";;\n"]).replace("None", "NaN")
    path = write(tmp_path / f"a{ending}", table([*rows, rows[0] | {"topic": None}]))

    def main(*flags):
        flags = [f"--source={path}", "--label=topic", "--text=message", *flags]
        custom.main(["--name=mine", *flags])
        return examples_of("mine"), examples_of("mine", "test")
    train, test = main()
    assert Dataset("mine").label_names == ["7", "a", "b"]
    assert sorted(train + test) == sorted(
        (str(row["topic"]), " ".join(row["message"].split())) for row in rows)
    assert Counter(label for label, _ in test) == {"a": 3, "b": 3, "7": 3}
    assert "skipped: 1 without a label\n" in capsys.readouterr().out
    assert [len(part) for part in main("--n_train=20", "--n_test=5")] == [60, 15]
    other = tmp_path / f"b{ending}"
    write(other, table([row | {"message": f"other {row['id']}"} for row in rows[:7]]))
    assert [len(part) for part in main(f"--test_source={other}")] == [90, 7]
    write(other, table([rows[0] | {"message": "other", "topic": "new"}]))
    with pytest.raises(SystemExit, match='such as "new": 0 to train and 1 to test on'):
        main(f"--test_source={other}", "--n_train=40")
    with pytest.raises(SystemExit, match="needs one column \"kind\"; there are 'id', '[Mm]essage'"):
        main("--label=kind")


def test_cells(tmp_path, bin_dir):
    """Labels that look alike are one class; missing ones are skipped, however they are spelled."""
    labels = [["Caf\u00e9 bar", "Cafe\u0301  bar", "\ufeff Caf\u00e9\u200b\u00a0bar "],
              ["caf\u00e9 bar"], [0, 0.0, "0"], [0.5], [None, [], float("nan"), "NaN", " \t"]]
    rows = [{"text": f"number {i} {kind}", "label": spellings[i % len(spellings)]}
            for kind, spellings in enumerate(labels) for i in range(20)]
    rows += [{"text": " \t", "label": 0}, {"label": 0}, {"text": "x"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    custom.main(["--name=mine", f"--source={path}", "--label=label"])
    assert Dataset("mine").label_names == ["0", "0.5", "Caf\u00e9 bar", "caf\u00e9 bar"]
    assert len(examples_of("mine") + examples_of("mine", "test")) == 80
    skipped = {"without a label": 21, "without a text": 2}
    assert Dataset("mine").meta["source"]["skipped"] == skipped


@pytest.mark.parametrize("command", [["data/custom.py"], ["-m", "data.custom"]])
def test_both_ways_to_type_it_in_any_locale(tmp_path, command):
    """A label that has no ASCII form is written and read all the same."""
    rows = "".join(f"{'日本' if i % 2 else 'x'},text {i}\n" for i in range(20))
    path = write(tmp_path / "a.csv", "label,text\n" + rows)
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = [f"--name={tmp_path / 'mine'}", f"--source={path}", "--label=label"]
    run = subprocess.run([sys.executable, *command, *flags], cwd=ROOT,
                         env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Dataset(tmp_path / "mine").label_names == ["x", "日本"]
