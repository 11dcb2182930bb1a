"""The notebook next to this file, served as an application."""

from pathlib import Path

import marimo

app = marimo.create_asgi_app().with_app(path="/", root=str(Path(__file__).with_name("marimo_notebook.py"))).build()
