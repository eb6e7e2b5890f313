"""The Wikipedia download against a server on this machine that misbehaves, and the choice of articles."""
import gzip
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse

import pytest

from data import fetch, wikipedia
from data.tokenfile import open_split, read_meta
from data.tokenizer import get_tokenizer

N_ROWS = 1950  # 20 pages, the last one half full
LONG = "and so on " * 20


def text_of(i):
    """Every 50th article is too short. Capitals and accents would not survive the tokenizer."""
    return f"article {i}" if i % 50 == 7 else f"article {i} {LONG}"


def rows(start, n):
    return [{"row_idx": i, "row": {"id": str(i), "title": f"T{i}", "text": text_of(i)}, "truncated_cells": []}
            for i in range(start, min(start + n, N_ROWS))]


class Handler(BaseHTTPRequestHandler):
    """Serves the pages as the real server does, after the misbehaviours that server.plan lists for a page."""

    def do_GET(self):
        query = {key: value[0] for key, value in parse_qs(urlparse(self.path).query).items()}
        start, n = int(query["offset"]), int(query["length"])
        page, state = start // 100, self.server.state
        with state.lock:
            state.requests[page] += 1
            plan = state.plan.get(page, state.plan.get("every", []))
            behaviour = plan if isinstance(plan, str) else plan.pop(0) if plan else ""
        answer = {"rows": rows(start, n), "num_rows_total": N_ROWS, "num_rows_per_page": 100, "partial": False}
        code, headers, body_of = 200, {}, json.dumps
        if behaviour.startswith("HTTP"):
            code, answer = int(behaviour.split()[1]), {"error": "words"}
            headers = {"Retry-After": behaviour.split()[2]} if len(behaviour.split()) > 2 else {}
        elif behaviour == "short":
            del answer["rows"][70:]
        elif behaviour == "no rows":
            answer["rows"] = []
        elif behaviour == "other rows":
            answer["rows"] = rows((start + 100) % 1900, n)
        elif behaviour == "error":
            answer = {"error": "words"}
        elif behaviour == "list":
            answer = [1, 2]
        elif behaviour == "broken":
            body_of = lambda answer: json.dumps(answer)[:-30]  # noqa: E731
        elif behaviour == "truncated cells":
            for i, row in enumerate(answer["rows"][:3]):
                row.update(truncated_cells=[["text"], ["text"], ["title"]][i])
            answer["rows"][1]["row"]["text"] = f"article {start + 1} " + "word " * 500
        elif behaviour == "null":
            answer["rows"][0]["row"]["text"] = None
        body = body_of(answer).encode()
        if behaviour == "closed":
            return self.close()
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[:len(body) // 2] if behaviour == "cut" else body)
        if behaviour == "cut":
            self.close()

    def close(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """plan: page or "every" -> list of misbehaviours, each once, or one for ever. Counts requests, collects pauses."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.state = SimpleNamespace(plan={}, requests=Counter(), pauses=[], lock=threading.Lock(),
                                 kept=tmp_path / "kept", bin=tmp_path / "bin")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(wikipedia, "ROWS_URL", f"http://127.0.0.1:{http.server_port}/rows?split=train")
    monkeypatch.setattr(fetch, "pause", http.state.pauses.append)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield http.state
    http.shutdown()
    http.server_close()


def download(server, n_train, n_val=200, seed=0):
    """-> {"val": texts, "train": texts} and the source, as write_dataset would get them."""
    source, splits = {}, {"val": [], "train": []}
    for split, text in wikipedia.download_articles(n_val, n_train, seed, source, server.kept):
        splits[split].append(text)
    return splits, source


def test_subsets_are_nested_and_nothing_is_fetched_twice(server):
    small, source = download(server, 300)
    pages = set(server.requests)
    assert len(pages) in (6, 7) and set(server.requests.values()) == {1} and not server.pauses
    assert [len(small[split]) for split in ("val", "train")] == [200, 300]
    again, same = download(server, 300)
    assert again == small and same == source and server.requests == Counter(pages)  # all from the kept pages
    large, other = download(server, 900)
    assert set(server.requests.values()) == {1} and len(server.requests) > len(pages)
    assert large["val"] == small["val"] and large["train"][:300] == small["train"] and len(large["train"]) == 900
    assert len(set(large["val"] + large["train"])) == 1100
    assert source["n_rows"] == N_ROWS and source["sha256"] != other["sha256"]
    assert source["skipped"].keys() == {"shorter than 20 words"}
    assert download(server, 300, seed=1)[0]["val"] != small["val"]


def test_all_articles_and_too_many(server):
    n_usable = sum(len(text_of(i)) > 50 for i in range(N_ROWS))
    splits, _ = download(server, n_usable - 200)  # with the last page, which is not full
    assert sorted(splits["val"] + splits["train"]) == sorted(text_of(i) for i in range(N_ROWS) if i % 50 != 7)
    assert not server.pauses
    with pytest.raises(SystemExit, match=f"--n_articles={n_usable - 199}: too many, the source has only {n_usable:,}"):
        download(server, n_usable - 199)
    server.requests.clear()
    with pytest.raises(SystemExit, match=f"only {N_ROWS:,} articles"):
        download(server, N_ROWS)
    assert not server.requests


@pytest.mark.parametrize("behaviours, pauses", [
    (["HTTP 429 17"], [17]),
    (["HTTP 429", "HTTP 503 1", "HTTP 429 0"], [1, 2, 5]),
    (["HTTP 429 Wed, 21 Oct 2030 07:28:00 GMT"], [1]),
    (["HTTP 500", "HTTP 502", "HTTP 408"], [1, 2, 5]),
    (["cut", "closed"], [1, 2]),
    (["broken", "error", "list", "no rows", "other rows"], [1, 2, 5, 15, 30]),
    (["short"], [1]),
])
def test_recovers_from_what_passes(server, capsys, behaviours, pauses):
    expected, _ = download(server, 1000)
    for path in server.kept.iterdir():
        path.unlink()
    server.requests.clear()
    server.plan = {page: list(behaviours) for page in (0, 4)}
    assert download(server, 1000)[0] == expected
    assert server.pauses == pauses * len({0, 4} & set(server.requests))
    assert f"trying again in {pauses[0]} s" in capsys.readouterr().out
    assert server.requests[0] == len(behaviours) + 1


@pytest.mark.parametrize("behaviour, message", [
    ("HTTP 500", "HTTP 500 Internal Server Error"),
    ("cut", "IncompleteRead"),
    ("closed", "RemoteDisconnected"),
    ("broken", "Expecting|Unterminated|delimiter"),
    ("no rows", "not the rows that were asked for"),
    ("list", "not an answer with rows"),
])
def test_endless_failure_is_one_line_and_loses_nothing(server, behaviour, message):
    expected, _ = download(server, 900)
    fetched = dict(server.requests)
    for path in sorted(server.kept.iterdir())[::2]:
        path.unlink()
    n_kept = len(list(server.kept.iterdir()))
    server.plan, server.requests = {"every": behaviour}, Counter()
    with pytest.raises(SystemExit, match=f"127.0.0.1:.* keeps failing .*({message}).*later.*kept; .*--source") as error:
        download(server, 900)
    assert "\n" not in str(error.value)
    assert server.pauses == fetch.PAUSES and server.requests.total() == len(fetch.PAUSES) + 1
    assert len(list(server.kept.iterdir())) == n_kept
    server.plan, server.requests = {}, Counter()
    assert download(server, 900)[0] == expected
    assert server.requests.total() == len(fetched) - n_kept


@pytest.mark.parametrize("code", [400, 401, 403, 404])
def test_hopeless_answers_are_not_repeated(server, code):
    server.plan = {"every": f"HTTP {code}"}
    with pytest.raises(SystemExit, match=f"127.0.0.1.*offset=0&length=100 answers HTTP {code} .*ROWS_URL.*--source"):
        download(server, 100)
    assert server.requests.total() == 1 and not server.pauses


def test_too_long_a_pause_is_not_waited_for(server):
    server.plan = {"every": "HTTP 429 86400"}
    with pytest.raises(SystemExit, match="HTTP 429 .*run the command again later"):
        download(server, 100)
    assert not server.pauses


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"),
                                   ssl.SSLCertVerificationError("self-signed certificate")])
def test_offline_is_recognised_at_once(server, monkeypatch, error):
    def urlopen(request, timeout):
        raise urllib.error.URLError(error)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(SystemExit, match="cannot reach 127.0.0.1.*(not known|certificate).*check the connection.*kept"):
        download(server, 100)
    assert not server.pauses


def test_time_out(server, monkeypatch):
    def urlopen(request, timeout):
        raise TimeoutError("timed out")
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(SystemExit, match=r"keeps failing \(TimeoutError: timed out\)"):
        download(server, 100)
    assert server.pauses == fetch.PAUSES


def test_a_page_that_stays_short_is_accepted(server):
    server.plan = {page: "short" for page in range(1, 20)}
    splits, _ = download(server, 900)
    assert len(splits["train"]) == 900 and set(server.pauses) == {1}
    assert not any(int(text.split()[1]) % 100 >= 70 and int(text.split()[1]) >= 100 for text in splits["train"])
    server.requests.clear()
    assert download(server, 900)[0] == splits and not server.requests


def test_texts_that_the_server_cut(server):
    server.plan = {0: "truncated cells", 1: ["null"]}
    splits, source = download(server, 1700)
    there = {int(text.split()[1]) for text in splits["val"] + splits["train"]}
    assert 0 not in there and {1, 2} <= there  # the second is long enough still, the third lacks only its title
    assert source["skipped"]["cut short by the server"] == 1 and source["skipped"]["empty text"] == 1


@pytest.mark.parametrize("damage", [b"", b"not gzip", "truncated", gzip.compress(b"{}"), gzip.compress(b"\xff\xfe")])
def test_a_damaged_page_is_fetched_again(server, damage):
    expected, _ = download(server, 500)
    path = sorted(server.kept.iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-30] if damage == "truncated" else damage)
    server.requests.clear()
    assert download(server, 500)[0] == expected
    assert server.requests == {int(path.name[:5]): 1}
    assert all(path.name.endswith(".json.gz") for path in server.kept.iterdir())  # no temporary files


def test_pages_that_cannot_be_kept(server):
    server.kept.write_text("a file where the folder should be")
    with pytest.raises(SystemExit, match="cannot make the folder .*kept: "):
        download(server, 100)


def texts(name, split, bin_dir):
    tokens, offsets = open_split(name, split, bin_dir)
    return [get_tokenizer().decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:])]


def test_download_end_to_end(server):
    def main(*flags):
        wikipedia.main(["--n_val=100", *flags], server.bin, server.kept)
    main("--n_articles=200")
    main("--n_articles=400", "--name=larger")
    small, large = texts("wikipedia-200", "train", server.bin), texts("larger", "train", server.bin)
    assert len(small) == 200 and len(large) == 400 and set(small) < set(large)
    assert texts("wikipedia-200", "val", server.bin) == texts("larger", "val", server.bin)
    source = read_meta("larger", server.bin)["source"]
    assert source["seed"] == 0 and source["n_rows"] == N_ROWS and source["url"] == wikipedia.ROWS_URL
    server.plan = {"every": "HTTP 500"}
    with pytest.raises(SystemExit, match="keeps failing"):
        main("--n_articles=1500", "--name=larger")
    assert read_meta("larger", server.bin)["source"] == source  # the old one is still there
    assert sorted(path.name for path in server.bin.iterdir()) == ["larger", "wikipedia-200"]


def test_local_files_end_to_end(tmp_path, capsys):
    for part in range(3):
        lines = "".join(json.dumps({"id": i, "text": text_of(i)}) + "\n" for i in range(200 * part, 200 * (part + 1)))
        with gzip.open(tmp_path / f"{part}.jsonl.gz", "wt") as file:
            file.write(lines + ("broken\n" if part == 1 else ""))
    def main(*flags):
        wikipedia.main([f"--source={tmp_path}/*.jsonl.gz", "--n_val=50", *flags], tmp_path / "bin", tmp_path / "kept")
    main("--n_articles=200")
    main("--n_articles=500", "--name=larger")
    assert f"skipped: 12 shorter than 20 words (first: {tmp_path}/0.jsonl.gz:8), 1 not JSON" in capsys.readouterr().out
    small, large = texts("wikipedia-200", "train", tmp_path / "bin"), texts("larger", "train", tmp_path / "bin")
    assert len(small) == 200 and len(large) == 500 and set(small) < set(large)
    assert texts("wikipedia-200", "val", tmp_path / "bin") == texts("larger", "val", tmp_path / "bin")
    source = read_meta("larger", tmp_path / "bin")["source"]
    assert source["n_docs"] == 588 and len(source["files"]) == 3 and source["skipped"]["not JSON"] == 1
    with pytest.raises(SystemExit, match="--n_articles=539: too many, the source has only 588 articles"):
        main("--n_articles=539")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("flag", ["--n_articles=0", "--n_val=0", "--seed=-1", "--tokenizer=absent", "--source=absent"])
def test_mistakes(tmp_path, flag):
    with pytest.raises(SystemExit, match=f"{flag}: |absent"):
        wikipedia.main([flag], tmp_path / "bin", tmp_path / "kept")
    assert not list(tmp_path.iterdir())
