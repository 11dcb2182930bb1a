"""An application that publishes and hears: the same paths in ASGI, on asyncio or trio, and in WSGI, in threads.

`/publish?topic=T&from=0&to=3` publishes the numbers 0, 1, 2; `/hear?topic=T&count=3` answers with the next 3 messages.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import limpet


def asked(query: str) -> tuple[dict[str, str], range]:
    """Return the parameters of a request, and the numbers that it publishes."""
    found = dict(parse_qsl(query))
    return found, range(int(found.get("from", 0)), int(found.get("to", 0)))


def shown(messages: list[limpet.Message]) -> bytes:
    """Return the answer that has *messages*."""
    slot = limpet.current_worker().slot
    return json.dumps({"slot": slot, "heard": [[each.topic, each.data, each.lost] for each in messages]}).encode()


async def asgi(scope: Mapping[str, Any], receive: Callable[..., Awaitable[Any]], send: Callable[..., Any]) -> None:
    """Answer a request in ASGI."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    if scope["type"] != "http":
        return
    found, numbers = asked(scope["query_string"].decode())
    heard: list[limpet.Message] = []
    if scope["path"] == "/hear":
        async with limpet.subscribe(*found["topic"].split("|")) as messages:
            async for message in messages:
                heard.append(message)
                if len(heard) == int(found["count"]):
                    break
    else:
        for number in numbers:
            await limpet.publish(found["topic"], {"number": number})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": shown(heard)})


def wsgi(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request in WSGI."""
    found, numbers = asked(environ["QUERY_STRING"])
    heard: list[limpet.Message] = []
    if environ["PATH_INFO"] == "/hear":
        with limpet.subscribe(*found["topic"].split("|")) as messages:
            for message in messages:
                heard.append(message)
                if len(heard) == int(found["count"]):
                    break
    else:
        for number in numbers:
            limpet.publish_sync(found["topic"], {"number": number})
    start_response("200 OK", [("Content-Type", "application/json")])
    return [shown(heard)]
