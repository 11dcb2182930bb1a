"""A counter in the session's state, a file that is uploaded, and a picture made of the session's state."""

import hashlib
import os

import numpy as np
import streamlit as st

if "count" not in st.session_state:
    st.session_state.count = 0
if st.button("add"):
    st.session_state.count += 1
st.write(f"count {st.session_state.count} pid {os.getpid()}")
given = st.file_uploader("file")
if given is not None:
    data = given.read()
    st.write(f"file {given.name}:{len(data)}:{hashlib.sha256(data).hexdigest()[:8]} pid {os.getpid()}")
    st.image(np.frombuffer(data[:30_000], np.uint8).reshape(100, 100, 3), width=100)
