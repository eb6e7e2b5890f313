"""Files that are whole or absent, and their checksums."""
import contextlib
import hashlib
import os
import secrets
import time
from pathlib import Path


def checksum(paths):
    """The SHA-256 (hex) of the files' bytes, one file after the other as given."""
    sha256 = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def replace(temporary, path):
    """Rename a file to `path`. Windows refuses while another program, such as a virus scanner,
    reads what is there: then it is tried again for some seconds."""
    for wait in (0.1, 0.5, 2, None):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if os.name != "nt" or wait is None:
                raise
            time.sleep(wait)


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path` (Path) to write to; it is renamed to `path` when complete.

    So `path` always holds the whole new content or the old one, also while other processes write
    it. Missing folders are made.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # it is still there only if something went wrong


def write_atomically(path, content):
    """Write bytes to a file, all of them or none. SystemExit if the file cannot be written."""
    try:
        with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SystemExit(f"cannot write {path}: {error.strerror}") from None
