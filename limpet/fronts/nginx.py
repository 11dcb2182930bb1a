"""nginx 1.22 or newer, open source: what `limpet front nginx` prints.

The key is put together by maps, each falling back to the next, and hashed with `consistent`. Knows the syntax of nginx
and nothing of limpet. nginx learns no ids, looks at hosts only when it sends them requests, cuts addresses at whole
bytes, and sends PROXY headers only where it passes on bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from limpet.fronts import COOKIE, IDLE_S, Plan, Source

_DRAIN = (
    "Drain a host: write `down` behind it, then `nginx -s reload`; what is open there ends in its own time.",
    "A host that vanishes without a word is noticed by the kernel alone, after 15 minutes, or 2 hours if a request is",
    "under way. This makes that 13 s, and 10 s:",
    "  sysctl net.ipv4.tcp_retries2=5 net.ipv4.tcp_keepalive_time=5 net.ipv4.tcp_keepalive_intvl=1 \\",
    "    net.ipv4.tcp_keepalive_probes=5",
    "nginx has no health checks: what fails tells it that a host is down.",
)
_NOTES = ("This belongs into `http { ... }`, for example as /etc/nginx/conf.d/limpet.conf.", *_DRAIN)
_SET = frozenset({"connection", "upgrade", "host", "x-forwarded-for", "x-forwarded-proto"})  # for every request
_SECURE = "$limpet_secure"
_STREAM_NOTES = ("This belongs beside `http { ... }`, and needs nginx's stream module.", *_DRAIN)


def write(plan: Plan) -> str:
    """Return what belongs into the `http` block, or beside it a `stream` block. Raises SettingsError."""
    plan.refuse_learning()
    plan.refuse_bearer()
    if plan.passes_bytes:
        return "\n".join([plan.head(_STREAM_NOTES), "", *_block("stream", list(_stream(plan)))]) + "\n"
    plan.refuse_proxy_headers()
    undecoded = "nginx hashes it undecoded: a client has to spell it in one way, `a%20b` and `a+b` are two"
    notes = [*_NOTES, *plan.spellings(query=undecoded)]
    return "\n".join([plan.head(notes), "", *_maps(plan), *_upstream(plan), *_server(plan)]) + "\n"


def _stream(plan: Plan) -> Iterator[str]:
    """Yield servers that read no requests. A client without any key comes to a host at random."""
    yield f"# The key of the client: {plan.settings.by}"
    for number, source in enumerate(plan.sources):
        after = f"$limpet_key_{number + 2}" if number < len(plan.sources) - 1 else "$connection"
        yield from _map(plan, source, f"$limpet_key_{number + 1}", after)
    yield from _block(
        "upstream limpet",
        [
            "zone limpet 256k;                     # all nginx processes know which hosts are down",
            "hash $limpet_key_1 consistent;        # a host that comes or goes moves its own share of the clients",
            *(f"server {host} max_fails=3 fail_timeout=5s;" for host in plan.hosts),
        ],
    )
    yield from _block(
        "server",
        [
            f"listen {plan.listen};",
            *["ssl_preread on;                   # for the name in TLS"]
            * any(source.kind == "sni" for source in plan.sources),
            "proxy_pass limpet;",
            *["proxy_protocol on;"] * plan.is_proxied,
            "proxy_connect_timeout 2s;",
            "proxy_timeout 1h;                 # websockets and streams may be silent for so long",
            "proxy_socket_keepalive on;",
        ],
    )


def _maps(plan: Plan) -> Iterator[str]:
    yield f"# The key of the client: {plan.settings.by}. Without any, hosts are chosen at random."
    last = len(plan.sources) - 1
    for number, source in enumerate(plan.sources):
        after = f"$limpet_key_{number + 2}" if number < last else "$request_id"
        yield from _map(plan, source, f"$limpet_key_{number + 1}", after)
    if plan.makes_cookie:
        yield "# The cookie that says so: only for a client that brings no key."
        for number, source in enumerate(plan.sources, start=1):
            cookie = f'"{COOKIE}=$request_id; {plan.set_cookie}{_SECURE * (plan.cookie.secure is None)}"'
            after = f"$limpet_cookie_{number + 1}" if source.kind != "made" else cookie
            yield from _block(
                f"map {_variable(plan, source)} $limpet_cookie_{number}",
                [f'"{_quoted(source.name)}" "";', f"default {after};"]
                if source.kind == "path"
                else [f'"" {after};', *_unquoted(source, after), 'default "";'],
            )
        if plan.cookie.secure is None:
            yield from _block("map $https $limpet_secure", ['on "; Secure";', 'default "";'])
        yield "# Not on what shared caches may keep: they would hand one client's cookie to everybody."
        yield from _block(
            "map $upstream_http_cache_control $limpet_cookie",
            [r"'~*(^|[,;\s])(public|s-maxage\s*=)' '';", "default $limpet_cookie_1;"],
        )
    yield from _block(
        "map $http_upgrade $limpet_connection",
        ["default upgrade;", '"" "";                                # keep-alive'],
    )


def _map(plan: Plan, source: Source, to: str, after: str) -> Iterator[str]:
    variable = _variable(plan, source)
    if source.kind == "path":
        yield from _block(f"map {variable} {to}", [f'"{_quoted(source.name)}" $1;', f"default {after};"])
    elif source.kind == "address":
        v4, v6 = source.prefixes
        if v4 % 8 or v6 % 8:
            plan.refuse(f"cuts addresses at whole bytes, not at {v4} and {v6} bits", "`--by forwarded/24/64`")
        cut = [f'"~(?s)^(?<net4>.{{{v4 // 8}}}).{{{4 - v4 // 8}}}$" $net4;'] if v4 < 32 else []
        cut += [f'"~(?s)^(?<net6>.{{{v6 // 8}}}).{{{16 - v6 // 8}}}$" $net6;'] if v6 < 128 else []
        yield from _block(f"map {variable} {to}", [*cut, f"default {variable};"])
    else:
        inside = f"limpet_in_{to.removeprefix('$limpet_')}"
        quoted = [*_unquoted(source, after), f"""'~^"(?<{inside}>.*)"$' ${inside};"""] * (source.kind == "cookie")
        yield from _block(f"map {variable} {to}", [f'"" {after};', *quoted, f"default {variable};"])


def _unquoted(source: Source, after: str) -> list[str]:
    """Return the line for a cookie that has nothing between its quotes: that is no key."""
    return [f"""'""' {after};"""] * (source.kind == "cookie")


def _variable(plan: Plan, source: Source) -> str:
    if source.kind == "sni":
        return "$ssl_preread_server_name"
    if source.kind in ("address", "path", "made"):
        return {"address": "$binary_remote_addr", "path": "$uri", "made": f"$cookie_{COOKIE}"}[source.kind]
    prefix = {"header": "$http_", "cookie": "$cookie_", "query": "$arg_"}[source.kind]
    name = source.name.replace("-", "_") if source.kind == "header" else source.name
    if not re.fullmatch(r"\w+", name, re.ASCII):
        plan.refuse(
            f"has no variable for the {source.kind} `{source.name}`: letters, digits and `_` are allowed",
            "`limpet front haproxy` can; or another name",
        )
    return prefix + name


def _quoted(regex: str) -> str:
    return "~" + regex.replace("\\", "\\\\")


def _block(opening: str, lines: list[str]) -> Iterator[str]:
    yield opening + " {"
    yield from (f"    {line}" if line else "" for line in lines)
    yield "}"


def _upstream(plan: Plan) -> Iterator[str]:
    yield ""
    yield from _block(
        "upstream limpet",
        [
            "zone limpet 256k;                     # all nginx processes know which hosts are down",
            "hash $limpet_key_1 consistent;        # a host that comes or goes moves its own share of the clients",
            "# After 100 failures within 5 s a host gets no clients for 5 s: fewer would take it out with one worker.",
            *(f"server {host} max_fails=100 fail_timeout=5s;" for host in plan.hosts),
            "keepalive 64;                         # idle connections to the hosts, for each nginx process",
            f"keepalive_timeout {IDLE_S}s;",
            "keepalive_requests 100000;",
        ],
    )


def _server(plan: Plan) -> Iterator[str]:
    believed = [f"set_real_ip_from {network};" for network in plan.settings.trust]
    believed = [network.replace(" unix;", " unix:;") for network in believed]
    if believed:
        believed += ["real_ip_header X-Forwarded-For;", "real_ip_recursive on;", ""]
    cookie = ["add_header Set-Cookie $limpet_cookie always;"] if plan.makes_cookie else []
    yield ""
    yield from _block(
        "server",
        [
            f"listen {plan.listen};                            # with TLS: listen 443 ssl; ssl_certificate ...",
            "",
            *believed,
            *_location([*cookie, *_counted_headers(plan)]),
        ],
    )


def _counted_headers(plan: Plan) -> Iterator[str]:
    """Yield what makes limpet see of several lines what nginx has hashed."""
    for source in plan.sources:
        if source.kind == "header" and source.name not in _SET:
            yield f"proxy_set_header {source.name} {_variable(plan, source)};   # of several lines what was hashed"


def _location(cookie: list[str]) -> Iterator[str]:
    yield from _block(
        "location /",
        [
            "proxy_pass http://limpet;",
            *cookie,
            "proxy_http_version 1.1;",
            "proxy_set_header Connection $limpet_connection;",
            "proxy_set_header Upgrade $http_upgrade;",
            "proxy_set_header Host $http_host;",
            "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
            "proxy_set_header X-Forwarded-Proto $scheme;",
            "proxy_buffering off;              # events reach the client when they happen",
            "proxy_read_timeout 1h;            # websockets and streams may be silent for so long",
            "proxy_send_timeout 1h;",
            "proxy_connect_timeout 2s;",
            "proxy_socket_keepalive on;",
            "# Not `non_idempotent`: what was sent is repeated elsewhere only if it may be.",
            "proxy_next_upstream error timeout http_503;",
            "proxy_next_upstream_tries 3;",
        ],
    )
