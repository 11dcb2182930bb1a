"""A counter for each client and a name that it types, both known to one process alone."""

import os

from fastapi import FastAPI
from nicegui import events, ui

app = FastAPI()


@ui.page("/")
def page() -> None:
    count = 0
    names: list[str] = []

    def add() -> None:
        nonlocal count
        count += 1
        shown.set_text(f"count {count} pid {os.getpid()}")

    async def took(event: events.UploadEventArguments) -> None:
        names.append(f"{event.file.name}:{len(await event.file.read())}")
        uploads.set_text(f"files {','.join(names)} pid {os.getpid()}")

    shown = ui.label(f"count 0 pid {os.getpid()}").classes("shown")
    uploads = ui.label("no files").classes("uploads")
    ui.button("add", on_click=add)
    ui.upload(on_upload=took, auto_upload=True)


ui.run_with(app, reconnect_timeout=60)
