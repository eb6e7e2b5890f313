"""The page to play on: what its server answers and refuses, and what a browser makes of it."""
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_signals

import committee
import finetune
import pretrain
from experiments import play

TEXT = "The [MASK] and the old moon over [MASK]."
BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])),
               None)


@pytest.fixture(scope="module")
def server(runs):
    server = play.Server(0, ["scratch", f"{runs}/run"], [f"{runs}/member-*"])
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def send(server, body=b"", method="POST", **headers):
    """-> status, body (str) of the server's answer"""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, "/", body, headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def ask(server, text=TEXT, layer=1, head=1):
    status, body = send(server, json.dumps({"text": text, "layer": layer, "head": head}))
    assert status == 200
    return json.loads(body)


def test_predictions_are_those_of_fill(server, runs, capsys):
    random, trained = ask(server)["models"]
    assert (random["name"], trained["name"]) == ("random weights", f"{runs}/run")
    pretrain.main([f"--out_dir={runs}/run", f"--fill={TEXT}", "--device=cpu"])
    for guess, line in zip(trained["guesses"], capsys.readouterr().out.splitlines(), strict=True):
        assert len(guess) == 10
        shown = [f"{word.removeprefix('##')} {share:.1%}" for word, share in guess[:5]]
        assert line == "[MASK] = " + "   ".join(shown)
    assert random["guesses"] != trained["guesses"] and random["words"] == trained["words"]
    assert trained["words"][:4] == ["[CLS]", "the", "[MASK]", "and"]


@pytest.mark.parametrize("layer, head, shown", [(1, 2, (1, 2)), (2, 1, (2, 1)), (9, 9, (2, 2)),
                                                (0, -1, (1, 1)), (10**30, 1, (2, 1))])
def test_attention_sums_to_one(server, runs, layer, head, shown):
    answer = ask(server, layer=layer, head=head)["models"][1]
    assert (answer["layer"], answer["head"]) == shown
    assert (answer["n_layer"], answer["n_head"]) == (2, 2)
    shares, n = np.array(answer["attention"]), len(answer["words"])
    assert shares.shape == (n, n) and np.allclose(shares.sum(1), 1, atol=1e-3)
    model, tokenizer = pretrain.load_model(runs / "run")
    tokens = torch.tensor([pretrain.encode_with_mask(TEXT, tokenizer)])
    expected = play.attention(model, tokens, shown[0])[shown[1] - 1]
    assert np.allclose(shares, expected, atol=1e-4)


def test_the_vote_is_the_mean_of_the_members(server, runs, capsys):
    answer = ask(server)
    names, members = zip(*answer["members"])
    assert names == (str(runs / "member-0"), str(runs / "member-1")) and members[0] != members[1]
    assert answer["labels"] == ["day", "night", "rain"]
    assert np.allclose(answer["vote"], np.mean(members, axis=0))
    for run, shares in answer["members"]:
        model, tokenizer, _ = finetune.load_classifier(run)
        with torch.no_grad():  # [MASK] is one token for a classifier, too
            logits = model(torch.tensor([pretrain.encode_with_mask(TEXT, tokenizer)]))
        assert np.allclose(shares, logits.softmax(-1)[0], atol=1e-5)
    committee.main([*names, f"--predict={TEXT}", "--device=cpu"])
    assert f"committee: {finetune.format_labels(np.array(answer['vote']), answer['labels'])}\n" in (
        capsys.readouterr().out)


@pytest.mark.parametrize("text", ["", " ", "\0", "\ud800 \u4e2d <b>&amp;</b>", "[MASK]",
                                  "[E1] [CLS]"])
def test_any_text_is_answered(server, text):
    answer = ask(server, text)
    assert [len(model["guesses"]) for model in answer["models"]] == 2 * [text.count("[MASK]")]
    assert sum(answer["vote"]) == pytest.approx(1)


BAD = "send JSON like "


@pytest.mark.parametrize("status, line, body, headers", [
    (403, "this server is 127.0.0.1", b"{}", {"Host": "evil.example"}),
    (403, "this server is 127.0.0.1", b"{}", {"Host": "127.0.0.1.evil.example:8000"}),
    (403, "this server is 127.0.0.1", b"", {"Host": ""}),
    (413, "send at most 65,536 bytes", b" " * 10_000_000, {}),
    (413, "send at most 65,536 bytes", b"", {"Content-Length": "-1"}),
    (413, "send at most 65,536 bytes", b"", {"Content-Length": "9" * 5000}),
    (413, "send at most 65,536 bytes", iter([b"{}"]), {"Transfer-Encoding": "chunked"}),
    (400, BAD, b'{"text": "a", "layer": 1, ', {}),
    (400, BAD, b"\xff\xfe", {}),
    (400, BAD, b"[" * 60_000, {}),
    (400, BAD, b'{"text": "a"}', {}),
    (400, BAD, b'{"text": 1, "layer": 1, "head": 1}', {}),
    (400, BAD, b'{"text": "a", "layer": "1", "head": 1}', {}),
    (400, BAD, b'{"text": "a", "layer": 1.5, "head": null}', {}),
    (400, "the text: 42 tokens are more than the model's 32",
     json.dumps({"text": "moon " * 40, "layer": 1, "head": 1}).encode(), {})])
def test_what_is_wrong_is_answered_by_a_line(server, capsys, status, line, body, headers):
    got, answer = send(server, body, **headers)
    assert got == status and answer.startswith(line) and answer.count("\n") == 1
    assert ask(server)["vote"] and capsys.readouterr() == ("", "")


def test_other_methods_and_broken_connections(server, capsys):
    assert send(server, method="DELETE") == (501, "Unsupported method ('DELETE')\n")
    assert send(server, method="GET", Host="evil.example")[0] == 403
    for start in (b"", b"GET / HT", b"nonsense\r\n\r\n",
                  b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(start)
    assert ask(server)["vote"] and capsys.readouterr() == ("", "")


def test_many_at_once(server):
    texts = [f"The [MASK] of {n}." for n in range(40)]
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda text: ask(server, text), texts))
    for i in (0, 17, 39):
        assert answers[i] == ask(server, texts[i])


def test_the_page_asks_nobody_else(server):
    status, page = send(server, method="GET", Host="localhost:1234")
    assert status == 200 and not re.search(r"https?:|url\(|@import|src=", page)
    assert "default-src 'none'; connect-src 'self'" in page


def test_flags(runs, server):
    run = f"{runs}/run"
    for flags, message in [(["scratch"], "name one run of pretrain.py"),
                           ([run, run, run], "name one run of pretrain.py"),
                           ([run, f"--port={server.server_port}"], "in use; try another")]:
        with pytest.raises(SystemExit, match=message):
            play.main(flags)


@needs_signals
def test_interrupted(runs):
    command = [sys.executable, "-m", "experiments.play", f"{runs}/run", "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        try:
            line = process.stdout.readline()
            port = int(re.fullmatch(r"open http://127.0.0.1:(\d+) in .*\n", line)[1])
            with socket.create_connection(("127.0.0.1", port)):  # as browsers leave them open
                process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a background job ignores
                assert process.communicate(timeout=60)[0] == ""
        finally:
            process.kill()
    assert process.returncode == 0


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_in_a_browser(server, tmp_path):
    def look(query):
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                   "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}",
                   f"http://127.0.0.1:{server.server_port}/?{query}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    page = look("text=The+[MASK]+and&layer=2&head=1")
    for model in ask(server, "The [MASK] and")["models"]:
        for word, share in model["guesses"][0]:
            assert f"<li><span>{word}</span>" in page
    assert "layer 2 of 2, head 1 of 2" in page and "“[MASK]” attends most to" in page
    assert "<b>vote</b>" in page and f"<span>{server.runs[1]}</span>" in page
    assert 'title="puts back Japan"' in look("")  # by a click on an example and on its last word
    assert 'class="error">the text: 42 tokens are more than' in look("text=" + 40 * "moon+")
