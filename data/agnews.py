"""AG News: is a piece of news about the world, sports, business or science? (Zhang et al. 2015; 4 classes.)

    python -m data.agnews
    python -m data.agnews --source train.csv test.csv
"""
from data import fetch, labelled
from data.files import find_files
from data.tokenfile import BIN_DIR

URL = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/"
MD5 = {"train.csv": "b1a00f826fdfbd249f79597b59e1dc12", "test.csv": "d52ea96a97a2d943681189a97654912d"}
CLASSES = ["World", "Sports", "Business", "Sci/Tech"]
FORM = 'CSV rows "class","title","text" in UTF-8, without a header'


def read_classes(parts, classes, skipped):
    """Yield the rows, for data.labelled, of files in the format that AG News and DBPedia have in common. `parts`: what
    each file's rows may be used for, its path, and the file in it if it is an archive (or None)."""
    def parse(row):
        if row["class"] not in map(str, range(1, len(classes) + 1)):
            raise ValueError("of an unknown class")
        # In AG News a backslash stands for a line break, or before a dollar sign.
        text = f"{row['title']} {row['text']}".replace("\\", " ").strip()
        return classes[int(row["class"]) - 1], text, text
    for use, path, member in parts:
        for row in labelled.read_file(path, lambda file: labelled.csv_rows(file, ["class", "title", "text"]), parse,
                                      FORM, skipped, member):
            yield use, *row


def find_pair(source):
    """--source (list of str) -> paths of the two files that it must name."""
    paths = [path for pattern in source for path in find_files([pattern])]  # in the order given
    if len(paths) != 2:
        raise SystemExit(f"--source: must be two files, train.csv and test.csv in this order, not {len(paths)}")
    return paths


def main(argv=None, bin_dir=BIN_DIR, download_dir=fetch.DOWNLOAD_DIR / "agnews"):
    parser = labelled.new_parser("agnews", __doc__, "train.csv and test.csv of AG News", 1000, 1000)
    args = labelled.check_flags(parser.parse_args(argv), n_train=1, n_test=1, seed=0)
    paths = find_pair(args.source) if args.source else [
        fetch.download(URL + name, download_dir / name, md5) for name, md5 in MD5.items()]
    parts = [(labelled.TRAIN, paths[0], None), (labelled.TEST, paths[1], None)]
    labelled.prepare("agnews", lambda skipped: read_classes(parts, CLASSES, skipped), args, paths,
                     {} if args.source else {"url": URL}, bin_dir, CLASSES)


if __name__ == "__main__":
    main()
