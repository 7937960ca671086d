"""`barlow serve RUNS_DIR`: the runs of a folder in the browser, live, side by side, and searched by image.

It reads the run folders below the given folder and nothing else: what a request names is looked up among the runs
that were found, never joined to a path. It answers only requests addressed to this machine by its own name, which
keeps other web sites from asking through the browser.
"""

import contextlib
import io
import json
import math
import re
import shlex
import warnings
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from barlow.data import CorruptSample
from barlow.data.decode import decode_one
from barlow.errors import InputError
from barlow.evaluation.bank import Bank
from barlow.files import read_json
from barlow.models import Encoder, Preprocess
from barlow.report.charts import data_address
from barlow.report.gallery import FACTS as GALLERY
from barlow.report.gallery import Gallery, read_gallery
from barlow.report.markup import Markup, escape
from barlow.report.page import MOST_RUNS, fill, render, script_source, template
from barlow.report.pictures import title
from barlow.report.story import amount, best_evaluation, is_percent, protocol_name, read_story
from barlow.run import CONFIG, Run

MOST_BYTES = 20_000_000  # of an uploaded image
MOST_PIXELS = 50_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
TIFF = (b"II", b"MM")  # how its files start
MATCHES = 12
DEPTH = 3  # folders below the given one in which runs are looked for
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_runs(root: Path) -> dict[str, Run]:
    """Every run folder up to `DEPTH` below `root` by its relative path; links that lead out of it are left out."""
    top = root.resolve()
    found = {}
    for depth in range(DEPTH + 1):
        for config in sorted(root.glob("*/" * depth + CONFIG)):
            if config.resolve().is_relative_to(top) and _is_runs(config):
                found[config.parent.relative_to(root).as_posix()] = Run(config.parent)
    return found


def _is_runs(config: Path) -> bool:
    """Whether it is a run's; other tools call their own files so too."""
    try:
        return "objective" in read_json(config, dict[str, Any])
    except InputError:
        return False


def summary(name: str, run: Run) -> dict[str, Any]:
    """What the list of runs shows of one; of a damaged one what is wrong, so that the others show."""
    try:
        return _summary(name, run)
    except (InputError, OSError) as error:
        return {"name": name, "status": "damaged", "trouble": str(error), "searchable": False}


def _summary(name: str, run: Run) -> dict[str, Any]:
    lines = run.metrics()
    steps = [line for line in lines if line["kind"] in ("step", "epoch")]
    knn = next((line["knn"] for line in reversed(lines) if line.get("knn") is not None), None)
    last = steps[-1] if steps else {}
    verdict = run.health().get("verdict")
    return {
        "name": name,
        "status": run.facts.get("status", "unknown"),
        "epoch": last.get("epoch"),
        "loss": _finite(last.get("loss")),
        "images_per_s": _finite(last.get("images_per_s")),
        "knn": None if knn is None else _finite(100 * knn),
        "health": verdict["state"].replace("-", " ") if verdict else "",
        "score": _score(run),
        "searchable": (run.path / GALLERY).exists(),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN, and a browser refuses a list that holds one."""
    return value if value is not None and math.isfinite(value) else None


def _score(run: Run) -> str:
    best = best_evaluation(run.evaluations())
    if best is None:
        return ""
    unit = "%" if is_percent(best["metric"]) else ""
    return f"{protocol_name(best)} {amount(best['value'], best['metric'])}{unit} on {best['data']}"


def open_image(content: bytes) -> Image.Image:
    """An uploaded image. Raises InputError for anything else, and for more pixels than are worth looking at."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning about size; the limit below is stricter
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise InputError(
                    f"the image has {image.width} x {image.height} pixels, at most {MOST_PIXELS:,} are read"
                )
            image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"that is not a readable image ({', '.join(IMAGE_FORMATS)})") from None
    return image


@lru_cache(maxsize=4)
def _searchable(path: Path, stamp: int) -> tuple[Encoder, Gallery, Bank]:
    """Encoder, gallery and the gallery's features of a run, kept in memory until its gallery changes."""
    gallery = read_gallery(path)
    encoder = Run(path).encoder()
    if gallery is None or "features" not in gallery.arrays or gallery.encoder != encoder.facts["sha256"]:
        raise InputError("the pictures of this run are of an earlier encoder; `barlow report` makes them anew")
    return encoder, gallery, Bank(gallery.arrays["features"])


@torch.no_grad()
def find_similar(run: Run, content: bytes) -> list[dict[str, Any]]:
    """The images of the run's gallery nearest to an uploaded one: name, cosine, picture."""
    if not (run.path / GALLERY).exists():
        raise InputError(
            f"{run.name} has no pictures to search; `barlow report {shlex.quote(str(run.path))}` makes them"
        )
    open_image(content)
    encoder, gallery, bank = _searchable(run.path, (run.path / GALLERY).stat().st_mtime_ns)
    assert encoder.preprocess is not None  # load_encoder always sets it
    features = encoder(_prepared(content, encoder.preprocess)).numpy()
    cosines, rows = bank.nearest(features, min(MATCHES, len(bank.x)))
    sheet = Image.open(io.BytesIO(gallery.arrays["atlas"].tobytes())) if gallery.thumb else None
    return [
        {"name": title(gallery, int(row)), "similarity": float(cosine), "picture": _thumbnail(gallery, sheet, int(row))}
        for row, cosine in zip(rows[0], cosines[0], strict=True)
    ]


def _prepared(content: bytes, preprocess: Preprocess) -> Tensor:
    """What the encoder reads of an upload that `open_image` let pass: decoded as the images of a data set are.

    But for TIFF, whose other depths are decoded by code without a bound on what comes out: 8-bit ones by Pillow.
    """
    if content.startswith(TIFF):
        return preprocess.image(open_image(content))
    dtype = torch.uint8 if preprocess.scale == 255.0 else torch.float32
    try:
        return preprocess(decode_one(content, preprocess.channels, dtype, "the image"))
    except CorruptSample as trouble:
        raise InputError(str(trouble)) from None


def _thumbnail(gallery: Gallery, sheet: Image.Image | None, point: int) -> str:
    if sheet is None:
        return "data:,"
    row, column = divmod(point, gallery.columns)
    x, y = column * gallery.thumb, row * gallery.thumb
    stream = io.BytesIO()
    sheet.crop((x, y, x + gallery.thumb, y + gallery.thumb)).save(stream, "PNG")
    return data_address(stream.getvalue(), "image/png")


def start_page(root: Path) -> str:
    """The list of runs and the search; the page asks for the rest."""
    parts = {
        "title": escape(root.resolve().name),
        "folder": escape(shlex.quote(str(root))),
        "most_runs": escape(MOST_RUNS),
        "most_bytes": escape(MOST_BYTES),
        "style": Markup(template("page.css")),
        "script": Markup(template("serve.js")),
    }
    return fill(template("serve.html"), parts)


class _Refused(Exception):  # noqa: N818  it is an answer, not an error
    """An answer other than the one asked for."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status


def _host_name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as an open bracket
        return None


class _Handler(BaseHTTPRequestHandler):
    server: "Server"
    server_version = "barlow"
    sys_version = ""
    timeout = 30  # seconds a connection may keep a thread waiting

    def do_GET(self) -> None:
        self._answer({"/": self._start, "/runs.json": self._runs, "/report": self._report, "/favicon.ico": self._icon})

    def do_POST(self) -> None:
        self._answer({"/search": self._search})

    def _answer(self, routes: Mapping[str, Any]) -> None:
        try:
            self._check_addressee()
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
            route()
        except _Refused as refused:
            self._send_trouble(str(refused), refused.status)
        except InputError as mistake:
            self._send_trouble(str(mistake), HTTPStatus.BAD_REQUEST)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):  # the browser has left
            self.close_connection = True

    def _check_addressee(self) -> None:
        """A page of another site reaches a local server under that site's name: such requests are refused."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        own = self.server.names
        if own is not None and (_host_name(f"//{host}") not in own or (origin and _host_name(origin) not in own)):
            raise _Refused(HTTPStatus.FORBIDDEN, "this server answers requests of this machine only")

    def _start(self) -> None:
        policy = f"{POLICY}; script-src {script_source(template('serve.js'))}"
        self._send(start_page(self.server.root), "text/html; charset=utf-8", policy=policy)

    def _icon(self) -> None:
        self._send("", "image/x-icon", HTTPStatus.NO_CONTENT)  # browsers ask, and log an error where there is none

    def _runs(self) -> None:
        self._send_json([summary(name, run) for name, run in find_runs(self.server.root).items()])

    def _report(self) -> None:
        runs = self._named_runs(most=MOST_RUNS)
        page = render([read_story(run, colour) for colour, run in enumerate(runs)])
        self._send(page, "text/html; charset=utf-8", policy="frame-ancestors 'none'")  # the rest stands in the page

    def _search(self) -> None:
        (run,) = self._named_runs(most=1)
        self._send_json({"matches": find_similar(run, self._body())})

    def _named_runs(self, most: int) -> list[Run]:
        names = parse_qs(self.path.partition("?")[2]).get("run", [])
        found = find_runs(self.server.root)
        if not 1 <= len(names) <= most:
            raise InputError(f"choose 1 to {most} runs, got {len(names)}")
        unknown = [name for name in names if name not in found]
        if unknown:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no run '{unknown[0]}'")
        return [found[name] for name in names]

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", length):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "say how long the image is")
        if int(length) > MOST_BYTES:
            self.close_connection = True  # the rest is not read
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an image may have {MOST_BYTES // 1_000_000} MB at most"
            )
        return self.rfile.read(int(length))

    def _send_trouble(self, words: str, status: HTTPStatus) -> None:
        """Plain text where a person followed a link, JSON for the page's script."""
        if self.path.startswith("/report"):
            self._send(words + "\n", "text/plain; charset=utf-8", status)
        else:
            self._send_json({"error": words}, status)

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value), "application/json", status)

    def _send(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: str | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **({"Content-Security-Policy": policy} if policy else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a page that looks every few seconds would fill the terminal."""


class Server(ThreadingHTTPServer):
    """The server of one folder of runs."""

    daemon_threads = True

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 8384) -> None:
        if not root.is_dir():
            raise InputError(f"no folder at {root}; name the folder that holds the runs")
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:  # a port beyond 65535 overflows
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from None
        self.root = root
        self.names = LOOPBACK if host in LOOPBACK else None
        """host names that requests may be addressed to; None when bound beyond this machine"""


def serve(root: str | Path, *, host: str = "127.0.0.1", port: int = 8384) -> None:
    """Show the runs below `root` in the browser until interrupted.

    Nobody but this machine is answered, unless `host` says otherwise: then everybody who reaches it reads the reports
    and searches. Raises InputError for a folder or an address that cannot be served.
    """
    with Server(Path(root), host, port) as server:
        print(f"http://{server.server_address[0]!s}:{server.server_address[1]}  (stop with Ctrl-C)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
