"""Reading files row by row: well-formed ones are read, a row that cannot be read ends it."""
import gzip
import json
import tracemalloc

import pytest
from conftest import jsonl, write

from data import rows
from data.rows import cell_text, find_files, read_rows

TEXTS = ["The first document.", "Ein zweites — mit Ümlauten.", "A third."]


def read(path, **options):
    return [row for _, row in read_rows(path, **options)]


def test_find_files(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    names = ("[x].jsonl", "a.jsonl", "b.jsonl", "deep/er/c.jsonl")
    files = x, a, b, _ = [write(tmp_path / name, "") for name in names]
    assert find_files([str(b), f"{tmp_path}/?.jsonl", str(b)]) == [a, b]  # each once, sorted
    assert find_files([str(x)]) == [x]  # a name that looks like a glob
    assert find_files([f"{tmp_path}/**"]) == files  # without the folders
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_files(["~/a.jsonl"]) == [a]
    for pattern in (f"{tmp_path}/*.csv", f"{tmp_path}/z.jsonl", f"{tmp_path}/deep/", ""):
        with pytest.raises(SystemExit, match=r"no file matches .* \(looked from .*FOLDER/\*"):
            find_files([str(a), pattern])
    write(tmp_path / ".DS_Store", "a system's own file"), write(tmp_path / "deep" / "._a.jsonl", "")
    assert find_files([f"{tmp_path}/**"], [".jsonl"]) == files
    write(tmp_path / "deep" / "desktop.ini", "")
    with pytest.raises(SystemExit, match=r"\.ini: unknown ending; can read \.jsonl, also"):
        find_files([f"{tmp_path}/**"], [".jsonl"])


@pytest.mark.parametrize("gz, bom, newline", [
    ("", "", "\n"), (".gz", "", "\n"), ("", "\ufeff", "\r\n"), ("", "", "\r")])
def test_well_formed_files(tmp_path, gz, bom, newline):
    def path(name, content):
        return write(tmp_path / (name + gz), bom + content.replace("\n", newline))
    lines = jsonl(TEXTS).replace("\n", "\n\n").rstrip("\n")  # blank lines, and none at the end
    assert [row["text"] for row in read(path("a.jsonl", lines))] == TEXTS
    text = f"\n\n{TEXTS[0]}\n \t\n\u00a0\n{TEXTS[1]}\nsecond line\n\n{TEXTS[2]}"
    assert [row["text"] for row in read(path("a.jsonl.txt", text))] == [
        TEXTS[0], f"{TEXTS[1]}\nsecond line", TEXTS[2]]
    lines = "\n" + "\n".join(TEXTS) + "\n\n"  # no blank line between them
    assert read(path("b.txt", lines), wanted=["body"]) == [{"body": text} for text in TEXTS]
    assert read(path("a.csv", 'id,text\n1,"one, ""two"""\n\n,\n2,Ü\n')) == [
        {"id": "1", "text": 'one, "two"'}, {"id": "2", "text": "Ü"}]
    lines = 'id\ttext\n1\t"so" it is\n\n2\t"Ü\n3\t""\n'  # of a program that knows no quotes
    assert [row["text"] for row in read(path("a.tsv", lines))] == ['"so" it is', '"Ü', '""']


@pytest.mark.parametrize("opening, between, closing, indent", [
    ("[", ",", "]", None), ("\ufeff[\n", ",\n", "\n]", None), ("\n\n [ ", ", ", "]\n", 2),
    ("", "\n", "\n", 2), ("", " ", "", None), ("", ",\n", ",\n", None)])
@pytest.mark.parametrize("block_size", [1, 7, 2**16])
def test_json_in_any_layout(tmp_path, monkeypatch, opening, between, closing, indent, block_size):
    def path(content):
        return write(tmp_path / "a.json.gz", content)
    monkeypatch.setattr(rows, "BLOCK_SIZE", block_size)
    values = [-1.5e-7, True, None, float("-inf"), 12345, "[é\n\\", {"": []}]
    content = [{"text": "]} {[" * i, "n": values[i % 7:]} for i in range(60)]
    text = between.join(json.dumps(row, indent=indent) for row in content)
    assert read(path(opening + text + closing)) == content
    assert read(path(opening + closing)) == []
    for end, problem in ((between + "{", "{"), ("]" + between + "{}", "]")):
        with pytest.raises(SystemExit, match=rf":\d: not a JSON object, .* '\{problem}"):
            read(path(opening + "{}" + end))


@pytest.mark.parametrize("separator", ",;\t|")
@pytest.mark.parametrize("ending", [".csv", ".TSV"])
def test_separators_and_columns(tmp_path, separator, ending):
    content = "\ufeff\n text ,Label\nx y,1\n,\n".replace(",", separator)
    path = write(tmp_path / f"a{ending}", content)
    assert read(path, wanted=["text", "label"]) == [{"text": "x y", "label": "1"}]
    assert read(path) == [{"text": "x y", "Label": "1"}]
    with pytest.raises(SystemExit, match=r":2: needs one column \"topic\"; there are 'text', 'L"):
        read(path, wanted=["text", "topic"])
    with pytest.raises(SystemExit, match=r":1: needs one column \"text\"; there are 'text', 'text"):
        read(write(path, f"text{separator}text\n"), wanted=["text"])


@pytest.mark.parametrize("name, content, expected", [
    ("a.csv", "text\nHello, you\nplain\n", [{"text": "Hello, you"}, {"text": "plain"}]),
    ("a.csv", '"text"\n"Hello, you"\n', [{"text": "Hello, you"}]),
    ("a.csv", 'text, label\n"a, b", "x"\n', [{"text": "a, b", "label": "x"}]),
    ("a.tsv", 'text\tlabel\n"a ""b""\nc"\tx\n', [{"text": 'a "b"\nc', "label": "x"}]),
    (".csv", "a,text\n1,2\n", [{"a": "1", "text": "2"}]),
    ("a.tsv", '"text"\tlabel\n"a\t""b"""\tx\n', [{"text": 'a\t"b"', "label": "x"}]),
    ("a.csv", "sep=;\n\ntext;n\na, b;1\n", [{"text": "a, b", "n": "1"}]),
    ("a.csv", f"a,text\n1,{'word ' * 100_000}\n", [{"a": "1", "text": "word " * 100_000}]),
    ("a.csv", f'a,text\n1,"{"word " * 100_000}"\n', [{"a": "1", "text": "word " * 100_000}]),
    ("a.JSONL", '{"id": 1, "Text ": "a"}\n{"body": "b"}\n', [{"id": 1, "text": "a"},
                                                             {"body": "b"}])])
def test_what_people_take_for_granted(tmp_path, name, content, expected):
    assert read(write(tmp_path / name, content), wanted=["text"]) == expected


@pytest.mark.parametrize("name, line, problem", [
    ("a.jsonl", b'{"text": "broken', "not a JSON object, such as "),
    ("a.jsonl", b"[" * 100_000, "not a JSON object"), ("a.jsonl", b'["text"]', "not a JSON object"),
    ("a.jsonl", b'{"a": ["b"]}', r"\"a\" must be one text or number, not \"\['b'\]\""),
    ("a.jsonl", b'{"text": "a\0 b c"}', "not UTF-8; "),
    ("a.jsonl", '{"text": "drei Wörter"}'.encode("latin-1"), "not UTF-8; save the file as UTF-8"),
    ("a.txt", "Wörter".encode("latin-1"), "not UTF-8; .*: iconv -f CP1252 "),
    ("a.csv", "1,Wörter".encode("latin-1"), "not UTF-8; "),
    ("a.csv", b"only one", "needs 2 columns, not 1; put quotes"),
    ("a.csv", b"1,2,3", "needs 2 columns, not 3"),
    ("a.csv", b'1,"te"xt', "a quote that .*, or text after a closing quote; write \"\" for"),
    ("a.csv", rb'1,"he said \"no\""', r"a quote .* not \\\": sed 's/\\\\\"/\"\"/g' OLD > NEW$"),
    ("a.tsv", b'1\t"te"xt\n1', "a quote that .*; .* each line must have as many tabs as the first"),
    ("a.csv", b'1,"text' + b"\n1,2" * 9, "a quote that is never closed, or")])
def test_a_row_that_cannot_be_read_ends_it_with_its_line(tmp_path, name, line, problem):
    good = {".jsonl": '{"text": "a"}\n\n{"text": "b"}\n', ".csv": "a,b\n\n1,2\n",
            ".tsv": "a\tb\n\n1\t2\n", ".txt": "\n\n\n"}[name[1:]].encode()
    path = write(tmp_path / name, good + line + b"\n" + good)
    with pytest.raises(SystemExit, match=f"{name}:4: {problem}"):
        read(path, wanted=["a"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(tmp_path, encoding):
    contents = {"a.txt": "one\n\ntwo", "a.jsonl": jsonl(TEXTS), "a.csv": "a,b\n1,2\n3,4\n",
                "a.json": "[{}]"}
    for name, content in contents.items():
        with pytest.raises(SystemExit, match=f"{name}:1: not UTF-8; .*: iconv -f UTF-16 -t UTF-8 "):
            read(write(tmp_path / name, content.encode(encoding)))


def test_gzip_is_known_by_its_first_bytes(tmp_path):
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"a\n1\n"))
    (tmp_path / "a.csv.gz").write_bytes(b"a\n1\n")
    assert read(tmp_path / "a.csv") == read(tmp_path / "a.csv.gz") == [{"a": "1"}]


def test_files_that_cannot_be_read(tmp_path):
    whole = write(tmp_path / "whole.jsonl.gz", jsonl(TEXTS * 100)).read_bytes()
    middle = len(whole) // 2
    for content in (whole[:-20], whole[:middle], b"not gzip at all",
                    whole[:middle] + bytes(9) + whole[middle + 9:]):
        (tmp_path / "bad.jsonl.gz").write_bytes(content)
        with pytest.raises(SystemExit, match=r"z: damaged or incomplete|z:\d+: not a JSON object"):
            read(tmp_path / "bad.jsonl.gz")
    with pytest.raises(SystemExit, match=r"gone\.txt: cannot be read \(No such file"):
        read(tmp_path / "gone.txt")


def test_reading_needs_little_memory(tmp_path):
    texts = ["word " * 400] * 1500  # 3 MB
    for name, content in [("a.jsonl.gz", jsonl(texts)), ("a.csv", "text\n" + "\n".join(texts)),
                          ("a.txt", "\n\n".join(texts)), ("b.txt", "\n".join(texts)),
                          ("a.json", json.dumps([{"text": text} for text in texts]))]:
        path = write(tmp_path / name, content)
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path)) == 1500
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2e6


@pytest.mark.parametrize("text", ["", " \t", "\u3000\ufeff \u200b", " " * 99, "NaN", " nan ",
                                  "NULL", "N/A", r"\N"])
def test_missing(text):
    assert cell_text(text) is None and cell_text(f"x{text}") == f"x{text}"
