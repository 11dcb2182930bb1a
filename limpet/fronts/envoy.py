"""Envoy 1.30 or newer: what `limpet front envoy` prints, a static bootstrap configuration.

Written by the documented schema; no Envoy has run it in the tests. Its hash policies are asked in order, and the first
that finds a key is the last (`terminal`). Knows the syntax of Envoy and nothing of limpet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from limpet.fronts import COOKIE, IDLE_S, Plan, Source

_CONNECT = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_RAW = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_PROXY = "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
_NOTES = (
    "By the documented schema of Envoy 1.30; the project's tests run no Envoy.",
    "Drain a host: `health_status: DRAINING` in its endpoint (with EDS, or a file that is watched); its clients go",
    "to the others, what is open there ends in its own time.",
)


def write(plan: Plan) -> str:
    """Return the configuration. Raises SettingsError."""
    plan.refuse_all_but_whole_keys()
    plan.refuse_attributes("HttpOnly=no")
    return (
        "\n".join([plan.head([*_NOTES, *_differences(plan)]), *_listener(plan), *_route(plan), *_cluster(plan)]) + "\n"
    )


def _differences(plan: Plan) -> Iterator[str]:
    undecoded = "Envoy hashes it undecoded: a client has to spell it in one way"
    yield from plan.spellings(
        query=f"{undecoded}, `a%20b` and `a+b` are two",
        path=f"{undecoded}, `a%62` and `ab` are two",
        header="of several lines Envoy hashes each for itself: a client has to send one",
    )
    if plan.makes_cookie:
        yield "Envoy sets its cookie on public responses, too: a cache before it must not keep `Set-Cookie`."
        if plan.cookie.secure is None:
            yield "With TLS in Envoy: `--affinity-cookie Secure`. Its cookie does not go by the connection."


def _listener(plan: Plan) -> Iterator[str]:
    yield f"""static_resources:
  listeners:
    - name: web
      address: {{socket_address: {{address: "::", port_value: {plan.listen}, ipv4_compat: true}}}}
      filter_chains:                                  # with TLS: a transport_socket here
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {_CONNECT}
                stat_prefix: limpet
                stream_idle_timeout: 3600s            # websockets and streams may be silent for so long
                upgrade_configs: [{{upgrade_type: websocket}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": {_ROUTER}}}"""
    if not any(source.kind == "address" for source in plan.sources):
        yield "                use_remote_address: true              # adds the client to X-Forwarded-For"
        return
    yield """                # The address of the client, as proxies before this one report it: as limpet finds it, too.
                original_ip_detection_extensions:
                  - name: envoy.http.original_ip_detection.xff
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig
                      skip_xff_append: false
                      xff_trusted_cidrs:
                        cidrs:"""
    for network in plan.trust:
        address, _, bits = network.partition("/")
        bits = bits or ("128" if ":" in address else "32")
        yield f'                          - {{address_prefix: "{address}", prefix_len: {bits}}}'


def _route(plan: Plan) -> Iterator[str]:
    yield f"""                route_config:
                  virtual_hosts:
                    - name: limpet
                      domains: ["*"]
                      routes:
                        - match: {{prefix: "/"}}
                          route:
                            cluster: limpet
                            timeout: 0s               # a stream has no end
                            # Before anything was sent, elsewhere: for every request.
                            retry_policy:
                              retry_on: connect-failure,refused-stream
                              num_retries: 3
                              host_selection_retry_max_attempts: 3
                              retry_host_predicate:
                                - name: envoy.retry_host_predicates.previous_hosts
                                  typed_config:
                                    "@type": type.googleapis.com/{_PREVIOUS}
                            hash_policy:              # {plan.settings.by}; without a key: at random"""
    for source in plan.sources:
        yield f"                              - {json.dumps(_policy(plan, source))}"


_PREVIOUS = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"


def _policy(plan: Plan, source: Source) -> dict[str, object]:
    """Return one hash policy: JSON is YAML."""
    if source.kind == "made":
        given = plan.cookie
        # A ttl has Envoy make the cookie; 0s is a cookie that ends with the browser.
        own = {"name": COOKIE, "path": given.path, "ttl": f"{given.max_age}s"}
        attributes = [{"name": "SameSite", "value": given.same_site}]
        attributes += [{"name": "Domain", "value": given.domain}] if given.domain else []
        attributes += [{"name": "Secure", "value": ""}] if given.secure else []
        attributes += [{"name": "Partitioned", "value": ""}] if given.partitioned else []
        return {"cookie": {**own, "attributes": attributes}, "terminal": True}
    if source.kind == "path":
        pattern = {"regex": f"^[^?]*?{source.name}.*$"}
        if source.name.count("(") != 1:
            plan.refuse(
                f"needs exactly one pair of `()` in `path:{source.name}`, and no other `(`",
                "`limpet front haproxy` can take any",
            )
        rewrite = {"pattern": pattern, "substitution": "\\1"}
        return {"header": {"header_name": ":path", "regex_rewrite": rewrite}, "terminal": True}
    policies: dict[str, dict[str, object]] = {
        "address": {"connection_properties": {"source_ip": True}},
        "header": {"header": {"header_name": source.name}},
        "cookie": {"cookie": {"name": source.name}},
        "query": {"query_parameter": {"name": source.name}},
    }
    return {**policies[source.kind], "terminal": True}


def _cluster(plan: Plan) -> Iterator[str]:
    yield f"""  clusters:
    - name: limpet
      type: STRICT_DNS
      connect_timeout: 2s
      lb_policy: RING_HASH                            # a host that comes or goes moves its own share of the clients
      ring_hash_lb_config: {{minimum_ring_size: 4096}}
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": {_OPTIONS}
          explicit_http_config: {{http_protocol_options: {{}}}}
          common_http_protocol_options: {{idle_timeout: {IDLE_S}s}}
      upstream_connection_options:                    # a host that vanishes without a word
        tcp_keepalive: {{keepalive_probes: 5, keepalive_time: 5, keepalive_interval: 1}}
{_sockets(plan)}      health_checks:
        - timeout: 2s
          interval: 1s
          unhealthy_threshold: 2
          healthy_threshold: 2
          {_check(plan)}
      load_assignment:
        cluster_name: limpet
        endpoints:
          - lb_endpoints:"""
    at = f", health_check_config: {{port_value: {plan.health[0]}}}" if plan.health and plan.health[0] else ""
    for host in plan.hosts:
        name, _, port = host.rpartition(":")
        address = f'{{socket_address: {{address: "{name.strip("[]")}", port_value: {port}}}}}'
        yield f"              - endpoint: {{address: {address}{at}}}"


def _check(plan: Plan) -> str:
    plain = "\n          transport_socket_match_criteria: {check: true}" * plan.is_proxied
    return f"http_health_check: {{path: {plan.health[1]}}}{plain}" if plan.health else "tcp_health_check: {}"


def _sockets(plan: Plan) -> str:
    """Return that connections begin with a PROXY header, and those of health checks do not."""
    if not plan.is_proxied:
        return ""
    raw = f'transport_socket: {{name: envoy.transport_sockets.raw_buffer, typed_config: {{"@type": {_RAW}}}}}'
    return f"""      transport_socket_matches:                       # the admin address takes no PROXY header
        - name: check
          match: {{check: true}}
          {raw}
        - name: web
          match: {{}}
          transport_socket:
            name: envoy.transport_sockets.upstream_proxy_protocol
            typed_config:
              "@type": {_PROXY}
              config: {{version: V2}}
              {raw}
"""
