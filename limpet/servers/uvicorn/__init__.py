"""uvicorn's adapter: the server whose connections can move."""
