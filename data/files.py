"""Files that are whole or absent, and their checksums."""
import contextlib
import hashlib
import json
import os
import secrets
import time
import zlib
from pathlib import Path

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds


def read_blocks(path):
    """Yield the bytes of a file, a megabyte at a time."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            yield block


def checksum(paths):
    """The SHA-256 (hex) of the files' bytes, one file after the other as given."""
    sha256 = hashlib.sha256()
    for path in paths:
        for block in read_blocks(path):
            sha256.update(block)
    return sha256.hexdigest()


def crc_of(path):
    """The CRC-32 (int) of a file, not mapped, which would count as memory."""
    crc = 0
    for block in read_blocks(path):
        crc = zlib.crc32(block, crc)
    return crc


def retry(rename, source, target):
    """Call rename(source, target), again for some seconds while that is refused: on Windows it is
    as long as another program, such as a virus scanner, has the file open."""
    for pause in PAUSES:
        try:
            return rename(source, target)
        except PermissionError:
            time.sleep(pause)
    return rename(source, target)


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path` to write to; it is renamed to `path` when complete.

    So `path` always holds the whole new content or the old one, also while other processes write
    it. Missing folders are made.
    """
    # What a link names is replaced, and the link stays.
    path = Path(os.path.realpath(os.path.expanduser(path)))
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        retry(os.replace, temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # it is still there only if something went wrong


def write_atomically(path, content):
    """Write bytes to a file, all of them or none. SystemExit if the file cannot be written."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SystemExit(f"cannot write {path}: {error.strerror}") from None


def read_json_lines(path, key):
    """-> what write_json_lines wrote (list of dict); nothing if there is no such file. SystemExit
    if it is damaged: every row must have this key."""
    path = Path(path)
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        [row[key] for row in rows]
        return rows
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is damaged ({error}); restore a copy, or move it away to begin "
                         "anew") from None


def write_json_lines(path, rows):
    """Write a line for each row (dict), as write_atomically does."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
