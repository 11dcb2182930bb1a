"""How a supervisor that takes over begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from limpet import logs
from limpet.config import privileges
from limpet.config.settings import Settings
from limpet.supervisor import bootstrap, snapshot


class _LogsAreOpenError(Exception):
    """The part under test is over."""


@pytest.mark.parametrize(
    ("user", "is_trial", "owner"), [(True, False, (5, 6)), (True, True, None), (False, False, None)]
)
def test_log_file_is_given_to_the_user_of_the_workers_but_not_by_a_trial(
    user: bool, is_trial: bool, owner: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that changed the owner would act before it is known that the new version can take over."""

    def opened(*_: object) -> None:
        raise _LogsAreOpenError

    identity: Any = (5, 6, (), "nobody", "/") if user else None
    monkeypatch.setattr(snapshot, "settled", lambda settings, before: (settings, []))
    monkeypatch.setattr(privileges, "wanted", lambda settings: identity)
    monkeypatch.setattr(logs, "configure", opened)
    monkeypatch.setattr(logs, "LogFile", SimpleNamespace(owner=None))
    with pytest.raises(_LogsAreOpenError):
        bootstrap._take_over(Settings(app="app:app"), {}, is_trial=is_trial)
    assert logs.LogFile.owner == owner
