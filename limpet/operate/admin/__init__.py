"""What answers at `--admin`: the admin page, metrics and health checks, in a separate process.

keeper.py is the supervisor's side: it opens the address, starts the process and replaces it when it dies. The process
(`python -m limpet.operate.admin FD`) is serving.py, an ASGI application on uvicorn. In it, app.py has the paths,
asking.py asks the server, metrics.py turns figures into metrics, live.py keeps the last minutes for the page, and
guard.py decides who may act.

1. The process learns everything through the control socket, as an operator does. It asks for figures at most four times
   a second, however many clients ask it, and once a second if none does. The data path knows nothing of it.
2. The supervisor keeps the address open. While the process is replaced, clients that connect wait.
"""
