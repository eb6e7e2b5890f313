"""A page to play on: what a model predicts at a [MASK], where it looks, how a committee votes.

    python -m experiments.play out/pocket-bert1 --classifiers out/committee-*/member-*
    python -m experiments.play scratch out/pocket-bert1    # before and after pre-training

Open the address that it prints in a browser on this machine. Other machines get no answer, and
nothing that is sent is run or kept.
"""
import contextlib
import json
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import committee
import pretrain
from data.flags import new_parser, number, run_script, user_path
from experiments.look import attention, spell
from model import BertForMaskedLM

MAX_BYTES = 2**16  # of a request


@torch.no_grad()
def look_at(text, layer, head, name, model, tokenizer):
    """-> what a pre-trained model makes of a text (dict): its tokens, the ten likeliest at each
    [MASK] with their probabilities, the attention of a head (T lists of T). Layer and head count
    from 1; what is too high is the last. SystemExit if the text is too long."""
    ids, config = pretrain.encode_with_mask(text, tokenizer), model.bert.config
    pretrain.check_length(ids, model, "the text")
    layer, head = max(1, min(layer, config.n_layer)), max(1, min(head, config.n_head))
    tokens, guesses = torch.tensor([ids]), []
    masks = torch.tensor([[i for i, token in enumerate(ids) if token == tokenizer.mask]]).long()
    for probabilities in model(tokens, None, masks)[0].softmax(-1):  # (V,)
        best = probabilities[:tokenizer.n_plain].topk(10)
        words = [spell(tokenizer, token) for token in best.indices]
        guesses.append(list(zip(words, best.values.tolist())))
    shares = attention(model, tokens, layer)[head - 1].tolist()
    return {"name": name, "n_layer": config.n_layer, "n_head": config.n_head, "layer": layer,
            "head": head, "words": [spell(tokenizer, token) for token in ids], "guesses": guesses,
            "attention": [[round(share, 4) for share in row] for row in shares]}


def parse(content):
    """-> the text, layer and head of a request (bytes). SystemExit if it lacks them."""
    with contextlib.suppress(ValueError, RecursionError):  # broken JSON, or too deep
        match json.loads(content):
            case {"text": str(text), "layer": int(layer), "head": int(head)}:
                return text, layer, head
    raise SystemExit('send JSON like {"text": "Argon is a [MASK].", "layer": 1, "head": 1}')


class Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds for a client that is silent
    error_content_type, error_message_format = "text/plain", "%(message)s\n"

    def parse_request(self):
        """Refuse what is sent to another name than ours: a foreign site could let its own name lead
        here, and its pages could then read the answers (DNS rebinding)."""
        if not super().parse_request():
            return False
        if self.headers.get("Host", "").split(":")[0] in ("127.0.0.1", "localhost"):
            return True
        return self.send_error(403, "this server is 127.0.0.1 or localhost, nothing else")

    def do_GET(self):
        self.reply(200, "text/html", Path(__file__).with_name("play.html").read_bytes())

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and len(length) < 9 and int(length) <= MAX_BYTES):
            return self.send_error(413, f"send at most {MAX_BYTES:,} bytes, and Content-Length")
        try:
            answer = self.server.answer(*parse(self.rfile.read(int(length))))
            self.reply(200, "application/json", json.dumps(answer).encode())
        except SystemExit as error:
            self.reply(400, "text/plain", f"{error}\n".encode())

    def reply(self, code, content_type, content):
        self.send_response(code)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Answers 127.0.0.1:port by these runs of pretrain.py (or "scratch") and of finetune.py."""
    request_queue_size = 256  # connections that may wait
    allow_reuse_address = os.name != "nt"  # there a second server could take the same port
    # A thread for each connection, since browsers leave some idle; but the models compute for one
    # at a time: attention() hooks into them, and PyTorch uses all cores anyway.
    lock = threading.Lock()

    def __init__(self, port, runs, classifiers):
        models = {run: (run, *pretrain.load_model(run)) for run in runs if run != "scratch"}
        if not models or len(runs) > 2:
            raise SystemExit("name one run of pretrain.py, or two; one of the two may be scratch")
        _, model, tokenizer = next(iter(models.values()))
        torch.manual_seed(0)
        models["scratch"] = "random weights", BertForMaskedLM(model.bert.config).eval(), tokenizer
        self.models, self.runs = [models[run] for run in runs], committee.find_runs(classifiers)
        self.committee = committee.load_members(self.runs, "cpu") if self.runs else ([], None, [])
        super().__init__(("127.0.0.1", port), Handler)

    def answer(self, text, layer, head):
        """-> what the page shows (dict). SystemExit if the text is not one for the models."""
        with self.lock:
            models = [look_at(text, layer, head, *model) for model in self.models]
            members, tokenizer, labels = self.committee
            votes = members and committee.classify([text], members, tokenizer, "cpu")[:, 0].tolist()
        return {"models": models, "labels": labels, "members": list(zip(self.runs, votes)),
                "vote": [sum(shares) / len(votes) for shares in zip(*votes)]}

    def shutdown_request(self, request):  # a client reads the answer when it has sent everything
        with contextlib.suppress(OSError):
            request.settimeout(1)  # second, of silence: an idle browser must not delay Ctrl-C
            request.shutdown(socket.SHUT_WR)
            while request.recv(MAX_BYTES):
                pass
        self.close_request(request)

    def handle_error(self, *_):
        if not isinstance(error := sys.exception(), OSError):  # OSError: the client went away
            print(f"a request failed: {error!r}")


def main(argv=None):
    parser = new_parser("python -m experiments.play", __doc__)
    flag = parser.add_argument
    flag("runs", nargs="*", type=user_path, metavar="RUN", default=["out/pocket-bert1"],
         help="one run of pretrain.py, or two; scratch: the other's architecture, random weights")
    flag("--classifiers", nargs="+", type=user_path, default=[], help="runs of finetune.py to vote")
    flag("--port", type=number(int, 0, 65535), default=8000, help="0: any that is free")
    args = parser.parse_args(argv)
    try:
        server = Server(args.port, args.runs, args.classifiers)
    except OSError as error:
        raise SystemExit(f"--port={args.port}: {error.strerror}; try another") from None
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"open http://127.0.0.1:{server.server_port} in a browser; Ctrl-C ends this")
        server.serve_forever()


if __name__ == "__main__":
    run_script(main)
