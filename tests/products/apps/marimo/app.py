"""The notebook next to this file, served as an application."""

import marimo

app = marimo.create_asgi_app().with_app(path="/", root="notebook.py").build()
