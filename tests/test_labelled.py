"""Labelled sets: what a server or a file can do wrong, and which examples are drawn."""
import csv
import hashlib
import io
import json
import re
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from data import agnews, dbpedia, fetch, fewrel, labelled
from data.fetch import download
from data.tokenfile import open_labels, open_split, read_meta
from data.tokenizer import MARKERS, get_tokenizer

CONTENT = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """Serves server.state.files as a real server does, after the misbehaviours that state.plan lists, each once."""

    def do_GET(self):
        state = self.server.state
        behaviour = state.plan.pop(0) if state.plan else ""
        content, code = state.files.get(self.path, b""), 200 if self.path in state.files else 404
        etag, asked = f'"{hashlib.md5(content).hexdigest()}"', self.headers.get("Range")
        state.requests.append(asked)
        headers = {} if behaviour == "no ETag" else {"ETag": etag}
        if behaviour.startswith("HTTP"):
            code, content = int(behaviour.split()[1]), b"words"
        elif asked and self.headers["If-Range"] == etag and behaviour != "no Range":
            start = int(asked.removeprefix("bytes=").removesuffix("-")) - (behaviour == "other bytes")
            code, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        self.send_response(code)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[:len(content) // 2] if behaviour in ("cut", "no ETag") else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.state = SimpleNamespace(files={"/a.csv": CONTENT}, plan=[], requests=[], pauses=[],
                                 path=tmp_path / "kept" / "a.csv", url=f"http://127.0.0.1:{http.server_port}")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(fetch, "pause", http.state.pauses.append)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield http.state
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("plan, requests", [
    ([], [None]),
    (["cut"], [None, "bytes=5120-"]),
    (["cut", "cut", "HTTP 503"], [None, "bytes=5120-", "bytes=7680-", "bytes=7680-"]),
    (["cut", "no Range"], [None, "bytes=5120-"]),  # all of it comes again
    (["cut", "other bytes"], [None, "bytes=5120-", None]),
    (["cut", "HTTP 416"], [None, "bytes=5120-", None]),
    (["no ETag"], [None, None]),  # whether it is still the same file cannot be known
    (["HTTP 429", "HTTP 500"], [None, None, None]),
])
def test_download(server, plan, requests):
    server.plan = plan
    for _ in range(2):  # the second time the file is there
        assert download(f"{server.url}/a.csv", server.path, hashlib.md5(CONTENT).hexdigest()) == server.path
    assert server.path.read_bytes() == CONTENT and server.requests == requests
    assert server.pauses == fetch.PAUSES[:len(requests) - 1]
    assert list(server.path.parent.iterdir()) == [server.path]


def test_download_goes_on_in_another_process(server, monkeypatch):
    monkeypatch.setattr(fetch, "PAUSES", [])
    for content, expected in [(CONTENT, [None, "bytes=5120-"]), (CONTENT[::-1], [None, "bytes=5120-"])]:
        server.plan, server.requests = ["cut"], []
        with pytest.raises(SystemExit, match=r"a\.csv keeps failing \(.*5,120 bytes instead of 10,240\).* is kept; or"):
            download(f"{server.url}/a.csv", server.path)
        server.files["/a.csv"] = content  # which, the second time, is another than before
        assert download(f"{server.url}/a.csv", server.path).read_bytes() == content and server.requests == expected
        server.path.unlink()


def test_downloads_that_fail(server, tmp_path):
    with pytest.raises(SystemExit, match=r"a\.csv is not the file it should be \(MD5 00\): run .* --source"):
        download(f"{server.url}/a.csv", server.path, "00")
    assert not server.path.exists() and not server.path.with_name("a.csv.part").exists()
    with pytest.raises(SystemExit, match=r"cannot fetch http.*b\.csv \(HTTP 404 Not Found\): check .* --source"):
        download(f"{server.url}/b.csv", server.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot fetch .* to .*Not a directory|File exists"):
        download(f"{server.url}/a.csv", tmp_path / "file" / "a.csv")
    assert not server.pauses


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(n, n_labels=4, word="about"):
    return [[str(i % n_labels + 1), f"Title {i}", f"{word} number {i}"] for i in range(n)]


def table(rows):
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return file.getvalue()


def examples(name, split, bin_dir):
    """-> list of (label's name, text)"""
    tokens, offsets = open_split(name, split, bin_dir)
    texts = [get_tokenizer().decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:])]
    names = read_meta(name, bin_dir)["labels"]
    return [(names[label], text) for label, text in zip(open_labels(name, split, bin_dir), texts)]


def draw(module, tmp_path, *flags):
    """-> the examples (set of (label, text)) to train and to test on, which have no text in common."""
    module.main([*map(str, flags), "--name=x"], tmp_path / "bin")
    train, test = (examples("x", split, tmp_path / "bin") for split in ("train", "test"))
    assert not {text for _, text in train} & {text for _, text in test}
    return set(train), set(test)


def per_label(part):
    return set(Counter(label for label, _ in part).values())


def test_agnews_end_to_end(tmp_path, capsys):
    train, test = rows(200), rows(80, word="test")
    train[5] = test[5]  # a training text that is also a test text
    train[9][1:], test[3][1:] = ["", "a\\line and \\$5"], ["TITLE  7", "test number 7"]  # the same label
    train[10][1:], test[2][1:] = train[11][1:], test[6][1:]  # different labels, the same label
    source = ["--source", write(tmp_path / "train.csv", table(train)), write(tmp_path / "test.csv", table(test))]
    a = draw(agnews, tmp_path, *source, "--n_train=47", "--n_test=18")
    assert [per_label(part) for part in a] == [{47}, {18}]
    assert "x: 4 labels, 47 training and 18 test examples each\n" in capsys.readouterr().out
    meta = read_meta("x", tmp_path / "bin")
    assert meta["labels"] == ["World", "Sports", "Business", "Sci/Tech"] and meta["source"]["n_train"] == 47
    assert meta["source"]["skipped"] == {"doubles": 2, "texts under two labels": 2,
                                         "training texts that are also test texts": 1}
    assert draw(agnews, tmp_path, *source, "--n_train=47", "--n_test=18") == a
    b = draw(agnews, tmp_path, *source, "--n_train=20", "--n_test=10")
    assert b[0] < a[0] and b[1] < a[1]
    assert draw(agnews, tmp_path, *source, "--n_train=20", "--n_test=10", "--seed=1") != b
    write(tmp_path / "train.csv", table(train[::-1]))
    assert draw(agnews, tmp_path, *source, "--n_train=20", "--n_test=10") == b  # whatever the order of the file
    assert ("Sports", "a line and $5") in draw(agnews, tmp_path, *source, "--fewer=keep")[0]


def test_fewer(tmp_path, capsys):
    few = [row for row in rows(200) if row[0] != "3" or int(row[1][6:]) < 100]
    source = ["--source", write(tmp_path / "train.csv", table(few)), write(tmp_path / "test.csv", table(
        [row for row in rows(80, word="test") if row[0] != "4"])), "--n_train=40", "--n_test=20"]
    with pytest.raises(SystemExit, match='^2 of 4 labels have too few examples, such as "Sci/Tech" with 40 . 0 instead '
                                         r"of 40 \+ 20: lower .*--fewer=keep.*--fewer=drop"):
        agnews.main(list(map(str, source)), tmp_path / "bin")
    train, test = draw(agnews, tmp_path, *source, "--fewer=keep")
    assert Counter(label for label, _ in train) == {"World": 40, "Sports": 40, "Business": 25}
    assert per_label(test) == {20} and read_meta("x", tmp_path / "bin")["labels"] == ["World", "Sports", "Business"]
    out = capsys.readouterr().out
    assert "dropped for want of examples: 1 labels, Sci/Tech\nkept with fewer examples: 1 labels\n" in out
    assert "x: 3 labels, 25 to 40 training and 20 test examples each\n" in out
    train, _ = draw(agnews, tmp_path, *source, "--fewer=drop")
    assert {label for label, _ in train} == {"World", "Sports"} and per_label(train) == {40}
    with pytest.raises(SystemExit, match="labels left to tell apart: 0, but two are needed"):
        agnews.main([*map(str, source), "--fewer=drop", "--n_test=30"], tmp_path / "bin")


@pytest.mark.parametrize("line, reason", [
    (b'"1","only a title"', "not of 3 columns"),
    (b'"1","title","text","more"', "not of 3 columns"),
    (b'"5","title","text"', "of an unknown class"),
    (b'"World","title","text"', "of an unknown class"),
    (b'"1",""," "', "empty text"),
    ('"1","title","Wörter"'.encode("latin-1"), "not UTF-8"),
    (b'"1","title","te\0xt"', "not UTF-8"),
    (b'"1","title"x,"text"', "not CSV (',' expected after '\"')"),
    (b'"1","title","' + b"text " * 30_000 + b'"', "not CSV (field larger than field limit (131072))"),
])
def test_broken_rows(tmp_path, capsys, line, reason):
    good, test = table(rows(40)).encode(), write(tmp_path / "test.csv", table(rows(40, word="test")))
    train = write(tmp_path / "train.csv", b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n\r\n") + line + b"\n" + good)
    flags = ["--source", train, test, "--n_train=10", "--n_test=10"]
    draw(agnews, tmp_path, *flags)
    assert f"skipped: 1 {reason} (first: {train}:81)\n" in capsys.readouterr().out  # every second line is blank
    assert read_meta("x", tmp_path / "bin")["source"]["skipped"][reason] == 1
    write(train, good + (line + b"\n") * 2)
    with pytest.raises(SystemExit, match=rf"{train}: 2 of 42 rows are broken: 2 {re.escape(reason)} \(first: {train}:41"
                                         r"\); it must be CSV rows .class.,"):
        draw(agnews, tmp_path, *flags)


def test_quotes_left_open(tmp_path, capsys):
    test, lines = write(tmp_path / "test.csv", table(rows(400, word="test"))), table(rows(400)).splitlines(True)
    flags = ["--source", tmp_path / "train.csv", test, "--n_train=90", "--n_test=10"]
    lines[200] = lines[200].replace('"\n', "\n")
    write(tmp_path / "train.csv", "".join(lines))
    draw(agnews, tmp_path, *flags)
    assert "skipped: 2 not CSV (',' expected after '\"') (first: " in capsys.readouterr().out  # with the next line
    write(tmp_path / "train.csv", "".join(lines).replace('"', "").replace("Title 100,", '"Title 100,'))
    with pytest.raises(SystemExit, match="300 of 400 rows .* 300 not CSV .unexpected end of data. .first: .*csv:101"):
        draw(agnews, tmp_path, *flags)
    write(tmp_path / "train.csv", "")
    with pytest.raises(SystemExit, match="train.csv: no rows; it must be CSV"):
        draw(agnews, tmp_path, *flags)
    with pytest.raises(SystemExit, match="--source: must be two files, train.csv and test.csv .*, not 1"):
        draw(agnews, tmp_path, "--source", test)


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                entry.size = len(content)
            tar.addfile(entry, content and io.BytesIO(content))
    return path


def test_dbpedia_archive(tmp_path, monkeypatch):
    train, test = (table(rows(140, 14, word)).encode() for word in ("about", "test"))
    members = {"../evil.csv": b"evil", "dbpedia_csv/test.csv": test, "dbpedia_csv/train.csv": train}
    path, flags = archive(tmp_path / "a.tgz", members), ["--n_train=9", "--n_test=4"]
    a = draw(dbpedia, tmp_path, "--source", path, *flags)
    assert [per_label(part) for part in a] == [{9}, {4}]
    assert sorted(file.name for file in tmp_path.rglob("*.csv")) == []  # nothing is extracted
    files = [write(tmp_path / name, content) for name, content in (("train.csv", train), ("test.csv", test))]
    assert draw(dbpedia, tmp_path, "--source", *files, *flags) == a
    for content in (path.read_bytes()[:-100], b"no archive"):
        with pytest.raises(SystemExit, match="a.tgz: damaged or incomplete archive"):
            draw(dbpedia, tmp_path, "--source", write(path, content), *flags)
    for name, content in (("test", None), ("train", None), ("train", b"")):  # links; an empty file
        archive(path, members | {f"dbpedia_csv/{name}.csv": content})
        with pytest.raises(SystemExit, match=f"a.tgz: holds no dbpedia_csv/{name}.csv of|/train.csv: no rows; it must"):
            draw(dbpedia, tmp_path, "--source", path, *flags)
    archive(path, members)
    monkeypatch.setattr(labelled, "LARGEST_MEMBER", 1000)
    with pytest.raises(SystemExit, match="a.tgz: holds no dbpedia_csv/train.csv of a plausible size"):
        draw(dbpedia, tmp_path, "--source", path, *flags)


def sentence(i, head=(0, 1), tail=(3,)):
    return {"tokens": ["Old", f"Name{i}", "is", f"place{i}", "."], "h": ["", "Q1", [list(head)]],
            "t": ["", "Q2", [list(tail), [4]]]}


def relations(n=50):
    """Three relations of n sentences: each third one of P1 occurs there twice, each fifth one of P1 is also in P2."""
    found = {f"P{p}": [sentence(1000 * p + i) for i in range(n)] for p in (1, 2, 3)}
    for i in range(0, n - 1, 3):
        found["P1"][i + 1] = sentence(1000 + i)
    for i in range(0, n, 5):
        found["P2"][i] = found["P1"][i]
    return found


def fewrel_file(tmp_path, content):
    return write(tmp_path / "train_wiki.json", content if isinstance(content, bytes) else json.dumps(content))


def test_fewrel_end_to_end(tmp_path, capsys):
    path = fewrel_file(tmp_path, relations())
    write(tmp_path / "pid2name.json", json.dumps({"P1": ["capital", ""], "P2": ["same", ""], "P9": ["same", ""]}))
    flags = ["--source", path, "--n_train=40", "--n_test=10"]
    train, test = draw(fewrel, tmp_path, *flags)  # all 50 of each relation, although many share their text
    meta = read_meta("x", tmp_path / "bin")
    assert meta["labels"] == ["P2", "P3", "capital"] and meta["source"]["markers"] is False
    assert "x: 3 labels, 40 training and 10 test examples each" in capsys.readouterr().out
    assert [meta["splits"][split]["n_docs"] for split in ("train", "test")] == [120, 30]
    assert draw(fewrel, tmp_path, *flags) == (train, test)
    assert draw(fewrel, tmp_path, *flags, "--n_train=20")[0] <= train
    marked = draw(fewrel, tmp_path, *flags, "--markers")
    plain = [{(label, " ".join(re.sub(r"\[/?E.\]", " ", text).split())) for label, text in part} for part in marked]
    assert plain == [train, test]
    assert all(re.fullmatch(r"\[E1\] old name\d+\[/E1\] is\[E2\] place\d+\[/E2\] .", text) for _, text in marked[0])
    tokens, special = open_split("x", "test", tmp_path / "bin")[0], get_tokenizer().special
    assert all((tokens == special[marker]).sum() == 30 for marker in MARKERS)
    (path.with_name("pid2name.json")).write_text('["P1"]')
    with pytest.raises(SystemExit, match="pid2name.json: not FewRel's names of relations"):
        draw(fewrel, tmp_path, *flags)


def test_fewrel_pools_files_and_fewer(tmp_path):
    parts = [relations(), {"P3": [sentence(9000 + i) for i in range(8)], "P4": [sentence(i) for i in range(11)],
                           "P5": [sentence(100)]}]
    paths = [write(tmp_path / f"{i}.json", json.dumps(part)) for i, part in enumerate(parts)]
    flags = ["--source", *paths, "--n_train=40", "--n_test=10"]
    with pytest.raises(SystemExit, match='2 of 5 labels .* such as "P5" with 0 . 1 instead of 40 . 10'):
        draw(fewrel, tmp_path, *flags)
    train, test = draw(fewrel, tmp_path, *flags, "--fewer=keep")
    assert [sum(label == "P4" for label, _ in part) for part in (train, test)] == [9, 2]
    assert read_meta("x", tmp_path / "bin")["labels"] == ["P1", "P2", "P3", "P4"]
    draw(fewrel, tmp_path, *flags, "--fewer=drop")
    assert read_meta("x", tmp_path / "bin")["labels"] == ["P1", "P2", "P3"]
    one = fewrel_file(tmp_path, {"P1": [sentence(1)] * 50, "P2": [sentence(i) for i in range(2, 52)]})
    with pytest.raises(SystemExit, match="a label is left without examples .* too few different texts"):
        draw(fewrel, tmp_path, "--source", one, *flags[3:])


@pytest.mark.parametrize("row, reason", [
    (sentence(1, head=(4, 5)), "with an entity outside of the sentence"),
    (sentence(1, head=(-1, 0)), "with an entity outside of the sentence"),
    (sentence(1, head=()), "not of the format"),
    (sentence(1, head=(1.5,)), "not of the format"),
    (sentence(1, head=(0, 1), tail=(1, 2)), "whose entities cross"),
    (sentence(1) | {"tokens": ["a", "[/E1]", "b", "c"]}, "with a marker in its text"),
    (sentence(1) | {"tokens": ["a", None, "b", "c"]}, "not of the format"),
    (sentence(1) | {"tokens": "abcd"}, "not of the format"),
    (sentence(1) | {"tokens": [" "] * 5}, "empty text"),
    ({"tokens": ["a"]}, "not of the format"),
    ("a", "not of the format"),
])
@pytest.mark.parametrize("markers", [[], ["--markers"]])
def test_broken_sentences(tmp_path, capsys, row, reason, markers):
    found = relations()
    found["P3"].insert(7, row)
    path = fewrel_file(tmp_path, found)
    draw(fewrel, tmp_path, "--source", path, "--n_train=40", "--n_test=10", *markers)
    assert f"skipped: 1 {reason} (first: {path}:P3[7])\n" in capsys.readouterr().out


def test_nested_entities():
    tokens = ["a", "b", "c"]
    assert fewrel.mark(tokens, [(1, 2), (0, 3)]) == ["[E2] a", "[E1] b [/E1]", "c [/E2]"]
    assert fewrel.mark(tokens, [(0, 3), (0, 1)]) == ["[E1] [E2] a [/E2]", "b", "c [/E1]"]
    assert fewrel.mark(tokens, [(1, 3), (2, 3)]) == ["a", "[E1] b", "[E2] c [/E2] [/E1]"]
    assert fewrel.mark(tokens, [(1, 2), (1, 2)]) == ["a", "[E2] [E1] b [/E1] [/E2]", "c"]


@pytest.mark.parametrize("content, message", [
    (json.dumps(relations()).encode()[:-50], r"not JSON, or cut short \(.*char \d+\)\); it must be upstream's format"),
    ('{"Ü": []}'.encode("latin-1"), "not JSON, or cut short .*utf-8"),
    (b"[" * 100_000, "not JSON, or cut short"),
    (b"[]", "not an object of lists"),
    (b'{"P1": {}}', "not an object of lists"),
    (b'{"P1": []}', "no rows"),
    (b'{"P1": [1, 2, 3]}', r"3 of 3 rows are broken: 3 not of the format \(first: .*json:P1\[0\]\)"),
])
def test_files_that_are_not_fewrel(tmp_path, content, message):
    with pytest.raises(SystemExit, match=f"train_wiki.json: {message}"):
        draw(fewrel, tmp_path, "--source", fewrel_file(tmp_path, content))
    assert not (tmp_path / "bin").exists()


def test_everything_is_downloaded(server, tmp_path, monkeypatch):
    for module, contents in [
        (fewrel, {"/train_wiki.json": json.dumps(relations()), "/pid2name.json": "{}"}),
        (agnews, {"/train.csv": table(rows(200)), "/test.csv": table(rows(80, word="test"))}),
    ]:
        server.files = {name: content.encode() for name, content in contents.items()}
        monkeypatch.setattr(module, "URL", f"{server.url}/")
        monkeypatch.setattr(agnews, "MD5", {name[1:]: hashlib.md5(server.files[name]).hexdigest() for name in contents})
        module.main(["--n_train=9", "--n_test=4"], tmp_path / "bin", tmp_path / module.__name__)
        name = module.__name__.removeprefix("data.")
        assert read_meta(name, tmp_path / "bin")["source"]["url"] == f"{server.url}/"
        assert sorted(f"/{path.name}" for path in (tmp_path / module.__name__).iterdir()) == sorted(contents)
    members = {f"dbpedia_csv/{name}.csv": table(rows(140, 14, name)).encode() for name in ("train", "test")}
    server.files = {"/x.tgz": archive(tmp_path / "x.tgz", members).read_bytes()}
    monkeypatch.setattr(dbpedia, "URL", f"{server.url}/x.tgz")
    dbpedia.main(["--n_train=9", "--n_test=4"], tmp_path / "bin", tmp_path / "kept")
    assert len(examples("dbpedia", "train", tmp_path / "bin")) == 14 * 9


def test_mistakes(tmp_path):
    for flag in ("--n_train=0", "--n_test=0", "--seed=-1", "--tokenizer=absent", "--source=absent"):
        for module in (fewrel, agnews, dbpedia):
            with pytest.raises(SystemExit, match=f"{flag}: |absent"):
                module.main([flag], tmp_path / "bin", tmp_path / "kept")
    assert not list(tmp_path.iterdir())
