"""Reading raw files, row by row, so that files of any size will do. All of them are UTF-8.

    .jsonl    a row is a line: a JSON object
    .csv .tsv a row is a dict by the column names in the first line; separated by , ; tab or |
    .txt      a row is a paragraph: {"text": what stands between blank lines}

Each may be compressed, as in .jsonl.gz. A row that cannot be read ends the program in one line.
"""
import contextlib
import csv
import glob
import gzip
import io
import json
import os
import re
import tarfile
import unicodedata
import zlib
from itertools import groupby
from pathlib import Path

SEPARATORS = ",;\t|"
# What programs write where there is nothing: spreadsheets, pandas, databases.
MISSING = {"", "nan", "NaN", "NAN", "null", "Null", "NULL", "None", "NA", "N/A", "n/a", "#N/A",
           "<NA>", r"\N"}
# Characters that cannot be seen: the soft hyphen, zero-width spaces, marks of the direction.
ZERO_WIDTH = "\u00ad\u200b\u200e\u200f\u2060\ufeff"
csv.field_size_limit(2**27)  # characters; its own limit of 131,072 is less than a long article


def clean(text):
    """A text (str) without characters that cannot be seen: what looks alike becomes equal."""
    text = text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair
    text = text.translate(dict.fromkeys(map(ord, ZERO_WIDTH)))
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_missing(text):
    """Whether a text (str) is empty, cannot be seen, or is a word for a missing value."""
    if len(text) > 50:  # clean() takes long for a long text
        return not text.strip()
    return clean(text) in MISSING


class Skipped(dict):
    """Counts what is skipped: reason (str) -> [how often, where it occurred first]."""

    def add(self, reason, place):
        self.setdefault(reason, [0, place])[0] += 1

    def __str__(self):
        return ", ".join(f"{n:,} {reason} (first: {place})" for reason, (n, place) in self.items())

    def report(self):
        """Print it, if there is anything to report. -> the counts (dict), for meta.json"""
        if self:
            print(f"skipped: {self}")
        return {reason: n for reason, (n, _) in self.items()}


def find_files(patterns, endings=("",)):
    """Names and globs (list of str; ** goes through subfolders, ~ is home) -> sorted list of Path,
    each once. SystemExit if one matches no file, or a file with another ending."""
    paths = set()
    for pattern in patterns:
        name = os.path.expanduser(pattern)
        # A name that exists is that file, even if its brackets would make it a glob.
        names = [name] if os.path.isfile(name) else glob.glob(name, recursive=True)
        matches = [Path(name) for name in names if os.path.isfile(name)]
        if not matches:
            raise SystemExit(f"no file matches {pattern} (looked from {os.getcwd()}); all files of "
                             'a folder are "FOLDER/*"')
        for path in sorted(matches):
            if not str(path).lower().endswith(tuple(endings)):
                raise SystemExit(f"{path}: unknown ending; can read {', '.join(endings)}")
        paths.update(matches)
    return sorted(paths)


@contextlib.contextmanager
def open_bytes(path, member=None):
    """Open a file, the content of a .gz file or a member (str) of a .tgz archive, to read bytes.

    The archive is read as a stream; nothing in it is extracted to where its names say. SystemExit
    if, now or later, the file cannot be read, is damaged, or lacks the member.
    """
    try:
        if member:
            with tarfile.open(path, "r:gz") as archive:
                for entry in archive:
                    if entry.name.removeprefix("./") == member and entry.isreg():
                        yield archive.extractfile(entry)
                        return
            raise SystemExit(f"{path}: holds no file {member}; get it again")
        with (gzip.open if str(path).lower().endswith(".gz") else open)(path, "rb") as file:
            yield file
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SystemExit(f"{path}: damaged or incomplete ({error}); get it again") from None
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror or error})") from None


def read_lines(file, newline=None):
    """Yield the lines (str) of a binary file, without byte-order marks. newline: see open().
    ValueError, `line: problem`, if one is not UTF-8."""
    # Bytes that are not UTF-8 are read as halves of surrogate pairs, which encode() refuses.
    lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=newline)
    for number, line in enumerate(lines, start=1):
        try:
            if "\0" in line:  # UTF-16 is full of zero bytes
                raise ValueError
            line.encode()
        except ValueError:
            encoding = "UTF-16" if "\0" in line or line[0] in "\udcff\udcfe" else "CP1252"
            raise ValueError(f"{number}: not UTF-8; save the file as UTF-8, or if it is "
                             f"{encoding}: iconv -f {encoding} -t UTF-8 OLD > NEW") from None
        yield line.removeprefix("\ufeff")


def text_rows(file, wanted=()):
    """Yield (number of its first line, {"text": str}) of each paragraph of a binary file."""
    numbered = enumerate(read_lines(file), start=1)
    for is_blank, paragraph in groupby(numbered, key=lambda item: not item[1].strip()):
        if not is_blank:
            numbers, lines = zip(*paragraph)
            yield numbers[0], {"text": "".join(lines).strip()}


def json_rows(file, wanted=()):
    """Yield (line number, dict) of each line of a binary file that is not blank."""
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f'{number}: not a JSON object, such as {{"text": "words"}}')
            yield number, dict(zip(name_columns(row, wanted), row.values()))


def name_columns(header, wanted):
    """The names of the columns (list), spelled as in `wanted` where only the case differs."""
    names = [name.strip() for name in header]
    spelling = {name.casefold(): name for name in wanted if name not in names}
    return [spelling.get(name.casefold(), name) for name in names]


def find_separator(file):
    """The separator of a table (binary file): the one that occurs most often in its header."""
    lines = re.split("[\r\n]", file.peek(8192).decode("utf-8", "ignore").removeprefix("\ufeff"))
    header = next((line for line in lines if line.strip(SEPARATORS + " ")), "")
    separator = max(SEPARATORS, key=header.count)
    if separator in header or '"' in header:
        return separator
    return "\x1f"  # there is one column, and a comma is text


def csv_rows(file, wanted=(), columns=None):
    """Yield (number of its first line, dict) of each row of a binary file that is not blank.
    wanted (list of str): columns that a file with a header must have. columns (list of str): all
    columns of a file without a header, whose separator is the comma."""
    separator, end = "," if columns else find_separator(file), 0
    mend = 'inside quotes, a quote is written twice: ""'
    if separator == "\t":
        mend = "if quotes are text in this file, remove them: tr -d '\"' < OLD > NEW"
    reader = csv.reader(read_lines(file, newline=""), delimiter=separator, strict=True,
                        skipinitialspace=separator != "\t")
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num  # the first and the last line of the row
            if not "".join(cells).strip():
                continue
            if not columns:
                columns = name_columns(cells, wanted)
                if lacking := [name for name in wanted if columns.count(name) != 1]:
                    there = ", ".join(repr(cell.strip()[:40]) for cell in cells[:20])
                    raise ValueError(f'{line}: needs one column "{lacking[0]}"; there are {there}')
                continue
            if len(cells) != len(columns):
                raise ValueError(f"{line}: needs {len(columns)} columns, not {len(cells)}; put "
                                 "quotes around a cell that holds a separator")
            if separator == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
                raise ValueError(f"{line}: a quote that another row closes; {mend}")
            yield line, dict(zip(columns, cells))
    except csv.Error:
        raise ValueError(f"{end + 1}: a quote that is never closed, or text after a closing quote; "
                         + mend) from None


READERS = {".jsonl": json_rows, ".csv": csv_rows, ".tsv": csv_rows, ".txt": text_rows}
ENDINGS = [ending + gz for ending in READERS for gz in ("", ".gz")]


def read_rows(path, member=None, **options):
    """Yield (place, dict) of each row of a file, or of a member (str) of an archive.

    place (str): file:line. options: `wanted`, the names of the columns that are needed (list of
    str), and see csv_rows. SystemExit as open_bytes, and for a row that cannot be read.
    """
    file_name = f"{path}:{member}" if member else str(path)
    ending = "." + file_name.lower().removesuffix(".gz").rpartition(".")[2]
    with open_bytes(path, member) as file:
        try:
            for line, row in READERS[ending](file, **options):
                yield f"{file_name}:{line}", row
        except ValueError as error:
            raise SystemExit(f"{file_name}:{error}") from None
