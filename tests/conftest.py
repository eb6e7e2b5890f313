"""What several tests need: a folder for datasets, small files, a local server."""
import gzip
import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes at once want a thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from data import fetch, tokenfile
from data.tokenfile import Dataset, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer

# Tests that are started in the background would hand ignored signals on to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
ROOT, IS_WINDOWS = Path(__file__).parent.parent, os.name == "nt"
OWN = get_tokenizer("own", "".join(SHIPPED.read_text().splitlines(keepends=True)[:300]))
needs_signals = pytest.mark.skipif(IS_WINDOWS, reason="Windows sends no signals to processes")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """A run's picture takes half a second: what a test trains in its own process has none, unless
    the test begins with monkeypatch.undo()."""
    if "training" in sys.modules:
        monkeypatch.setattr(sys.modules["training"], "draw_curves", lambda *args: "")


@pytest.fixture
def bin_dir(tmp_path, monkeypatch):
    """A folder in place of data/bin; it does not exist yet."""
    monkeypatch.setattr(tokenfile, "BIN_DIR", tmp_path / "bin")
    return tmp_path / "bin"


@pytest.fixture(scope="session")
def weather(tmp_path_factory):
    """A folder of two datasets: "labelled", texts of three classes, and "plain", without labels."""
    folder, rng = tmp_path_factory.mktemp("bin"), random.Random(0)
    words = {"day": "sun light noon blue", "night": "moon stars dark owl",
             "rain": "wet cloud drops umbrella"}

    def text(name):
        filler = "the a of and in over very small old house road town".split()
        chosen = rng.choices(filler, k=rng.randint(2, 9)) + rng.choices(words[name].split(), k=2)
        return " ".join(rng.sample(chosen, len(chosen)))
    items = [(split, text(name), label) for split, n in (("train", 23), ("test", 10))
             for _ in range(n) for label, name in enumerate(words)]
    write_dataset(folder / "labelled", items, get_tokenizer(), {}, labels=list(words))
    items = [(split, text(rng.choice(list(words)))) for split, n in (("train", 50), ("val", 10))
             for _ in range(n)]
    write_dataset(folder / "plain", items, get_tokenizer(), {})
    return folder


@pytest.fixture(scope="session")
def runs(weather, tmp_path_factory):
    """A folder with a run of pretrain.py, "run", and two of finetune.py, "member-0" and "-1"."""
    import finetune  # not on top: many tests need no torch
    import pretrain
    folder, cpu = tmp_path_factory.mktemp("runs"), ["--device=cpu", "--dtype=float32", "--epochs=1"]
    pretrain.main([f"--dataset={weather}/plain", f"--out_dir={folder}/run", "--n_layer=2",
                   "--n_embd=32", "--n_head=2", "--block_size=32", *cpu])
    for seed in range(2):
        finetune.main([f"--dataset={weather}/labelled", f"--init_from={folder}/run", *cpu,
                       f"--out_dir={folder}/member-{seed}", f"--seed={seed}"])
    return folder


def write(path, content):
    """Write str or bytes to a file, compressed if its name ends in .gz. -> path"""
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix in (".gz", ".GZ") else content)
    return path


def jsonl(texts):
    return "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))


def log_of(out_dir):
    """The evaluations of a run (list of dict)."""
    return [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]


def texts_of(name, split="train"):
    """The documents of a prepared dataset, as the tokenizer normalises them (list of str)."""
    tokens, offsets = Dataset(name).split(split)
    return [get_tokenizer().decode(tokens[a:b]) for a, b in zip(offsets, offsets[1:])]


def examples_of(name, split="train"):
    """-> list of (label's name, text)"""
    dataset = Dataset(name)
    return [(dataset.label_names[label], text)
            for label, text in zip(dataset.labels(split), texts_of(name, split))]


class Reply(NamedTuple):
    body: bytes = b"words"
    code: int = 200
    headers: dict = {}
    n_sent: int | None = None  # bytes of the body; None: all; -1: not even the headers


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        reply = self.server.respond(self.path)
        if reply.n_sent != -1:
            self.send_response(reply.code)
            for name, value in {"Content-Length": len(reply.body), **reply.headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(reply.body[:reply.n_sent])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path, bin_dir):
    """A server with `url`, whose `respond` (path -> Reply) a test sets, which counts `requests` by
    path. Downloads go to a folder of the test; pauses are not made but recorded in `pauses`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.requests, server.pauses = Counter(), []
    monkeypatch.setattr(fetch.time, "sleep", server.pauses.append)
    monkeypatch.setattr(fetch, "DOWNLOAD_DIR", tmp_path / "download")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
