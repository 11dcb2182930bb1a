"""What the chat in examples/ answers to those who speak, by Flask-SocketIO in threads."""

import os

from flask import Flask, request
from flask_socketio import SocketIO, emit

app = Flask(__name__)
sio = SocketIO(app, async_mode="threading")
names: dict[str, str] = {}


@sio.on("connect")
def connect(auth: object = None) -> None:
    """Note the name of who comes, if there is one in the query."""
    names[request.sid] = request.args.get("user", "")


@sio.on("say")
def say(text: str) -> dict[str, int]:
    """Pass a message on to everybody here; only who has come here is known."""
    emit("message", {"sender": names[request.sid], "text": text}, broadcast=True)
    return {"pid": os.getpid()}


@sio.on("disconnect")
def disconnect(*reason: str) -> None:
    """Forget who has left."""
    names.pop(request.sid, None)
