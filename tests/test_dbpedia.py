"""DBPedia from its archive, which is never extracted, from its files, and from a server."""
import gzip
import io
import tarfile

import pytest
from conftest import Reply, examples_of, write
from test_agnews import table

from data import dbpedia

FLAGS = ["--n_train=9", "--n_test=4"]


def archive(path, members):
    """members: name -> bytes, or None for a link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                entry.size = len(content)
            tar.addfile(entry, content and io.BytesIO(content))
    return path


@pytest.fixture
def members():
    train, test = (table(140, 14, word).encode() for word in ("about", "test"))
    return {"../evil.csv": b"evil", "dbpedia_csv/test.csv": test, "dbpedia_csv/train.csv": train}


def draw(*source):
    dbpedia.main(["--source", *map(str, source), *FLAGS, "--name=x"])
    return examples_of("x"), examples_of("x", "test")


def test_archive_and_files(tmp_path, bin_dir, members):
    train, test = draw(archive(tmp_path / "a.tgz", members))
    assert len(train) == 14 * 9 and len(test) == 14 * 4
    assert not list(tmp_path.rglob("*.csv"))  # nothing is extracted
    files = [write(tmp_path / f"{name}.csv", members[f"dbpedia_csv/{name}.csv"])
             for name in ("train", "test")]
    assert draw(*files) == (train, test)
    dotted = {f"./{name}": content for name, content in members.items()}
    assert draw(archive(tmp_path / "b.tgz", dotted)) == (train, test)
    path = tmp_path / "b.tgz"
    path.write_bytes(gzip.decompress(path.read_bytes()))  # as some browsers do
    assert draw(path) == (train, test)
    with pytest.raises(SystemExit, match="matches 2 archives; name one"):
        draw(tmp_path / "*.tgz")


def test_bad_archives(tmp_path, bin_dir, members):
    path = archive(tmp_path / "a.tgz", members)
    for content in (path.read_bytes()[:-100], b"no archive"):
        with pytest.raises(SystemExit, match="a.tgz: damaged or incomplete"):
            draw(write(path, content))
    for name, content in (("test", None), ("train", None), ("train", b"")):
        archive(path, members | {f"dbpedia_csv/{name}.csv": content})
        with pytest.raises(SystemExit, match=f"no file dbpedia_csv/{name}.csv in it|no row with"):
            draw(path)


def test_download(server, tmp_path, monkeypatch, members):
    content = archive(tmp_path / "x.tgz", members).read_bytes()
    server.respond = lambda path: Reply(content)
    monkeypatch.setattr(dbpedia, "URL", f"{server.url}/x.tgz")
    dbpedia.main(FLAGS)
    assert len(examples_of("dbpedia")) == 14 * 9
