"""Fetch one public file by HTTP: resumes where it broke off, is checked by its sha256, and put in place whole."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from benchmark import __version__
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import rename, sha256_of
from benchmark.runtime.locks import locked

PARTIAL_SUFFIX = ".part"
PIECE_BYTES = 1 << 20
TIMEOUT = 60.0  # seconds of a server's silence


def fetch_file(url: str, path: Path, sha256: str) -> None:
    """Fetch a file with a progress bar, unless it is there; what a killed call left is resumed.

    Raises ConnectionError where the server cannot be reached or breaks off, and ValueError where it has other bytes.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with locked(path.parent):
        while not path.exists():
            is_resumed = partial.exists()
            _append(url, partial)
            found = sha256_of(partial)
            if found == sha256:
                rename(partial, path)
                continue
            partial.unlink()
            if not is_resumed:  # else the beginning may have been another file's
                raise UserError(
                    f"{url} has the sha256 {found} instead of {sha256}: fetch {path.name} from elsewhere",
                    code="download-differs",
                )


def _append(url: str, partial: Path) -> None:
    """Fetch what is missing of a file."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": f"winnow/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            start = start if response.status == 206 else 0  # 200: it sends all of the file
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            bar = tqdm(
                total=total, initial=start, desc=partial.stem, unit="B", unit_scale=True, disable=None, leave=False
            )
            with bar, partial.open("ab" if start else "wb") as file:
                while piece := response.read1(PIECE_BYTES):  # what has arrived, so that a kill costs no more
                    file.write(piece)
                    bar.update(len(piece))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no more than what is here
            return
        raise ConnectionError(f"{url} answers {error.code} ({error.reason})") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"{url} cannot be read: {getattr(error, 'reason', error)}") from error
    size = partial.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"{url} broke off after {size:,} of {total:,} bytes; started again, it resumes there")
