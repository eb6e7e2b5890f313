"""AG News from files and from a server, and its HTML."""
import csv
import hashlib
import io

import pytest
from conftest import Reply, examples_of, write

from data import agnews
from data.tokenfile import read_meta


def rows(n, n_labels=4, word="about"):
    return [[str(i % n_labels + 1), f"Title {i}", f"{word} number {i}"] for i in range(n)]


def table(rows):
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return file.getvalue()


def source(tmp_path, train, test=None):
    test = table(rows(80, word="test")) if test is None else test
    paths = [write(tmp_path / "train.csv", train), write(tmp_path / "test.csv", test)]
    return ["--source", *map(str, paths), "--name=x", "--n_train=9", "--n_test=4"]


def test_end_to_end(tmp_path, bin_dir):
    train = rows(200)
    train[9][1:] = ["", "a\\line and \\$5 for Dell #39;s &lt;b&gt;shares&lt;/b&gt;"]
    agnews.main([*source(tmp_path, table(train)), "--n_train=50", "--n_test=20"])
    assert read_meta("x")["labels"] == ["World", "Sports", "Business", "Sci/Tech"]
    assert len(examples_of("x")) == 200 and len(examples_of("x", "test")) == 80
    assert ("Sports", "a line and $5 for dell's shares") in examples_of("x")
    with pytest.raises(SystemExit, match="--source: must be two files, train.csv .*, not 1"):
        agnews.main(["--source", str(tmp_path / "test.csv")])


@pytest.mark.parametrize("text, decoded", [
    ("Dell #39;s #36;5 quot;deal quot;", "Dell's$5\"deal\""),
    ("for  #36;5, J amp;J", 'for $5, J&J'),
    ("a #151; b &amp; c&nbsp;d", "a\u2014 b & c\xa0d"),
    ('&lt;A HREF="http://x.y/z"&gt;Pfizer&lt;/A&gt; &lt;PFE.N&gt;', " Pfizer  <PFE.N>"),
    ('up &lt;br&gt; <img src="a" border="0"/> 3 < 5 > 4', "up     3 < 5 > 4"),
    ("Stocks Up; quot not; #x;", "Stocks Up; quot not; #x;"),
])
def test_html(text, decoded):
    assert agnews.decode_html(text) == decoded


@pytest.mark.parametrize("line, reason", [
    (b'"1","only a title"', "not of 3 columns"),
    (b'"5","title","text"', "of an unknown class"),
    (b'"World","title","text"', "of an unknown class"),
    (b'"1",""," "', "empty text"),
    (b'"1","title"x,"text"', "not CSV (',' expected after '\"')"),
])
def test_broken_rows(tmp_path, bin_dir, capsys, line, reason):
    good = table(rows(40)).encode()
    content = b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n\r\n") + line + b"\n" + good
    agnews.main(source(tmp_path, content))
    out = capsys.readouterr().out  # every second line is blank
    assert f"skipped: 1 {reason} (first: {tmp_path / 'train.csv'}:81)\n" in out
    assert read_meta("x")["source"]["skipped"][reason] == 1
    with pytest.raises(SystemExit, match="train.csv: 2 of 42 rows are broken: 2 .*train.csv:41.; "
                                         "it must be CSV rows .class.,"):
        agnews.main(source(tmp_path, good + (line + b"\n") * 2))


def test_quotes_left_open(tmp_path, bin_dir, capsys):
    lines = table(rows(400)).splitlines(True)
    lines[200] = lines[200].replace('"\n', "\n")
    agnews.main(source(tmp_path, "".join(lines)))
    out = capsys.readouterr().out
    assert "skipped: 2 not CSV (',' expected after '\"') (first: " in out  # with the next line
    content = "".join(lines).replace('"', "").replace("Title 100,", '"Title 100,')
    with pytest.raises(SystemExit, match="300 of 400 rows .* 300 not CSV .unexpected end of data. "
                                         ".first: .*csv:101"):
        agnews.main(source(tmp_path, content))
    with pytest.raises(SystemExit, match="train.csv: no rows; it must be CSV"):
        agnews.main(source(tmp_path, ""))


def test_download(server, monkeypatch):
    files = {"/train.csv": table(rows(200)).encode(),
             "/test.csv": table(rows(80, word="test")).encode()}
    server.respond = lambda path: Reply(files[path])
    monkeypatch.setattr(agnews, "URL", f"{server.url}/")
    monkeypatch.setattr(agnews, "MD5", {
        path[1:]: hashlib.md5(content).hexdigest() for path, content in files.items()})
    for _ in range(2):  # the second time from what is kept
        agnews.main(["--n_train=9", "--n_test=4"])
    assert len(examples_of("agnews")) == 36 and server.requests.total() == 2
    assert read_meta("agnews")["source"]["url"] == f"{server.url}/"
