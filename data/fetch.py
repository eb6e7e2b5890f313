"""Fetching files over HTTP; what may help is tried again after a pause."""
import hashlib
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from data.files import replacing

DOWNLOAD_DIR = Path(__file__).parent / "download"
PAUSES = [1, 2, 5, 15, 30, 90, 180]  # seconds; more than the 5 minutes a rate limit counts over
TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError,
             ssl.SSLError, ValueError)
PERMANENT = (socket.gaierror, ssl.SSLCertVerificationError)
PERMANENT_CODES = {*range(300, 500)} - {408, 429}


def fetch(url, receive):
    """Ask for `url` -> what receive(response) returns, which raises ValueError for a bad answer.
    SystemExit if the server fails too often or if it is no use to ask again."""
    instead = "or read local files with --source=FILES"
    request = urllib.request.Request(url, headers={"User-Agent": "tiny-bert"})
    for wait in [*PAUSES, None]:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return receive(response)
        except TRANSIENT as error:
            reason, code = getattr(error, "reason", error), getattr(error, "code", None)
        problem = f"HTTP {code} {reason}" if code else f"{type(reason).__name__}: {reason}"
        if code in PERMANENT_CODES or isinstance(reason, PERMANENT):
            raise SystemExit(f"cannot fetch {url} ({problem}): check the connection and the "
                             f"address, {instead}")
        if wait is None:
            raise SystemExit(f"{url} keeps failing ({problem}): run the command again later, what "
                             f"was fetched is kept; {instead}")
        tqdm.write(f"{url}: {problem}; trying again in {wait} s")
        time.sleep(wait)


def download(url, path, md5=None):
    """Fetch `url` to `path` (Path) unless it is there. -> path. SystemExit as fetch does, if the
    file cannot be written, or if its MD5 (hex) differs."""
    def receive(response):
        size = response.length  # None if the server does not say
        with open(part, "wb") as file, tqdm(
                desc=path.name, total=size, unit="B", unit_scale=True, disable=None) as bar:
            while block := response.read(1 << 18):
                file.write(block)
                bar.update(len(block))
            if size is not None and file.tell() != size:
                raise ValueError(f"{file.tell():,} bytes instead of {size:,}")

    if path.exists():
        return path
    try:
        with replacing(path) as part:
            fetch(url, receive)
            if md5 and hashlib.md5(part.read_bytes()).hexdigest() != md5:
                raise SystemExit(f"{url} is not the file it should be (MD5 {md5}): run the command "
                                 "again, or read local files with --source=FILES")
    except OSError as error:
        raise SystemExit(f"cannot fetch {url} to {path}: {error.strerror or error}") from None
    return path
