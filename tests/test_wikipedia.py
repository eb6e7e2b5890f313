"""Wikipedia from a server on this machine that misbehaves, and from files."""
import gzip
import json
from collections import Counter
from urllib.parse import parse_qs, urlparse

import pytest
from conftest import Reply, jsonl, texts_of, write

from data import fetch, wikipedia
from data.tokenfile import Dataset

N_ROWS = 1950  # 20 pages, the last one half full
LONG = "and so on " * 20


def text_of(i):
    """Every 50th article is too short. Capitals and accents would not survive the tokenizer."""
    return f"article {i}" if i % 50 == 7 else f"article {i} {LONG}"


def rows(start, n):
    return [{"row_idx": i, "row": {"id": str(i), "title": f"T{i}", "text": text_of(i)},
             "truncated_cells": []} for i in range(start, min(start + n, N_ROWS))]


def misbehave(behaviour, answer, start):
    """The server's answer (dict) to a request for the rows from `start`, spoilt -> Reply."""
    answers = {"short": answer | {"rows": answer["rows"][:70]}, "no rows": answer | {"rows": []},
               "other rows": answer | {"rows": rows((start + 100) % 1900, 100)},
               "error": {"error": "words"}, "list": [1, 2]}
    answer = answers.get(behaviour, answer)
    if behaviour == "null":
        answer["rows"][0]["row"]["text"] = None
    elif behaviour == "truncated cells":
        for row, cells in zip(answer["rows"], (["text"], ["text"], ["title"])):
            row["truncated_cells"] = cells
        answer["rows"][1]["row"]["text"] = f"article {start + 1} " + "word " * 500
    body = json.dumps(answer).encode()
    return Reply(body[:-30] if behaviour == "broken" else body,
                 n_sent=len(body) // 2 if behaviour == "cut" else None)


@pytest.fixture
def pages(server, monkeypatch):
    """The server as pages of rows. plan: page or "every" -> list of misbehaviours, each once, or
    one for ever. asked: how often it was asked for each page. kept: the files of pages."""
    def respond(path):
        start = int(parse_qs(urlparse(path).query)["offset"][0])
        server.asked[start // 100] += 1
        plan = server.plan.get(start // 100, server.plan.get("every", []))
        if isinstance(plan, list):
            plan = plan.pop(0) if plan else ""
        answer = {"rows": rows(start, 100), "num_rows_total": N_ROWS, "partial": False}
        return misbehave(plan, answer, start)
    server.respond, server.plan, server.asked = respond, {}, Counter()
    server.kept = fetch.DOWNLOAD_DIR / "wikipedia" / wikipedia.CONFIG
    monkeypatch.setattr(wikipedia, "ROWS_URL", f"{server.url}/rows?split=train")
    return server


def download(n_train, n_val=200, seed=0):
    """-> {"val": texts, "train": texts} as write_dataset would get them, and the source."""
    source, items = wikipedia.download_articles(n_val, n_train, seed)
    splits = {"val": [], "train": []}
    for split, text in items:
        splits[split].append(text)
    return splits, source


def test_subsets_are_nested_and_nothing_is_fetched_twice(pages):
    small, source = download(300)
    first = dict(pages.asked)
    assert len(first) in (6, 7) and set(first.values()) == {1} and not pages.pauses
    assert [len(small[split]) for split in ("val", "train")] == [200, 300]
    assert download(300) == (small, source) and pages.asked == first  # all from the kept pages
    large, other = download(900)
    assert set(pages.asked.values()) == {1} and len(pages.asked) > len(first)
    assert large["val"] == small["val"] and large["train"][:300] == small["train"]
    assert len(large["train"]) == 900 and len(set(large["val"] + large["train"])) == 1100
    assert source["n_rows"] == N_ROWS and source["sha256"] != other["sha256"]
    assert source["skipped"].keys() == {"shorter than 20 words"}
    assert download(300, seed=1)[0]["val"] != small["val"]


def test_all_articles_and_too_many(pages, monkeypatch):
    """With a page that is not full, and a text that comes twice."""
    usable = [text_of(i) for i in range(N_ROWS) if i % 50 != 7]
    texts = {N_ROWS - 1: usable[0]}
    monkeypatch.setitem(globals(), "text_of", lambda i, of=text_of: texts.get(i) or of(i))
    splits, source = download(len(usable) - 201)
    assert sorted(splits["val"] + splits["train"]) == sorted(usable[:-1]) and not pages.pauses
    assert source["skipped"]["duplicates"] == 1
    message = f"--n_articles={len(usable) - 200}: too many, the source has only {len(usable) - 1:,}"
    with pytest.raises(SystemExit, match=message):
        download(len(usable) - 200)
    pages.asked.clear()
    with pytest.raises(SystemExit, match=f"only {N_ROWS:,} articles"):
        download(N_ROWS)
    assert not pages.asked


@pytest.mark.parametrize("behaviours", [
    ["cut", "broken", "error", "list", "no rows", "other rows"], ["short"]])
def test_recovers_from_what_is_temporary(pages, capsys, behaviours):
    expected, _ = download(1000)
    for path in pages.kept.iterdir():
        path.unlink()
    pages.asked.clear()
    pages.plan = {page: list(behaviours) for page in (0, 4)}
    assert download(1000)[0] == expected
    assert pages.pauses == fetch.PAUSES[:len(behaviours)] * len({0, 4} & set(pages.asked))
    assert "trying again in 1 s" in capsys.readouterr().out
    assert pages.asked[0] == len(behaviours) + 1


def test_what_the_server_lacks(pages):
    """A page that stays short is accepted; texts that are cut or missing are skipped."""
    pages.plan = {page: "short" for page in range(2, 20)} | {0: ["truncated cells"], 1: ["null"]}
    splits, source = download(1100)
    numbers = {int(text.split()[1]) for text in splits["val"] + splits["train"]}
    assert set(pages.pauses) == {1} and not any(i % 100 >= 70 and i >= 200 for i in numbers)
    assert 0 not in numbers and {1, 2} <= numbers  # the second is long enough, the third whole
    assert source["skipped"]["cut short by the server"] == 1
    assert source["skipped"]['without a text'] == 1
    pages.asked.clear()
    assert download(1100)[0] == splits and not pages.asked


@pytest.mark.parametrize("damage", [b"", b"not gzip", "truncated", gzip.compress(b"{}", mtime=0),
                                    gzip.compress(b"\xff\xfe", mtime=0)])
def test_a_damaged_page_is_fetched_again(pages, damage):
    expected, _ = download(500)
    path = sorted(pages.kept.iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-30] if damage == "truncated" else damage)
    pages.asked.clear()
    assert download(500)[0] == expected and pages.asked == {int(path.name[:5]): 1}
    assert all(path.name.endswith(".json.gz") for path in pages.kept.iterdir())  # nothing temporary


def test_download_end_to_end(pages, bin_dir):
    wikipedia.main(["--n_val=100", "--n_articles=200"])
    splits, source = download(200, n_val=100)
    assert texts_of("wikipedia-200") == [text.strip() for text in splits["train"]]
    assert texts_of("wikipedia-200", "val") == [text.strip() for text in splits["val"]]
    assert Dataset("wikipedia-200").meta["source"] == source | {"seed": 0}


def test_local_files_end_to_end(tmp_path, bin_dir, capsys):
    for part in range(3):
        lines = jsonl(text_of(i) for i in range(200 * part, 200 * (part + 1)))
        write(tmp_path / f"{part}.jsonl.gz", lines)
    flags = [f"--source={tmp_path}/*.jsonl.gz", "--n_val=50"]
    wikipedia.main([*flags, "--n_articles=500", "--name=mine"])
    message = "skipped: 12 shorter than 20 words"
    assert message in capsys.readouterr().out
    assert len(texts_of("mine")) == 500 and len(texts_of("mine", "val")) == 50
    source = Dataset("mine").meta["source"]
    assert source["n_docs"] == 588 and len(source["files"]) == 3 and source["seed"] == 0
    with pytest.raises(SystemExit, match="--n_articles=539: too many, the source has only 588 art"):
        wikipedia.main([*flags, "--n_articles=539"])
