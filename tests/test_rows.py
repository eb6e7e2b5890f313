"""Reading files row by row: what is well-formed is read, what is not is skipped and counted."""
import tracemalloc

import pytest
from conftest import jsonl, write

from data.rows import Skipped, find_files, is_missing, read_rows

TEXTS = ["The first document.", "Ein zweites — mit Ümlauten.", "A third."]
FORMS = [("", b"", "\n"), (".gz", b"", "\n"), ("", b"\xef\xbb\xbf", "\r\n")]


def read(path, **options):
    """-> rows, what was skipped as str"""
    skipped = Skipped()
    rows = [row for _, row in read_rows(path, skipped, **options)]
    return rows, str(skipped).replace(str(path), "FILE")


def test_find_files(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    names = ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "[x].jsonl")
    a, b, c, d = (write(tmp_path / name, "") for name in names)
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


@pytest.mark.parametrize("gz, bom, newline", FORMS)
def test_well_formed_files(tmp_path, gz, bom, newline):
    def path(name, content):
        return write(tmp_path / (name + gz), bom + content.replace("\n", newline).encode())
    lines = jsonl(TEXTS).replace("\n", "\n\n").rstrip("\n")  # blank lines, and none at the end
    rows, skipped = read(path("a.jsonl", lines))
    assert [row["text"] for row in rows] == TEXTS and skipped == ""
    text = f"\n\n{TEXTS[0]}\n \t\n\n{TEXTS[1]}\nsecond line\n\n{TEXTS[2]}"
    rows, skipped = read(path("a.jsonl.txt", text))
    assert [row["text"] for row in rows] == [TEXTS[0], f"{TEXTS[1]}\nsecond line", TEXTS[2]]
    rows, skipped = read(path("a.csv", 'id,text\n1,"one, ""two"""\n\n,\n2,Ü\n'))
    assert rows == [{"id": "1", "text": 'one, "two"'}, {"id": "2", "text": "Ü"}] and skipped == ""


@pytest.mark.parametrize("separator", ",;\t|")
@pytest.mark.parametrize("ending", [".csv", ".TSV"])
def test_separators_and_columns(tmp_path, separator, ending):
    content = "\ufeff\n text ,Label\nx y,1\n,\n".replace(",", separator)
    path = write(tmp_path / f"a{ending}", content)
    assert read(path, wanted=["text", "label"]) == ([{"text": "x y", "label": "1"}], "")
    assert read(path) == ([{"text": "x y", "Label": "1"}], "")
    with pytest.raises(SystemExit, match=r": no column \"topic\"; there are 'text', 'Label'"):
        read(path, wanted=["text", "topic"])
    with pytest.raises(SystemExit, match=r": two columns \"text\"; there are 'text', 'text'"):
        read(write(path, f"text{separator}text\n"), wanted=["text"])


def test_columns_of_json(tmp_path):
    path = write(tmp_path / "a.JSONL", '{"id": 1, "Text ": "a"}\n{"body": "b"}\n')
    assert read(path, wanted=["text"]) == (
        [{"id": 1, "text": "a"}], "1 no column \"text\"; there are 'body' (first: FILE:2)")


def test_fields_of_any_length(tmp_path):
    long = "word " * 100_000
    for content in (f"a,b\n1,{long}\n", f'a,b\n1,"{long}"\n'):
        assert read(write(tmp_path / "a.csv", content)) == ([{"a": "1", "b": long}], "")


@pytest.mark.parametrize("line, reason", [
    (b'{"text": "broken', "not a JSON object"), (b"[" * 100_000, "not a JSON object"),
    (b'["text"]', "not a JSON object"), (b'{"text": "a\0 b c"}', "not UTF-8"),
    ('{"text": "drei Wörter hier"}'.encode("latin-1"), "not UTF-8")])
def test_bad_lines_of_json(tmp_path, line, reason):
    good = jsonl(["one two three", "four five six"]).encode()
    rows, skipped = read(write(tmp_path / "a.jsonl", good + line + b"\n" + good + line))
    assert [row["text"] for row in rows] == ["one two three", "four five six"] * 2
    assert skipped == f"2 {reason} (first: FILE:3)"


@pytest.mark.parametrize("line, n, reason", [
    (b"only one", 1, "not of 2 columns"), (b"1,2,3", 1, "not of 2 columns"),
    ("1,Wörter".encode("latin-1"), 1, "not UTF-8"), (b"1,te\0xt", 1, "not UTF-8"),
    (b'1,"te"xt', 1, "not CSV (',' expected after '\"')"),
    (b'1,"text', 2, "not CSV (unexpected end of data)")])  # with the line behind it
def test_bad_rows_of_csv(tmp_path, line, n, reason):
    rows, skipped = read(write(tmp_path / "a.csv", b"a,b\n1,2\n\n" + line + b"\n3,4\n"))
    assert rows == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}][:3 - n]
    assert skipped == f"{n} {reason} (first: FILE:4)"


@pytest.mark.parametrize("name, content, rows", [
    ("a.csv", "text\nHello, you\nplain\n", [{"text": "Hello, you"}, {"text": "plain"}]),
    ("a.csv", '"text"\n"Hello, you"\n', [{"text": "Hello, you"}]),
    ("a.csv", 'text, label\n"a, b", "x"\n', [{"text": "a, b", "label": "x"}]),
    ("a.txt", "one\n\u00a0\ntwo", [{"text": "one"}, {"text": "two"}]),
    (".csv", "a,b\n1,2\n", [{"a": "1", "b": "2"}])])
def test_what_people_take_for_granted(tmp_path, name, content, rows):
    assert read(write(tmp_path / name, content)) == (rows, "")


def test_quotes_that_belong_to_different_rows(tmp_path):
    content = 'text\tlabel\nso\t1\n"I like it.\t1\na row between\t0\nHe said so."\t0\nend\t1\n'
    rows, skipped = read(write(tmp_path / "a.tsv", content))
    assert [row["text"] for row in rows] == ["so", "end"]
    assert skipped == "3 with a quote that another row closes (first: FILE:3)"
    path = write(tmp_path / "a.csv", 'id,text\n0,one\n1,"two\n' + "2,three\n" * 200)
    with pytest.raises(SystemExit, match="a.csv: a quote in line 3 is never closed"):
        read(path)


def test_other_encodings(tmp_path):
    rows, skipped = read(write(tmp_path / "a.txt", "plain\n\nWörter\n\nmehr".encode("latin-1")))
    assert rows == [{"text": "plain"}, {"text": "mehr"}]
    assert skipped == "1 not UTF-8 (first: FILE:3)"
    contents = {"b.txt": "one\n\ntwo", "b.jsonl": jsonl(TEXTS), "b.csv": "a,b\n1,2\n3,4\n"}
    for name, content in contents.items():
        for encoding in ("utf-16-le", "utf-16-be"):
            path = write(tmp_path / name, content.encode(encoding))
            if name == "b.csv":
                with pytest.raises(SystemExit, match="b.csv: its first line: not UTF-8"):
                    read(path)
                continue
            rows, skipped = read(path)
            assert rows == [] and "not UTF-8 (first: FILE:1)" in skipped
        with pytest.raises(SystemExit, match=f"{name}: UTF-16 .*: save it as UTF-8, or iconv"):
            read(write(tmp_path / name, content.encode("utf-16")))  # with a byte-order mark


def test_files_that_cannot_be_read(tmp_path):
    whole = write(tmp_path / "whole.jsonl.gz", jsonl(TEXTS * 100)).read_bytes()
    middle = len(whole) // 2
    for content in (whole[:-20], whole[:middle], whole[:middle] + bytes(9) + whole[middle + 9:],
                    b"not gzip at all"):
        (tmp_path / "bad.jsonl.gz").write_bytes(content)
        with pytest.raises(SystemExit, match="bad.jsonl.gz: damaged or incomplete"):
            read(tmp_path / "bad.jsonl.gz")
    with pytest.raises(SystemExit, match=r"gone\.txt: cannot be read \(No such file"):
        read(tmp_path / "gone.txt")


def test_reading_needs_little_memory(tmp_path):
    texts = ["word " * 400] * 5000  # 10 MB
    for name, content in [("a.jsonl.gz", jsonl(texts)), ("a.csv", "text\n" + "\n".join(texts)),
                          ("a.txt", "\n\n".join(texts))]:
        path = write(tmp_path / name, content)
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path, Skipped())) == 5000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6


@pytest.mark.parametrize("text", ["", " \t", "\u3000\ufeff \u200b", "NaN", " nan ", "NULL", "N/A",
                                  r"\N"])
def test_missing(text):
    assert is_missing(text) and not is_missing(f"x{text}") and not is_missing("none of them")


def test_what_is_skipped_is_reported(capsys):
    skipped = Skipped()
    assert skipped.report() == {} and capsys.readouterr().out == ""
    for place in ("a:3", "a:7"):
        skipped.add("not JSON", place)
    skipped.add("empty text", "b:1", 1000)
    assert skipped.report() == {"not JSON": 2, "empty text": 1000}
    assert capsys.readouterr().out == (
        "skipped: 2 not JSON (first: a:3), 1,000 empty text (first: b:1)\n")
    for i in range(1000):
        skipped.add(f"reason {i}", "c:1")
    assert str(skipped).endswith("), 1 reason 3 (first: c:1), ...")
