"""The local server shows the runs of its folder, finds images, and reads nothing else for nobody else."""

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from barlow.data import Source
from barlow.errors import InputError
from barlow.report import read_gallery
from barlow.run import Run
from barlow.serve import MOST_BYTES, find_runs, find_similar, listen, make_app, make_server, serve

MakeRun = Callable[..., Run]


def png(source: Source, point: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(source.read(point).permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def server(make_run: MakeRun, tmp_path: Path) -> Iterator[int]:
    """The port of a running server; at the end nothing may have been logged, such as a traceback."""
    make_run("first")
    make_run("second", bare=True)
    (tmp_path / "secret.txt").write_text("secret")
    with listen("127.0.0.1", 0) as opened:
        running = make_server(make_app(tmp_path / "runs"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]})
        thread.start()
        yield opened.getsockname()[1]
        running.should_exit = True
        thread.join()


def ask(server: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", server, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


FORM = "multipart/form-data; boundary=edge"


def form_of(content: bytes) -> bytes:
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="query"\r\n\r\n'
    return head + content + b"\r\n--edge--\r\n"


def search(server: int, content: bytes, **headers: str) -> tuple[HTTPResponse, Any]:
    response, body = ask(server, "POST", "/search?run=first", form_of(content), Content_Type=FORM, **headers)
    return response, json.loads(body)


def test_the_runs_are_listed_with_their_latest_figures(server: int) -> None:
    response, body = ask(server, "GET", "/runs.json")
    runs = json.loads(body)
    assert response.status == 200
    assert [run["name"] for run in runs] == ["first", "second"]
    assert runs[0] | {"score": ""} == {
        "name": "first",
        "status": "finished",
        "epoch": 5,
        "loss": 40.0,
        "images_per_s": 905.0,
        "knn": 80.0,
        "health": "healthy",
        "score": "",
        "searchable": True,
    }
    assert runs[0]["score"].startswith("linear probe 91.0% on ")
    assert (runs[1]["epoch"], runs[1]["searchable"]) == (None, False)


def test_new_lines_show_at_the_next_look(server: int, tmp_path: Path) -> None:
    with (tmp_path / "runs" / "first" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"kind": "epoch", "epoch": 6, "step": 60, "loss": 12.5}) + "\n")
        stream.write('{"kind": "epoch", "epoch": 7, "lo')  # a line that is just being written
    first = json.loads(ask(server, "GET", "/runs.json")[1])[0]
    assert (first["epoch"], first["loss"]) == (6, 12.5)


def test_a_damaged_run_hides_no_other_and_nan_breaks_no_list(server: int, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "second" / "metrics.jsonl").write_text('{"kind": "epoch"\n{"kind": "epoch"}\n')
    with (runs / "first" / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "epoch", "epoch": 6, "step": 60, "loss": NaN, "images_per_s": Infinity}\n')
    first, second = json.loads(ask(server, "GET", "/runs.json")[1], parse_constant=pytest.fail)
    assert (first["epoch"], first["loss"], first["images_per_s"]) == (6, None, None)
    assert second["status"] == "damaged"
    assert "line 1 of" in second["trouble"]
    response, body = ask(server, "GET", "/report?run=second")
    assert response.getheader("Content-Type") == "text/plain; charset=utf-8"  # a person followed a link
    assert b"line 1 of" in body


def test_chosen_runs_are_compared_on_one_page(server: int) -> None:
    response, body = ask(server, "GET", "/report?run=first&run=second")
    assert response.status == 200
    assert b"2 runs side by side" in body


def test_an_image_finds_itself_first_with_its_picture(server: int, source: Source) -> None:
    response, answer = search(server, png(source, 13))
    matches = answer["matches"]
    assert response.status == 200
    assert matches[0]["name"].endswith("13.png")
    assert matches[0]["similarity"] == pytest.approx(1, abs=2e-3)
    assert len(matches) == 12
    assert matches[0]["picture"].startswith("data:image/png;base64,")


def test_an_upload_is_read_as_the_images_of_a_data_set_are(make_run: MakeRun, source: Source) -> None:
    """Upright by its EXIF orientation, transparency over white, 16 bits as such."""
    run, pixels = make_run(), source.read(13).permute(1, 2, 0).numpy()
    sideways, transparent, deep = io.BytesIO(), io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left: 0th row is the right side
    Image.fromarray(np.rot90(pixels)).save(sideways, "PNG", exif=exif)
    seen = np.full((16, 16, 1), 255, np.uint8)
    seen[:8, :8] = 0
    Image.fromarray(np.concatenate([pixels, seen], axis=2)).save(transparent, "PNG")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(deep, "PNG")
    white = np.where(seen == 255, pixels, 255)
    gray = np.repeat(pixels[..., :1], 3, axis=2)
    for upload, same in ((sideways, pixels), (transparent, white), (deep, gray)):
        plain = io.BytesIO()
        Image.fromarray(same).save(plain, "PNG")
        assert find_similar(run, upload.getvalue()) == find_similar(run, plain.getvalue())


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/runs/first/config.json",
        "/first/config.json",
        "/report?run=..",
        "/report?run=../secret.txt",
        "/report?run=%2e%2e%2fruns%2ffirst",
        "/report?run=first/../first",
        "/report?run=/etc",
        "//etc/passwd",
        "/etc/passwd",
    ],
)
def test_nothing_outside_the_listed_runs_is_read(path: str, server: int) -> None:
    response, body = ask(server, "GET", path)
    assert response.status == 404
    assert b"secret" not in body.replace(b"secret.txt", b"")


def test_a_link_that_leads_out_of_the_folder_is_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("inside", bare=True)
    outside = tmp_path / "elsewhere" / "run"
    outside.mkdir(parents=True)
    (outside / "config.json").write_text((tmp_path / "runs" / "inside" / "config.json").read_text())
    (tmp_path / "runs" / "link").symlink_to(outside)
    assert list(find_runs(tmp_path / "runs")) == ["inside"]


def test_a_folder_with_another_tools_configuration_is_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("own", bare=True)
    for name, text in (("exported", '{"architecture": "resnet18"}'), ("notes", "[1, 2]"), ("draft", "{")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.json").write_text(text)
    assert list(find_runs(tmp_path / "runs")) == ["own"]


def test_runs_in_subfolders_are_found_by_their_relative_path(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("grid/a", bare=True)
    make_run("grid/b", bare=True)
    assert list(find_runs(tmp_path / "runs")) == ["grid/a", "grid/b"]
    assert list(find_runs(tmp_path / "runs" / "grid" / "a")) == ["."]


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Host": ""}, {"Host": "[::1"}]
)
def test_other_web_sites_are_refused(headers: dict[str, str], server: int, source: Source) -> None:
    for method, path, body in (("GET", "/runs.json", None), ("POST", "/search?run=first", form_of(png(source, 1)))):
        response, answer = ask(server, method, path, body, **headers)
        assert response.status == 400
        assert b"first" not in answer


def test_an_upload_that_is_too_large_is_refused_unread(server: int) -> None:
    response, body = ask(
        server, "POST", "/search?run=first", b"x", Content_Type=FORM, Content_Length=str(MOST_BYTES + 1)
    )
    assert response.status == 413
    assert "20 MB at most" in json.loads(body)["error"]


@pytest.mark.parametrize("content", [b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4"])
def test_an_upload_that_is_no_image_is_one_clear_line(content: bytes, server: int) -> None:
    response, answer = search(server, content)
    assert response.status == 400
    assert "not a readable image" in answer["error"]


def test_a_body_that_is_no_form_is_one_clear_line(server: int, source: Source) -> None:
    for kind, body in (("image/png", png(source, 1)), (FORM, b"--edge"), (FORM, b"nothing of the kind")):
        response, answer = ask(server, "POST", "/search?run=first", body, Content_Type=kind)
        assert response.status == 400
        assert json.loads(answer)["error"]


def test_a_truncated_and_a_gigantic_image_are_refused(make_run: MakeRun, source: Source) -> None:
    run, stream = make_run(), io.BytesIO()
    with pytest.raises(InputError, match="not a readable image"):
        find_similar(run, png(source, 0)[:-60])
    Image.new("1", (8_000, 8_000)).save(stream, "PNG")
    with pytest.raises(InputError, match="8000 x 8000 pixels"):
        find_similar(run, stream.getvalue())


def test_an_upload_that_stops_half_way_leaves_no_trace(server: int, capfd: pytest.CaptureFixture[str]) -> None:
    head = f"POST /search?run=first HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\nContent-Length: 9999\r\n\r\n"
    for part in ("", "--edge\r\nContent-Disposition: form-data; name=image; filename=x\r\n\r\nabc"):
        with socket.create_connection(("127.0.0.1", server)) as client:
            client.sendall((head + part).encode())
    assert ask(server, "GET", "/runs.json")[0].status == 200
    assert capfd.readouterr().err == ""


def test_fifty_searches_at_once_are_all_answered(server: int, source: Source) -> None:
    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(lambda point: search(server, png(source, point)), range(50)))
    assert [response.status for response, _ in answers] == [200] * 50
    firsts = [answer["matches"][0]["name"] for _, answer in answers]
    assert all(name.endswith(f"{point}.png") for point, name in enumerate(firsts) if point not in (1, 4, 7))


def test_a_link_inside_a_run_is_not_followed_out_of_the_folder(server: int, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text('{"verdict": {"state": "secret", "text": "secret: 1"}}')
    health = tmp_path / "runs" / "first" / "health.json"
    health.unlink()
    health.symlink_to(outside)
    first, second = json.loads(ask(server, "GET", "/runs.json")[1])
    assert (first["status"], second["status"]) == ("damaged", "unknown")
    assert "a link that leads out of" in first["trouble"]
    response, body = ask(server, "GET", "/report?run=first")
    assert response.status == 400
    assert b"secret" not in body


def test_a_run_without_pictures_and_one_of_another_encoder_say_what_to_do(make_run: MakeRun, source: Source) -> None:
    with pytest.raises(InputError, match="barlow report"):
        find_similar(make_run("bare", pictures=False), png(source, 0))
    run = make_run()
    facts = json.loads((run.path / "gallery.json").read_text())
    (run.path / "gallery.json").write_text(json.dumps(facts | {"encoder": "00"}))
    with pytest.raises(InputError, match="earlier encoder"):
        find_similar(run, png(source, 0))


def test_the_gallery_keeps_unit_features(make_run: MakeRun) -> None:
    gallery = read_gallery(make_run().path)
    assert gallery is not None
    lengths = np.linalg.norm(gallery.arrays["features"].astype(np.float32), axis=1)
    assert lengths == pytest.approx(np.ones(60), abs=1e-2)


def test_pages_forbid_foreign_content(server: int) -> None:
    response, body = ask(server, "GET", "/")
    assert "default-src 'none'" in str(response.getheader("Content-Security-Policy"))
    for page in ("/", "/report?run=first"):  # nobody puts them into a frame
        policy = str(ask(server, "GET", page)[0].getheader("Content-Security-Policy"))
        assert "frame-ancestors 'none'" in policy
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert b"Search by image" in body


def test_a_folder_or_address_that_cannot_be_served_is_one_clear_line(server: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder at"):
        serve(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot listen on"):
        serve(tmp_path, port=server)
    for nowhere in ("", " "):  # the system would listen on every address
        with pytest.raises(InputError, match="--host is empty"):
            serve(tmp_path, host=nowhere)


@pytest.mark.slow
def test_in_a_browser_the_list_fills_and_a_chosen_file_finds_its_image(
    server: int, source: Source, tmp_path: Path
) -> None:
    playwright: Any = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    import shutil

    chromium = shutil.which("chromium") or pytest.skip("needs Chromium")
    (tmp_path / "query.png").write_bytes(png(source, 13))
    shutil.copytree(tmp_path / "runs" / "second", tmp_path / "runs" / "third")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page, troubles = browser.new_page(), []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(f"http://127.0.0.1:{server}/")
        page.wait_for_selector("#runs tr")
        assert page.locator("#compare").is_disabled()  # nothing is chosen yet
        page.set_input_files("#file", tmp_path / "query.png")
        page.wait_for_selector(".match")
        assert page.locator(".match figcaption b").first.inner_text().endswith("13.png")
        shutil.rmtree(tmp_path / "runs" / "third")
        page.wait_for_selector("#runs tr:nth-child(3)", state="detached")
        page.screenshot(path=tmp_path / "serve.png", full_page=True)
        page.get_by_label("Compare first").check()
        page.get_by_label("Compare second").check()
        page.get_by_role("button", name="Show the chosen runs").click()
        page.wait_for_selector("h1:has-text('2 runs side by side')")
        browser.close()
    assert troubles == []
