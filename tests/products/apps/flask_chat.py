"""What the chat in examples/ answers to those who speak, by Flask-SocketIO in threads."""

import os

import flask
from flask_socketio import SocketIO, emit

app = flask.Flask(__name__)
sio = SocketIO(app, async_mode="threading")
names: dict[str, str] = {}


@sio.on("connect")
def connect(auth: object = None) -> None:
    """Note the name of who comes, if there is one in the query."""
    names[flask.request.sid] = flask.request.args.get("user", "")


@sio.on("say")
def say(text: str) -> dict[str, int]:
    """Pass a message on to everybody here; only who has come here is known."""
    emit("message", {"sender": names[flask.request.sid], "text": text}, broadcast=True)
    return {"pid": os.getpid()}


@sio.on("disconnect")
def disconnect(*reason: str) -> None:
    """Forget who has left."""
    names.pop(flask.request.sid, None)
