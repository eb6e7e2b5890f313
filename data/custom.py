"""Your own text into token files, for pre-training, or with labels, for classification.

    python -m data.custom --name=mytext --source='texts/*.txt'
    python pretrain.py --dataset=mytext

In a .txt file blank lines separate the documents, of which 2,048 tokens are kept. What is longer
than a model's block_size is cut into several texts for pre-training; a classifier reads its
beginning.

    python -m data.custom --name=mytask --source=table.csv --label=topic --text=message
    python finetune.py --dataset=mytask
"""
from data import examples
from data.documents import split_documents, survey
from data.flags import AT_LEAST_0, add_dataset_flags, check_limits, new_parser, run_script
from data.rows import ENDINGS, Skipped, clean, find_files, is_missing, read_rows
from data.tokenfile import write_dataset

TABLES = [ending for ending in ENDINGS if not ending.startswith(".txt")]
WITH_LABEL = ["text", "test_source", "n_train", "n_test", "fewer"]  # flags of no other set
WITHOUT_LABEL = ["n_val", "min_words"]


def cell_text(row, column):
    """The text (str) of a row's cell. ValueError if it is missing, however that is spelled."""
    cell = row[column]
    if isinstance(cell, float) and cell.is_integer():  # of .jsonl; those of .csv are str
        cell = int(cell)  # pandas makes 1.0 of each 1 in a column where one is missing
    if not isinstance(cell, str | int | float) or is_missing(str(cell)):
        raise ValueError(f'without a "{column}"')
    return str(cell)


def prepare_labelled(args):
    """Write the rows of --source, and of --test_source if it is given, as a classification set."""
    files = [("train" if args.test_source else "either", path)
             for path in find_files(args.source, TABLES)]
    files += [("test", path) for path in find_files(args.test_source or [], TABLES)]
    form = (f'rows with the columns "{args.label}" and "{args.text}" in UTF-8, a .csv file with '
            "their names above")

    def parse(row):
        label, text = cell_text(row, args.label), cell_text(row, args.text)
        return clean(label), text, text

    skipped = Skipped()
    files = [(side, path, read_rows(path, skipped, wanted=[args.label, args.text]))
             for side, path in files]
    examples.prepare(args, files, parse, form, skipped, {})


def prepare_documents(args):
    """Write the documents of --source as a dataset for pre-training."""
    paths, source = survey(args.source, args.min_words)
    n_docs = source["n_docs"]
    n_val = min(1000, max(1, n_docs // 20)) if args.n_val is None else args.n_val
    if n_docs < 2:
        raise SystemExit(f"{paths[0]} holds one document, but one to train on and one to validate "
                         "are needed; put blank lines between the documents of a .txt file")
    if not 0 < n_val < n_docs:
        raise SystemExit(f"--n_val={n_val}: must be between 1 and {n_docs - 1}, as there are "
                         f"{n_docs} documents")
    items = split_documents(paths, n_docs, n_val, n_docs - n_val, args.seed, args.min_words)
    write_dataset(args.name, items, args.tokenizer, source | {"seed": args.seed})


def main(argv=None):
    parser = new_parser("python -m data.custom", __doc__)
    flag = parser.add_argument
    add_dataset_flags(parser, "the validation or test documents", required=True)
    flag("--source", nargs="+", required=True, metavar="FILES",
         help="files or globs, in UTF-8: .txt with blank lines between documents, .jsonl or .csv "
         'with a column "text", or any of them with .gz; with --label .csv or .jsonl')
    flag("--n_val", type=int,
         help="validation documents; by default one in twenty, but at least 1 and at most 1000")
    flag("--min_words", type=int, default=1, help="skip documents of fewer words")
    flag = parser.add_argument_group("classification").add_argument
    flag("--label", metavar="COLUMN",
         help="make a classification set by this column of a .csv or .jsonl file; rows where it is "
         "empty, NaN, NA, None or null are left out, if they are not more than 1 %%")
    flag("--text", metavar="COLUMN", default="text", help="the column of its texts")
    flag("--test_source", nargs="+", metavar="FILES",
         help="what to test on; by default one in ten of each label")
    examples.add_draw_flags(flag, otherwise="; by default all")
    args = examples.parse_flags(parser, argv)
    check_limits(args, {"min_words": AT_LEAST_0})
    for name in WITHOUT_LABEL if args.label else WITH_LABEL:
        if getattr(args, name) != parser.get_default(name):
            kind = "without" if args.label else "with"
            raise SystemExit(f"--{name}: only for a set {kind} --label")
    if args.label == "":
        raise SystemExit("--label: is empty; name a column")
    if args.text == args.label:
        raise SystemExit(f"--text={args.text}: is the column of the labels too")
    prepare = prepare_labelled if args.label else prepare_documents
    prepare(args)


if __name__ == "__main__":
    run_script(main)
