"""TLS: certificate and key, read by the supervisor, and who ends it: the workers, or terminators in front of them.

Owns how both are read and which TLS is spoken. The supervisor reads the files, at the start and for each reload, and
hands what they hold to the processes in which TLS ends (ipc/boot.py): all have the same pair, one that replaces a dead
one gets one that was good, and none needs the right to read the key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limpet.config.settings import Settings
from limpet.errors import SettingsError, reason
from limpet.routing.key_chain import KeyChain
from limpet.system import descriptors

if TYPE_CHECKING:  # else brought in when it is used: OpenSSL takes 4 MB of each process
    import ssl


def read(settings: Settings) -> str:
    """Return certificates and key in PEM, "" where TLS is not asked for. Raises SettingsError unless they fit."""
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
        hint = "the key in PEM and not encrypted, and the certificate with its chain, its own first"
        said = (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
        raise SettingsError(f"no certificate with its key in {shown}: {said}", hint=hint) from None
    return pem


def context(pem: str) -> ssl.SSLContext:
    """Return what a server needs to speak TLS 1.2 and newer, and HTTP/1.1 in it. Raises ssl.SSLError, ValueError."""
    import ssl

    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    found.options |= ssl.OP_NO_RENEGOTIATION
    found.set_alpn_protocols(["http/1.1"])
    found.sni_callback = _remember
    fd = descriptors.memory_file("limpet-tls")  # Python takes no certificate but from a file
    with open(fd, "wb", buffering=0) as file:
        file.write(pem.encode())
        found.load_cert_chain(f"/proc/self/fd/{fd}", password=_refuse)
    return found


def asked_for(connection: Any) -> str | None:
    """Return the name of the server that the client of *connection*, an object of `ssl`, has asked for."""
    name: str | None = getattr(connection, "asked_for", None)
    return name


def ignore_names_that_are_no_text() -> None:
    """Have this process write no traceback when a client asks for a server whose name is no text.

    `ssl` ends the handshake, and reports what cannot be raised: clients could fill the log.
    """
    before = sys.unraisablehook

    def report(found: sys.UnraisableHookArgs) -> None:
        if not (isinstance(found.exc_value, UnicodeDecodeError) and found.exc_value.object == found.object):
            before(found)

    sys.unraisablehook = report


def _remember(connection: Any, name: str | None, _: object) -> None:
    connection.asked_for = name and name.lower()


def terminators(settings: Settings, chain: KeyChain) -> int:
    """Return how many processes end TLS in front of the dispatchers; 0 where it ends in workers, or is not spoken.

    A connection of TLS has its state in one process. Where *chain* looks into requests, the next one may belong to
    another worker: so TLS ends before that, on all binds alike.
    """
    return settings.terminators if settings.tls_cert is not None and chain.needs_head else 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text("ascii", "replace")
    except OSError as error:
        hint = f"`ls -l {path}` shows who may read it: the user that starts limpet has to"
        raise SettingsError(f"cannot read `{path}`: {reason(error)}", hint=hint) from None


def _refuse() -> str:
    raise ValueError("the key is encrypted")
