"""A chat of Chainlit that counts what one person has said, and says which process does."""

import os

import chainlit as cl


@cl.on_message
async def answer(message: cl.Message) -> None:
    """Answer with the number of messages so far."""
    count = cl.user_session.get("count", 0) + 1
    cl.user_session.set("count", count)
    await cl.Message(f"count {count} pid {os.getpid()} end").send()
