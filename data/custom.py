"""Your own text into token files, for pre-training, or with labels, for classification.

    python -m data.custom --name=mytext --source="texts/*.txt"
    python pretrain.py --dataset=mytext

In a .txt file blank lines separate the documents; if it has none, each line is one. Of a document
2,048 tokens are kept; for pre-training it is cut into texts of a model's block_size, while a
classifier reads its beginning.

    python -m data.custom --name=mytask --source=table.csv --label=topic --text=message
    python finetune.py --dataset=mytask --init_from=out/mytext-bert6
"""
from data import examples
from data.documents import scan_files, split_documents
from data.flags import add_dataset_flags, new_parser, number, refuse, run_script
from data.rows import ENDINGS, cell_text, clean, find_files, read_rows
from data.tokenfile import write_dataset

TABLES = [ending for ending in ENDINGS if ending != ".txt"]


def read_table(path, label, text):
    """Yield the rows of a table as read_examples wants them. label, text: names of columns."""
    for _, row in read_rows(path, wanted=[label, text]):
        content = cell_text(row.get(text))
        yield clean(cell_text(row.get(label)) or ""), content, content


def make_task(args):
    """Write the rows of --source, and of --test_source if it is given, as a classification set."""
    sources = [("train", args.source), ("test", args.test_source)]
    if not args.test_source:
        sources = [("either", args.source)]
    files = [(split, path, read_table(path, args.label, args.text))
             for split, source in sources for path in find_files(source, TABLES)]
    examples.make_labelled_set(args, files, {})


def make_text(args):
    """Write the documents of --source as a dataset for pre-training."""
    min_words = args.min_words or 1
    paths, source = scan_files(args.source, min_words, args.text)
    n_docs = source["n_docs"]
    n_val = args.n_val or min(1000, max(1, n_docs // 20))
    if n_val >= n_docs:
        raise SystemExit(f"{n_val} of {n_docs} documents validate, which leaves none to train on: "
                         "lower --n_val, or give more documents")
    items = split_documents(paths, n_docs, n_val, n_docs - n_val, args.seed, min_words, args.text)
    write_dataset(args.name, items, args.tokenizer, source | {"seed": args.seed})


def main(argv=None):
    parser = new_parser("python -m data.custom", __doc__)
    flag = parser.add_argument
    add_dataset_flags(parser, "the validation or test documents", required=True)
    flag("--source", nargs="+", required=True, metavar="FILES",
         help="files or globs, in UTF-8: .txt or tables (.csv, .tsv, .jsonl, .json), or any of "
         "them with .gz; with --label tables only")
    flag("--text", metavar="COLUMN", default="text", help="the column of a table's texts")
    flag("--n_val", type=number(int, 1),
         help="validation documents; by default one in twenty, but at least 1 and at most 1000")
    flag("--min_words", type=number(int, 1), help="skip documents of fewer words (default: 1)")
    flag = parser.add_argument_group("classification").add_argument
    flag("--label", metavar="COLUMN",
         help="make a classification set by this column of a table; rows where it is empty, NaN, "
         "NA, None or null are left out")
    flag("--test_source", nargs="+", metavar="FILES",
         help="what to test on; by default one in ten of each label")
    examples.add_draw_flags(flag, otherwise="; by default all")
    args = examples.resolve_flags(parser, argv)
    typed = {name: value for name, value in vars(args).items() if value is not None}
    if args.label is None:
        refuse(typed, {"test_source", "n_train", "n_test", "fewer"}, "only for a set with --label")
        make_text(args)
    else:
        refuse(typed, {"n_val", "min_words"}, "only for a set without --label")
        if args.label == args.text:
            raise SystemExit(f"--label={args.label}: is the column of the texts too; see --text")
        make_task(args)


if __name__ == "__main__":
    run_script(main)
