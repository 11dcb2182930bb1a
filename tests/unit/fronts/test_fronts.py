"""Configurations of fronts: what is printed, what is refused, and what has to be in each of them."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from limpet import fronts
from limpet.cli import commands
from limpet.cli.commands import main
from limpet.config import settings
from limpet.config.fields import Setting
from limpet.config.presets import MINTED, PRESETS
from limpet.config.settings import SETTINGS, Settings
from limpet.errors import SettingsError
from tools.docs import fronts_page

PAGE = Path(__file__).parents[3] / "docs" / "fronts.md"
HOSTS = "10.0.0.1:8000,10.0.0.2:8000"
BY_HOSTS = [kind for kind in fronts.KINDS if kind != "kubernetes"]


def text(kind: str, *, hosts: str = HOSTS, health: str | None = None, **given: Any) -> str:
    """Return the configuration of a front of *kind* for the settings *given*."""
    settings = Settings(app="chat:app", **given)
    return fronts.configuration(kind, settings, "" if kind == "kubernetes" else hosts, health=health)


def test_page_shows_what_is_printed() -> None:
    """Readers copy configurations from the page: it must be what the command gives them."""
    assert len(fronts_page.BLOCK.findall(PAGE.read_text())) == 9
    assert fronts_page.renewed(PAGE.read_text()) == PAGE.read_text()


@pytest.mark.parametrize("kind", fronts.KINDS)
def test_page_has_each_kind(kind: str) -> None:
    """A kind without an example is one that nobody has looked at."""
    assert f"limpet front {kind} " in PAGE.read_text()


@pytest.mark.parametrize("kind", ["envoy", "traefik", "kubernetes"])
def test_configuration_in_yaml_is_yaml(kind: str) -> None:
    """Comments and braces are easily wrong in text that is put together."""
    documents = list(yaml.safe_load_all(text(kind, by="affinity")))
    assert len(documents) == (3 if kind == "kubernetes" else 1)
    assert all(documents)


@pytest.mark.parametrize("kind", BY_HOSTS)
def test_each_host_is_in_it(kind: str) -> None:
    """Clients of a host that was left out would be on another one."""
    printed = text(kind, by="affinity")
    assert "10.0.0.1" in printed
    assert "10.0.0.2" in printed


@pytest.mark.parametrize("kind", fronts.KINDS)
def test_server_behind_it_keeps_idle_connections_longer(kind: str) -> None:
    """Else limpet closes a connection just when the front sends a request on it."""
    assert int(re.findall(r"--keep-alive-timeout\W+(\d+)", text(kind, by="affinity"))[0]) > fronts.IDLE_S


@pytest.mark.parametrize("kind", fronts.KINDS)
def test_requests_that_may_not_be_repeated_are_not(kind: str) -> None:
    """A payment sent twice is worse than an error."""
    settings = "\n".join(line.partition("#")[0] for line in text(kind, by="affinity").splitlines())
    assert "non_idempotent" not in settings
    assert "retryNonIdempotentMethod" not in settings
    assert "lb_retry_match" not in settings
    assert ("disable-l7-retry unless" in settings) == (kind == "haproxy")
    assert not re.search(r"retry_on:.*(?:5xx|reset|gateway-error)", settings)


REFUSED = [
    ("haproxy", {"by": "forwarded", "trust": ("10.0.0.0/8",), "proxy_protocol": "required"}, "says already who"),
    ("haproxy", {"by": "sni"}, "is not told it"),
    ("haproxy", {"by": "cookie:user", "tls_cert": "cert.pem"}, "no `cookie` to go by"),
    ("haproxy", {"by": "ip", "tls_cert": "cert.pem"}, "the address of the front"),
    ("nginx", {"by": "cookie:user", "proxy_protocol": "required"}, "no PROXY header with HTTP"),
    ("traefik", {"by": "affinity", "proxy_protocol": "required"}, "no PROXY header with HTTP"),
    ("kubernetes", {"by": "affinity", "proxy_protocol": "required"}, "no PROXY header with HTTP"),
    *((kind, {"by": "sni", "tls_cert": "cert.pem"}, "pass on bytes") for kind in ("caddy", "envoy", "traefik")),
    ("caddy", {"by": "sni,ip", "proxy_protocol": "required"}, "no key by the name in TLS"),
    ("envoy", {"by": "ip", "server": "stream", "proxy_protocol": "required"}, "`--server stream`"),
    ("caddy", {"by": "ip/24", "proxy_protocol": "required"}, "`ip/24` takes the first 24"),
    ("haproxy", {"by": "python:keys:of"}, "python:keys:of"),
    ("haproxy", {"by": "ip"}, "the address of the front"),
    *((kind, {"by": "affinity", "backend": "kernel"}, "--backend kernel") for kind in fronts.KINDS),
    *((kind, {"by": "affinity", "max_connections_per_address": 9}, "per-address") for kind in fronts.KINDS),
    *((kind, {"by": "affinity", "keep_alive_timeout_s": 20}, "--keep-alive-timeout 20") for kind in fronts.KINDS),
    *((kind, {"by": "bearer"}, "bearer token") for kind in ("nginx", "caddy", "envoy", "traefik", "kubernetes")),
    *((kind, {"by": "affinity", "bind": ("unix:/run/x",)}, "unix:/run/x") for kind in fronts.KINDS),
    *((kind, {"by": "affinity", "bind": ("127.0.0.1:8000=a:b",)}, "127.0.0.1:8000") for kind in fronts.KINDS),
    ("haproxy", {"by": "affinity", "bind": (":9999",)}, "`--bind :9999`"),
    ("haproxy", {"by": "affinity", "bind": (":8000?by=ip",)}, "one key chain"),
    ("kubernetes", {"by": "affinity", "admin": "127.0.0.1:9000"}, "--admin 127.0.0.1:9000"),
    ("kubernetes", {"by": "affinity", "secret_file": "/etc/secret"}, "--secret-file"),
    ("haproxy", {"by": "forwarded"}, "without `--trust`"),
    ("haproxy", {"by": "cookie:sid", "learn": ("app",)}, "only the application knows"),
    ("haproxy", {"by": "path:/x/([^ ]+)"}, "read in ways of their own"),
    ("nginx", {"by": "cookie:my-sid"}, "no variable for the cookie `my-sid`"),
    ("nginx", {"by": "forwarded/20", "trust": ("10.0.0.0/8",)}, "whole bytes"),
    ("caddy", {"by": "forwarded", "trust": ("10.0.0.0/8",)}, "whole addresses"),
    ("caddy", {"by": "cookie:a.b"}, "no placeholder"),
    ("envoy", {"by": "forwarded", "trust": ("10.0.0.0/8",)}, "whole addresses"),
    ("envoy", {"by": "path:^/(?:a|b)/(.*)"}, "exactly one pair"),
    ("traefik", {"by": "cookie:sid"}, "a cookie of its own"),
    ("traefik", {"by": "cookie:sid,affinity"}, "a cookie of its own"),
    ("kubernetes", {"by": "cookie:sid,affinity"}, "one cookie"),
    *((kind, {"by": "cookie:sid", "learn": ("cookie:sid",)}, "cannot learn") for kind in fronts.KINDS[1:]),
]


@pytest.mark.parametrize(("kind", "given", "why"), REFUSED)
def test_what_cannot_be_expressed_is_refused_with_what_can_be_had(kind: str, given: dict[str, Any], why: str) -> None:
    """A front that goes by another key than limpet loses sessions, and nobody sees why."""
    with pytest.raises(SettingsError) as refused:
        text(kind, **given)
    assert why in refused.value.message
    assert refused.value.hint


SAMPLES = {  # of settings that hold a text which something reads
    "app": "chat:other",
    "for_": next(name for name, preset in PRESETS.items() if preset.sets == {"by": "affinity"}),
    "bind": ":8000,:8001=admin:app",
    "by": "header:x-user",
    "trust": "10.0.0.0/8",
    "bus": "redis://10.0.0.9:6379",
    "affinity_cookie": "SameSite=Strict",
    "learn": "header:x-id",
    "server": "hypercorn",
    "umask": "007",
    "admin": ":9100",
}
TYPES = get_type_hints(Settings)
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def sample(each: Setting) -> str | bool:
    """Return what the flag *each* can be given that is not its default."""
    field, allowed = FIELDS[each.name], [value for value in get_args(TYPES[each.name]) if isinstance(value, str)]
    if each.name in SAMPLES:
        return SAMPLES[each.name]
    if field.default in (True, False) and TYPES[each.name] is bool:
        return not field.default
    if allowed:
        return next(value for value in allowed if value != field.default)
    if TYPES[each.name] in (int, float):
        bound = field.metadata["high" if field.metadata["high"] != field.default else "low"]
        return f"{bound:.15g}"
    return "some-word"


def told(printed: str) -> Settings:
    """Return the settings of the command that *printed* has for the hosts."""
    [words] = re.findall(r"^#   (limpet run .*)$", printed, re.MULTILINE) or [""]
    if not words:
        words = shlex.join(json.loads(re.findall(r"^ +command: (\[.*\])$", printed, re.MULTILINE)[0]))
    context = commands.run.make_context("limpet run", shlex.split(words)[2:])
    return settings.load(context.params, {})


def flags(each: Setting, value: str | bool) -> dict[str, Any]:
    """Return what the command line has with one flag."""
    return {
        "app": "chat:app",
        "by": () if each.name == "for_" else "affinity",
        each.name: (value,) if each.type.is_list else value,
    }


@pytest.mark.parametrize("kind", fronts.KINDS)
@pytest.mark.parametrize("each", SETTINGS, ids=lambda each: each.key)
def test_each_flag_of_run_is_expressed_or_refused_by_each_front(each: Setting, kind: str, tmp_path: Path) -> None:
    """A flag that is dropped in silence is one that an operator believes to have set."""
    value = sample(each)
    if each.name == "config":
        file = tmp_path / "limpet.toml"
        file.write_text("threads = 7\n")
        value = str(file)
    given = settings.given(flags(each, value), {})
    wanted = settings.load(flags(each, value), {})
    hosts = "" if kind == "kubernetes" else HOSTS
    printed = outcome(kind, wanted, hosts, given)
    if isinstance(printed, SettingsError):
        assert kind in printed.message
        assert each.flag in printed.message
        assert printed.hint
        return
    there = told(printed)
    for name in set(given) - {"config", "for_"}:
        assert getattr(there, name) == getattr(wanted, name)
    assert each.name == "for_" or there != told(text(kind, by="affinity"))


def outcome(kind: str, wanted: Settings, hosts: str, given: dict[str, Any]) -> str | SettingsError:
    """Return what is printed, or why nothing is."""
    try:
        return fronts.configuration(kind, wanted, hosts, given=given)
    except SettingsError as refused:
        return refused


OWN = {"hosts": HOSTS, "listen": 8080, "health": ":9200/up", "image": "registry.example/chat:1"}
ABLE = {
    "hosts": set(BY_HOSTS),
    "listen": set(BY_HOSTS),
    "health": set(fronts.KINDS) - {"nginx"},
    "image": {"kubernetes"},
}


@pytest.mark.parametrize("kind", fronts.KINDS)
@pytest.mark.parametrize("flag", OWN)
def test_each_flag_of_front_is_expressed_or_refused_by_each_front(flag: str, kind: str) -> None:
    """nginx asks no host for its health, and Kubernetes has no list of hosts."""
    given = {"hosts": "" if kind == "kubernetes" else HOSTS, flag: OWN[flag]}
    if kind in ABLE[flag]:
        printed = fronts.configuration(kind, Settings(app="a:app", by="affinity"), **given)  # type: ignore[arg-type]
        assert re.findall(r"8080|/up|registry.example/chat:1|10.0.0.2:8000|10.0.0.2", printed)
        return
    with pytest.raises(SettingsError) as refused:
        fronts.configuration(kind, Settings(app="a:app", by="affinity"), **given)  # type: ignore[arg-type]
    assert refused.value.message.startswith(kind)
    assert f"--{flag}" in (refused.value.message + str(refused.value.hint))


def test_flags_of_front_are_all_looked_at() -> None:
    """A new one must be tried with each kind."""
    own = {option.name for option in commands.front.params} - {each.name for each in SETTINGS}
    assert own == {"kind", *OWN}


def test_each_setting_is_declared_for_fronts_once() -> None:
    """Whoever adds a setting has to say whether fronts must know of it."""
    assert not fronts.PASSED_ON & fronts.LOOKED_AT
    assert {each.name for each in SETTINGS} == fronts.PASSED_ON | fronts.LOOKED_AT


@pytest.mark.parametrize("kind", fronts.KINDS)
def test_setting_that_nobody_has_declared_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody has, the safe answer is no."""
    monkeypatch.setattr(fronts, "PASSED_ON", fronts.PASSED_ON - {"threads"})
    with pytest.raises(SettingsError, match=f"{kind} does not know what `--threads` means"):
        text(kind, by="affinity", threads=7)


ATTRIBUTES = {
    "Path=/shop": r"/shop",
    "Domain=a.example": r"a\.example",
    "Max-Age=77": r"\b77",
    "SameSite=Strict": r"(?i)\bstrict\b",
    "SameSite=None; Secure": r"(?is)none.*secure|secure.*none",
    "Partitioned; Secure": r"Partitioned",
    "HttpOnly=no": r"(?i)httponly: false|Path=/; SameSite=Lax(?!; HttpOnly)",
}
CANNOT = {
    "traefik": {"Partitioned; Secure"},
    "kubernetes": {"Partitioned; Secure", "HttpOnly=no"},
    "envoy": {"HttpOnly=no"},
}


@pytest.mark.parametrize("kind", fronts.KINDS)
@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_attribute_of_the_cookie_is_expressed_or_refused_by_each_front(kind: str, attribute: str) -> None:
    """The session of a page in a frame needs both cookies to have them."""
    if attribute in CANNOT.get(kind, ()):
        with pytest.raises(SettingsError) as refused:
            text(kind, by="affinity", affinity_cookie=attribute)
        assert kind in refused.value.message
        assert "--affinity-cookie" in refused.value.message
        assert refused.value.hint
        return
    own = "\n".join(
        line for line in text(kind, by="affinity", affinity_cookie=attribute).splitlines() if "#" not in line
    )
    own = re.sub(r"command: .*", "", own)
    assert re.search(ATTRIBUTES[attribute], own)


@pytest.mark.parametrize("kind", ["nginx", "envoy", "kubernetes"])
def test_front_that_hashes_parameters_undecoded_says_so(kind: str) -> None:
    """Where `a%20b` and `a+b` are two keys an operator has to know."""
    assert "`query:q`" in text(kind, by="query:q")
    assert "undecoded" in text(kind, by="query:q")
    assert "undecoded" not in text(kind, by="header:x-user")


@pytest.mark.parametrize("kind", ["traefik", "envoy", "kubernetes"])
def test_front_that_sets_its_cookie_on_public_responses_says_so(kind: str) -> None:
    """A cache before it would hand one client's cookie to everybody."""
    assert "public responses" in text(kind, by="affinity")


@pytest.mark.parametrize("hosts", ["", "10.0.0.1", "a:1,a:1", "a:0", "a:1;b:2", "a:99999"])
def test_hosts_must_be_addresses(hosts: str) -> None:
    """The front would not start, or send clients nowhere."""
    with pytest.raises(SettingsError):
        text("nginx", hosts=hosts, by="affinity")


def test_unknown_kind_is_refused() -> None:
    """With the kinds there are."""
    with pytest.raises(SettingsError, match="haproxy, nginx"):
        text("squid", by="affinity")


@pytest.mark.parametrize("kind", ["haproxy", "caddy", "traefik", "envoy", "kubernetes"])
def test_health_is_asked_where_limpet_answers(kind: str) -> None:
    """`--admin` says where; `--health` where something else does."""
    assert "/ready" in text(kind, by="affinity", admin=":9100")
    assert "9100" in text(kind, by="affinity", admin=":9100")
    assert "/up" in text(kind, by="affinity", admin=":9100", health=":9200/up")
    assert "9200" in text(kind, by="affinity", health=":9200/up")
    with pytest.raises(SettingsError):
        text(kind, by="affinity", health="ready")


@pytest.mark.parametrize("admin", ["127.0.0.1:9000", "unix:/run/admin.sock", "localhost:9000"])
def test_health_that_only_the_host_itself_can_ask_is_not_asked(admin: str) -> None:
    """All hosts would count as down."""
    assert "/ready" not in text("haproxy", by="affinity", admin=admin)


def test_keys_that_the_application_makes_become_a_cookie_of_the_front() -> None:
    """An id minted on one host would be hashed to another."""
    for given in ({"by": "affinity"}, *({"by": where, "mint": library} for library, where in MINTED.items())):
        printed = text("haproxy", **given)
        assert "req.cook(limpet_front)" in printed
        assert not re.search(r"url_param|path,url_dec", printed)


def test_cookie_of_the_front_has_the_attributes_of_the_settings() -> None:
    """Pages in frames need `SameSite=None` on both."""
    cookie = "Max-Age=60; SameSite=None; Secure; Partitioned; Domain=a.example; Path=/x"
    for kind in ("haproxy", "nginx"):
        printed = text(kind, by="affinity", affinity_cookie=cookie)
        assert "Path=/x; SameSite=None; Domain=a.example; Max-Age=60; HttpOnly; Secure; Partitioned" in printed


def test_command_reads_the_file_that_run_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two descriptions would differ one day."""
    file = tmp_path / "limpet.toml"
    file.write_text('app = "mine:app"\nby = "header:x-user"\n')
    assert main(["front", "haproxy", "--hosts", HOSTS, "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "req.fhdr(x-user)" in printed
    assert "limpet run mine:app" in printed
    assert main(["front", "nginx", "--hosts", HOSTS, "--config", str(file), "--by", "cookie:u"]) == 0
    assert "$cookie_u " in capsys.readouterr().out
