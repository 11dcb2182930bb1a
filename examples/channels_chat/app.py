"""A chat with Django Channels: people log in, enter rooms, and hear everybody in the room, on whatever worker.

    limpet run app:app --workers 4 --by affinity

1. The channel layer is limpet's, so groups span the workers of the server without Redis.
2. The login is in Django's signed session cookie. `affinity` is limpet's own: each browser stays with its worker.
3. A project has these parts in several files; here they are in one. There is no database.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

import django
from channels.generic.websocket import AsyncJsonWebsocketConsumer  # type: ignore[import-untyped]
from channels.routing import ProtocolTypeRouter, URLRouter  # type: ignore[import-untyped]
from channels.sessions import SessionMiddlewareStack  # type: ignore[import-untyped]
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path, re_path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    # All workers must have the same key. `limpet run` passes the environment on to them.
    SECRET_KEY=os.environ.get("SECRET_KEY") or secrets.token_hex(),
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    CHANNEL_LAYERS={"default": {"BACKEND": "limpet.integrations.channels.ChannelLayer"}},
)
django.setup()

PAGE = """<!doctype html><meta charset="utf-8"><title>Rooms</title>
<form id="say"><input name="text" autofocus placeholder="Say something"></form><ul id="said"></ul>
<script>
const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/lobby`);
socket.onmessage = ({ data }) => {
  const { sender, text, slot } = JSON.parse(data);
  const line = document.createElement("li");
  line.textContent = `${sender} (worker ${slot}): ${text}`;
  document.getElementById("said").append(line);
};
document.getElementById("say").onsubmit = (event) => {
  event.preventDefault();
  socket.send(JSON.stringify({ text: event.target.text.value }));
  event.target.reset();
};
</script>"""


def login(request: HttpRequest) -> HttpResponse:
    """Remember who this is: `/login?name=ada`."""
    request.session["name"] = request.GET.get("name", "")[:40] or "somebody"
    return JsonResponse({"name": request.session["name"]})


def page(request: HttpRequest) -> HttpResponse:
    """Show the lobby."""
    return HttpResponse(PAGE)


class Room(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    """One person in one room."""

    async def connect(self) -> None:
        """Let somebody in who has logged in."""
        self.name = self.scope["session"].get("name")
        self.group = f"room.{self.scope['url_route']['kwargs']['room']}"
        if self.name is None:
            await self.close()
            return
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave the room."""
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive_json(self, content: Any, **_: Any) -> None:
        """Tell everybody in the room what this person says."""
        said = {"sender": self.name, "text": str(content.get("text", ""))[:500], "slot": os.environ.get("LIMPET_SLOT")}
        await self.channel_layer.group_send(self.group, {"type": "room.said", "said": said})

    async def room_said(self, event: dict[str, Any]) -> None:
        """Pass on what somebody in the room has said."""
        await self.send_json(event["said"])


urlpatterns = [path("", page), path("login", login)]
app = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": SessionMiddlewareStack(URLRouter([re_path(r"^ws/(?P<room>[\w-]+)$", Room.as_asgi())])),
    }
)
