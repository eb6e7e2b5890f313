"""AG News from files and from a server, and its HTML."""
import hashlib

import pytest
from conftest import Reply, examples_of, write

from data import agnews
from data.tokenfile import Dataset


def table(n, n_labels=4, word="about"):
    return "".join(f'"{i % n_labels + 1}","Title {i}","{word} number {i}"\n' for i in range(n))


def source(tmp_path, train):
    test = write(tmp_path / "test.csv", table(80, word="test"))
    train = write(tmp_path / "train.csv", train)
    return ["--source", str(train), str(test), "--name=x", "--n_train=50", "--n_test=20"]


def test_end_to_end(tmp_path, bin_dir, capsys):
    train = table(200).replace('"Title 9","about number 9"', (
        '"","a\\line and \\$5 for Dell #39;s &lt;b&gt;shares&lt;/b&gt;"'))
    flags = source(tmp_path, 'Class Index,Title,Description\n\n1,""," "\n' + train)
    agnews.main(flags)
    assert Dataset("x").label_names == ["World", "Sports", "Business", "Sci/Tech"]
    assert len(examples_of("x")) == 200 and len(examples_of("x", "test")) == 80
    assert ("Sports", "a line and $5 for dell's shares") in examples_of("x")
    assert "skipped: 1 without a text\n" in capsys.readouterr().out
    before = examples_of("x", "test")
    agnews.main([*flags, "--source", f"{tmp_path}/*.csv"])
    assert examples_of("x", "test") == before  # though the shell names test.csv first
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").rename(tmp_path / f"latest_{name}.csv")
    agnews.main([*flags, "--source", f"{tmp_path}/*.csv"])
    assert examples_of("x", "test") == before
    (tmp_path / "latest_test.csv").rename(tmp_path / "test.csv")
    with pytest.raises(SystemExit, match="--source: must be two files, train.csv .*, not 1"):
        agnews.main(["--source", str(tmp_path / "test.csv")])
    other = str(write(tmp_path / "a.jsonl", "{}"))
    with pytest.raises(SystemExit, match=r"a.jsonl: unknown ending; can read .csv, also .gz;"):
        agnews.main(["--source", other, str(tmp_path / "test.csv")])


def test_texts_are_compared_as_they_are_written(tmp_path, bin_dir):
    train = table(200).replace('"Title 9","about number 9"', '"Title 3","test number 3&#33;"')
    flags = source(tmp_path, train)
    path = tmp_path / "test.csv"
    path.write_text(path.read_text().replace('number 3"', 'number 3 #33;"'))
    agnews.main([*flags, "--n_train=40"])
    assert Dataset("x").meta["source"]["skipped"] == {"training texts that are also test texts": 1}


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


@pytest.mark.parametrize("line, problem", [
    ('"1","only a title"', "needs 3 columns, not 2; put"),
    ('"5","title","text"', "class '5' must be a number from 1 to 4; the columns are \"class\","),
    ('"World","title","text"', "class 'World' must be a number")])
def test_broken_rows(tmp_path, bin_dir, line, problem):
    content = "\ufeff" + table(40).replace("\n", "\r\n\r\n") + line  # every second line is blank
    with pytest.raises(SystemExit, match=f"train.csv:81: {problem}"):
        agnews.main(source(tmp_path, content))
    assert not bin_dir.exists()


def test_download(server, monkeypatch):
    files = {"/train.csv": table(200).encode(), "/test.csv": table(80, 4, "test").encode()}
    server.respond = lambda path: Reply(files[path])
    monkeypatch.setattr(agnews, "URL", f"{server.url}/")
    monkeypatch.setattr(agnews, "MD5", {
        path[1:]: hashlib.md5(content).hexdigest() for path, content in files.items()})
    for _ in range(2):  # the second time from what is kept
        agnews.main(["--n_train=9", "--n_test=4"])
    assert len(examples_of("agnews")) == 36 and server.requests.total() == 2
    assert Dataset("agnews").meta["source"]["url"] == f"{server.url}/"
