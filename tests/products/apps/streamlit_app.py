"""A Streamlit script as an ASGI application, by Streamlit's own class for that."""

from pathlib import Path

from streamlit.starlette import App

app = App(str(Path(__file__).with_name("streamlit_script.py")))
