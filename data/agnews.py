"""AG News: is a piece of news about the world, sports, business or science? (Zhang et al. 2015)

    python -m data.agnews
    python -m data.agnews --source train.csv test.csv
"""
import html
import re

from data import examples, fetch
from data.rows import Skipped, find_files, read_rows

URL = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/"
MD5 = {"train.csv": "b1a00f826fdfbd249f79597b59e1dc12",
       "test.csv": "d52ea96a97a2d943681189a97654912d"}
CLASSES = ["World", "Sports", "Business", "Sci/Tech"]
FORM = 'CSV rows "class","title","text" in UTF-8, without a header'
# The texts are full of HTML, much of it without its &: " #39;" was "&#39;". Only what is a tag of
# HTML is dropped: "<MSFT.O>" is a share.
LOST_AMPERSAND = re.compile(r" (#\d+|amp|gt|hellip|lt|nbsp|quot|rsquo);")
TAG = re.compile(r"</?(?:a|b|br|cite|em|font|i|img|nobr|p|strong|u)(?:\s[^<>]*)?/?>", re.I)


def decode_html(text):
    """'Dell #39;s &lt;b&gt;profit&lt;/b&gt;' -> 'Dell's profit'."""
    return TAG.sub(" ", html.unescape(LOST_AMPERSAND.sub(r"&\1;", text)))


def read_classes(files, classes, skipped, decode=str):
    """Yield the rows, for examples.prepare, of files in the format of AG News and DBPedia.

    files: list of (side, path, member), the last one None unless the path is an archive.
    decode: what makes the text to write of the text that rows are compared by.
    """
    def parse(row):
        if row["class"] not in map(str, range(1, len(classes) + 1)):
            raise ValueError("of an unknown class")
        # In AG News a backslash stands for a line break, or before a dollar sign.
        text = f"{row['title']} {row['text']}".replace("\\", " ").strip()
        return classes[int(row["class"]) - 1], text, decode(text)

    for side, path, member in files:
        rows = read_rows(path, skipped, member, columns=["class", "title", "text"])
        yield from examples.read_examples(rows, parse, side, path, FORM, skipped)


def find_pair(source):
    """--source (list of str) -> [("train", path, None), ("test", path, None)]."""
    paths = [path for pattern in source for path in find_files([pattern])]  # in the order given
    if len(paths) != 2:
        raise SystemExit("--source: must be two files, train.csv and test.csv in this order, "
                         f"not {len(paths)}")
    return [("train", paths[0], None), ("test", paths[1], None)]


def main(argv=None):
    parser = examples.new_public_parser(
        "agnews", __doc__, "train.csv and test.csv of AG News", n_train=1000, n_test=1000)
    args = parser.parse_args(argv)
    examples.check_flags(args)
    folder = fetch.DOWNLOAD_DIR / "agnews"
    files = find_pair(args.source or [
        str(fetch.download(URL + name, folder / name, md5)) for name, md5 in MD5.items()])
    skipped = Skipped()
    rows = read_classes(files, CLASSES, skipped, decode_html)
    examples.prepare(args, rows, skipped, [path for _, path, _ in files],
                     {} if args.source else {"url": URL}, CLASSES)


if __name__ == "__main__":
    main()
