"""What clients that never finish their request head cost those who do: `python benchmarks/slowloris.py`.

Method: one limpet reads heads for the key (`--by header:x-user`), with room for all of the crowd (`--max-pending`) and
the default `--head-timeout`, so that each of the crowd is answered 408 after 10 s, and comes again (they open 2000
connections a second at most). Each sends the start of a head and then a byte every 3 s, at its own time. Honest
requests come at a fixed rate, each on a new connection, whatever became of those before (an open loop); the time of one
runs from the moment at which it was due to the end of its response. Rounds alternate on one server: nobody else
("alone"), the crowd at the same server ("here"), and the same crowd at another one on the same machine, which accepts,
answers after as long a time, and looks at nothing ("elsewhere"). The last is what the crowd costs by being on this
machine, which is above all the kernel's work for its packets, and which no server can spare: "here" against
"elsewhere" is ours.

A crowd has processors of its own, so this one gets those of the server only while nobody else wants them (SCHED_IDLE).
What it did nevertheless stands beside each round, from when all were there to the end: a crowd of 10,000 is as
described when it has sent about 3300 single bytes a second and opened each of its connections again in these 12 s. With
less it was held up, and the round says nothing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import platform
import random
import resource
import select
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
TURN_S = 0.002  # the crowd's: its clients do nothing all at the same moment
WARM_S = 2.0  # before each round; a crowd that has just left is still being answered
HEAD_TIMEOUT_S = 10.0  # limpet's default
SERIES = ("alone", "here", "elsewhere")
OPENS_PER_S = 2000  # of the crowd: a storm of connections would be another question


def crowd(port: int, size: int) -> None:
    """Be *size* clients that never finish, until stdin ends; print a line when all are there, at last what they did."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    epoll, stdin = select.epoll(), sys.stdin.fileno()
    epoll.register(stdin, select.EPOLLIN)
    clients: dict[int, socket.SocketType] = {}
    fresh: set[int] = set()  # those of them that have sent nothing yet
    wheel: list[list[socket.SocketType]] = [[] for _ in range(round(DRIBBLE_S / TURN_S))]  # who sends in which turn
    did = {"opened": 0, "dribbled": 0}
    began, there_since = time.monotonic(), 0.0
    for turn in itertools.count():
        for _ in range(min(round(OPENS_PER_S * TURN_S), size - len(clients))):
            client = _opened(port)
            epoll.register(client, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            clients[client.fileno()] = client
            fresh.add(client.fileno())
            did["opened"] += 1
        if len(clients) == size and not there_since:
            did = dict.fromkeys(did, 0)
            there_since = time.monotonic()
            print("all are there", flush=True)
        for fd, _ in epoll.poll(0, size):
            if fd == stdin:
                lasted = time.monotonic() - there_since
                print(json.dumps({f"{what}_per_s": round(count / lasted) for what, count in did.items()}))
                return
            if fd in fresh and _sent(clients[fd], START):
                fresh.remove(fd)
                wheel[(turn + random.randrange(len(wheel))) % len(wheel)].append(clients[fd])
            elif fd in fresh or _has_ended(clients[fd]):  # what the answer was, limpet counts
                fresh.discard(fd)
                clients.pop(fd).close()
        at = turn % len(wheel)
        wheel[at] = [client for client in wheel[at] if _sent(client, b"x")]
        did["dribbled"] += len(wheel[at])
        time.sleep(max(0.0, began + (turn + 1) * TURN_S - time.monotonic()))


def _opened(port: int) -> socket.SocketType:
    """Return a client that connects to *port*, from one of many addresses: one has too few ports."""
    client = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    client.bind((f"127.1.{random.randrange(256)}.{random.randrange(1, 255)}", 0))
    client.connect_ex(("127.0.0.1", port))
    return client


def _sent(client: socket.SocketType, data: bytes) -> bool:
    """Send *data*; return whether *client* is connected."""
    try:
        client.send(data)
    except OSError:
        return False
    return True


def _has_ended(client: socket.SocketType) -> bool:
    """Take what came; return whether anything has, an answer or the end."""
    try:
        client.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def inert(port: int) -> None:
    """Accept at *port* until stdin ends, and answer and close each connection after HEAD_TIMEOUT_S, unread."""
    waiting: collections.deque[tuple[float, socket.socket]] = collections.deque()
    with selectors.DefaultSelector() as selector, socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("listening", flush=True)
        while True:
            for key, _ in selector.select(TURN_S):
                if key.fileobj is sys.stdin:
                    return
                with contextlib.suppress(BlockingIOError):
                    waiting.append((time.monotonic() + HEAD_TIMEOUT_S, listener.accept()[0]))
            while waiting and waiting[0][0] <= time.monotonic():
                client = waiting.popleft()[1]
                with contextlib.suppress(OSError):
                    client.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
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
def helper(port: int, *role: str) -> Iterator[dict[str, int]]:
    """Run this script in another *role*, from when it is ready until the end of the context; then yield what it did."""
    command = [sys.executable, __file__, *role, "--port", str(port)]
    did: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield did
        finally:
            process.stdin.close()
            did |= json.loads(process.stdout.read() or "{}")
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
            did: dict[str, int] = {}
            with contextlib.ExitStack() as stack:
                if series != "alone":
                    crowded = port if series == "here" else stack.enter_context(elsewhere())
                    did = stack.enter_context(helper(crowded, "--crowd", str(size)))
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
            found["rounds"][-1] |= did
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
