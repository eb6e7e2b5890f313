"""AG News: is a news item about the world, sports, business or science? (Zhang et al. 2015)

    python -m data.agnews
    python -m data.agnews --source train.csv test.csv
"""
import html
import re

from data import examples, fetch
from data.flags import run_script
from data.rows import find_files, read_rows

URL = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/"
MD5 = {"train.csv": "b1a00f826fdfbd249f79597b59e1dc12",
       "test.csv": "d52ea96a97a2d943681189a97654912d"}
CLASSES = ["World", "Sports", "Business", "Sci/Tech"]
# The texts are full of HTML, much of it without its &: " #39;" was "&#39;". Only HTML tags are
# dropped: "<MSFT.O>" is a share.
LOST_AMPERSAND = re.compile(r" (#\d+|amp|gt|hellip|lt|nbsp|quot|rsquo);")
TAG = re.compile(r"</?(?:a|b|br|cite|em|font|i|img|nobr|p|strong|u)(?:\s[^<>]*)?/?>", re.I)


def decode_html(text):
    """'Dell #39;s &lt;b&gt;profit&lt;/b&gt;' -> 'Dell's profit'."""
    return TAG.sub(" ", html.unescape(LOST_AMPERSAND.sub(r"&\1;", text)))


def find_pair(source):
    """--source (list of str) -> [("train", path, None), ("test", path, None)]."""
    paths = [path for pattern in source for path in find_files([pattern], [".csv"])]
    if len(paths) != 2:
        raise SystemExit("--source: must be two files, train.csv and test.csv in this order, "
                         f"not {len(paths)}")
    # *.csv names test.csv first; the "test" of "latest" does not count.
    paths.sort(key=lambda path: bool(re.search("(?<![a-z])test", path.name.lower())))
    return [("train", paths[0], None), ("test", paths[1], None)]


def read_csv(path, member, classes, decode):
    """Yield the rows of a file of AG News or DBPedia, or of a member (str) of an archive, as
    read_examples wants them. SystemExit if a class is unknown."""
    for i, (place, row) in enumerate(read_rows(path, member, columns=["class", "title", "text"])):
        number = row["class"].strip()
        if i == 0 and not number.isdecimal():
            continue  # a header, which some copies have
        if number not in map(str, range(1, len(classes) + 1)):
            raise SystemExit(f"{place}: class {number[:40]!r} must be a number from 1 to "
                             f'{len(classes)}; the columns are "class","title","text"')
        # In AG News a backslash stands for a line break, or before a dollar sign.
        text = decode(f"{row['title']} {row['text']}".replace("\\", " ").strip())
        yield classes[int(number) - 1], text, text


def make_from_csv(args, files, classes, url, decode=str):
    """Make a dataset of files in the format of AG News and DBPedia, (split, path, member) each, the
    last one None unless the path is an archive. decode: text -> text to write."""
    files = [(split, path, read_csv(path, member, classes, decode))
             for split, path, member in files]
    examples.make_labelled_set(args, files, {} if args.source else {"url": url}, classes)


def main(argv=None):
    parser = examples.new_public_parser(
        "agnews", __doc__, "train.csv and test.csv of AG News", n_train=1000, n_test=1000)
    args = examples.resolve_flags(parser, argv)
    folder = fetch.DOWNLOAD_DIR / "agnews"
    source = args.source or [
        str(fetch.download(URL + name, folder / name, md5)) for name, md5 in MD5.items()]
    make_from_csv(args, find_pair(source), CLASSES, URL, decode_html)


if __name__ == "__main__":
    run_script(main)
