"""A chat that counts in the session's state, and a file that is sent in."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI


def answer(message: str, history: list[Any], count: int) -> tuple[str, int]:
    """Say how many messages this session has sent to this process."""
    count += 1
    return f"count {count} of {message} pid {os.getpid()}", count


def took(path: str) -> str:
    """Say what has arrived."""
    return f"file {Path(path).name}:{Path(path).stat().st_size} pid {os.getpid()}"


with gr.Blocks() as demo:
    state = gr.State(0)
    said = gr.Textbox(label="say", elem_id="say")
    shown = gr.Textbox(label="answer", elem_id="answer")
    history = gr.State([])
    said.submit(answer, [said, history, state], [shown, state])
    given = gr.File(elem_id="given")
    arrived = gr.Textbox(elem_id="arrived")
    given.upload(took, given, arrived)

app = gr.mount_gradio_app(FastAPI(), demo, path="/")
