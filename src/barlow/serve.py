"""`barlow serve RUNS_DIR`: the runs of a folder in the browser, live, side by side, and searched by image.

It reads the run folders below the given folder and nothing else: what a request names is looked up among the runs
of the folder, never joined to a path. It answers only requests addressed to this machine by its own name, which
keeps other web sites from asking through the browser.
"""

import contextlib
import io
import math
import shlex
import socket
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from markupsafe import Markup
from PIL import Image

from barlow.data import CorruptSample
from barlow.data.decode import decode_one
from barlow.errors import InputError
from barlow.evaluation import nearest
from barlow.files import read_json
from barlow.models import Encoder
from barlow.numbers import amount, is_percent
from barlow.report.charts import data_address
from barlow.report.gallery import FACTS as GALLERY
from barlow.report.gallery import Gallery, read_gallery
from barlow.report.page import MOST_RUNS, PAGES, file, render, script_source
from barlow.report.pictures import title
from barlow.report.record import best_evaluation, protocol_name, read_record
from barlow.run import CONFIG, Run

try:
    import python_multipart  # noqa: F401  Starlette reads forms with it
    import uvicorn
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise InputError(f"`barlow serve` needs {error.name}: pip install 'barlow[serve]'") from None

MOST_BYTES = 20_000_000  # of an uploaded image
MOST_PIXELS = 50_000_000
DECODERS = 1  # images decoded at a time: one of MOST_PIXELS takes 1 GB until it is resized
MOST_CLIENTS = 512  # at once; beyond, uvicorn answers 503
BACKLOG = 512  # connections that the system holds until they are accepted
MATCHES = 12
DEPTH = 3  # folders below the given one in which runs are looked for
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_runs(root: Path) -> dict[str, Run]:
    """Every run folder up to `DEPTH` below `root` by its relative path; links that lead out of it are left out."""
    top = root.resolve()
    runs = {}
    for depth in range(DEPTH + 1):
        for config in sorted(root.glob("*/" * depth + CONFIG)):
            if config.resolve().is_relative_to(top) and _is_runs(config):
                runs[config.parent.relative_to(root).as_posix()] = Run(config.parent)
    return runs


def _is_runs(config: Path) -> bool:
    """Whether it is a run's; other tools call their own files so too."""
    try:
        return "objective" in read_json(config, dict[str, Any])
    except InputError:
        return False


def check_links(run: Run, root: Path) -> None:
    """Raises InputError where a file of the run, or the folder of its evaluations, is a link to outside of `root`."""
    results = run.path / "evaluations"
    for path in (*run.path.glob("*.*"), results, *results.glob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"{path} is a link that leads out of {root}; copy the file, or serve the folder it lies in"
            )


def summary(name: str, run: Run, root: Path) -> dict[str, Any]:
    """What the list of runs shows of one; of a damaged one what is wrong, so that the others show."""
    try:
        check_links(run, root)
        return _summary(name, run)
    except Exception as error:  # whatever is wrong with one folder, the others are listed
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


@lru_cache(maxsize=4)
def _searchable(path: Path, stamp: int) -> tuple[Encoder, Gallery, Image.Image | None]:
    """Encoder, gallery and its thumbnails, in memory until the gallery is written anew (`stamp`)."""
    gallery = read_gallery(path)
    encoder = Run(path).encoder()
    if gallery is None or "features" not in gallery.arrays or gallery.encoder != encoder.facts["sha256"]:
        raise InputError("the pictures of this run are of an earlier encoder; `barlow report` makes them anew")
    sheet = Image.open(io.BytesIO(gallery.arrays["atlas"].tobytes())) if gallery.thumb else None
    if sheet is not None:
        sheet.load()  # once: decoding 16 million pixels takes ten times as long as a search
    return encoder, gallery, sheet


@torch.no_grad()
def find_similar(run: Run, content: bytes) -> list[dict[str, Any]]:
    """The images of the run's gallery nearest to an uploaded one: name, cosine, picture."""
    if not (run.path / GALLERY).exists():
        raise InputError(
            f"{run.name} has no pictures to search; `barlow report {shlex.quote(str(run.path))}` makes them"
        )
    encoder, gallery, sheet = _searchable(run.path, (run.path / GALLERY).stat().st_mtime_ns)
    assert encoder.preprocess is not None  # load_encoder always sets it
    preprocess = encoder.preprocess
    dtype = torch.uint8 if preprocess.scale == 255.0 else torch.float32
    try:
        pixels = decode_one(content, preprocess.channels, dtype, "the image", MOST_PIXELS)
    except CorruptSample as error:
        raise InputError(f"that is not a readable image: {error}") from None
    features = encoder(preprocess(pixels)).numpy()
    bank = gallery.arrays["features"]
    cosines, rows = nearest(bank, features, min(MATCHES, len(bank)))
    return [
        {"name": title(gallery, int(row)), "similarity": float(cosine), "picture": _thumbnail(gallery, sheet, int(row))}
        for row, cosine in zip(rows[0], cosines[0], strict=True)
    ]


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
    return PAGES.get_template("serve.html").render(
        title=root.resolve().name,
        folder=shlex.quote(str(root)),
        most_runs=MOST_RUNS,
        most_bytes=MOST_BYTES,
        style=Markup(file("page.css")),
        script=Markup(file("serve.js")),
    )


def make_app(root: Path, *, local: bool = True) -> Starlette:
    """The application of one folder of runs; `local` answers only requests that are addressed to this machine."""
    decoders = CapacityLimiter(DECODERS)

    def named_runs(request: Request, most: int) -> list[Run]:
        names = request.query_params.getlist("run")
        if not 1 <= len(names) <= most:
            raise HTTPException(400, f"choose 1 to {most} runs, got {len(names)}")
        runs = find_runs(root)
        if unknown := [name for name in names if name not in runs]:
            raise HTTPException(404, f"there is no run '{unknown[0]}'")
        for name in names:
            check_links(runs[name], root)
        return [runs[name] for name in names]

    def start(request: Request) -> Response:
        policy = f"{POLICY}; script-src {script_source(file('serve.js'))}"
        return HTMLResponse(start_page(root), headers={"Content-Security-Policy": policy})

    def list_runs(request: Request) -> Response:
        return JSONResponse([summary(name, run, root) for name, run in find_runs(root).items()])

    def report(request: Request) -> Response:
        page = render([read_record(run, colour) for colour, run in enumerate(named_runs(request, MOST_RUNS))])
        # the policy of what the page may load and run stands in the page itself
        return HTMLResponse(page, headers={"Content-Security-Policy": "frame-ancestors 'none'"})

    async def search(request: Request) -> Response:
        length = request.headers.get("Content-Length")
        if length is None:
            raise HTTPException(411, "say how long the image is")
        if int(length) > MOST_BYTES:  # h11 refuses a length that is not a number, and a body that is longer than it
            raise HTTPException(413, f"an image may have {MOST_BYTES // 1_000_000} MB at most")
        async with request.form(max_files=1, max_fields=0) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise HTTPException(400, "send the image as the file `image` of a form")
            # Files above 1 MB wait on disk: only as many as are decoded at a time lie in memory.
            matches = await to_thread.run_sync(search_run, request, image, limiter=decoders)
        return JSONResponse({"matches": matches})

    def search_run(request: Request, image: UploadFile) -> list[dict[str, Any]]:
        (run,) = named_runs(request, most=1)
        return find_similar(run, image.file.read())

    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK) if local else ["*"], www_redirect=False),
        Middleware(BaseHTTPMiddleware, dispatch=partial(_guard, local=local)),
    ]
    handlers: dict[Any, Any] = {InputError: _trouble, HTTPException: _trouble, ClientDisconnect: _gone}
    routes = [
        Route("/", start),
        Route("/runs.json", list_runs),
        Route("/report", report),
        Route("/search", search, methods=["POST"]),
        # browsers ask for an icon, and log an error where there is none
        Route("/favicon.ico", lambda request: Response(status_code=204)),
    ]
    return Starlette(routes=routes, middleware=guards, exception_handlers=handlers)


async def _guard(request: Request, call_next: RequestResponseEndpoint, local: bool) -> Response:
    """Refuse what another web site sends from the user's browser, and keep answers from being cached or embedded."""
    origin = request.headers.get("Origin")
    foreign = local and origin is not None and urlsplit(origin).hostname not in LOOPBACK
    response = PlainTextResponse("Invalid origin", 400) if foreign else await call_next(request)
    response.headers.update(HEADERS)
    return response


async def _trouble(request: Request, error: Exception) -> Response:
    """Plain text where a person followed a link, JSON for the page's script."""
    status, words = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    if request.url.path == "/search":
        return JSONResponse({"error": words}, status)
    return PlainTextResponse(words + "\n", status)


async def _gone(request: Request, error: Exception) -> Response:
    """The browser left in the middle of an upload: nobody reads this answer."""
    return Response(status_code=400)


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients. Raises InputError for an address that cannot be had."""
    if not host.strip():  # the system would take an empty name for every address of this machine
        raise InputError("--host is empty; name an address, such as 127.0.0.1 (0.0.0.0 opens the server to everybody)")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:  # a port beyond 65535 overflows
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from None


def serve(root: str | Path, *, host: str = "127.0.0.1", port: int = 8384) -> None:
    """Show the runs below `root` in the browser until interrupted.

    Nobody but this machine is answered, unless `host` says otherwise: then everybody who reaches it reads the reports
    and searches. Raises InputError for a folder or an address that cannot be served.
    """
    if not Path(root).is_dir():
        raise InputError(f"no folder at {root}; name the folder that holds the runs")
    with listen(host, port) as opened:
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{opened.getsockname()[1]}  (stop with Ctrl-C)", flush=True)
        server = make_server(make_app(Path(root), local=host in LOOPBACK))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[opened])


def make_server(app: Starlette) -> uvicorn.Server:
    """uvicorn without a line per request: a page that looks every few seconds would fill the terminal."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=MOST_CLIENTS,
            timeout_graceful_shutdown=3,
        )
    )
