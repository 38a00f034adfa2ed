"""Download shards with img2dataset: run by the Python of img2dataset's own environment, for images.py.

Settings come as the first line of standard input and a shard as every line after it, all JSON; an answer goes out for
each. Two things that img2dataset 1.47 does are replaced here:

- Its timeout bounds one read of a socket, so a server that drips a byte now and then, or a stream without end, holds a
  thread for ever. Here a url has a deadline, and an image a size: what is late is given up, its sockets shut down.
- Its blur of faces is about a third as wide as that of the versions of DataComp's time.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import socket
import ssl
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

KEY_DIGITS = 4  # of a sample's number within its shard, so that a shard has 10,000 at most
SHARD_DIGITS = 8
MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 1 << 28
PIECE_BYTES = 1 << 20

_current = threading.local()


class Attempt:
    """The sockets that one url has opened, so that they can be shut down from another thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sockets: list[socket.socket] = []
        self.is_over = False

    def connect(self, *arguments: Any) -> socket.socket:
        """Connect as `socket.create_connection`; raises TimeoutError once the attempt is over."""
        if self.is_over:
            raise TimeoutError("the deadline passed")
        opened = socket.create_connection(*arguments)
        with self.lock:
            # A duplicate shares the connection, also where TLS takes over the socket itself.
            self.sockets.append(opened.dup())
        if self.is_over:
            self.end()
        return opened

    def end(self) -> None:
        """Shut down every connection: a thread that waits for one goes on at once."""
        self.is_over = True
        with self.lock:
            for each in self.sockets:
                with suppress(OSError):  # closed by the other side
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self.sockets.clear()


class BoundedResponse(http.client.HTTPResponse):
    """A response whose body is refused when it is larger than an image may be."""

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        expected = self.length
        pieces, size = [], 0
        while piece := super().read(PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_IMAGE_BYTES:
                raise ValueError(f"more than {MAX_IMAGE_BYTES >> 20} MiB")
        if expected is not None and size < expected:
            raise http.client.IncompleteRead(b"", expected - size)
        return b"".join(pieces)


class Connection(http.client.HTTPConnection):
    """A connection that its attempt knows of."""

    response_class = BoundedResponse

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._create_connection = _current.attempt.connect


class SecureConnection(http.client.HTTPSConnection):
    """The same over TLS."""

    response_class = BoundedResponse

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._create_connection = _current.attempt.connect


class Handler(urllib.request.HTTPHandler):
    """Opens http urls."""

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(Connection, request)


class SecureHandler(urllib.request.HTTPSHandler):
    """Opens https urls, with one context for all: making one reads hundreds of certificates."""

    context = ssl.create_default_context()

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(SecureConnection, request, context=self.context)


def make_opener() -> urllib.request.OpenerDirector:
    """Return an opener of http and https only: urllib's own reads file: and data: urls as well, and ftp: unbounded."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        Handler(),
        SecureHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def with_deadline(download: Callable[..., tuple[int, Any, str | None]], seconds: float) -> Callable[..., Any]:
    """Wrap img2dataset's download of one row with all its retries: given up when the seconds have passed.

    The work runs in a thread of its own, since neither a name server nor a connect to many addresses can be cut short;
    such a thread ends by itself some time later.
    """

    def bounded(row: tuple[int, str], *arguments: Any, **options: Any) -> tuple[int, Any, str | None]:
        attempt = Attempt()
        answers: list[tuple[int, Any, str | None]] = []

        def work() -> None:
            _current.attempt = attempt
            answers.append(download(row, *arguments, **options))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
        answer = answers[0] if answers else (row[0], None, f"no answer in {seconds:g} s")
        attempt.end()
        return answer

    return bounded


def blur_faces(img: Any, bbox_list: Sequence[Sequence[float]]) -> Any:
    """Blur boxes (left, top, right, bottom as shares of the sides) as DataComp did; the rest stays as it is.

    Each box grows by a tenth of its longer side; the standard deviation is a tenth of the longest side of all.
    """
    import cv2  # type: ignore[import-not-found]
    import numpy as np

    if len(bbox_list) == 0:
        return img
    height, width = img.shape[:2]
    mask = np.zeros((height, width), np.float32)
    longest = 0
    for box in bbox_list:
        left, top, right, bottom = (
            int(share * side) for share, side in zip(box, (width, height, width, height), strict=True)
        )
        longer = max(right - left, bottom - top)
        longest = max(longest, longer)
        edge = 0.1 * longer
        rows = slice(max(int(top - edge), 0), max(min(int(bottom + edge), height - 1), 0))
        columns = slice(max(int(left - edge), 0), max(min(int(right + edge), width - 1), 0))
        mask[rows, columns] = 1
    if longest <= 0:
        return img
    sigma = 0.1 * longest
    size = 2 * int(np.ceil(4 * sigma)) + 1
    weight = cv2.GaussianBlur(mask, (size, size), sigma)
    sharp = img.astype(np.float32)
    blurred = cv2.GaussianBlur(sharp, (size, size), sigma)
    if img.ndim == 3:
        weight = weight[:, :, None]
    return np.rint(sharp * (1 - weight) + blurred * weight).astype(img.dtype)


class Runner:
    """img2dataset with DataComp's settings and what download_pool.py adds to them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version of itself
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_IMAGE_PIXELS)
        from img2dataset import downloader  # type: ignore[import-not-found]
        from img2dataset.resizer import Resizer  # type: ignore[import-not-found]
        from img2dataset.writer import WebDatasetSampleWriter  # type: ignore[import-not-found]

        urllib.request.install_opener(make_opener())
        downloader.download_image_with_retry = with_deadline(downloader.download_image_with_retry, settings["deadline"])
        self.module = downloader
        self.compute_key = downloader.compute_key
        self.options: dict[str, Any] = {
            "sample_writer_class": WebDatasetSampleWriter,
            "resizer": Resizer(
                image_size=settings["image_size"],
                resize_mode="keep_ratio_largest",
                resize_only_if_bigger=True,
                encode_quality=95,
                encode_format="jpg",
                blurrer=blur_faces if settings["blur"] else None,
            ),
            "thread_count": settings["threads"],
            "save_caption": True,
            "extract_exif": True,
            "column_list": settings["columns"],
            "timeout": settings["timeout"],
            "number_sample_per_shard": 10**KEY_DIGITS,
            "oom_shard_count": SHARD_DIGITS,
            "compute_hash": "sha256",
            "verify_hash_type": "sha256" if settings["verify"] else None,
            "encode_format": "jpg",
            "retries": settings["retries"],
            "user_agent_token": settings["user_agent_token"],
            "disallowed_header_directives": settings["disallowed_header_directives"],
            "blurring_bbox_col": "face_bboxes" if settings["blur"] else None,
        }

    def run(self, shard: int, places: Sequence[int], input_path: str, out_dir: str) -> None:
        """Download one shard into a folder; raises what img2dataset raises where it cannot write.

        A sample's key says its place in the shard, also where denied ones before it were left out.
        """
        self.module.compute_key = lambda number, *others: self.compute_key(places[number], *others)
        self.module.Downloader(output_folder=out_dir, **self.options).download_shard((shard, input_path))


def read_jobs(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Queue every line; end the process with its input: whoever started it is gone then, perhaps killed."""
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def main() -> None:
    """Answer for one shard after another."""
    # img2dataset and its libraries print; what they print goes the way of errors.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read_jobs, args=(jobs,), daemon=True).start()
    runner = Runner(settings)
    print(json.dumps({"version": version("img2dataset")}), file=answers)
    while True:
        job = SimpleNamespace(**jobs.get())
        start = time.time()
        runner.run(job.shard, job.places, job.input_path, job.out_dir)
        print(json.dumps({"shard": job.shard, "seconds": round(time.time() - start, 3)}), file=answers)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once: a thread that waits for input would hold up an ordinary end
