"""Fetching from a server on this machine that misbehaves."""
import hashlib
import socket
import ssl
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from conftest import Reply

from data import fetch

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def plan(server):
    """What the server does: a list of replies, each given once, before the file itself."""
    replies = []
    server.respond = lambda path: replies.pop(0) if replies else Reply(CONTENT)
    return replies


def cut(n):
    return Reply(CONTENT, n_sent=n)


@pytest.mark.parametrize("replies, pauses", [
    ([], []),
    ([cut(5120), cut(0), cut(-1)], [1, 2, 5]),
    ([Reply(code=429), Reply(code=500), Reply(code=408), Reply(code=503)], [1, 2, 5, 15]),
    ([Reply(code=429, headers={"Retry-After": "17"})], [17]),
    ([Reply(code=503, headers={"Retry-After": "0"})], [1]),
    ([Reply(code=429, headers={"Retry-After": "Wed, 21 Oct 2030 07:28:00 GMT"})], [1]),
])
def test_download(server, plan, tmp_path, replies, pauses, capsys):
    plan += replies
    path = tmp_path / "kept" / "a.csv"
    for _ in range(2):  # the second time the file is there
        assert fetch.download(f"{server.url}/a", path, hashlib.md5(CONTENT).hexdigest()) == path
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    assert server.pauses == pauses and server.requests == {"/a": 1 + len(replies)}
    assert capsys.readouterr().out.count("; trying again in ") == len(replies)


@pytest.mark.parametrize("reply, problem", [
    (cut(5120), r"ValueError: 5,120 bytes instead of 10,240"),
    (cut(-1), "RemoteDisconnected"), (Reply(code=500), "HTTP 500 Internal Server Error")])
def test_endless_failure_is_one_line(server, tmp_path, reply, problem):
    server.respond = lambda path: reply
    with pytest.raises(SystemExit, match=rf"/a keeps failing .{problem}.*is kept; or.*--source"):
        fetch.download(f"{server.url}/a", tmp_path / "a")
    assert server.pauses == fetch.PAUSES and not (tmp_path / "a").exists()


@pytest.mark.parametrize("reply, message", [
    (Reply(code=400), r"cannot fetch .*/a \(HTTP 400 .*: check .*--source"),
    (Reply(code=404), r"cannot fetch .*/a \(HTTP 404 .*: check .*--source"),
    (Reply(code=429, headers={"Retry-After": "86400"}), "HTTP 429 .*run the command again later")])
def test_hopeless_answers_are_not_repeated(server, plan, tmp_path, reply, message):
    plan.append(reply)
    with pytest.raises(SystemExit, match=message):
        fetch.download(f"{server.url}/a", tmp_path / "a")
    assert server.requests.total() == 1 and not server.pauses


def test_two_at_once(server, tmp_path):
    """Both are asked before either is answered."""
    content, barrier = CONTENT * 200, threading.Barrier(2)
    server.respond = lambda path: (barrier.wait(10), Reply(content))[1]
    with ThreadPoolExecutor(2) as pool:
        for i in range(9):
            path, md5 = tmp_path / str(i) / "a", hashlib.md5(content).hexdigest()
            list(pool.map(lambda _: fetch.download(f"{server.url}/a", path, md5), range(2)))
            assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


OFFLINE = urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))
UNKNOWN = urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))


@pytest.mark.parametrize("errors, message, pauses", [
    ([OFFLINE], "cannot fetch .*not known.*check the connection", []),
    ([UNKNOWN], "cannot fetch .*certificate.*check the connection", []),
    ([TimeoutError("timed out"), OFFLINE], "cannot fetch .*not known", [1])])
def test_errors_of_the_connection(server, monkeypatch, errors, message, pauses):
    monkeypatch.setattr(urllib.request, "urlopen", Mock(side_effect=errors))
    with pytest.raises(SystemExit, match=message):
        fetch.fetch(f"{server.url}/a", lambda response: None)
    assert server.pauses == pauses


def test_another_file_than_expected_and_no_place_for_it(server, plan, tmp_path):
    path = tmp_path / "a"
    with pytest.raises(SystemExit, match=r"/a is not the file it should be \(MD5 00\): .*--source"):
        fetch.download(f"{server.url}/a", path, "00")
    assert not list(tmp_path.glob("a*"))
    path.write_text("")
    with pytest.raises(SystemExit, match="cannot fetch .* to .*(Not a directory|File exists)"):
        fetch.download(f"{server.url}/a", path / "a")
    assert not server.pauses
