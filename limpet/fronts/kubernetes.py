"""Kubernetes: what `limpet front kubernetes` prints, manifests for an Ingress by ingress-nginx.

Written by the documented schemas; the tests run no cluster. The Ingress hashes one key, or sets a cookie of its own;
pods are the hosts. Knows manifests and nothing of limpet but its command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from limpet.fronts import COOKIE, Plan

_PORT = 8000
_ADMIN_PORT = 9000
_LEAVE_S = 10  # until the Ingress knows that a pod has left
_NOTES = (
    "By the documented schemas; the project's tests run no cluster. One secret for all pods, made once:",
    "  python3 -c 'import secrets; print(secrets.token_hex(32))' > secret",
    "  kubectl create secret generic limpet --from-file=secret",
    "A pod that is to leave is taken out of the Service at once; `preStop` waits until the Ingress knows, then limpet",
    "is told to stop and drains. With a HorizontalPodAutoscaler: more pods move their share of the clients, fewer end",
    "the sessions of those that leave; `behavior: {scaleDown: {stabilizationWindowSeconds: 600}}` keeps that rare.",
)


def write(plan: Plan) -> str:
    """Return the manifests. Raises SettingsError."""
    plan.refuse_all_but_whole_keys()
    plan.refuse_proxy_headers()
    if plan.hosts:
        plan.refuse("finds its pods by the Service", "leave out `--hosts`; `--image IMAGE` is what pods run")
    head = plan.head([*_NOTES, *_differences(plan)])
    return "\n---\n".join(["\n".join([head, *_deployment(plan)]), _SERVICE, "\n".join(_ingress(plan))]) + "\n"


def _differences(plan: Plan) -> Iterator[str]:
    yield from plan.spellings(
        query="the Ingress hashes it undecoded: a client has to spell it in one way, `a%20b` and `a+b` are two",
        cookie='the Ingress hashes it with its quotes: sid="1" and sid=1 are two',
    )
    if plan.makes_cookie:
        yield "The Ingress sets its cookie on public responses, too: a cache before it must not keep `Set-Cookie`."


def _deployment(plan: Plan) -> Iterator[str]:
    settings = plan.settings
    bind, admin = _ports(plan)
    command = plan.run(
        bind=f":{bind}",
        workers=settings.workers if "workers" in plan.given else 2,
        secret_file="/run/secrets/limpet/secret",
        admin=f":{admin}",
    )
    port, path = plan.health or (admin, "/ready")
    asked = f"httpGet: {{path: {path}, port: {port or bind}}}"
    grace = int(settings.graceful_timeout_s) + _LEAVE_S + 5
    yield f"""apiVersion: apps/v1
kind: Deployment
metadata:
  name: limpet
spec:
  replicas: 2
  selector: {{matchLabels: {{app: limpet}}}}
  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}
  template:
    metadata:
      labels: {{app: limpet}}
    spec:
      terminationGracePeriodSeconds: {grace}               # preStop, --graceful-timeout, and 5 s
      containers:
        - name: limpet
          image: {json.dumps(plan.image)}
          command: {json.dumps(command)}
          ports:
            - {{name: web, containerPort: {bind}}}
          startupProbe: {{{asked}, periodSeconds: 1, failureThreshold: {int(settings.start_timeout_s) + 5}}}
          readinessProbe: {{{asked}, periodSeconds: 1, failureThreshold: 2}}
          livenessProbe: {{httpGet: {{path: /live, port: {admin}}}, periodSeconds: 10, timeoutSeconds: 5}}
          lifecycle:
            preStop: {{exec: {{command: ["sleep", "{_LEAVE_S}"]}}}}
          volumeMounts:
            - {{name: secret, mountPath: /run/secrets/limpet, readOnly: true}}
      volumes:
        - name: secret
          secret: {{secretName: limpet, defaultMode: 256}}   # 0400: limpet takes no secret that others can read"""


def _ports(plan: Plan) -> tuple[int, int]:
    """Return the ports at which a pod serves and answers probes. Raises SettingsError for what others cannot reach."""
    found = []
    for flag, name, port in ("--bind", "bind", _PORT), ("--admin", "admin", _ADMIN_PORT):
        given = getattr(plan.settings, name) if name in plan.given else f":{port}"
        text = given if isinstance(given, str) else ",".join(given)
        match = re.fullmatch(r"(?:0\.0\.0\.0|\[::\])?:([0-9]+)", text)
        if not match:
            plan.refuse(f"reaches a pod at one port of all its addresses, not at `{flag} {text}`", f"`{flag} :{port}`")
        found.append(int(match[1]))
    if "secret_file" in plan.given:
        plan.refuse("mounts the secret of all pods itself, not `--secret-file`", "leave it out: the notes make one")
    return found[0], found[1]


_SERVICE = f"""apiVersion: v1
kind: Service
metadata:
  name: limpet
spec:
  selector: {{app: limpet}}
  ports:
    - {{name: web, port: {_PORT}, targetPort: web}}"""


def _ingress(plan: Plan) -> Iterator[str]:
    yield "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: limpet\n  annotations:"
    yield from (f"    nginx.ingress.kubernetes.io/{name}: {json.dumps(text)}" for name, text in _annotations(plan))
    yield f"""spec:
  ingressClassName: nginx
  rules:                                              # with TLS: `tls`, and a `host` in the rule
    - http:
        paths:
          - path: /
            pathType: Prefix
            backend: {{service: {{name: limpet, port: {{number: {_PORT}}}}}}}"""


def _annotations(plan: Plan) -> Iterator[tuple[str, str]]:
    can = "one cookie, header, parameter, address or a cookie of its own (`--by affinity`)"
    source = plan.only("made", "address", "header", "cookie", "query", can=can)
    if source.kind == "made":
        plan.refuse_attributes("Partitioned", "HttpOnly=no")
        given = plan.cookie
        yield "affinity", "cookie"
        yield "affinity-mode", "persistent"  # a pod that comes moves nobody
        yield "session-cookie-name", COOKIE
        yield "session-cookie-path", given.path
        yield "session-cookie-samesite", given.same_site
        if given.domain:
            yield "session-cookie-domain", given.domain
        if given.max_age:
            yield "session-cookie-max-age", str(given.max_age)
        if given.secure is not None:  # else it is set where the request came by https, as limpet's is
            yield "session-cookie-secure", str(given.secure).lower()
    else:
        name = source.name.replace("-", "_") if source.kind == "header" else source.name
        if not re.fullmatch(r"\w*", name, re.ASCII):
            plan.refuse(f"has no variable for the {source.kind} `{name}`", "another name: letters, digits and `_`")
        prefix = {"address": "$remote_addr", "header": "$http_", "cookie": "$cookie_", "query": "$arg_"}[source.kind]
        yield "upstream-hash-by", prefix + name
    yield "proxy-buffering", "off"  # events reach the client when they happen
    yield "proxy-read-timeout", "3600"
    yield "proxy-send-timeout", "3600"
    yield "proxy-next-upstream", "error timeout http_503"  # not `non_idempotent`
