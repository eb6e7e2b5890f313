"""English Wikipedia: download as many random articles as wanted, or take them from local files, into token files.

    python -m data.wikipedia --n_articles=40000
    python -m data.wikipedia --n_articles=40000 --source='articles/*.jsonl.gz'
    python -m data.wikipedia --n_articles=5000 --overlap_with=fewrel --overlap=high

Training sets of one seed and source are nested: 20,000 articles are part of the 40,000. All share one validation set.
What is downloaded is kept in data/download/wikipedia, so an interrupted download goes on where it stopped, and a larger
training set fetches only what a smaller one has not fetched already. The last command chooses the articles by their
tokens (see data/overlap.py).
"""
import argparse
import gzip
import hashlib
import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
import zlib
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import fetch
from data.files import is_usable, report_skipped, skip, split_documents, survey
from data.overlap import choose_articles, print_overlap
from data.tokenfile import BIN_DIR, write_atomically, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer

CONFIG = "20231101.en"  # the dump of 1 November 2023: 6,407,814 articles
ROWS_URL = f"https://datasets-server.huggingface.co/rows?dataset=wikimedia/wikipedia&config={CONFIG}&split=train"
DOWNLOAD_DIR = fetch.DOWNLOAD_DIR / "wikipedia" / CONFIG
PAGE_SIZE = 100  # rows; the server gives no more at a time
MIN_WORDS = 20  # what is shorter is mostly not prose
MIN_CUT = 2000  # characters; if the server has left less than that of a long text, it lacks what a block would hold
LONGEST_PAUSE = 600  # seconds; we do not wait for a server that wants to be left alone for longer


def parse_page(content, page):
    """The server's answer (bytes) -> its texts, list of (str, whether the server cut it), and the number of all rows.

    ValueError if this is anything but the first rows, at least one, of that page.
    """
    try:
        answer = json.loads(content)
        texts = [(row["row"]["text"], "text" in row["truncated_cells"]) for row in answer["rows"]]
        numbers = [row["row_idx"] for row in answer["rows"]]
        n_rows = int(answer["num_rows_total"])
    except (KeyError, TypeError, RecursionError):
        raise ValueError("not an answer with rows") from None
    start = page * PAGE_SIZE
    if not numbers or numbers != list(range(start, start + len(numbers))) or len(numbers) > PAGE_SIZE:
        raise ValueError("not the rows that were asked for")
    return [(text if isinstance(text, str) else "", cut) for text, cut in texts], n_rows


def fetch_page(page):
    """Ask the server for a page, again after a pause if need be -> its answer (bytes), for which parse_page succeeds.

    SystemExit if it has failed too often, or if it is no use to ask again. A page that comes twice with the same rows
    missing is accepted: that is all the server has, and to insist would block every download that needs the page.
    """
    url = f"{ROWS_URL}&offset={page * PAGE_SIZE}&length={PAGE_SIZE}"
    request = urllib.request.Request(url, headers={"User-Agent": "tiny-bert"})
    instead, n_before = "or read local files with --source=FILES", None
    for wait in [*fetch.PAUSES, None]:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                content = response.read()
            texts, n_rows = parse_page(content, page)
            n, n_expected = len(texts), min(PAGE_SIZE, n_rows - page * PAGE_SIZE)
            if n in (n_expected, n_before):
                return content
            problem, n_before = f"{n} rows instead of {n_expected}", n
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise SystemExit(f"{url} answers {problem}: correct ROWS_URL in data/wikipedia.py, {instead}") from None
            asked = error.headers.get("Retry-After", "")
            if wait is not None and asked.isdecimal():
                wait = max(wait, int(asked))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            problem = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(error)
            if isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError)):  # will be no better in a minute
                raise SystemExit(f"cannot reach {request.host} ({reason}): check the connection and run the command "
                                 f"again, what was fetched is kept; {instead}") from None
        if wait is None or wait > LONGEST_PAUSE:
            raise SystemExit(f"{request.host} keeps failing ({problem}): run the command again later, "
                             f"what was fetched is kept; {instead}")
        tqdm.write(f"page {page}: {problem}; trying again in {wait} s")
        fetch.pause(wait)


def get_page(page, download_dir):
    """parse_page of the kept page, or of the server's if there is none yet or it is damaged. That one is then kept."""
    path = Path(download_dir) / f"{page:05d}.json.gz"
    try:
        return parse_page(gzip.decompress(path.read_bytes()), page)
    except (OSError, EOFError, zlib.error, ValueError):
        content = fetch_page(page)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"cannot make the folder {path.parent}: {error.strerror}") from None
    write_atomically(path, gzip.compress(content, mtime=0))
    return parse_page(content, page)


def random_articles(n_rows, seed, skipped, download_dir):
    """Yield all usable articles (str): the pages in an order drawn by `seed`, the articles in the page's order."""
    for page in np.random.default_rng(seed).permutation(-(-n_rows // PAGE_SIZE)).tolist():
        for i, (text, cut) in enumerate(get_page(page, download_dir)[0]):
            where = f"row {page * PAGE_SIZE + i}"
            if cut and len(text) < MIN_CUT:
                skip(skipped, "cut short by the server", where)
            elif is_usable(text, where, skipped, MIN_WORDS):
                yield text


def download_articles(n_val, n_train, seed, source, download_dir=DOWNLOAD_DIR, flag="n_articles"):
    """Yield (split, text) for the first n_val random articles as "val" and the next n_train as "train".

    So all sizes share the validation set, and a smaller training set is part of a larger one. At the end `source`
    (dict) gets how many rows there were, the SHA-256 of the texts taken and the counts of those skipped. SystemExit if
    the server fails (see fetch_page) or has too few articles; it then names the flag that asked for n_train.
    """
    _, n_rows = get_page(0, download_dir)  # only to learn n_rows
    n, sha256, skipped = 0, hashlib.sha256(), Counter()
    if n_val + n_train <= n_rows:
        articles = islice(random_articles(n_rows, seed, skipped, download_dir), n_val + n_train)
        for text in tqdm(articles, total=n_val + n_train, unit=" articles", disable=None):
            yield "val" if n < n_val else "train", text
            n += 1
            sha256.update(text.encode("utf-8", "replace"))
    if n < n_val + n_train:
        raise SystemExit(f"--{flag}={n_train}: too many, the source has only {n or n_rows:,} articles "
                         f"(--n_val={n_val} of them validate)")
    source.update(n_rows=n_rows, sha256=sha256.hexdigest(), skipped=report_skipped(skipped))


def main(argv=None, bin_dir=BIN_DIR, download_dir=DOWNLOAD_DIR):
    parser = argparse.ArgumentParser(prog="python -m data.wikipedia", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--n_articles", type=int, default=40000, help="training articles (default: 40000)")
    flag("--n_val", type=int, default=1000, help="validation articles, never among those of training (default: 1000)")
    flag("--seed", type=int, default=0, help="draws the articles (default: 0)")
    flag("--source", nargs="+", metavar="FILES", help="read the articles from these files or globs instead of the "
         "network: .jsonl or .jsonl.gz with a column \"text\", or .txt with blank lines between articles")
    flag("--name", help="the dataset's folder in data/bin (default: wikipedia-N_ARTICLES, and -OVERLAP-OVERLAP_WITH)")
    flag("--tokenizer", default=SHIPPED.stem, help=f"{SHIPPED.stem} (default), gpt2 or a .tiktoken file")
    flag = parser.add_argument_group("choice by token overlap").add_argument
    flag("--overlap", choices=["high", "random", "low"], help="take the articles of a pool that overlap most or least "
         "with a classification set, or any; as many of each length (up to a block of 128) in all three cases")
    flag("--overlap_with", metavar="DATASET", help="the classification set, prepared; only its training texts count")
    flag("--pool", type=int, help="how many articles to choose from (default: all of --source that don't validate, or "
         "4 times --n_articles of the network)")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}; see --help\n")  # one line, not the usage
    args = parser.parse_args(argv)
    for name, least in [("n_articles", 1), ("n_val", 1), ("seed", 0)]:
        if getattr(args, name) < least:
            raise SystemExit(f"--{name}={getattr(args, name)}: must be at least {least}")
    if bool(args.overlap) != bool(args.overlap_with):
        raise SystemExit("--overlap and --overlap_with: only together, such as --overlap=high --overlap_with=fewrel")
    if args.pool is not None and not args.overlap:
        raise SystemExit(f"--pool={args.pool}: only with --overlap and --overlap_with")
    if args.pool is not None and args.pool <= args.n_articles:
        raise SystemExit(f"--pool={args.pool}: must be more than --n_articles={args.n_articles}, to have a choice")
    tokenizer = get_tokenizer(args.tokenizer)
    size, n_train = ("pool", args.pool or 4 * args.n_articles) if args.overlap else ("n_articles", args.n_articles)
    if args.source:
        paths, source = survey(args.source, MIN_WORDS)
        n_docs = source["n_docs"]
        if args.overlap and not args.pool:
            n_train = max(n_docs - args.n_val, args.n_articles + 1)
        if n_docs < args.n_val + n_train:
            raise SystemExit(f"--{size}={n_train}: too many, the source has only {n_docs:,} articles of "
                             f"{MIN_WORDS} words and more (--n_val={args.n_val} of them validate)")
        read = partial(split_documents, paths, n_docs, args.n_val, n_train, args.seed, MIN_WORDS)
    else:
        print(f"fetching from {ROWS_URL}; pages are kept in {download_dir}")
        source = {"url": ROWS_URL, "min_words": MIN_WORDS}
        read = partial(download_articles, args.n_val, n_train, args.seed, source, download_dir, size)
    name, items = f"wikipedia-{args.n_articles}", read()
    source["seed"] = args.seed
    if args.overlap:
        name += f"-{args.overlap}-{args.overlap_with}"
        items, source["overlap"] = choose_articles(read, args.n_articles, args.overlap, args.overlap_with, args.seed,
                                                   tokenizer, bin_dir)
    write_dataset(args.name or name, items, tokenizer, source, bin_dir)
    if args.overlap:
        print_overlap(args.name or name, args.overlap_with, bin_dir=bin_dir)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped; what was fetched is kept, the same command goes on from there") from None
