"""What every connection costs in each of uvicorn's protocols as a worker uses them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from limpet.servers.uvicorn_moving import MovingH11, MovingHttpTools
from limpet.servers.uvicorn_protocols import SeatedH11, SeatedHttpTools


@pytest.mark.parametrize("protocol", [SeatedHttpTools, SeatedH11, MovingHttpTools, MovingH11])
def test_connection_has_no_more_attributes_than_cpython_finds_at_once(protocol: type[Any]) -> None:
    """Beyond 30, slots not counted, each access is a search in a dict: 4 to 7 % of the instructions of a request."""

    async def make() -> dict[str, Any]:
        config = uvicorn.Config("unused:app", interface="asgi3", ws="none", lifespan="off", log_config=None)
        config.load_app = lambda: None  # type: ignore[method-assign]
        config.load()
        attributes: dict[str, Any] = vars(protocol(config=config, server_state=ServerState(), app_state={}))
        return attributes

    assert len(asyncio.run(make())) <= 30 - 1  # `url` comes with the first request
