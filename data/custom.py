"""Your own text into token files, for pre-training, or with labels, for classification.

    python -m data.custom --name=mytext --source='texts/*.txt'
    python pretrain.py --dataset=mytext

A model is trained on the beginning of each document, up to its block_size. In a .txt file blank lines separate the
documents, so a book with a blank line after each paragraph is used whole.

    python -m data.custom --name=mytask --source=table.csv --label=topic --text=message
    python finetune.py --dataset=mytask
"""
import argparse
import json

from data import labelled
from data.files import cut_lines, find_files, parse_document, split_documents, survey
from data.tokenfile import BIN_DIR, write_dataset
from data.tokenizer import SHIPPED

ENDINGS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def json_rows(file):
    """A binary .jsonl file -> (line number, 1, row) of each line that is not blank: a dict, or a ValueError."""
    for number, raw in cut_lines(file, per_line=True):
        try:
            row = json.loads(parse_document(raw, is_json=False))
        except (ValueError, RecursionError) as error:
            row = ValueError("not UTF-8" if str(error) == "not UTF-8" else "not JSON")
        yield number, 1, row if isinstance(row, dict | ValueError) else ValueError("not an object")


def prepare_labelled(args, bin_dir):
    """Write the rows of --source, and of --test_source if it is given, as a classification set."""
    parts = [(labelled.TRAIN if args.test_source else labelled.EITHER, path) for path in find_files(args.source)]
    parts += [(labelled.TEST, path) for path in find_files(args.test_source or [])]
    for _, path in parts:
        if not str(path).endswith(ENDINGS):
            raise SystemExit(f"{path}: unknown ending; with --label can read {', '.join(ENDINGS)}")

    def parse(row):
        for column in (args.label, args.text):
            if not isinstance(row.get(column), str | int | float) or not str(row[column]).strip():
                raise ValueError(f'without a "{column}"')
        label = str(row[args.label]).encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair
        return " ".join(label.split()), str(row[args.text]), str(row[args.text])

    def read(skipped):
        form = f'rows with the columns "{args.label}" and "{args.text}" in UTF-8, a .csv file with their names above'
        for use, path in parts:
            rows_of = labelled.csv_rows if str(path).endswith(ENDINGS[:2]) else json_rows
            for row in labelled.read_file(path, rows_of, parse, form, skipped):
                yield use, *row
    labelled.prepare(args.name, read, args, [path for _, path in parts], {}, bin_dir)


def main(argv=None, bin_dir=BIN_DIR):
    parser = argparse.ArgumentParser(prog="python -m data.custom", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--name", required=True, help="the dataset's folder in data/bin")
    flag("--source", nargs="+", required=True, metavar="FILES", help="files or globs: .jsonl with a column \"text\", "
         ".txt with blank lines between documents, or either with .gz; with --label .csv or .jsonl; in UTF-8")
    flag("--n_val", type=int, help="validation documents (default: one in twenty, but at least 1 and at most 1000)")
    flag("--min_words", type=int, default=1, help="skip documents of fewer words (default: 1)")
    flag("--seed", type=int, default=0, help="draws the validation or test documents (default: 0)")
    flag("--tokenizer", default=SHIPPED.stem, help=f"{SHIPPED.stem} (default), gpt2 or a .tiktoken file")
    flag = parser.add_argument_group("classification").add_argument
    flag("--label", metavar="COLUMN", help="make a classification set by this column of a .csv or .jsonl file")
    flag("--text", metavar="COLUMN", default="text", help="the column of its texts (default: text)")
    flag("--test_source", nargs="+", metavar="FILES", help="what to test on (default: one in ten of each label)")
    labelled.add_draw_flags(flag, None, None, "all")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}; see --help\n")  # one line, not the usage
    args = labelled.check_flags(parser.parse_args(argv), min_words=0, seed=0, n_train=1, n_test=1)
    of_other_kind = ["n_val", "min_words"] if args.label else ["text", "test_source", "n_train", "n_test", "fewer"]
    for name in of_other_kind:
        if getattr(args, name) != parser.get_default(name):
            raise SystemExit(f"--{name}: only for a set {'without' if args.label else 'with'} --label")
    if args.label:
        return prepare_labelled(args, bin_dir)
    paths, source = survey(args.source, args.min_words)
    n_docs = source["n_docs"]
    n_val = min(1000, max(1, n_docs // 20)) if args.n_val is None else args.n_val
    if n_docs < 2:
        raise SystemExit(f"{paths[0]} holds one document, but one to train on and one to validate are needed; "
                         "put blank lines between the documents of a .txt file")
    if not 0 < n_val < n_docs:
        raise SystemExit(f"--n_val={n_val}: must be between 1 and {n_docs - 1}, as there are {n_docs} documents")
    items = split_documents(paths, n_docs, n_val, n_docs - n_val, args.seed, args.min_words)
    write_dataset(args.name, items, args.tokenizer, source | {"seed": args.seed}, bin_dir)


if __name__ == "__main__":
    main()
