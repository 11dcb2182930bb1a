"""The script next to this file, by Streamlit's own class for that."""

from streamlit.starlette import App

app = App("script.py")
