"""Clients of TLS, and certificates for the servers that they ask."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.harness import PATIENCE_S, Limpet, Reply, fetch

NAMES = [f"tenant-{number}.example" for number in range(8)]


def make_pair(folder: Path, name: str) -> None:
    """Write a key and a certificate of it into *folder*."""
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},DNS:*.example,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, *subject, *files, "-days", "2"], check=True, capture_output=True)


def flags(folder: Path) -> list[str]:
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


def client() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@contextlib.contextmanager
def secured(server: Limpet, name: str | None = None, source: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
    """Yield a connection of TLS that asks for *name*."""
    plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S, (source, 0))
    with client().wrap_socket(plain, server_hostname=name) as connection:
        yield connection


def ask(connection: ssl.SSLSocket, path: str = "/", body: bytes | None = None) -> Reply:
    """Send one request on *connection*, which stays open."""
    spoken = http.client.HTTPConnection("limpet.test")
    spoken.sock = connection
    return fetch(spoken, path, "POST" if body else "GET", body)


def ask_for_no_text(server: Limpet) -> None:
    """Ask for a server whose name is no text; that is no handshake."""
    where = ["-connect", f"127.0.0.1:{server.port}", "-servername", os.fsdecode(b"\xff.example")]
    ended = subprocess.run(
        ["openssl", "s_client", *where], input=b"", capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 1


def shown_name(server: Limpet) -> str:
    """Return the name in the certificate that *server* shows to who connects now."""
    found = ssl.get_server_certificate(("127.0.0.1", server.port))
    command = ["openssl", "x509", "-noout", "-subject", "-nameopt", "multiline"]
    subject = subprocess.run(command, input=found, capture_output=True, text=True, check=True).stdout
    return subject.partition("commonName")[2].strip(" =\n")
