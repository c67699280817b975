"""The live report: fresh when a run has moved on, and for this machine only."""

from __future__ import annotations

import http.client
import threading

import pytest

from srft.errors import DataError
from srft.report.watch import ReportServer


@pytest.fixture
def serve(make_run):
    path = make_run(steps=3)
    server = ReportServer([path])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield path, server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server: ReportServer, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_the_version_changes_when_the_run_does(serve):
    path, server = serve
    status, page = get(server, "/")
    before = get(server, "/version")[1]
    assert status == 200
    assert f'"live":"{before}"' in page
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n')
    after = get(server, "/version")[1]
    assert after != before
    assert f'"live":"{after}"' in get(server, "/")[1]


def test_it_listens_on_this_machine_alone(serve):
    _, server = serve
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1"])
def test_requests_under_another_name_are_refused(serve, host):
    _, server = serve
    assert get(server, "/", host)[0] == 403


def test_files_of_the_run_are_not_served(serve):
    _, server = serve
    for path in ("/metrics.jsonl", "/../config.yaml", "//etc/passwd"):
        assert get(server, path)[0] == 404


def test_a_wrong_directory_is_refused_before_serving(tmp_path):
    with pytest.raises(DataError):
        ReportServer([tmp_path / "none"])
