"""TLS: the certificate and its key, and whether TLS ends in workers or in terminators in front of the dispatchers.

This file owns how certificate and key are read, and which versions of TLS are spoken. It does no handshake. The
supervisor calls `read`, at the start and at each reload, and passes the PEM text to the processes in which TLS ends
(ipc/boot.py). So all of them have the same pair, the replacement of a dead process gets a pair that was valid, and only
the supervisor needs permission to read the key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limpet.config.settings import Settings
from limpet.errors import SettingsError, reason
from limpet.routing.key_chain import KeyChain
from limpet.system import memfile

if TYPE_CHECKING:  # at run time imported where it is used: OpenSSL takes 4 MB of each process
    import ssl


def read(settings: Settings) -> str:
    """Return certificate chain and key in PEM; "" without `--tls-cert`. Raises SettingsError unless they are valid."""
    if settings.tls_cert is None:
        if settings.tls_key is not None:
            raise SettingsError("`--tls-key` without `--tls-cert`", hint="`--tls-cert cert.pem --tls-key key.pem`")
        return ""
    import ssl

    paths = dict.fromkeys((settings.tls_key or settings.tls_cert, settings.tls_cert))
    pem = "".join(_text(path).strip() + "\n" for path in paths)
    try:
        context(pem)
    except (ssl.SSLError, ValueError) as error:
        shown = " and ".join(f"`{path}`" for path in paths)
        hint = "give the key in PEM, not encrypted, and the certificate in PEM, followed by its chain"
        said = (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
        raise SettingsError(f"no certificate and matching key in {shown}: {said}", hint=hint) from None
    return pem


def context(pem: str) -> ssl.SSLContext:
    """Return a context for a server: TLS 1.2 or newer, HTTP/1.1 by ALPN. Raises ssl.SSLError, ValueError, OSError."""
    import ssl

    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    found.options |= ssl.OP_NO_RENEGOTIATION
    found.set_alpn_protocols(["http/1.1"])
    found.sni_callback = _remember
    with memfile.lent("limpet-tls", pem.encode()) as fd:  # Python loads certificates only from a file
        found.load_cert_chain(f"/proc/self/fd/{fd}", password=_refuse)
    return found


def asked_for(connection: Any) -> str | None:
    """Return the server name that the client asked for on *connection*, an object of `ssl`; None if there is none."""
    name: str | None = getattr(connection, "asked_for", None)
    return name


def ignore_names_that_are_no_text() -> None:
    """Write no traceback when a client asks for a server whose name is not text. Applies to the whole process.

    `ssl` ends the handshake, and reports an exception that it cannot raise. So clients could fill the log.
    """
    before = sys.unraisablehook

    def report(found: sys.UnraisableHookArgs) -> None:
        if not (isinstance(found.exc_value, UnicodeDecodeError) and found.exc_value.object == found.object):
            before(found)

    sys.unraisablehook = report


def _remember(connection: Any, name: str | None, _: object) -> None:
    connection.asked_for = name and name.lower()


def terminators(settings: Settings, chain: KeyChain) -> int:
    """Return how many terminators the server needs; 0 if TLS ends in workers or is not used.

    The state of a TLS connection is in one process. If *chain* looks into requests, the next request may belong to
    another worker. So then TLS ends before the dispatchers, on all binds alike.
    """
    return settings.terminators if settings.tls_cert is not None and chain.needs_head else 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text("ascii", "replace")
    except OSError as error:
        hint = f"`ls -l {path}` shows who may read it: the user that starts limpet must be one of them"
        raise SettingsError(f"cannot read `{path}`: {reason(error)}", hint=hint) from None


def _refuse() -> str:
    raise ValueError("the key is encrypted")
