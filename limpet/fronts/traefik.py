"""Traefik 3.7 or newer: what `limpet front traefik` prints, a file for its file provider.

Traefik keeps clients by a cookie of its own or by the whole address (`hrw`), and by nothing else. Knows the syntax of
Traefik and nothing of limpet.
"""

from __future__ import annotations

from collections.abc import Iterator

from limpet.fronts import COOKIE, IDLE_S, Plan


def write(plan: Plan) -> str:
    """Return the dynamic configuration; a comment has the static one. Raises SettingsError."""
    plan.refuse_all_but_whole_keys()
    plan.refuse_proxy_headers()
    source = plan.only("made", "address", can="a cookie of its own (`--by affinity`) or its address")
    plan.refuse_attributes("Partitioned")
    if source.kind == "address" and len(plan.trust) > 1:
        plan.refuse(
            "hashes the address that calls it, and knows nothing of the proxies before it",
            "`--trust` with the network of this front alone, if clients call it; else `limpet front haproxy`",
        )
    return "\n".join([plan.head(list(_notes(plan))), *_http(plan)]) + "\n"


def _notes(plan: Plan) -> Iterator[str]:
    yield "Drain a host: take it out of `servers`; the file is read again, what is open there ends in its own time."
    yield "What is sent to a host that has vanished without a word fails when the kernel gives up:"
    yield "`sysctl net.ipv4.tcp_retries2=5` here makes that 13 s in place of 15 minutes. What is under way waits for"
    yield "165 s, which cannot be set."
    if plan.makes_cookie:
        yield "Traefik sets its cookie on public responses, too: a cache before it must not keep `Set-Cookie`."
        if plan.cookie.secure is None:
            yield "With TLS in Traefik: `--affinity-cookie Secure`. Its cookie does not go by the connection."
    yield "Traefik is started with:"
    yield f"  entryPoints: {{web: {{address: ':{plan.listen}'}}}}"
    yield "  providers: {file: {filename: /etc/traefik/limpet.yml, watch: true}}"


def _http(plan: Plan) -> Iterator[str]:
    yield """http:
  routers:
    limpet:
      entryPoints: [web]
      rule: PathPrefix(`/`)
      middlewares: [limpet-retry]
      service: limpet
  middlewares:
    limpet-retry:
      # What no host took is tried elsewhere; what was sent is repeated only if it may be (Traefik's default), until
      # the health check knows that a host is down. 502 and 504 are Traefik's own words for a connection that broke.
      retry: {attempts: 6, initialInterval: 500ms, status: ['502', '503', '504']}
  services:
    limpet:
      loadBalancer:
        serversTransport: limpet
        responseForwarding: {flushInterval: -1ms}     # events reach the client when they happen"""
    yield from (f"        {line}" for line in _keeping(plan))
    if plan.health:
        port, path = plan.health
        at = f", port: {port}" if port else ""
        yield f"        healthCheck: {{path: {path}{at}, interval: 1s, timeout: 2s}}"
    else:
        yield "        # After 100 failures in 5 s a host gets no clients: fewer would take it out with one worker."
        yield "        passiveHealthCheck: {failureWindow: 5s, maxFailedAttempts: 100}"
    yield "        servers:"
    yield from (f"          - url: http://{host}" for host in plan.hosts)
    yield f"""  serversTransports:
    limpet:
      maxIdleConnsPerHost: 64
      forwardingTimeouts: {{dialTimeout: 2s, idleConnTimeout: {IDLE_S}s}}"""


def _keeping(plan: Plan) -> Iterator[str]:
    if plan.sources[0].kind == "address":
        yield "strategy: hrw                                 # a host that comes or goes moves its own share"
        return
    given = plan.cookie
    yield "sticky:"
    yield "  cookie:                                     # names the host, by a hash"
    yield f"    name: {COOKIE}"
    yield f"    path: {given.path}"
    yield from [f"    domain: {given.domain}"] if given.domain else []
    yield f"    httpOnly: {str(given.http_only).lower()}"
    yield f"    secure: {str(bool(given.secure)).lower()}"
    yield f"    sameSite: {given.same_site.lower()}"
    yield f"    maxAge: {given.max_age}"
