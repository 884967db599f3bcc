"""What `docs/security.md` says of web pages of other sites, tried by such pages in a real browser."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.console.browser import NAME, chromium, console
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.console, pytest.mark.process]

# A page's attempts: what it may send without asking, and whether it may read an answer.
ATTEMPTS = """async ([url, name]) => {
  const attempt = async (path, options) => {
    try {
      const answer = await fetch(url + path, options);
      return answer.type === 'opaque' ? 'opaque' : `${answer.status} ${(await answer.text()).slice(0, 60)}`;
    } catch (error) { return 'failed'; }
  };
  const plain = (body) => ({method: 'POST', body, headers: {'content-type': 'text/plain'}});
  const blind = (body) => ({...plain(body), mode: 'no-cors'});
  const unload = `/v2/repository/models/${name}/unload`;
  const read = [
    await attempt('/metrics'), await attempt('/console/state'), await attempt('/healthz'),
    await attempt(unload, plain('{}')), await attempt('/predict', {method: 'POST', body: new Blob(['{}'])}),
    await attempt('/console/sequences?name=a.csv', plain('1,2')),
  ];
  for (const path of [unload, '/console/sequences?name=a.csv', '/predict']) await attempt(path, blind('{}'));
  const form = document.createElement('form');
  form.method = 'POST'; form.action = url + unload; form.target = 'frame';
  document.body.innerHTML = '<iframe name="frame"></iframe>';
  document.body.append(form);
  await new Promise(done => { frames[0].frameElement.onload = done; form.submit(); });
  return read;
}"""


@contextmanager
def site() -> Iterator[int]:
    """Another site: an empty page, under every name. Its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>another site</title>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with console(tmp_path_factory.mktemp("served"), "--admin-calls", "--access-log", "1") as running:
        yield running


@pytest.fixture(scope="module")
def visited() -> Iterator[Any]:
    """A browser for which evil.example and rebound.evil.example are names of this machine."""
    with chromium(
        "--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    ) as opened:
        yield opened


@pytest.mark.parametrize("host", ["evil.example", "localhost", "127.0.0.1"])
def test_a_page_of_another_site_neither_reads_nor_changes_anything(
    served: ServerProcess, visited: Any, host: str
) -> None:
    with site() as port:
        page = visited.new_page()
        page.goto(f"http://{host}:{port}/")
        read = page.evaluate(ATTEMPTS, [served.url, NAME])
        page.close()
    assert read == ["failed"] * len(read)
    assert served.client.get(f"/v2/models/{NAME}/ready").status_code == 200  # it is still loaded
    assert not [line for line in served.text.splitlines() if "unload" in line]
    figures = served.figures()
    assert (
        figures['lengthwise_requests_total{code="403",key="-",model="",version=""}'] >= 2
    )  # its calls of /predict arrived


def test_a_page_whose_name_becomes_the_services_address_reads_nothing(served: ServerProcess, visited: Any) -> None:
    page = visited.new_page()
    answer = page.goto(f"http://rebound.evil.example:{served.port}/console/state")
    assert answer.status == 421
    page.close()


def test_the_console_itself_calls_as_before(served: ServerProcess, visited: Any, tmp_path: Path) -> None:
    page = visited.new_page()
    page.goto(served.url)
    page.locator(".answer .label").wait_for()
    (tmp_path / "a.csv").write_text(",".join(["0.5"] * 12) + "\n")
    page.set_input_files("input[type=file]", tmp_path / "a.csv")
    page.locator("#sequence-note", has_text="1 step").wait_for()
    assert page.evaluate("fetch('/predict', {method: 'POST', body: '{}'}).then(answer => answer.status)") in (415, 422)
    page.close()
