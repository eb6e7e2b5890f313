"""Reading raw files, row by row, so that files of any size will do. All of them are UTF-8.

    .jsonl    a row is a line: a JSON object
    .csv .tsv a row is a dict by the column names in the first line; separated by , ; tab or |
    .txt      a row is a paragraph: {"text": what stands between blank lines}

Each may be compressed, as in .jsonl.gz. What cannot be read is skipped and counted.
"""
import codecs
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
from itertools import chain
from pathlib import Path

SEPARATORS = ",;\t|"
# What programs write where there is nothing: spreadsheets, pandas, databases.
MISSING = {"", "nan", "NaN", "NAN", "null", "Null", "NULL", "None", "NA", "N/A", "n/a", "#N/A",
           "<NA>", r"\N"}
# Code points that cannot be seen: the soft hyphen, zero-width spaces, marks of the direction.
ZERO_WIDTH = "\u00ad\u200b\u200e\u200f\u2060\ufeff"
BLANK = b" \t\r\n\v\f\xef\xbb\xbf"  # and the byte-order mark
csv.field_size_limit(2**27)  # characters; its own limit of 131,072 is less than a long article


def clean(text):
    """The text without what cannot be seen: what looks alike is the same."""
    text = text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair
    text = text.translate(dict.fromkeys(map(ord, ZERO_WIDTH)))
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_missing(text):
    """Whether a text (str) is none: nothing that can be seen, or a word for a missing value."""
    return len(text) < 50 and clean(text) in MISSING or not text.strip()


class Skipped:
    """Counts what is skipped: for each reason how often, and where it first occurred."""

    def __init__(self):
        self.counts, self.first = Counter(), {}

    def add(self, reason, place, n=1):
        self.counts[reason] += n
        self.first.setdefault(reason, place)

    def __str__(self):
        """Such as `3 not UTF-8 (first: x.jsonl:17)`."""
        reasons = [f"{n:,} {reason} (first: {self.first[reason]})"
                   for reason, n in self.counts.items()]
        return ", ".join(reasons[:6] + ["..."] * (len(reasons) > 6))

    def report(self):
        """Print it, if there is anything to report. -> the counts (dict), for meta.json"""
        if self.counts:
            print(f"skipped: {self}")
        return dict(self.counts)


def find_files(patterns, endings=("",)):
    """Names and globs (list of str; ** goes through subfolders, ~ is home) -> sorted list of Path,
    each once. SystemExit if one matches nothing, a folder, or a name that ends otherwise."""
    paths = set()
    for pattern in patterns:
        name = os.path.expanduser(pattern)
        if os.path.isdir(name):
            raise SystemExit(f"{pattern} is a folder; name its files, for example "
                             f"'{os.path.join(name, '*' + (endings[0] or '.jsonl'))}'")
        # A name that exists is that file, even if its brackets would make it a glob.
        names = [name] if os.path.isfile(name) else glob.glob(name, recursive=True)
        matches = {Path(name) for name in names if os.path.isfile(name)}
        if not matches:
            raise SystemExit(f"no file matches {pattern} (looked from {os.getcwd()})")
        for path in sorted(matches):
            if not str(path).lower().endswith(tuple(endings)):
                raise SystemExit(f"{path}: unknown ending; can read {', '.join(endings)}")
        paths |= matches
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


def decode(raw):
    """bytes -> str, without the mark that Windows programs write at the beginning.
    ValueError if they are not UTF-8; a "\0" shows UTF-16 that looks like it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if "\0" in text:
        raise ValueError("not UTF-8")
    return text.removeprefix("\ufeff")


def text_rows(file, skip, wanted=()):
    """Yield (number of its first line, {"text": str}) of each paragraph of a binary file."""
    paragraph = []
    for number, line in enumerate(chain(file, [b""]), start=1):
        if line.decode("utf-8", "replace").strip().strip("\ufeff"):  # a no-break space is blank
            paragraph.append(line)
        elif paragraph:
            start = number - len(paragraph)
            try:
                yield start, {"text": decode(b"".join(paragraph)).replace("\r\n", "\n").strip()}
            except ValueError as error:
                skip(str(error), start)
            paragraph = []


def json_rows(file, skip, wanted=()):
    """Yield (line number, dict) of each line of a binary file that is not blank, and has all the
    keys that are wanted."""
    for number, line in enumerate(file, start=1):
        if line.strip(BLANK):
            try:
                row = parse_object(line)
                yield number, dict(zip(name_columns(row, wanted), row.values()))
            except ValueError as error:
                skip(str(error), number)


def parse_object(line):
    """A line (bytes) -> dict. ValueError says in words why it is none."""
    text = decode(line)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def name_columns(header, wanted):
    """The names of the columns (list of str), spelled as in `wanted` where only the case differs.
    ValueError if one that is wanted is missing, or there are two."""
    names = [name.strip() for name in header]
    spelling = {name.casefold(): name for name in wanted if name not in names}
    columns = [spelling.get(name.casefold(), name) for name in names]
    for name in wanted:
        if columns.count(name) != 1:
            n = "two columns" if name in columns else "no column"
            others = ", ".join(repr(name[:40]) for name in names[:20])
            raise ValueError(f'{n} "{name}"; there are {others}')
    return columns


def holds_a_row(cell, columns):
    """Whether a line in a cell (str) of a tab-separated file has the tabs of a row: many such files
    know no quotes, and then one that opens a text and one that ends another merge their rows."""
    return columns and "\n" in cell and any(
        line.count("\t") == len(columns) - 1 for line in cell.split("\n"))


def csv_rows(file, skip, columns=None, wanted=()):
    """Yield (number of its first line, dict) of each row of a binary file that is not blank.

    columns (list of str): their names in a file without a header; its separator is the comma.
    wanted: those that a file with a header must have, or else it is a ValueError.
    """
    separator, header = ",", ""
    if columns is None:  # the separator is the character that comes most often in the header
        lines = re.split("[\r\n]", file.peek(8192).removeprefix(codecs.BOM_UTF8).decode("latin-1"))
        header = next((line for line in lines if line.strip(SEPARATORS + " ")), "")
        separator = max(SEPARATORS, key=header.count)
        if separator not in header and '"' not in header:
            separator = "\x1f"  # where there is one column, a comma is text
    # What is not UTF-8 is read as half surrogate pairs, and found out when there is a row of it.
    lines = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    # Strict: what follows a closing quote is an error, after which the next line is read anew, so
    # that a quote too many or too few mostly costs only the rows around it.
    reader = csv.reader(lines, delimiter=separator, strict=True,
                        skipinitialspace=separator + " " in header)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
            text = decode("".join(cells).encode("utf-8", "surrogateescape"))
            if text.strip() and columns and len(cells) != len(columns):
                raise ValueError(f"not of {len(columns)} columns")
            if separator == "\t" and any(holds_a_row(cell, columns) for cell in cells):
                raise ValueError("with a quote that another row closes")
        except StopIteration:
            return
        except (csv.Error, ValueError) as error:
            reason = f"not CSV ({error})" if isinstance(error, csv.Error) else str(error)
            reason = reason.replace("\x1f", ",")
            if columns is None:
                raise ValueError(f"its first line: {reason}") from None
            if "end of data" in reason and reader.line_num - start > 100:  # no longer around it
                raise ValueError(f"a quote in line {start} is never closed") from None
            skip(reason, start, reader.line_num + 1 - start)
            continue
        if text.strip() and columns:
            yield start, dict(zip(columns, cells))
        elif text.strip():
            columns = name_columns(cells, wanted)


READERS = {".jsonl": json_rows, ".csv": csv_rows, ".tsv": csv_rows, ".txt": text_rows}
ENDINGS = [ending + gz for ending in READERS for gz in ("", ".gz")]


def read_rows(path, skipped, member=None, **options):
    """Yield (place, dict) of each row of a file, or of a member of an archive.

    place (str): file:line. What is no row is counted in `skipped` (Skipped). options: see csv_rows;
    other files know only `wanted`. SystemExit as open_bytes, for UTF-16, and for a .csv file whose
    first line cannot be read or lacks a column that is wanted, or where a quote is never closed.
    """
    file_name = f"{path}:{member}" if member else str(path)
    ending = "." + file_name.lower().removesuffix(".gz").rpartition(".")[2]

    def skip(reason, line, n=1):
        skipped.add(reason, f"{file_name}:{line}", n)

    with open_bytes(path, member) as file:
        try:
            if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise ValueError('UTF-16 (such as the "Unicode text" of a spreadsheet), not UTF-8: '
                                 "save it as UTF-8, or iconv -f UTF-16 -t UTF-8 OLD > NEW")
            for line, row in READERS[ending](file, skip, **options):
                yield f"{file_name}:{line}", row
        except ValueError as error:
            raise SystemExit(f"{file_name}: {error}") from None
