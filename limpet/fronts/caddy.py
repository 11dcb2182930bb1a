"""Caddy 2.8 or newer: what `limpet front caddy` prints, a Caddyfile.

The key is put into a request header of Caddy's own, X-Limpet-Key, whose value `lb_policy header` hashes; sources are
written in reverse order, since the last one that has a value wins. Knows the syntax of Caddy and nothing of limpet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from limpet.fronts import COOKIE, IDLE_S, Plan, Source

_HEADER = "X-Limpet-Key"
_NOTES = (
    "Drain a host: take it out of `reverse_proxy`, then `caddy reload`; what is open there ends in its own time.",
    "What is sent to a host that has vanished without a word fails when the kernel gives up:",
    "`sysctl net.ipv4.tcp_retries2=5` here makes that 13 s in place of 15 minutes.",
)


def write(plan: Plan) -> str:
    """Return a Caddyfile. Raises SettingsError."""
    plan.refuse_all_but_whole_keys()
    return "\n".join([plan.head(_NOTES), *_options(plan), *_site(plan)]) + "\n"


def _options(plan: Plan) -> Iterator[str]:
    if plan.trust:
        yield f"""{{
	servers {{
		# The address of the client, as proxies before this one report it: as limpet finds it, too.
		trusted_proxies static {" ".join(plan.trust)}
		trusted_proxies_strict
	}}
}}
"""


def _site(plan: Plan) -> Iterator[str]:
    yield f":{plan.listen} {{                                     # with TLS: the name of the site in place of the port"
    yield "	route {"
    yield f"		# The key of the client: {plan.settings.by}"
    yield f"		request_header -{_HEADER}"
    for number, source in reversed(list(enumerate(plan.sources, start=1))):
        yield from _found(plan, source, number)
    if plan.makes_cookie:
        yield from _cookie(plan)
    yield f"		reverse_proxy {' '.join(plan.hosts)} {{"
    yield from (f"			{line}" for line in _proxy(plan))
    yield "		}\n	}\n}"


def _found(plan: Plan, source: Source, number: int) -> Iterator[str]:
    if source.kind == "made":  # the fallback of the policy
        return
    if source.kind == "path":
        yield f"		@by{number} path_regexp by{number} {source.name}"
        yield f'		request_header @by{number} {_HEADER} "{{re.by{number}.1}}"'
        return
    if source.kind == "address":
        yield f'		request_header {_HEADER} "{{client_ip}}"'
        return
    if not re.fullmatch(r"[\w-]+", source.name, re.ASCII):
        plan.refuse(
            f"has no placeholder for the {source.kind} `{source.name}`: letters, digits, `_` and `-` are allowed",
            "`limpet front haproxy` can; or another name",
        )
    kind = {"header": "header", "cookie": "cookie", "query": "uri.query"}[source.kind]
    value = f"{{http.request.{kind}.{source.name}}}"
    if source.kind == "query":  # several values are joined with commas there; limpet takes the first
        yield f'		@by{number} vars_regexp by{number} {value} "^([^,]+)"'
        yield f'		request_header @by{number} {_HEADER} "{{re.by{number}.1}}"'
        return
    yield f'		@by{number} vars_regexp {value} "."'
    if source.kind == "header":
        yield f'		request_header @by{number} {source.name} "{value}"    # of several lines what is hashed'
    yield f'		request_header @by{number} {_HEADER} "{value}"'


def _cookie(plan: Plan) -> Iterator[str]:
    """Yield what gives Caddy's cookie its attributes, and empties it on what shared caches may keep."""
    given = f"$1; {plan.set_cookie}"
    mine = f'"^({COOKIE}=[^;]*).*$"'
    yield "		# Caddy's own cookie, with the attributes of `--affinity-cookie`"
    if plan.cookie.secure is None:
        yield "		@secure protocol https\n		@plain not protocol https"
        yield f'		header @secure >Set-Cookie {mine} "{given}; Secure"'
        yield f'		header @plain >Set-Cookie {mine} "{given}"'
    else:
        yield f'		header >Set-Cookie {mine} "{given}"'
    yield "		# Empty on what shared caches may keep: they would hand one client's cookie to everybody."
    for kept in "public", "s-maxage":
        yield "		header {"
        yield f'			>Set-Cookie "^{COOKIE}=.*$" ""'
        yield f"			match header Cache-Control *{kept}*\n		}}"


def _proxy(plan: Plan) -> Iterator[str]:
    if plan.sources[0].kind == "made":
        yield f"lb_policy cookie {COOKIE}            # Caddy's own cookie names the host, by a hash"
    elif plan.sources[-1].kind == "made":
        yield f"lb_policy header {_HEADER} {{\n				fallback cookie {COOKIE}\n			}}"
    else:
        yield f"lb_policy header {_HEADER}           # by rendezvous: a host moves its own share of the clients"
    yield "# What no host took is tried elsewhere; what was sent is repeated only if it is a GET (Caddy's default)."
    yield "lb_retries 100                       # not a duration: it may take long to notice that a host has vanished"
    yield "lb_try_interval 100ms"
    if plan.health and not plan.is_proxied:
        port, path = plan.health
        yield f"health_uri {path}"
        yield from [f"health_port {port}"] if port else []
        yield "health_interval 1s\n			health_timeout 2s\n			health_fails 2\n			health_passes 2"
    else:
        if plan.is_proxied:
            yield "# Caddy has no health checks where it sends PROXY headers."
        yield "# After 100 failures within 5 s a host gets no clients: fewer would take it out with one worker."
        yield "fail_duration 5s\n			max_fails 100"
    yield f"header_up -{_HEADER}"
    yield "flush_interval -1                    # events reach the client when they happen"
    header = "\n				proxy_protocol v2                    # idle connections are for the same client alone"
    yield f"""transport http {{{header * plan.is_proxied}
				dial_timeout 2s
				keepalive {IDLE_S}s
				keepalive_interval 1s                # of probes: 24 s after its last word a silent host is lost
				keepalive_idle_conns_per_host 64
			}}"""
