"""Fetching from a server on this machine that misbehaves."""
import hashlib
import socket
import ssl
import urllib.error
import urllib.request
from unittest.mock import Mock

import pytest
from conftest import Reply

from data import fetch

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()


def cut(n):
    return Reply(CONTENT, n_sent=n)


@pytest.mark.parametrize("replies, pauses", [
    ([], []), ([cut(5120), cut(0), cut(-1)], [1, 2, 5]),
    ([Reply(code=429), Reply(code=500), Reply(code=408), Reply(code=503)], [1, 2, 5, 15])])
def test_download(server, tmp_path, replies, pauses, capsys):
    remaining = iter(replies)
    server.respond = lambda path: next(remaining, Reply(CONTENT))
    path = tmp_path / "kept" / "a.csv"
    for _ in range(2):  # the second time the file is there
        assert fetch.download(f"{server.url}/a", path, MD5) == path
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    assert server.pauses == pauses and server.requests == {"/a": 1 + len(replies)}
    assert capsys.readouterr().out.count("; trying again in ") == len(replies)


@pytest.mark.parametrize("reply, is_permanent, problem", [
    (cut(5120), False, r"ValueError: 5,120 bytes instead of 10,240"),
    (cut(-1), False, "RemoteDisconnected"),
    (Reply(code=500), False, "HTTP 500 Internal Server Error"),
    (Reply(code=400), True, "HTTP 400 "), (Reply(code=404), True, "HTTP 404 ")])
def test_failure_is_one_line(server, tmp_path, reply, is_permanent, problem):
    server.respond = lambda path: reply
    message = (rf"cannot fetch .*/a .{problem}.*: check .*--source" if is_permanent else
               rf"/a keeps failing .{problem}.*is kept; or .*--source")
    with pytest.raises(SystemExit, match=message):
        fetch.download(f"{server.url}/a", tmp_path / "a")
    assert server.pauses == ([] if is_permanent else fetch.PAUSES)
    assert not (tmp_path / "a").exists()


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


def test_another_file_than_expected_and_no_place_for_it(server, tmp_path):
    server.respond, path = lambda path: Reply(CONTENT), tmp_path / "a"
    with pytest.raises(SystemExit, match=r"/a is not the file it should be \(MD5 00\): .*--source"):
        fetch.download(f"{server.url}/a", path, "00")
    assert not list(tmp_path.glob("a*"))
    path.write_text("")
    with pytest.raises(SystemExit, match="cannot fetch .* to "):
        fetch.download(f"{server.url}/a", path / "a")
