"""Reading raw files, row by row, so that files of any size will do. All of them are UTF-8.

    .jsonl .json  a row is a JSON object; they stand one after the other, or in one array
    .csv .tsv     a row is a dict by the column names in the first line; separated by , ; tab or |
    .txt          a row is a paragraph, between blank lines; where there are none, a line

Each may be compressed with gzip. A row that cannot be read ends the program in one line.
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
from collections import Counter
from itertools import groupby
from pathlib import Path

SEPARATORS = ",;\t|"
# A cell of a tab-separated line that begins with a quote, but is not a cell in quotes.
LONE_QUOTE = re.compile(r'(?:^|\t)"(?!(?:[^"\t]|"")*"(?:\t|$))')
# What programs write where there is nothing: spreadsheets, pandas, databases.
MISSING = {"", "nan", "NaN", "NAN", "null", "Null", "NULL", "None", "NA", "N/A", "n/a", "#N/A",
           "<NA>", r"\N"}
# Characters that cannot be seen: the soft hyphen, zero-width spaces, marks of the direction.
ZERO_WIDTH = "\u00ad\u200b\u200e\u200f\u2060\ufeff"
BLOCK_SIZE = 2**16  # characters of JSON that are read at a time
MAX_CHARACTERS = 2**27  # of a cell or a JSON object
csv.field_size_limit(MAX_CHARACTERS)


def clean(text):
    """A text (str) without characters that cannot be seen: what looks alike becomes equal."""
    text = text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair
    text = text.translate(dict.fromkeys(map(ord, ZERO_WIDTH)))
    return " ".join(unicodedata.normalize("NFC", text).split())


def cell_text(cell):
    """A cell, as a .csv file (str) or JSON holds it -> str; None if it is empty, cannot be seen, or
    holds a word for a missing value."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # pandas makes 1.0 of each 1 in a column where one is missing
    text = str(cell) if isinstance(cell, str | int | float) else ""
    if len(text) > 50:  # clean() takes long for a long text
        return text if text.strip() else None
    return None if clean(text) in MISSING else text


class Skipped(Counter):
    """Counts what is skipped, by reason (str)."""

    def __str__(self):
        return ", ".join(f"{n:,} {reason}" for reason, n in self.items() if n) or "nothing"

    def report(self):
        """Print it, unless it is nothing. -> dict, for meta.json"""
        if self.total():
            print(f"skipped: {self}")
        return {reason: n for reason, n in self.items() if n}


def find_ending(path):
    """Such as .csv, of a/b.CSV.gz."""
    return "." + str(path).lower().removesuffix(".gz").rpartition(".")[2]


def match(pattern):
    """-> the names that a glob matches (list of str), with ** in all subfolders. A name that exists
    is that one, even if its brackets would make it a glob."""
    return [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)


def find_files(patterns, endings=None):
    """Names and globs (list of str; ** goes through subfolders, ~ is home) -> sorted list of Path,
    each once. SystemExit if one matches no file, or a file with another ending."""
    paths = set()
    for pattern in patterns:
        names = match(os.path.expanduser(pattern))
        matches = {Path(name) for name in names if os.path.isfile(name)}
        if not matches:
            raise SystemExit(f"no file matches {pattern} (looked from {os.getcwd()}); all files of "
                             'a folder are "FOLDER/*"')
        paths |= matches
    for path in sorted(paths):
        if endings and find_ending(path) not in endings:
            raise SystemExit(f"{path}: unknown ending; can read {', '.join(endings)}, also .gz; "
                             'for one kind of file: "FOLDER/*.csv"')
    return sorted(paths)


@contextlib.contextmanager
def open_bytes(path, member=None):
    """Open a file, or a member (str) of a .tar archive, which is not extracted, to read bytes.
    gzip is known by the first two bytes. SystemExit if, now or later, the file cannot be read, is
    damaged, or lacks the member."""
    try:
        with open(path, "rb") as raw:
            file = gzip.open(raw) if raw.peek(2).startswith(b"\x1f\x8b") else raw
            if member:
                archive = tarfile.open(fileobj=file, mode="r:")
                file = next((archive.extractfile(entry) for entry in archive if entry.isreg()
                             and entry.name.removeprefix("./") == member), None)
                if not file:
                    raise tarfile.TarError(f"no file {member} in it")
            yield file
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SystemExit(f"{path}: damaged or incomplete ({error}); get it again") from None
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror or error})") from None


def check_utf8(text, line):
    """ValueError, `line: problem`, if text (str), which begins on this line, was not UTF-8."""
    with contextlib.suppress(UnicodeEncodeError):
        text.encode()  # refuses the halves of surrogate pairs that stand for other bytes
        if "\0" not in text:  # UTF-16 is full of zero bytes
            return
    line += text.count("\n", 0, re.search("[\0\ud800-\udfff]", text).start())
    encoding = "UTF-16" if "\0" in text or text[0] in "\udcff\udcfe" else "CP1252"
    raise ValueError(f"{line}: not UTF-8; save the file as UTF-8, or if it is {encoding}: "
                     f"iconv -f {encoding} -t UTF-8 OLD > NEW")


def read_lines(file, newline=None):
    """Yield the lines (str) of a binary file, without byte-order marks. newline: see open()."""
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=newline)
    for number, line in enumerate(text, start=1):
        check_utf8(line, number)
        yield line.removeprefix("\ufeff")


def lacks_blank_lines(file):
    """Whether no blank line stands in the first 262,144 characters of a text (binary file, which is
    then read from its start again)."""
    text = io.TextIOWrapper(file, "utf-8", "replace")
    beginning = text.read(2**18).strip()
    text.detach().seek(0)
    return bool(beginning) and not re.search(r"\n\s*\n", beginning)


def has_row_per_line(path):
    """Whether a file is a .txt that lacks_blank_lines."""
    if find_ending(path) != ".txt":
        return False
    with open_bytes(path) as file:
        return lacks_blank_lines(file)


def text_rows(file, wanted=("text",)):
    """Yield (number of its first line, {wanted[0]: str}) of each paragraph of a binary file, or of
    each line if it lacks_blank_lines."""
    by_line = lacks_blank_lines(file)

    def group_key(numbered):  # neighbours of equal keys form a row
        number, line = numbered
        return not line.strip(), by_line and number
    for (is_blank, _), rows in groupby(enumerate(read_lines(file), start=1), group_key):
        if not is_blank:
            numbers, lines = zip(*rows)
            yield numbers[0], {wanted[0]: "".join(lines).strip()}


def json_values(file):
    """Yield (number of its first line, value) of the JSON values in a binary file; what is no JSON
    is the last one (str). Blocks are read, not lines: an array may be one line of any length."""
    opening = re.match(rb"(\xef\xbb\xbf)?\s*\[?", file.peek(8192)).group()
    file.read(len(opening))
    closing, line = "]" if b"[" in opening else "", 1 + opening.count(b"\n")
    blocks = io.TextIOWrapper(file, "utf-8", "surrogateescape")
    decode, gap = json.JSONDecoder().raw_decode, re.compile(r"[\s,\ufeff]*")
    text, end = "", 0  # what is in memory, and where the last value ends in it
    while True:
        start = gap.match(text, end).end()
        line += text.count("\n", end, start)
        try:
            value, end = decode(text, start)
            yield line, value
            line += text.count("\n", start, end)
        except (ValueError, RecursionError) as error:
            # A value that is merely cut off fails in an open string, or at the end of the text.
            is_cut = "Unterminated" in str(error) or getattr(error, "pos", -1) > len(text) - 10
            text, end = text[start:], 0
            # More each time: a long value is decoded from its start again.
            block = blocks.read(max(BLOCK_SIZE, 3 * len(text))) if is_cut else ""
            if not block or len(text) > MAX_CHARACTERS:
                if text.rstrip() != closing:
                    yield line, text
                return
            check_utf8(block, line + text.count("\n"))
            text += block


def name_columns(header, wanted):
    """The names of the columns (list), spelled as in `wanted` where only the case differs."""
    names = [name.strip() for name in header]
    spelling = {name.casefold(): name for name in wanted if name not in names}
    return [spelling.get(name.casefold(), name) for name in names]


def refuse_lacking(line, lacking, columns):
    """ValueError, `line: problem`, if wanted columns are lacking (list of str)."""
    if lacking:
        there = ", ".join(repr(name.strip()[:40]) for name in list(columns)[:20])
        raise ValueError(f'{line}: needs one column "{lacking[0]}"; there are {there}')


def json_rows(file, wanted=()):
    """Yield (number of its first line, dict) of each JSON object of a binary file. wanted (list of
    str): columns of which each must occur in some row, and hold text or numbers."""
    line, lacking, row = 1, list(wanted), {}
    for line, row in json_values(file):
        if not isinstance(row, dict):
            raise ValueError(f'{line}: not a JSON object, such as {{"text": "words"}}, or a part '
                             f"of one: {str(row)[:40]!r}")
        row = dict(zip(name_columns(row, wanted), row.values()))
        for name in wanted:
            if row.get(name) and isinstance(row[name], list | dict):
                raise ValueError(f'{line}: "{name}" must be one text or number, not '
                                 f"{str(row[name])[:40]!r}")
        lacking = lacking and [name for name in lacking if name not in row]
        yield line, row
    refuse_lacking(line, row and lacking, row)


def find_separator(file):
    """The separator of a table (binary file): the one that occurs most often in its header."""
    lines = re.split("[\r\n]", file.peek(8192).decode("utf-8", "ignore").removeprefix("\ufeff"))
    header = next((line for line in lines if line.strip(SEPARATORS + " ")), "")
    separator = max(SEPARATORS, key=header.count)
    if separator in header or '"' in header:
        return separator
    return "\x1f"  # there is one column, and a comma is text


def quotes_are_text(file):
    """Whether a tab-separated file (binary, which is then read from its start again) knows no
    quotes: its lines have equally many tabs, but not all of its quotes enclose a cell."""
    text, n_tabs, is_text = io.TextIOWrapper(file, "utf-8", "replace"), set(), False
    for line in text:
        if line.strip():
            n_tabs.add(line.count("\t"))
            is_text = is_text or bool(LONE_QUOTE.search(line))
    text.detach().seek(0)
    return is_text and len(n_tabs) == 1


def csv_rows(file, wanted=(), columns=None):
    """Yield (number of its first line, dict) of each row of a binary file that is not blank.
    wanted (list of str): columns that a file with a header must have. columns (list of str): all
    columns of a file without a header, whose separator is the comma."""
    separator, end = "," if columns else find_separator(file), 0
    mend = r"""write "" for a quote inside quotes, not \": sed 's/\\"/""/g' OLD > NEW"""
    if separator == "\t":
        mend = "if quotes are text in this file, each line must have as many tabs as the first"
    without_quotes = separator == "\t" and quotes_are_text(file)
    reader = csv.reader(read_lines(file, newline=""), delimiter=separator, strict=True,
                        quoting=csv.QUOTE_NONE if without_quotes else csv.QUOTE_MINIMAL,
                        skipinitialspace=separator != "\t")
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num  # the first and the last line of the row
            if not "".join(cells).strip() or (line == 1 and cells == ["sep=", ""]):
                continue  # blank, or a spreadsheet's first line that tells the separator: sep=;
            if not columns:
                columns = name_columns(cells, wanted)
                refuse_lacking(line, [name for name in wanted if columns.count(name) != 1], cells)
                continue
            if len(cells) != len(columns):
                raise ValueError(f"{line}: needs {len(columns)} columns, not {len(cells)}; put "
                                 "quotes around a cell that holds a separator")
            yield line, dict(zip(columns, cells))
    except csv.Error:
        raise ValueError(f"{end + 1}: a quote that is never closed, or text after a closing quote; "
                         + mend) from None


JSON_ENDINGS = [".jsonl", ".json", ".ndjson", ".jl"]
READERS = {".txt": text_rows, ".csv": csv_rows, ".tsv": csv_rows}
READERS |= dict.fromkeys(JSON_ENDINGS, json_rows)
ENDINGS = list(READERS)


def read_rows(path, member=None, **options):
    """Yield (place, dict) of each row of a file, or of a member (str) of an archive. place (str):
    file:line. options: `wanted`, the names of the columns that are needed (list of str), and see
    csv_rows. SystemExit as open_bytes, and for a row that cannot be read."""
    file_name = f"{path}:{member}" if member else str(path)
    with open_bytes(path, member) as file:
        try:
            for line, row in READERS[find_ending(file_name)](file, **options):
                yield f"{file_name}:{line}", row
        except ValueError as error:
            raise SystemExit(f"{file_name}:{error}") from None
