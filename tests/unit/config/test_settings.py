"""Settings: written down once, read alike from everywhere, and mistakes that say where they stand."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.config import settings
from limpet.config.fields import Setting
from limpet.config.settings import SETTINGS, Settings
from limpet.errors import EXIT_CODES, SettingsError
from tools.docs import bounds_page, settings_page

APP = {"app": "chat:app"}
BY_NAME = {each.name: each for each in SETTINGS}
Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load the settings of chat:app with the lines of a limpet.toml, variables, and flags as keywords."""
    monkeypatch.chdir(tmp_path)

    def loaded(toml: str = "", environ: dict[str, str] | None = None, **flags: Any) -> Settings:
        Path("limpet.toml").write_text(toml)
        return settings.load({**APP, "config": "limpet.toml", **flags}, environ or {})

    return loaded


def test_first_source_that_has_a_value_wins(load: Load) -> None:
    """Who types a flag means it; what the platform suggests is the weakest."""
    platform = {"WEB_CONCURRENCY": "4"}
    variables = {"LIMPET_WORKERS": "2", **platform}
    assert load("workers = 3", variables, workers="1").workers == 1
    assert load("workers = 3", variables).workers == 2
    assert load("workers = 3", platform).workers == 3
    assert load("", platform).workers == 4
    assert load().workers == settings.usable_cpus()


def test_mistake_that_is_overridden_is_still_a_mistake(load: Load) -> None:
    """Otherwise it would wait in the file until the day the flag is left out."""
    with pytest.raises(SettingsError, match=r"`workers` in `limpet.toml`"):
        load("workers = 0", workers="1")


@pytest.mark.parametrize("variable", ["LIMPET_WORKERS", "WEB_CONCURRENCY", "LIMPET_CONFIG", "LIMPET_TRUST"])
def test_empty_variable_counts_as_not_set(variable: str) -> None:
    """Shells and compose files pass on a variable that is not set as an empty one."""
    assert settings.load(APP, {variable: ""}) == settings.load(APP, {})


def test_foreign_variables_are_no_mistake(load: Load) -> None:
    """Kubernetes sets these for a service that is called limpet."""
    assert load("", {"LIMPET_SERVICE_HOST": "10.0.0.1", "LIMPET_PORT": "tcp://10.0.0.1:80"}) == load()


def test_application_may_come_from_anywhere(load: Load) -> None:
    """A container image can hold the settings and be started by `limpet run` alone."""
    assert load("app = 'a:b'", app=None).app == "a:b"
    assert settings.load({}, {"LIMPET_APP": "a:b"}).app == "a:b"
    with pytest.raises(SettingsError, match="no application"):
        settings.load({}, {})


def test_file_may_be_named_by_a_variable(load: Load) -> None:
    """`LIMPET_CONFIG` is what a unit file or an image can set."""
    assert load("queue = 7", {"LIMPET_CONFIG": "limpet.toml"}, config=None).queue == 7


@pytest.mark.parametrize("toml", ["head-timeout = 3", "head_timeout = 3", "head-timeout = 3.0", "head-timeout = '3'"])
def test_key_is_the_flag_with_dashes_or_underscores(load: Load, toml: str) -> None:
    """TOML files are written in both styles, and text is read as it is read from a variable."""
    assert load(toml).head_timeout_s == 3


@pytest.mark.parametrize(
    "given",
    [
        {"toml": "bind = [':80', 'unix:/run/a.sock']"},
        {"toml": "bind = ':80, unix:/run/a.sock'"},
        {"environ": {"LIMPET_BIND": ":80,unix:/run/a.sock"}},
        {"bind": (":80", "unix:/run/a.sock")},
        {"bind": (":80,unix:/run/a.sock",)},
    ],
)
def test_list_is_written_with_commas_or_as_a_list(load: Load, given: dict[str, Any]) -> None:
    """One value must not need another spelling when it moves from the command line into a file."""
    assert load(**given).bind == (":80", "unix:/run/a.sock")


def test_only_a_list_that_is_empty_by_default_may_be_empty(load: Load) -> None:
    """A server must listen somewhere, but need not trust anybody."""
    assert load("trust = []").trust == ()
    assert load("", {"LIMPET_TRUST": "unix"}, trust=("",)).trust == ()
    with pytest.raises(SettingsError):
        load("bind = []")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("ON", True), ("1", True), ("no", False), ("0", False)])
def test_switch_is_read_from_the_usual_words(load: Load, text: str, value: bool) -> None:
    """Variables have no type, and everybody writes them differently."""
    assert load("access-log = true", {"LIMPET_ACCESS_LOG": text}).access_log is value
    assert load(access_log=not value).access_log is not value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": "zero"}, "`--workers` must be a whole number from 1 to 256, not `zero`"),
        ({"workers": "257"}, "`--workers` must be a whole number from 1 to 256, not `257`"),
        ({"environ": {"LIMPET_WORKERS": "1.5"}}, "`LIMPET_WORKERS` must be a whole number from 1 to 256, not `1.5`"),
        ({"environ": {"WEB_CONCURRENCY": "-1"}}, "`WEB_CONCURRENCY` must be a whole number from 1 to 256, not `-1`"),
        ({"toml": "workers = true"}, "`workers` in `limpet.toml` must be a whole number from 1 to 256, not `true`"),
        ({"toml": "workers = 4.0"}, "`workers` in `limpet.toml` must be a whole number from 1 to 256, not `4.0`"),
        ({"place": "lest"}, "`--place` must be `least`, `hash` or `random`, not `lest`"),
        ({"toml": "place = 3"}, "`place` in `limpet.toml` must be `least`, `hash` or `random`, not `3`"),
        (
            {"toml": "head_timeout = nan"},
            "`head_timeout` in `limpet.toml` must be a number of seconds from 0.1 to 86400, not `NaN`",
        ),
        ({"max_head_bytes": "1"}, "`--max-head` must be a whole number of bytes from 1024 to 65536, not `1`"),
        ({"toml": "factory = 1"}, "`factory` in `limpet.toml` must be `true` or `false`, not `1`"),
        ({"toml": "bind = [8000]"}, "`bind` in `limpet.toml` must be a list of text that is not empty, not `[8000]`"),
        ({"control": ""}, "`--control` must be text that is not empty, not ``"),
        ({"toml": "by = 1979-05-27"}, '`by` in `limpet.toml` must be text that is not empty, not `"1979-05-27"`'),
    ],
)
def test_bad_value_says_where_what_and_what_is_allowed(load: Load, given: dict[str, Any], message: str) -> None:
    """Three places can set a value: an error that does not name one sends people looking in the others."""
    with pytest.raises(SettingsError) as caught:
        load(**given)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("given", "begin"),
    [
        ({"bind": ("127.0.0.1:80", "nowhere")}, "`--bind`: `nowhere` "),
        ({"environ": {"LIMPET_BY": "cookie:sid,foo:bar"}}, "`LIMPET_BY`: `foo:bar` "),
        ({"toml": "trust = ['10.0.0.0/33']"}, "`trust` in `limpet.toml`: "),
        ({"name": "../chat"}, "`--name`: invalid name `../chat`"),
    ],
)
def test_mistake_inside_a_value_says_where_it_stands(load: Load, given: dict[str, Any], begin: str) -> None:
    """Whoever knows the syntax does not know where the text came from: the source is put before it."""
    with pytest.raises(SettingsError) as caught:
        load(**given)
    assert caught.value.message.startswith(begin)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("chat", "`limpet run chat:app`"),
        ("chat.py", "`limpet run chat:app`"),
        ("./pkg/chat.py:create", "`limpet run pkg.chat:create`"),
        (":app", "`limpet run module:app`"),
        ("chat:", "`limpet run chat:app`"),
        ("chat:app()", "`limpet run chat:app`"),
    ],
)
def test_application_that_is_no_object_gets_one_proposed(load: Load, text: str, hint: str) -> None:
    """People come with the path of a file, since that is what they have in front of them."""
    with pytest.raises(SettingsError) as caught:
        load(app=text)
    assert caught.value.message == f"`APP`: `{text}` is not `module:attribute`"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("toml", "message", "hint"),
    [
        ("wrokers = 3", "unknown key `wrokers` in `limpet.toml`", "the nearest key is `workers`"),
        ("graceful_timeout_s = 3", "unknown key `graceful_timeout_s`", "the nearest key is `graceful-timeout`"),
        ("config = 'a'", "unknown key `config`", "the nearest key is "),
        ("[limpet]\nworkers = 3", "unknown table `[limpet]`", "remove the line `[limpet]`"),
        ("queue = 1\n[workers]", "`workers` in `limpet.toml` must be a whole number", None),
        ("head-timeout = 3\nhead_timeout = 4", "`head-timeout` is set twice in `limpet.toml`", None),
        ("workers", "`limpet.toml` is not a TOML file: ", None),
    ],
)
def test_file_with_a_mistake_is_refused(load: Load, toml: str, message: str, hint: str | None) -> None:
    """A key that is ignored is a setting that silently does not hold."""
    with pytest.raises(SettingsError) as caught:
        load(toml)
    assert message in caught.value.message
    assert hint is None or hint in str(caught.value.hint)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, a directory and a file of bytes are mistakes of the same kind as a wrong value."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, said in [("none", "no such file or directory"), ("", "is a directory"), ("bytes", "not a TOML file")]:
        with pytest.raises(SettingsError, match=said):
            settings.load({**APP, "config": str(tmp_path / name)}, {})


@given(st.sampled_from(SETTINGS), st.text() | st.text("[]():.,/%*+?^-0123456789abdfhikopntuxy"))
def test_no_text_ends_in_a_traceback(each: Setting, text: str) -> None:
    """A bad setting is not a bug: whatever somebody types, the answer is a value or one line of error."""
    shown = "error: \n"
    try:
        each.read(text, "`here`")
    except SettingsError as error:
        shown = error.render()
    assert len(shown.partition("\n\nhint: ")[0].splitlines()) == 1


@pytest.mark.parametrize(
    "given", [{}, {"bind": (":80", "fd:3"), "trust": ("unix",), "name": "n", "head_timeout_s": "0.5"}]
)
def test_children_get_the_same_settings(load: Load, given: dict[str, Any]) -> None:
    """The supervisor and its children would otherwise disagree about where a client belongs."""
    loaded = load(**given)
    assert Settings.from_json(loaded.to_json()) == loaded


@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - {"app"}))
def test_default_is_allowed(name: str) -> None:
    """What is not given must be something that could have been given."""
    default = getattr(Settings(app="chat:app"), name)
    if default is not None:
        assert BY_NAME[name].read(list(default) if isinstance(default, tuple) else default, "default") == default


def test_names_of_settings_follow_one_rule() -> None:
    """Who knows the flag knows the variable and the key; the unit stays in the code."""
    each = BY_NAME["keep_alive_timeout_s"]
    assert (each.flag, each.variable, each.key) == (
        "--keep-alive-timeout",
        "LIMPET_KEEP_ALIVE_TIMEOUT",
        "keep-alive-timeout",
    )
    assert BY_NAME["max_head_bytes"].flag == "--max-head"
    assert len({each.variable for each in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(("quota", "cpus"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None)])
def test_quota_of_a_container_limits_the_workers(tmp_path: Path, quota: str, cpus: int | None) -> None:
    """A container with half a CPU on a machine with 64 must not start 64 workers."""
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].partition("\n")[0]
    (tmp_path / own).mkdir(parents=True, exist_ok=True)
    (tmp_path / own / "cpu.max").write_text(f"{quota}\n")
    assert settings.usable_cpus(str(tmp_path)) == (cpus or min(len(os.sched_getaffinity(0)), 256))


def test_documentation_is_what_the_code_says() -> None:
    """`make docs` was run after the last change of a setting or an exit code."""
    docs = Path(__file__).parents[3] / "docs"
    assert (docs / "settings.md").read_text() == settings_page.reference()
    assert (docs / "exit-codes.md").read_text() == settings_page.exit_codes()
    undocumented = [each.flag for each in SETTINGS if f"`{each.flag}`" not in settings_page.reference()]
    assert not undocumented + [code for code in EXIT_CODES if f"\n| {code} |" not in settings_page.exit_codes()]


def test_every_setting_has_an_anchor_in_a_table_with_a_title() -> None:
    """A link to one setting, as from an error or a forum, has to lead to its row."""
    page = settings_page.reference()
    assert re.findall(r'^\| <a id="([\w-]+)"></a>`', page, re.MULTILINE) == [each.key for each in settings.SETTINGS]
    assert settings_page.GROUPS.keys() <= {each.key for each in settings.SETTINGS}
    assert page.count("\n| Flag |") == len(settings_page.GROUPS)


def test_limits_in_the_docs_are_those_of_the_code() -> None:
    """`make docs` was run after the last change; each limit of the table is a setting, or says what it is in words."""
    assert (Path(__file__).parents[3] / "docs" / "bounds.md").read_text() == bounds_page.page()
    keys = {each.key for each in settings.SETTINGS}
    assert all(limit.setting in keys or " " in limit.setting for limit in bounds_page.LIMITS)


def test_figures_of_slow_clients_are_those_that_were_measured() -> None:
    """What `make slowloris` has found last stands in docs/bounds.md."""
    found = json.loads((Path(__file__).parents[3] / "benchmarks" / "results" / "slowloris.json").read_text())
    mib = [each["dispatcher_kib"] / 1024 for each in found["rounds"]]
    kernel = max(each["kernel_tcp_kib"] for each in found["rounds"]) / found["crowd"]
    said = " ".join(bounds_page.POSTSCRIPT.split())
    assert f"percentile is {found['p99_ratio']} times that without, and {found['p99_ratio_elsewhere']} times" in said
    assert f"grows from {min(mib):.0f} to {max(mib):.0f} MiB, and the kernel keeps {kernel:.0f} KiB for each" in said


def test_text_of_a_setting_is_parsed_once() -> None:
    """Some of these are asked for with each request."""
    found = Settings(app="app:app", trust=("10.0.0.0/8",), learn=("header:x-id",), bind=("127.0.0.1:0",))
    for name in ("served", "addresses", "trusted", "cookie_attributes", "learn_sources"):
        assert getattr(found, name) is getattr(found, name), name


def test_only_settings_parse_the_texts_of_settings() -> None:
    """Whoever parses a text again pays for it again, and may come to another result."""
    package = Path(settings.__file__).parents[1]
    others = {
        "cli/explain.py",  # what a running server says of its settings
        "embed/cluster.py",  # what a program gives, before there are settings
        "embed/handle.py",
        "net/reuseport_group.py",  # an address of its own, for a trial
        "operate/admin/keeper.py",  # the address of the admin page, once
        "supervisor/snapshot.py",  # the address at which an older supervisor listens
    }
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\b(Trust|Bind|Served|Attributes|Source)\.parse\b", path.read_text())
    }
    assert {each for each in found if not each.startswith("config/")} == others
