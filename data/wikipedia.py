"""English Wikipedia: random articles from the network, or from local files, into token files.

    python -m data.wikipedia --n_articles=40000
    python -m data.wikipedia --n_articles=40000 --source="articles/*.jsonl.gz"

Training sets of one seed and source are nested: 20,000 articles are part of the 40,000. All share
one validation set.

From local files articles are drawn one by one; from the network come random pages of 100
neighbouring articles, which are often of one kind (a series of villages). Pages are kept in
data/download/wikipedia, so that an interrupted download continues where it stopped.
"""
import contextlib
import gzip
import hashlib
import json
import math
import zlib
from itertools import chain, islice, repeat

import numpy as np
from tqdm import tqdm

from data import fetch
from data.documents import reason_to_skip, scan_files, split_documents
from data.files import write_atomically
from data.flags import add_dataset_flags, new_parser, number, run_script
from data.rows import Skipped
from data.tokenfile import write_dataset
from data.tokenizer import get_tokenizer

CONFIG = "20231101.en"  # the dump of 1 November 2023: 6,407,814 articles
ROWS_URL = ("https://datasets-server.huggingface.co/rows?dataset=wikimedia/wikipedia"
            f"&config={CONFIG}&split=train")
PAGE_SIZE = 100  # rows; the server gives no more at a time
MIN_WORDS = 20  # shorter articles are mostly not prose
MIN_CUT = 2000  # characters; a text that the server has cut to less may not fill a block


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


def get_page(page):
    """-> parse_page of the kept file, or if that is missing or damaged, of the server's answer,
    which is then kept."""
    path = fetch.DOWNLOAD_DIR / "wikipedia" / CONFIG / f"{page:05d}.json.gz"
    with contextlib.suppress(OSError, EOFError, zlib.error, ValueError):
        return parse_page(gzip.decompress(path.read_bytes()), page)
    start, sizes = page * PAGE_SIZE, []  # sizes of the answers so far

    def receive(response):
        content = response.read()
        texts, n_rows = parse_page(content, page)
        n_expected = min(PAGE_SIZE, n_rows - start)
        sizes.append(len(texts))
        # A page that comes twice with as many rows missing is all that the server has.
        if len(texts) != n_expected and sizes[-2:] != [len(texts)] * 2:
            raise ValueError(f"{len(texts)} rows instead of {n_expected}")
        write_atomically(path, gzip.compress(content, mtime=0))
        return texts, n_rows
    return fetch.fetch(f"{ROWS_URL}&offset={start}&length={PAGE_SIZE}", receive)


def random_articles(n_rows, seed, skipped):
    """Yield all usable articles (str), each once, and count the others in `skipped` (Skipped). The
    order of the pages is drawn by `seed`."""
    n_pages, seen = math.ceil(n_rows / PAGE_SIZE), set()
    for page in np.random.default_rng(seed).permutation(n_pages).tolist():
        texts, _ = get_page(page)
        for row, (text, is_cut) in enumerate(texts, start=page * PAGE_SIZE):
            problem = reason_to_skip(text, seen, MIN_WORDS)
            if not problem and is_cut and len(text) < MIN_CUT:
                problem = "cut short by the server"
            if problem:
                skipped[problem] += 1
            else:
                yield text


def download_articles(n_val, n_train, seed):
    """Fetch the first n_val + n_train random articles, unless they are kept. -> what meta.json says
    of them (dict), an iterator of (split, text). SystemExit if the server fails or has too few."""
    _, n_rows = get_page(0)  # only to learn n_rows
    check_enough(n_rows, n_val, n_train)
    n, n_wanted, sha256, skipped = 0, n_val + n_train, hashlib.sha256(), Skipped()
    articles = islice(random_articles(n_rows, seed, skipped), n_wanted)
    for n, text in enumerate(tqdm(articles, total=n_wanted, unit=" articles", disable=None), 1):
        sha256.update(text.encode("utf-8", "replace"))
    check_enough(n, n_val, n_train)
    splits = chain(repeat("val", n_val), repeat("train", n_train))
    source = {"url": ROWS_URL, "min_words": MIN_WORDS, "page_size": PAGE_SIZE, "n_rows": n_rows,
              "sha256": sha256.hexdigest(), "skipped": skipped.report()}
    return source, zip(splits, random_articles(n_rows, seed, Skipped()))


def check_enough(n, n_val, n_train):
    """SystemExit if n articles are fewer than are wanted."""
    if n < n_val + n_train:
        raise SystemExit(f"--n_articles={n_train}: too many, the source has only {n:,} articles of "
                         f"{MIN_WORDS} words and more (--n_val={n_val} of them validate)")


def main(argv=None):
    parser = new_parser("python -m data.wikipedia", __doc__)
    flag = parser.add_argument
    flag("--n_articles", type=number(int, 1), default=40000, help="training articles")
    flag("--n_val", type=number(int, 1), default=1000, help="validation articles, not trained on")
    flag("--source", nargs="+", metavar="FILES",
         help="read the articles from these files or globs, as data.custom, not the network")
    flag("--text", metavar="COLUMN", default="text", help="the column of a table's texts")
    add_dataset_flags(parser, "the articles", help="the dataset's folder in data/bin; by default "
                      "wikipedia-N_ARTICLES")
    args = parser.parse_args(argv)
    tokenizer, numbers = get_tokenizer(args.tokenizer), (args.n_val, args.n_articles)
    if args.source:
        paths, source = scan_files(args.source, MIN_WORDS, args.text)
        check_enough(source["n_docs"], *numbers)
        items = split_documents(paths, source["n_docs"], *numbers, args.seed, MIN_WORDS, args.text)
    else:
        print(f"fetching random pages from {ROWS_URL} to {fetch.DOWNLOAD_DIR / 'wikipedia'}")
        source, items = download_articles(*numbers, args.seed)
    name = args.name or f"wikipedia-{args.n_articles}"
    write_dataset(name, items, tokenizer, source | {"seed": args.seed})


if __name__ == "__main__":
    run_script(main)
