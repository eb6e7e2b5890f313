"""Downloading a file: streamed to disk, resumed after an interruption, checked, and only then given its name."""
import hashlib
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

DOWNLOAD_DIR = Path(__file__).parent / "download"
PAUSES = [1, 2, 5, 15, 30, 90, 180]  # seconds between attempts: in all more than the 5 minutes a rate limit counts over
pause = time.sleep


def fetch(url, part):
    """Write the file at `url` to `part`, or append what is missing if it is still the one that `part` began with."""
    part.parent.mkdir(parents=True, exist_ok=True)
    note, size = Path(f"{part}.etag"), part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "tiny-bert"})
    if size and note.exists() and (etag := note.read_text()):
        request.add_header("Range", f"bytes={size}-")
        request.add_header("If-Range", etag)  # if the file has changed since, all of it comes
    with urllib.request.urlopen(request, timeout=30) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            part.unlink()
            raise http.client.HTTPException("other bytes than asked for")
        start = size if resumed else 0
        total = None if response.length is None else start + response.length
        with open(part, "ab" if resumed else "wb") as file, tqdm(
                desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar:
            note.write_text(response.headers.get("ETag", ""))
            while block := response.read(1 << 18):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise http.client.HTTPException(f"{part.stat().st_size:,} bytes instead of {total:,}")


def download(url, path, md5=None):
    """Fetch `url` to `path` (Path) unless it is there; an interrupted download goes on where it stopped. -> path

    SystemExit if the server fails too often, if it is no use to ask again, or if the MD5 (hex) is another.
    """
    part, instead = path.with_name(path.name + ".part"), "or read local files with --source=FILES"
    for wait in [] if path.exists() else [*PAUSES, None]:
        try:
            fetch(url, part)
            Path(f"{part}.etag").unlink()
            if md5 and hashlib.md5(part.read_bytes()).hexdigest() != md5:
                part.unlink()
                raise SystemExit(f"{url} is not the file it should be (MD5 {md5}): run the command again, {instead}")
            part.rename(path)
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
            code, reason = getattr(error, "code", 500), getattr(error, "reason", error)
            problem = f"HTTP {code} {reason}" if hasattr(error, "code") else f"{type(reason).__name__}: {reason}"
            if code == 416:  # more is here than there is to fetch
                part.unlink(missing_ok=True)
            elif code < 500 and code not in (408, 429) or isinstance(
                    reason, (socket.gaierror, ssl.SSLCertVerificationError)):  # will be no better in a minute
                raise SystemExit(f"cannot fetch {url} ({problem}): check the connection and the address, "
                                 f"{instead}") from None
            if wait is None:
                raise SystemExit(f"{url} keeps failing ({problem}): run the command again later, what was fetched is "
                                 f"kept; {instead}") from None
            tqdm.write(f"{path.name}: {problem}; trying again in {wait} s")
            pause(wait)
        except OSError as error:
            raise SystemExit(f"cannot fetch {url} to {part}: {error.strerror or error}") from None
        except KeyboardInterrupt:
            raise SystemExit("stopped; what was fetched is kept, the same command goes on from there") from None
    return path
