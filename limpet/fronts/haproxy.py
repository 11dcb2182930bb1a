"""HAProxy 2.6 or newer: what `limpet front haproxy` prints.

Can express every chain but functions, and is the only front here that learns ids from responses. Knows the syntax of
HAProxy and nothing of limpet. A key is put together in the variable txn.key, and hashed on a consistent ring. Idle
connections that began with a PROXY header are used for the same client alone, which HAProxy sees to by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from limpet.fronts import COOKIE, IDLE_S, Plan, Source

WEIGHT = 16  # of every host: 256 points on the ring in place of 16, which would be uneven (docs/scaling.md)
_HOPS = 4  # proxies in front of the front that are followed


def write(plan: Plan) -> str:
    """Return the sections; the packaged `global` and logging stay as they are. Raises SettingsError."""
    return "\n".join([*_frontend(plan), "", *_backend(plan)]) + "\n"


def _frontend(plan: Plan) -> Iterator[str]:
    yield plan.head(
        [
            "Drain a host, so that its clients go to the others and what is open there ends in its own time:",
            "  echo 'set server limpet/host1 state drain' | socat stdio /run/haproxy/admin.sock",
        ],
    )
    yield f"""
defaults limpet
    mode {"tcp" if plan.passes_bytes else "http"}
    timeout connect 2s
    timeout check 2s                      # a busy host may take so long to say that it is ready
    timeout client 1h                     # websockets and streams may be silent for so long
    timeout server 1h"""
    if plan.passes_bytes:
        yield from _stream(plan)
    else:
        yield from _web(plan)
    yield "    default_backend limpet"


def _stream(plan: Plan) -> Iterator[str]:
    """Yield a frontend that reads no requests."""
    yield f"\nfrontend limpet_web from limpet\n    bind :{plan.listen}"
    yield f"    # The key of the client: {plan.settings.by}"
    if any(source.kind == "sni" for source in plan.sources):
        yield "    tcp-request inspect-delay 5s          # for the first message of TLS, which has the name"
        yield "    tcp-request content set-var(txn.key) req.ssl_sni,lower if { req.ssl_hello_type 1 }"
    for source in plan.sources:
        if source.kind == "address":
            yield f"    tcp-request content set-var(txn.key) {_fetch(source)} {_UNLESS}"


def _web(plan: Plan) -> Iterator[str]:
    yield f"""    timeout tunnel 1h
    timeout http-request 10s
    timeout http-keep-alive {IDLE_S}s

frontend limpet_web from limpet
    bind :{plan.listen}                              # with TLS: bind :443 ssl crt site.pem alpn h2,http/1.1"""
    if plan.trust:
        yield "    # The address of the client, as proxies before this one report it: as limpet finds it, too."
        for hop in range(1, _HOPS + 1):
            yield f"    http-request set-src req.hdr_ip(x-forwarded-for,-{hop}) if {{ src {' '.join(plan.trust)} }}"
    yield "    option forwardfor"
    yield "    http-request set-header X-Forwarded-Proto https if { ssl_fc }"
    yield f"    # The key of the client: {plan.settings.by}"
    for source in plan.sources:
        if name := {"header": source.name, "bearer": "authorization"}.get(source.kind):
            yield "    # Of several lines the last counts, here as in limpet."
            yield f"    http-request set-header {name} %[req.fhdr({name})] if {{ req.fhdr_cnt({name}) gt 1 }}"
        yield from _found(source)
    if plan.makes_cookie:
        secure = "%[ssl_fc,iif('; Secure',)]" if plan.cookie.secure is None else ""
        yield "    # Not on what shared caches may keep: they would hand one client's cookie to everybody."
        yield (
            f'    http-after-response add-header Set-Cookie "{COOKIE}=%[var(txn.made)]; {plan.set_cookie}{secure}" '
            "if { var(txn.made) -m found } "
            r"!{ res.fhdr(cache-control) -m reg -i '(^|[, ])(public|s-maxage *=)' }"
        )


_K8S = "base64url[.]bearer[.]authorization[.]k8s[.]io[.]"
_BEARER = (  # what elements.Bearer finds, in its order: a sample, and when it is one
    (
        """'req.fhdr(authorization),regsub("^bearer +([^ ,]+).*$","\\1",i)'""",
        "req.fhdr(authorization) -m reg -i '^bearer +[^ ,]'",
    ),
    (
        f"""'req.fhdr(sec-websocket-protocol),regsub("^(?:.*,)?[ ]*{_K8S}([^ ,]+).*$","\\1"),ub64dec'""",
        f"req.fhdr(sec-websocket-protocol) -m reg '(?:^|,)[ ]*{_K8S}[^ ,]'",
    ),
    (
        """'req.fhdr(sec-websocket-protocol),regsub("^(?:.*,)?[ ]*bearer[ ]*,[ ]*([^ ,]+).*$","\\1",i)'""",
        "req.fhdr(sec-websocket-protocol) -m reg -i '(?:^|,)[ ]*bearer[ ]*,[ ]*[^ ,]'",
    ),
    ("url_param(access_token),url_dec(1)", ""),
)
_UNLESS = "unless { var(txn.key) -m len ge 1 }"


def _found(source: Source) -> Iterator[str]:
    if source.kind == "made":
        yield f"    http-request set-var(txn.key) req.cook({COOKIE}) {_UNLESS}"
        yield f"    http-request set-var(txn.made) uuid() {_UNLESS}     # for a client that has none yet"
        yield f"    http-request set-var(txn.key) var(txn.made) {_UNLESS}"
        return
    if source.kind in ("bearer", "cookie"):
        for fetch, condition in _samples(source):
            is_there = f" {{ {condition} }}" if condition else ""
            yield f"    http-request set-var(txn.key) {fetch} if !{{ var(txn.key) -m len ge 1 }}{is_there}"
        return
    if source.kind == "path":
        yield (
            f"    http-request set-var(txn.key) {_fetch(source)} "
            f"if !{{ var(txn.key) -m len ge 1 }} {{ path,url_dec -m reg '{source.name}' }}"
        )
        return
    yield f"    http-request set-var(txn.key) {_fetch(source)} {_UNLESS}"


def _samples(source: Source) -> list[tuple[str, str]]:
    """Return the samples of a source, the first that has a key counts, each with the condition for it to have one."""
    if source.kind == "bearer":
        return list(_BEARER)
    found = [(_fetch(source), "")]
    if source.kind == "cookie" and re.fullmatch(r"[\w.+-]+", source.name, re.ASCII):
        # `req.cook` takes the last of several cookies of one name, limpet the first.
        name = re.sub(r"([.+])", r"[\1]", source.name)
        first = f"""'req.fhdr(cookie,1),regsub("^(?:.*?;)?[ ]*{name} *=[ \\x22]*([^;]*?)[ \\x22]*(?:;.*)?$","\\1")'"""
        found.insert(0, (first, f"req.fhdr(cookie,1) -m reg '(?:^|;)[ ]*{name} *='"))
    return found


def _fetch(source: Source) -> str:
    """Return the sample of a source of the client's own."""
    if source.kind == "address":
        v4, v6 = source.prefixes
        return f"src,ipmask({v4},{v6})"
    if source.kind == "path":
        return f"""'path,url_dec,regsub("^.*?(?:{source.name}).*$","\\1")'"""
    return {
        "sni": "ssl_fc_sni,lower",
        "header": f"req.fhdr({source.name})",
        "cookie": f"""'req.cook({source.name}),regsub("^[\\x22](.*)[\\x22]$","\\1")'""",
        "query": f"url_param({source.name}),url_dec(1)",
    }[source.kind]


def _backend(plan: Plan) -> Iterator[str]:
    yield """backend limpet from limpet
    balance hash var(txn.key)             # without a key: one after the other
    hash-type consistent sdbm avalanche   # a host that comes or goes moves its own share of the clients
    # A connection that no host took is tried again, and at last elsewhere.
    retries 3
    option redispatch"""
    if not plan.passes_bytes:
        yield """    # What was sent, or answered with 503, is repeated only if it may be.
    retry-on conn-failure empty-response 503
    http-request disable-l7-retry unless { method GET HEAD OPTIONS TRACE PUT DELETE }"""
    yield """    # A host that vanishes without a word: what it does not acknowledge fails after 5 s.
    option srvtcpka
    srvtcpka-idle 5s
    srvtcpka-intvl 1s
    srvtcpka-cnt 5"""
    if plan.settings.learn:
        yield from _learning(plan)
    check = "check inter 1s fall 2 rise 2"
    if plan.health:
        port, path = plan.health
        yield f"    option httpchk GET {path}"
        yield "    http-check expect status 200"
        check += f" port {port}" if port else " check-ssl verify none" * bool(plan.settings.tls_cert)
    check += " tcp-ut 5s" if plan.passes_bytes else f" tcp-ut 5s pool-purge-delay {IDLE_S}s"
    if plan.is_proxied:  # HAProxy sends none with checks of another port
        is_named = any(source.kind == "sni" for source in plan.sources) and not plan.passes_bytes
        check += " send-proxy-v2" + " proxy-v2-options ssl,authority" * is_named
    yield f"    default-server weight {WEIGHT} {check}"
    for number, host in enumerate(plan.hosts, start=1):
        yield f"    server host{number} {host}"


def _learning(plan: Plan) -> Iterator[str]:
    """Yield how the host that made an id is remembered; several fronts share it with a `peers` section."""
    yield "    # Ids belong to the host whose response had them. With several fronts: `peers` (HAProxy's manual)."
    yield f"    stick-table type string len 256 size 1m expire {int(plan.settings.learn_idle_s)}s"
    for source in plan.sources:
        if source.kind not in ("address", "made"):
            yield from (f"    stick match {sample}" for sample, _ in _samples(source))
    for learned in plan.settings.learn:
        kind, _, name = learned.partition(":")
        yield (
            "    stick store-response "
            + {
                "header": f"res.hdr({name})",
                "cookie": f"""'res.cook({name}),regsub("^[\\x22](.*)[\\x22]$","\\1")'""",
                "location": f"""'res.hdr(location),url_dec,regsub("^.*?(?:{name}).*$","\\1")'"""
                f" if {{ res.hdr(location),url_dec -m reg '{name}' }}",
            }[kind]
        )
