"""A user's `gunicorn.conf.py`: what of it counts, what limpet does itself, and what cannot be left out in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from limpet.config import conflicts, settings
from limpet.errors import AppError, SettingsError
from limpet.routing.key_chain import KeyChain, Trust
from limpet.servers.gunicorn import config_file

IP = KeyChain.parse("ip", Trust.parse(""))

CUSTOM = """
from uvicorn_worker import UvicornWorker
class Own(UvicornWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "h11"}
worker_class = Own
"""


def told(folder: Path, text: str, **flags: str) -> settings.Settings:
    """Return the settings of a worker whose user has this file."""
    path = folder / "gunicorn.conf.py"
    path.write_text(text)
    given = settings.load({"app": "app:app", "server": "gunicorn", "server_config": str(path), **flags}, {})
    return config_file.told(given)


@pytest.mark.parametrize(
    ("text", "worker_class", "threads"),
    [
        ("", "gevent", 5),
        ("workers = 3", "gevent", 5),
        ("worker_class = 'sync'", "sync", 5),
        ("worker_class = 'sync'\nthreads = 4", "gthread", 4),
        ("worker_class = 'gthread'\nthreads = 9", "gthread", 9),
        ("worker_class = 'uvicorn_worker.UvicornWorker'", "uvicorn-worker", 5),
        ("worker_class = 'gunicorn.workers.sync.SyncWorker'", "sync", 5),
        ("from gunicorn.workers.gthread import ThreadWorker as worker_class", "gthread", 5),
        (CUSTOM, "uvicorn-worker", 5),
    ],
)
def test_file_says_of_which_class_a_worker_is(tmp_path: Path, text: str, worker_class: str, threads: int) -> None:
    """By name, by path, or as a class on top of a known one, as gunicorn takes it; else limpet's flags count."""
    found = told(tmp_path, text, worker_class="gevent", threads="5")
    assert (found.worker_class, found.threads) == (worker_class, threads)


def test_settings_of_a_worker_are_kept_and_those_of_a_master_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What does not count and is not named is looked for in vain."""
    found = told(
        tmp_path,
        "import os\nbind = '0.0.0.0:80'\nworkers = 9\nlimit_request_line = 999\nkeepalive = 7\ntimout = 3\n"
        "def when_ready(server): ...\ndef post_request(worker, request, environ, response): ...\n",
    )
    config, names = config_file.config(found)
    assert names == {"limit_request_line", "keepalive", "post_request"}
    assert (config.limit_request_line, config.keepalive, config.workers) == (999, 7, 1)
    config_file.tell(found)
    path = f"`{tmp_path}/gunicorn.conf.py`: "
    assert [record.getMessage().removeprefix(path) for record in caplog.records] == [
        "limpet's settings count in place of `bind` (--bind), `workers` (--workers)",
        "there is no master of gunicorn for `when_ready`",
        "gunicorn has no setting `timout`; the nearest is `timeout`",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("certfile = 'server.pem'", "`certfile` in `{}` cannot be kept"),
        ("user = 12345", "`user` in `{}` cannot be kept"),
        ("proxy_protocol = True", "`proxy_protocol` in `{}` cannot be kept"),
        ("http2_cleartext = True", "`http2_cleartext` in `{}` cannot be kept"),
        ("threads = 'many'", "gunicorn does not take what `{}` says of `threads`: "),
        ("import nothing.at.all", "cannot read gunicorn's settings in `{}`: ModuleNotFoundError: "),
        ("worker_class = 'eventlet'", "`worker_class` in `{}`: "),
        ("worker_class = object", "`worker_class` in `{}`: limpet cannot run a worker class "),
    ],
)
def test_what_cannot_be_kept_ends_the_start(tmp_path: Path, text: str, message: str) -> None:
    """A server without the TLS that its file asks for would be worse than none."""
    with pytest.raises(AppError) as refused:
        told(tmp_path, text)
    assert refused.value.message.startswith(message.format(tmp_path / "gunicorn.conf.py"))


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As gunicorn does."""
    given = settings.load({"app": "app:app", "server": "gunicorn", "server_config": str(tmp_path / "none")}, {})
    with pytest.raises(AppError, match="cannot read gunicorn's settings in"):
        config_file.told(given)


def test_file_for_another_server_is_refused() -> None:
    """It would be left unread."""
    with pytest.raises(SettingsError, match="works only with gunicorn, and the server is `uvicorn`"):
        conflicts.refuse(settings.load({"app": "app:app", "server_config": "gunicorn.conf.py"}, {}), IP)
