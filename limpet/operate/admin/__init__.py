"""What answers at `--admin`: the admin page, metrics and health, in a process of its own.

keeper.py is the supervisor's side: it opens the address, starts the process and replaces it when it dies. The process
(`python -m limpet.operate.admin FD`) is serving.py, an ASGI application on uvicorn: app.py has its paths, asking.py
asks the server, metrics.py makes figures into metrics. For the page live.py keeps the last minutes, guard.py says who
may act.

1. It learns everything by the control socket, as an operator does, and asks for figures at most four times a second,
   however many ask it; once a second if nobody does. The data path knows nothing of it.
2. The supervisor keeps the address: while the process is replaced, who connects waits.
"""
