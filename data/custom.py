"""Your own text into token files.

    python -m data.custom --name=mytext --source='texts/*.txt'
    python pretrain.py --dataset=mytext

A model is trained on the beginning of each document, up to its block_size. In a .txt file blank lines separate the
documents, so a book with a blank line after each paragraph is used whole.
"""
import argparse

from data.files import split_documents, survey
from data.tokenfile import BIN_DIR, write_dataset
from data.tokenizer import SHIPPED, get_tokenizer


def main(argv=None, bin_dir=BIN_DIR):
    parser = argparse.ArgumentParser(prog="python -m data.custom", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--name", required=True, help="the dataset's folder in data/bin")
    flag("--source", nargs="+", required=True, metavar="FILES", help="files or globs: .jsonl with a column \"text\", "
         ".txt with blank lines between documents, or either with .gz; in UTF-8")
    flag("--n_val", type=int, help="validation documents (default: one in twenty, but at least 1 and at most 1000)")
    flag("--min_words", type=int, default=1, help="skip documents of fewer words (default: 1)")
    flag("--seed", type=int, default=0, help="draws the validation documents (default: 0)")
    flag("--tokenizer", default=SHIPPED.stem, help=f"{SHIPPED.stem} (default), gpt2 or a .tiktoken file")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}; see --help\n")  # one line, not the usage
    args = parser.parse_args(argv)
    for name in ("min_words", "seed"):
        if getattr(args, name) < 0:
            raise SystemExit(f"--{name}={getattr(args, name)}: must be at least 0")
    tokenizer = get_tokenizer(args.tokenizer)
    paths, source = survey(args.source, args.min_words)
    n_docs = source["n_docs"]
    n_val = min(1000, max(1, n_docs // 20)) if args.n_val is None else args.n_val
    if n_docs < 2:
        raise SystemExit(f"{paths[0]} holds one document, but one to train on and one to validate are needed; "
                         "put blank lines between the documents of a .txt file")
    if not 0 < n_val < n_docs:
        raise SystemExit(f"--n_val={n_val}: must be between 1 and {n_docs - 1}, as there are {n_docs} documents")
    items = split_documents(paths, n_docs, n_val, n_docs - n_val, args.seed, args.min_words)
    write_dataset(args.name, items, tokenizer, source | {"seed": args.seed}, bin_dir)


if __name__ == "__main__":
    main()
