c.ServerApp.allow_root = True  # noqa: F821  # tests may run as root in a container
