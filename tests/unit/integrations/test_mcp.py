"""The keys that `--mint mcp` gives to the SDK: the same for all workers, and a ring while the secret is changed."""

from __future__ import annotations

import pytest
from mcp.server.request_state import InvalidRequestState, RequestStateSecurity

from limpet.integrations.mcp import keys

OLD, NEW = b"a5" * 32, b"c3" * 32


def codec(secret: bytes, name: str = "notes") -> RequestStateSecurity:
    """Return what the SDK makes of the keys."""
    return RequestStateSecurity(keys=keys(secret, name))


def test_worker_opens_what_another_has_sealed() -> None:
    """They know nothing of each other but the secret."""
    sealed = codec(OLD).codec.seal(b"state")
    assert codec(OLD + b"\n").codec.unseal(sealed) == b"state"


def test_state_outlives_a_change_of_the_secret() -> None:
    """The first line seals and all open, as for cookies: a call that waits for its user goes on."""
    before = codec(OLD).codec.seal(b"state")
    both = codec(NEW + b"\n" + OLD)
    assert both.codec.unseal(before) == b"state"
    assert codec(NEW).codec.unseal(both.codec.seal(b"state")) == b"state"


@pytest.mark.parametrize("other", [(NEW, "notes"), (OLD, "others")])
def test_server_of_another_secret_or_name_opens_nothing(other: tuple[bytes, str]) -> None:
    """One secret file may be shared by servers that must not believe each other."""
    with pytest.raises(InvalidRequestState):
        codec(*other).codec.unseal(codec(OLD).codec.seal(b"state"))


def test_line_that_stands_twice_is_one_key() -> None:
    """The SDK refuses a ring with a key twice, and no worker would start."""
    assert len(keys(OLD + b"\n" + OLD, "notes")) == 1
