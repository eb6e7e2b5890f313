"""English Wikipedia: random articles from the network, or from local files, into token files.

    python -m data.wikipedia --n_articles=40000
    python -m data.wikipedia --n_articles=40000 --source='articles/*.jsonl.gz'

Training sets of one seed and source are nested: 20,000 articles are part of the 40,000. All share
one validation set.

From the network come random pages, each of 100 neighbouring articles, which are often of one kind
(a series of villages): less varied than as many articles drawn one by one, as from local files.
Pages are kept in data/download/wikipedia: an interrupted download goes on where it stopped, and a
larger set fetches only what a smaller one has not.
"""
import gzip
import hashlib
import json
import math
import zlib
from itertools import islice

import numpy as np
from tqdm import tqdm

from data import examples, fetch
from data.documents import split_documents, survey, why_unusable
from data.flags import AT_LEAST_1, add_dataset_flags, check_limits, new_parser, run_script
from data.rows import Skipped
from data.tokenfile import write_atomically, write_dataset

CONFIG = "20231101.en"  # the dump of 1 November 2023: 6,407,814 articles
ROWS_URL = ("https://datasets-server.huggingface.co/rows?dataset=wikimedia/wikipedia"
            f"&config={CONFIG}&split=train")
PAGE_SIZE = 100  # rows; the server gives no more at a time
MIN_WORDS = 20  # what is shorter is mostly not prose
MIN_CUT = 2000  # characters; a text that the server has cut to less lacks what a block would hold


def parse_page(content, page):
    """The server's answer (bytes) -> its texts, list of (str, whether the server cut it), and the
    number of all rows. ValueError if it is anything but the first rows of that page."""
    try:
        answer = json.loads(content)
        texts = [(row["row"]["text"], "text" in row["truncated_cells"]) for row in answer["rows"]]
        numbers = [row["row_idx"] - page * PAGE_SIZE for row in answer["rows"]]
        n_rows = int(answer["num_rows_total"])
    except (KeyError, TypeError, RecursionError, OverflowError):
        raise ValueError("not an answer with rows") from None
    if not 0 < len(numbers) <= PAGE_SIZE or numbers != list(range(len(numbers))):
        raise ValueError("not the rows that were asked for")
    return texts, n_rows


def fetch_page(page):
    """-> the server's answer (bytes), for which parse_page succeeds."""
    start, sizes = page * PAGE_SIZE, []  # sizes of the answers so far

    def receive(response):
        content = response.read()
        texts, n_rows = parse_page(content, page)
        n_expected = min(PAGE_SIZE, n_rows - start)
        sizes.append(len(texts))
        # A page that comes twice with the same rows missing is all the server has.
        if len(texts) != n_expected and sizes[-2:] != [len(texts)] * 2:
            raise ValueError(f"{len(texts)} rows instead of {n_expected}")
        return content
    return fetch.fetch(f"{ROWS_URL}&offset={start}&length={PAGE_SIZE}", receive)


def get_page(page):
    """parse_page of the page that was kept, or if none is or it is damaged, of the server's, which
    is then kept."""
    path = fetch.DOWNLOAD_DIR / "wikipedia" / CONFIG / f"{page:05d}.json.gz"
    try:
        return parse_page(gzip.decompress(path.read_bytes()), page)
    except (OSError, EOFError, zlib.error, ValueError):
        content = fetch_page(page)
    write_atomically(path, gzip.compress(content, mtime=0))
    return parse_page(content, page)


def random_articles(n_rows, seed, skipped):
    """Yield all usable articles (str), each once: the pages in an order drawn by `seed`."""
    n_pages, seen = math.ceil(n_rows / PAGE_SIZE), set()
    for page in np.random.default_rng(seed).permutation(n_pages).tolist():
        texts, _ = get_page(page)
        for row, (text, is_cut) in enumerate(texts, start=page * PAGE_SIZE):
            problem = why_unusable(text, seen, MIN_WORDS)
            if not problem and is_cut and len(text) < MIN_CUT:
                problem = "cut short by the server"
            if problem:
                skipped.add(problem, f"row {row}")
            else:
                yield text


def download_articles(n_val, n_train, seed, source):
    """Yield (split, text): the first n_val random articles as "val", the next n_train as "train".

    At the end `source` (dict) gets how many rows there were, the SHA-256 of the texts taken and the
    counts of those skipped. SystemExit if the server fails or has too few articles.
    """
    _, n_rows = get_page(0)  # only to learn n_rows
    n, n_wanted, sha256, skipped = 0, n_val + n_train, hashlib.sha256(), Skipped()
    if n_wanted <= n_rows:
        articles = islice(random_articles(n_rows, seed, skipped), n_wanted)
        for n, text in enumerate(tqdm(articles, total=n_wanted, unit=" articles", disable=None), 1):
            yield "val" if n <= n_val else "train", text
            sha256.update(text.encode("utf-8", "replace"))
    check_enough(n or n_rows, n_val, n_train)
    source.update(n_rows=n_rows, sha256=sha256.hexdigest(), skipped=skipped.report())


def check_enough(n, n_val, n_train):
    if n < n_val + n_train:
        raise SystemExit(f"--n_articles={n_train}: too many, the source has only {n:,} articles of "
                         f"{MIN_WORDS} words and more (--n_val={n_val} of them validate)")


def main(argv=None):
    parser = new_parser("python -m data.wikipedia", __doc__)
    flag = parser.add_argument
    flag("--n_articles", type=int, default=40000, help="training articles")
    flag("--n_val", type=int, default=1000, help="validation articles, never trained on")
    flag("--source", nargs="+", metavar="FILES",
         help="read the articles from these files or globs instead of the network: .jsonl or .csv "
         'with a column "text", .txt with blank lines between articles, or any of them with .gz')
    add_dataset_flags(parser, "the articles", help="the dataset's folder in data/bin; by default "
                      "wikipedia-N_ARTICLES")
    args = examples.parse_flags(parser, argv)
    check_limits(args, {"n_articles": AT_LEAST_1, "n_val": AT_LEAST_1})
    if args.source:
        paths, source = survey(args.source, MIN_WORDS)
        n_docs = source["n_docs"]
        check_enough(n_docs, args.n_val, args.n_articles)
        items = split_documents(paths, n_docs, args.n_val, args.n_articles, args.seed, MIN_WORDS)
    else:
        print(f"fetching random pages of {PAGE_SIZE} neighbouring articles from {ROWS_URL}; they "
              f"are kept in {fetch.DOWNLOAD_DIR / 'wikipedia'}")
        source = {"url": ROWS_URL, "min_words": MIN_WORDS, "page_size": PAGE_SIZE}
        items = download_articles(args.n_val, args.n_articles, args.seed, source)
    source["seed"] = args.seed
    write_dataset(args.name or f"wikipedia-{args.n_articles}", items, args.tokenizer, source)


if __name__ == "__main__":
    run_script(main)
