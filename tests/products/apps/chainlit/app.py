"""The chat next to this file, mounted in an application, which is how Chainlit is run without a server of its own."""

from chainlit.utils import mount_chainlit
from fastapi import FastAPI

app = FastAPI()
mount_chainlit(app, target="chat.py", path="/chat")
