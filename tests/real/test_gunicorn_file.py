"""A server that somebody has run with `gunicorn -c gunicorn.conf.py`: its file goes on to count."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Limpet, limpet_command, wait_until

FILE = """
import multiprocessing
import os

bind = "0.0.0.0:8000"
workers = multiprocessing.cpu_count() * 2 + 1
worker_class = "{worker_class}"
threads = {threads}
worker_connections = 100
timeout = 120
limit_request_line = 200
accesslog = "{folder}/access.log"
raw_env = ["TEST_NOTE={folder}/note"]


def note(event, worker):
    with open(os.environ["TEST_NOTE"], "a") as file:
        file.write(f"{{event}} {{worker.pid}}\\n")


def when_ready(server):
    raise RuntimeError("there is no master that could call this")


def post_fork(server, worker):
    server.log.info("pid %d of %d", worker.pid, server.pid)
    note("post_fork", worker)


def post_worker_init(worker):
    note("post_worker_init", worker)


def pre_request(worker, request):
    note("pre_request", worker)


def worker_exit(server, worker):
    note("worker_exit", worker)
"""
CLASSES = {  # the application that each calls, how many threads it is given, and whether it has hooks of requests
    "sync": ("wsgi", 1, True),
    "gthread": ("wsgi", 4, True),
    "gevent": ("wsgi", 1, True),
    "uvicorn_worker.UvicornWorker": ("asgi", 1, False),
}


@pytest.mark.parametrize("worker_class", CLASSES)
def test_file_of_gunicorn_counts_in_the_workers(tmp_path: Path, worker_class: str) -> None:
    """Who comes from gunicorn has hooks, limits and logs in it, and cannot write all of that anew."""
    interface, threads, hears_of_requests = CLASSES[worker_class]
    path = tmp_path / "gunicorn.conf.py"
    path.write_text(FILE.format(worker_class=worker_class, threads=threads, folder=tmp_path))
    app = f"tests.server_apps:{interface}"
    flags = ("--server", "gunicorn", "--server-config", str(path))
    sources = [f"127.0.0.{number}" for number in range(2, 10)]
    with Limpet(app, *flags, "--workers", "2") as limpet:
        homes = [entry["slot"] for entry in limpet.where(*sources)]
        replies = [limpet.request(source=source).json() for source in sources]
        assert [reply["slot"] for reply in replies] == homes
        pids = {reply["pid"] for reply in replies}
        assert len(pids) == 2
        if interface == "wsgi":
            assert limpet.request(f"/{'x' * 300}").status == 414
        wait_until(lambda: (tmp_path / "access.log").read_text().count("GET / HTTP/1.1") == 8, "requests are logged")
        assert limpet.stop() == 0

    events = (tmp_path / "note").read_text().splitlines()
    for event in ("post_fork", "post_worker_init", "worker_exit"):
        assert sorted(line for line in events if line.startswith(f"{event} ")) == sorted(f"{event} {p}" for p in pids)
    assert sum(line.startswith("pre_request") for line in events) == (8 if hears_of_requests else 0)
    said = [line.partition("gunicorn.conf.py`: ")[2].strip() for line in limpet.lines if "gunicorn.conf.py" in line]
    assert said == [
        "limpet's settings count in place of `bind` (--bind), `timeout` (--hang-timeout), `workers` (--workers)",
        "there is no master of gunicorn for `when_ready`",
    ]
    assert "Traceback" not in limpet.log


def test_worker_class_of_the_file_is_held_against_the_other_settings(tmp_path: Path) -> None:
    """gevent asks the kernel for the address of a client, which a PROXY header would say."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("worker_class = 'gevent'\n")
    flags = ("--workers", "1", "--server", "gunicorn", "--server-config", str(path))
    sent = ("--proxy-protocol", "required", "--trust", "127.0.0.1")
    with Limpet("tests.server_apps:wsgi", *flags, *sent).launched() as limpet:
        assert limpet.wait_ended() == 2
    assert "--proxy-protocol" in next(line for line in limpet.lines if line.startswith("error: "))


def test_file_that_cannot_be_kept_ends_the_start_and_the_check(tmp_path: Path) -> None:
    """Better no server than one without the TLS that its file asks for."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("certfile = 'server.pem'\n")
    flags = ("--server", "gunicorn", "--server-config", str(path))
    with Limpet("tests.server_apps:wsgi", *flags, "--workers", "1").launched() as limpet:
        assert limpet.wait_ended() == 4
    error = f"error: `certfile` in `{path}` cannot be kept"
    assert error in limpet.log
    checked = limpet_command("check", "tests.server_apps:wsgi", *flags)
    assert (checked.returncode, checked.stderr.splitlines()[0]) == (4, error)
