"""What clients that never finish their request head cost those who do: `python benchmarks/slowloris.py`.

Method: one limpet reads heads for the key (`--by header:x-user`), with room for all of the crowd (`--max-pending`) and
the default `--head-timeout`, so that each of the crowd is answered 408 after 10 s, and comes again (they open 2000
connections a second at most). Honest
requests come at a fixed rate, each on a new connection, whatever became of those before (an open loop); the time of one
runs from the moment at which it was due to the end of its response. Rounds alternate on one server: nobody else
("alone"), the crowd at the same server ("here"), and the same crowd at another one on the same machine, which accepts,
answers after as long a time, and looks at nothing ("elsewhere"). The last is what the crowd costs by being a process on
this machine, and by the kernel's work for its packets, which no server can spare: "here" against "elsewhere" is ours.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import heapq
import json
import os
import platform
import random
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import APP, cpu_s, free_port, tree

RESULTS = Path(__file__).parent / "results"
HONEST = b"GET / HTTP/1.1\r\nhost: h\r\nx-user: %d\r\nconnection: close\r\n\r\n"
START = b"GET / HTTP/1.1\r\nhost: h\r\nx-user: nobody"
DRIBBLE_S = 3.0  # between two bytes of one of the crowd
WARM_S = 2.0  # before each round; a crowd that has just left is still being answered
HEAD_TIMEOUT_S = 10.0  # limpet's default
SERIES = ("alone", "here", "elsewhere")
OPENS_PER_S = 2000  # of the crowd: a storm of connections would be another question


def crowd(port: int, size: int) -> None:
    """Be *size* clients that never finish, until stdin ends; print a line when all are there."""
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    clients: dict[socket.socket, float] = {}  # when each sends its next byte
    due: list[tuple[float, int, socket.socket]] = []  # the same in order, and entries that no longer count
    said, opened, started = False, 0, time.monotonic()
    while True:
        may_open = int((time.monotonic() - started) * OPENS_PER_S) - opened
        opened += max(0, may_open)  # what was not used is not saved up
        for _ in range(min(may_open, size - len(clients))):
            client = socket.socket()
            client.setblocking(False)
            client.bind((f"127.1.{random.randrange(256)}.{random.randrange(1, 255)}", 0))
            client.connect_ex(("127.0.0.1", port))
            clients[client] = 0.0
            selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
        if len(clients) == size and not said:
            said = True
            print("all are there", flush=True)
        for key, _ in selector.select(0.02):
            if key.fileobj is sys.stdin:
                return
            client = key.fileobj  # type: ignore[assignment]
            _go_on(selector, clients, client)
            if clients.get(client):
                heapq.heappush(due, (clients[client], id(client), client))
        now = time.monotonic()
        while due and due[0][0] <= now:
            when, _, client = heapq.heappop(due)
            if clients.get(client) == when:
                clients[client] = now + DRIBBLE_S
                heapq.heappush(due, (now + DRIBBLE_S, id(client), client))
                with contextlib.suppress(OSError):
                    client.send(b"x")


def inert(port: int) -> None:
    """Accept at *port* until stdin ends, and answer and close each connection after HEAD_TIMEOUT_S, unread."""
    waiting: collections.deque[tuple[float, socket.socket]] = collections.deque()
    with selectors.DefaultSelector() as selector, socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("listening", flush=True)
        while True:
            for key, _ in selector.select(0.05):
                if key.fileobj is sys.stdin:
                    return
                with contextlib.suppress(BlockingIOError):
                    waiting.append((time.monotonic() + HEAD_TIMEOUT_S, listener.accept()[0]))
            while waiting and waiting[0][0] <= time.monotonic():
                client = waiting.popleft()[1]
                with contextlib.suppress(OSError):
                    client.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
                client.close()


def _go_on(selector: selectors.BaseSelector, clients: dict[socket.socket, float], client: socket.socket) -> None:
    """Send the beginning on a connection that has come about; leave one that has its answer."""
    try:
        if not clients[client]:
            client.send(START)
            clients[client] = time.monotonic() + random.uniform(0, DRIBBLE_S)
            selector.modify(client, selectors.EVENT_READ)
            return
        client.recv(4096)
    except BlockingIOError:
        return
    except OSError:
        pass  # it has ended; what the answer was, limpet counts
    selector.unregister(client)
    del clients[client]
    client.close()


def ask(port: int, rate: int, seconds: float) -> tuple[list[float], int]:
    """Send *rate* requests a second for so long; return the seconds that each took, and how many had no 200."""
    selector, started = selectors.DefaultSelector(), time.monotonic()
    waiting: dict[socket.socket, tuple[float, bytearray]] = {}
    took: list[float] = []
    sent = failed = 0
    total = int(rate * seconds)
    while (len(took) + failed < total) and time.monotonic() < started + seconds + 30:
        now = time.monotonic()
        while sent < total and started + sent / rate <= now:
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            waiting[client] = (started + sent / rate, bytearray())
            selector.register(client, selectors.EVENT_WRITE, HONEST % sent)
            sent += 1
        for key, mask in selector.select(max(0.0, min(0.01, started + sent / rate - now))):
            client = key.fileobj  # type: ignore[assignment]
            due, seen = waiting[client]
            try:
                if mask & selectors.EVENT_WRITE:
                    client.send(key.data)
                    selector.modify(client, selectors.EVENT_READ)
                    continue
                data = client.recv(65536)
            except OSError:
                data = b""
            seen += data
            if not data:
                took.append(time.monotonic() - due) if b" 200 " in seen[:20] else None
                failed += b" 200 " not in seen[:20]
                selector.unregister(client)
                del waiting[client]
                client.close()
    return took, total - len(took)


def memory_kib(pid: int) -> int:
    """Return the resident memory of one process."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def kernel_kib() -> int:
    """Return what the buffers of all TCP sockets of the machine take."""
    words = Path("/proc/net/sockstat").read_text().split("TCP:")[1].split()
    return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@contextlib.contextmanager
def limpet(size: int, workers: int) -> Iterator[tuple[int, int, str]]:
    """Run limpet; yield its port, the supervisor's pid and its control socket."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench.py").write_text(APP)
        port, control = free_port(), f"{folder}/control"
        flags = [f"--bind=127.0.0.1:{port}", f"--workers={workers}", "--by=header:x-user", f"--control={control}"]
        flags += [f"--state-dir={folder}", f"--max-pending={size + 1000}", "--backlog=4096", "--log-level=error"]
        command = [sys.executable, "-m", "limpet", "run", "bench:app", *flags]
        with subprocess.Popen(command, cwd=folder) as process:
            try:
                until = time.monotonic() + 30
                while ask(port, 1, 1)[1]:
                    assert time.monotonic() < until, "limpet does not serve"
                yield port, process.pid, control
            finally:
                process.terminate()


@contextlib.contextmanager
def helper(port: int, *role: str) -> Iterator[None]:
    """Run this script in another *role*, from when it is ready until the end of the context."""
    command = [sys.executable, __file__, *role, "--port", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield
        finally:
            process.stdin.close()
            process.wait(30)


@contextlib.contextmanager
def elsewhere() -> Iterator[int]:
    """Run the inert server; yield its port."""
    port = free_port()
    with helper(port, "--inert"):
        yield port


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return what there is to say of some times, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=1000)
    return {
        "p50_ms": round(cuts[499] * 1e3, 2),
        "p99_ms": round(cuts[989] * 1e3, 2),
        "p999_ms": round(cuts[998] * 1e3, 2),
    }


def status(control: str) -> dict:
    """Return `limpet status --json`."""
    command = [sys.executable, "-m", "limpet", "status", "--json", "--control", control]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(size: int, rate: int, seconds: float, rounds: int, workers: int) -> dict:
    """Return the results of alternating rounds."""
    found: dict = {"crowd": size, "rate": rate, "seconds": seconds, "workers": workers, "rounds": []}
    with limpet(size, workers) as (port, pid, control):
        dispatcher = status(control)["dispatchers"][0]["pid"]
        ask(port, rate, WARM_S)
        for series in SERIES * rounds:
            with contextlib.ExitStack() as stack:
                if series != "alone":
                    crowded = port if series == "here" else stack.enter_context(elsewhere())
                    stack.enter_context(helper(crowded, "--crowd", str(size)))
                time.sleep(WARM_S)
                pending = status(control)["dispatchers"][0]["pending"]
                used, began = cpu_s(dispatcher), time.monotonic()
                took, failed = ask(port, rate, seconds)
                used, lasted = cpu_s(dispatcher) - used, time.monotonic() - began
                found["rounds"].append(
                    {
                        "crowd": series,
                        **quantiles(took),
                        "failed": failed,
                        "pending": pending,
                        "dispatcher_cpu": round(used / lasted, 3),  # of one core
                        "dispatcher_kib": memory_kib(dispatcher),
                        "all_processes_kib": sum(map(memory_kib, tree(pid))),
                        "kernel_tcp_kib": kernel_kib(),
                    }
                )
                print(found["rounds"][-1], flush=True)
        found["answers"] = {
            name: n for name, n in status(control)["totals"].items() if name.startswith("refused") and n
        }
    middle = {
        series: statistics.median(each["p99_ms"] for each in found["rounds"] if each["crowd"] == series)
        for series in SERIES
    }
    found["p99_ratio"] = round(middle["here"] / middle["alone"], 2)
    found["p99_ratio_elsewhere"] = round(middle["elsewhere"] / middle["alone"], 2)
    return found


def main() -> None:
    """Measure, and write down what came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crowd", type=int, help="be so many clients that never finish (with --port)")
    parser.add_argument("--inert", action="store_true", help="be a server that looks at nothing (with --port)")
    parser.add_argument("--port", type=int)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=1000, help="honest requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "slowloris.json")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for all processes that are started here
    if given.crowd:
        crowd(given.port, given.crowd)
        return
    if given.inert:
        inert(given.port)
        return
    assert hard > given.size + 2000, f"`ulimit -Hn` allows {hard} descriptors, the crowd needs {given.size} and more"
    found = measure(given.size, given.rate, given.seconds, given.rounds, given.workers)
    found["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"p99 with the crowd is {found['p99_ratio']} times that without,", end=" ")
    print(f"{found['p99_ratio_elsewhere']} times with the crowd at another server")


if __name__ == "__main__":
    main()
