"""Reading text files: what is well-formed is read, what is not is skipped and reported or is one clear line."""
import gzip
import hashlib
import json
import tracemalloc
from collections import Counter

import pytest

from data import custom
from data.files import checksum, find_files, read_documents, report_skipped, split_documents, survey
from data.tokenfile import open_labels, open_split, read_meta
from data.tokenizer import get_tokenizer

TEXTS = ["The first document.", "Ein zweites — mit Ümlauten.", "A third."]


def write(path, content):
    with gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(texts):
    return "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))


def read(*paths, min_words=0):
    skipped = Counter()
    return list(read_documents(paths, skipped, min_words)), skipped


def test_find_files(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    a, b, c, d = (tmp_path / name for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "[x].jsonl"))
    for path in (a, b, c, d):
        path.write_text("")
    assert find_files([f"{tmp_path}/?.jsonl"]) == [b, a]
    assert find_files([str(a), f"{tmp_path}/*.jsonl", str(a)]) == [d, b, a]  # each once, sorted
    assert find_files([str(d)]) == [d]  # a name that looks like a glob
    assert find_files([f"{tmp_path}/**"]) == sorted([a, b, c, d])  # without the folders
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_files(["~/a.jsonl"]) == [b]
    for pattern in (f"{tmp_path}/*.csv", f"{tmp_path}/z.jsonl", ""):
        with pytest.raises(SystemExit, match=r"no file matches .* \(looked from"):
            find_files([str(a), pattern])
    with pytest.raises(SystemExit, match=r"is a folder.*deep/\*\.jsonl"):
        find_files([f"{tmp_path}/deep/"])


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_well_formed_files(tmp_path, ending, bom, newline):
    lines = jsonl(TEXTS).replace("\n", "\n\n").rstrip("\n")  # blank lines, and none at the end
    path = write(tmp_path / f"a.jsonl{ending}", bom + lines.replace("\n", newline).encode())
    assert read(path) == (TEXTS, {})
    text = f"\n\n{TEXTS[0]}\n \t\n\n{TEXTS[1]}\nsecond line\n\n{TEXTS[2]}"
    path = write(tmp_path / f"a.jsonl.txt{ending}", bom + text.replace("\n", newline).encode())
    assert read(path) == ([TEXTS[0], f"{TEXTS[1]}\nsecond line", TEXTS[2]], {})


@pytest.mark.parametrize("line, reason", [
    (b'{"text": "broken', "not JSON"),
    (b"plain text", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"title": "a"}', 'without "text"'),
    (b'["text"]', 'without "text"'),
    (b'{"text": null}', 'whose "text" is not a string'),
    (b'{"text": 5}', 'whose "text" is not a string'),
    (b'{"text": ""}', "empty text"),
    (b'{"text": " \\n "}', "empty text"),
    (b'{"text": "one two"}', "shorter than 3 words"),
    ('{"text": "drei Wörter hier"}'.encode("latin-1"), "not UTF-8"),
    (b'{"text": "a\0 b c"}', "not UTF-8"),
])
def test_bad_lines_are_skipped_and_reported(tmp_path, capsys, line, reason):
    good = jsonl(["one two three", "four five six"]).encode()
    path = write(tmp_path / "a.jsonl", good + line + b"\n" + good + line)
    texts, skipped = read(path, min_words=3)
    assert texts == ["one two three", "four five six"] * 2
    assert report_skipped(skipped) == {reason: 2}
    assert capsys.readouterr().out == f"skipped: 2 {reason} (first: {path}:3)\n"


def test_nothing_skipped_nothing_reported(capsys):
    assert report_skipped(Counter()) == {} and capsys.readouterr().out == ""


def test_other_encodings(tmp_path):
    text = "plain\n\nWörter\n\nmehr davon"
    path = write(tmp_path / "a.txt", text.encode("latin-1"))
    texts, skipped = read(path)
    assert texts == ["plain", "mehr davon"] and skipped == {("not UTF-8", f"{path}:3"): 1}
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        for name, content in (("b.txt", text), ("b.jsonl", jsonl(TEXTS))):
            path = write(tmp_path / name, content.encode(encoding))
            with pytest.raises(SystemExit, match=f"nothing to read in {path}: .*not UTF-8.* must be UTF-8"):
                read(path)


def test_damaged_gzip(tmp_path):
    whole = write(tmp_path / "whole.jsonl.gz", jsonl(TEXTS * 100)).read_bytes()
    middle = len(whole) // 2
    for content in (whole[:-20], whole[:middle], whole[:middle] + bytes(9) + whole[middle + 9:], b"not gzip at all"):
        path = tmp_path / "bad.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(SystemExit, match="bad.jsonl.gz: damaged or incomplete gzip file"):
            read(path)


def test_files_that_cannot_be_read(tmp_path):
    good = write(tmp_path / "good.txt", "text")
    with pytest.raises(SystemExit, match=r"a\.csv: unknown ending; can read \.jsonl, "):
        next(read_documents([good, tmp_path / "a.csv"], Counter()))  # before anything is read
    with pytest.raises(SystemExit, match=r"gone\.txt: cannot be read \(No such file"):
        read(tmp_path / "gone.txt")


def test_empty_files(tmp_path):
    empty = [write(tmp_path / "1.txt", " \n\n"), write(tmp_path / "2.jsonl", ""), tmp_path / "3.txt.gz"]
    empty[2].write_bytes(b"")
    texts, skipped = read(*empty, write(tmp_path / "4.txt", "text"))
    assert texts == ["text"] and skipped == {("file without text", str(empty[0])): 3}
    with pytest.raises(SystemExit, match=r"nothing to read in .*1\.txt and 2 more: 3 file without text"):
        read(*empty)
    with pytest.raises(SystemExit, match="2 shorter than 9 words"):
        read(write(tmp_path / "short.txt", "a\n\nb"), min_words=9)


def test_reading_needs_little_memory(tmp_path):
    path = write(tmp_path / "big.jsonl.gz", jsonl(["word " * 400]) * 10_000)  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in read_documents([path], Counter())) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_checksum(tmp_path):
    paths = [write(tmp_path / "a.txt", b"one"), write(tmp_path / "b.txt", b"two" * 1_000_000)]
    assert checksum(paths) == hashlib.sha256(b"one" + b"two" * 1_000_000).hexdigest()


def test_split_is_nested_and_shares_the_validation_set(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([f"number {i}" for i in range(500)] + [""]))
    def split(n_train, seed=0):
        items = list(split_documents([path], 500, 50, n_train, seed))
        return [{text for split, text in items if split == name} for name in ("val", "train")]
    val, small = split(100)
    same, large = split(300)
    assert (len(val), len(small), len(large)) == (50, 100, 300)
    assert val == same and small < large and not val & large
    assert split(100) == [val, small] and split(100, seed=1)[0] != val
    assert set.union(*split(450)) == {f"number {i}" for i in range(500)}
    assert max(int(text.split()[1]) for text in val) > 400 > 100 > min(int(text.split()[1]) for text in val)


def test_survey(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", jsonl(["one two three", "one", "four five"]))
    paths, found = survey([str(path)], min_words=2)
    assert paths == [path] and found == {"files": [str(path)], "sha256": checksum([path]), "n_docs": 2, "min_words": 2,
                                         "skipped": {"shorter than 2 words": 1}}
    assert capsys.readouterr().out == f"skipped: 1 shorter than 2 words (first: {path}:2)\n"


def prepared(bin_dir, name, split):
    tokens, offsets = open_split(name, split, bin_dir)
    return [get_tokenizer().decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:])]


def test_custom_text_end_to_end(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n".join(f"number {i}" for i in range(100)) + "\n\nx")
    custom.main(["--name=mine", f"--source={path}", "--min_words=2"], tmp_path / "bin")
    val, train = (prepared(tmp_path / "bin", "mine", split) for split in ("val", "train"))
    assert len(val) == 5 and sorted(val + train) == sorted(f"number {i}" for i in range(100))
    source = read_meta("mine", tmp_path / "bin")["source"]
    assert source["files"] == [str(path)] and source["seed"] == 0 and source["skipped"] == {"shorter than 2 words": 1}
    custom.main(["--name=mine", f"--source={path}", "--n_val=30", "--seed=1"], tmp_path / "bin")
    assert len(prepared(tmp_path / "bin", "mine", "val")) == 30


def test_custom_mistakes(tmp_path, capsys):
    path, one = write(tmp_path / "a.txt", "one\n\ntwo\n\nthree"), write(tmp_path / "one.txt", "one\ntwo\nthree")
    for flags, message in [
        ([f"--source={one}"], "one.txt holds one document.*blank lines"),
        ([f"--source={path}", "--n_val=3"], "--n_val=3: must be between 1 and 2, as there are 3 documents"),
        ([f"--source={path}", "--n_val=0"], "--n_val=0: must be between"),
        ([f"--source={path}", "--min_words=-1"], "--min_words=-1: must be"),
        ([f"--source={path}", "--seed=-1"], "--seed=-1: must be"),
        ([f"--source={path}", "--tokenizer=absent"], "--tokenizer=absent: no such"),
        ([f"--source={tmp_path}"], "is a folder"),
        ([f"--source={path}", "--n_test=3"], "--n_test: only for a set with --label"),
        ([f"--source={path}", "--label=a", "--n_val=3"], "--n_val: only for a set without --label"),
        ([f"--source={path}", "--label=a"], "a.txt: unknown ending; with --label can read .csv"),
    ]:
        with pytest.raises(SystemExit, match=message):
            custom.main(["--name=mine", *flags], tmp_path / "bin")
    with pytest.raises(SystemExit):
        custom.main(["--name=mine", "--source"], tmp_path / "bin")
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "bin").exists()


def labelled_texts(bin_dir, split):
    names = read_meta("mine", bin_dir)["labels"]
    return [(names[label], text) for label, text in zip(open_labels("mine", split, bin_dir),
                                                        prepared(bin_dir, "mine", split))]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".csv.gz", ".jsonl.gz"])
def test_custom_labels_end_to_end(tmp_path, capsys, ending):
    rows = [{"id": i, "message": f"number {i},\nof \"{i}\"", "topic": ("b", "a", 7)[i % 3]} for i in range(90)]
    def table(rows):
        if "json" in ending:
            return "".join(json.dumps(row) + "\n" for row in rows)
        return "id,message,topic\n" + "".join(
            f'{row["id"]},"{row["message"].replace(chr(34), chr(34) * 2)}",{row["topic"] or ""}\n' for row in rows)
    path = write(tmp_path / f"a{ending}", table([*rows, rows[0] | {"topic": None}]))
    def main(*flags):
        custom.main(["--name=mine", f"--source={path}", "--label=topic", "--text=message", *flags], tmp_path / "bin")
        return [labelled_texts(tmp_path / "bin", split) for split in ("train", "test")]
    train, test = main()
    assert read_meta("mine", tmp_path / "bin")["labels"] == ["7", "a", "b"]
    assert sorted(train + test) == sorted((str(row["topic"]), " ".join(row["message"].split())) for row in rows)
    assert Counter(label for label, _ in test) == {"a": 3, "b": 3, "7": 3}
    assert f'skipped: 1 without a "topic" (first: {path}:{182 if "csv" in ending else 91})\n' in capsys.readouterr().out
    assert [len(part) for part in main("--n_train=20", "--n_test=5")] == [60, 15]
    other = write(tmp_path / f"b{ending}", table([row | {"message": f"other {row['id']}"} for row in rows[:7]]))
    assert [len(part) for part in main(f"--test_source={other}")] == [90, 7]
    write(other, table([rows[0] | {"message": "other", "topic": "new"}, rows[1] | {"message": "more"}]))
    with pytest.raises(SystemExit, match='3 of 4 labels have too few examples, such as "7" with 30 . 0 instead of 30'):
        main(f"--test_source={other}")
    with pytest.raises(SystemExit, match='such as "new" with 0 . 1 instead of 20 . 1'):
        main(f"--test_source={other}", "--n_train=20")
    with pytest.raises(SystemExit, match='91 of 91 rows are broken: .*without a "kind".*columns "kind" and "message"'):
        main("--label=kind")


@pytest.mark.parametrize("line, reason", [
    ("{", "not JSON"), ("[1]", "not an object"), ('{"label": "a"}', 'without a "text"'),
    ('{"text": "a"}', 'without a "label"'), ('{"text": "a", "label": []}', 'without a "label"'),
    ('{"text": "a\\u0301", "label": " "}', 'without a "label"'), ('{"text": "\\u0301", "label": 1}', "empty text"),
])
def test_custom_labels_broken_lines(tmp_path, capsys, line, reason):
    good = "".join(json.dumps({"text": f"number {i}", "label": i % 2}) + "\n" for i in range(20))
    path = write(tmp_path / "a.jsonl", good + line)
    custom.main(["--name=mine", f"--source={path}", "--label=label"], tmp_path / "bin")
    assert f"skipped: 1 {reason} (first: {path}:21)\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"1 of 1 rows are broken: 1 {reason}"):
        custom.main(["--name=mine", f"--source={write(path, line)}", "--label=label"], tmp_path / "bin")
