/*
 * Many users of the chat in examples/chat, played by the real Socket.IO client; one JSON document on stdout
 * says what each of them saw.
 *
 *   node socketio_client.js URL [--clients 50] [--mode polling|polling+upgrade|websocket|mixed]
 *                               [--messages 10] [--deadline 30] [--pool]
 *
 * Its packages: `npm ci --prefix tests/clients`, once.
 *
 * Each client connects once (no reconnection: it would hide what this looks for), says its messages, each
 * after the acknowledgement of the one before, notes which worker acknowledged, and leaves. With
 * `polling+upgrade` the first half is said while the upgrade is under way, the second half by websocket. With `mixed`
 * the clients take these three in turn.
 * Nothing here sleeps; `--deadline` (seconds, for all clients together) only ends a run that hangs.
 *
 * Node's client keeps no cookies, so the key must travel with every request: even clients carry it in the
 * query, odd clients in a Cookie header, as a page does that was opened without a query. Each poll is a TCP
 * connection of its own (engine.io-client asks for no agent). That makes this a test: on one kept-alive
 * connection any server looks sticky. With `--pool` all clients share kept-alive connections instead, as they
 * do behind a reverse proxy: each connection carries the requests of everybody.
 */
import { Agent } from "node:http";
import { parseArgs } from "node:util";
import { io } from "socket.io-client";

const TRANSPORTS = {
  "polling": ["polling"],
  "polling+upgrade": ["polling", "websocket"],
  "websocket": ["websocket"],
};

/** Return the transports of client number `index`. */
function transportsOf(mode, index) {
  const choices = Object.values(TRANSPORTS);
  return TRANSPORTS[mode] ?? choices[index % choices.length];
}

/** Play one user; resolves to what it saw, at the latest when `deadline` resolves, and never rejects. */
function play(url, index, { mode, messages, agent }, deadline) {
  const transports = transportsOf(mode, index);
  const user = `user-${index}`;
  const carrier = index % 2 ? { extraHeaders: { Cookie: `user=${user}` } } : { query: { user } };
  const socket = io(url, { transports, agent, forceNew: true, reconnection: false, ...carrier });
  const seen = { user, workers: [], heard: 0 };

  return new Promise((resolve) => {
    const finish = (error = null) => {
      socket.off();
      // A second call changes nothing: only the first resolves.
      resolve({ ...seen, error, transport: socket.io.engine?.transport?.name ?? null });
      socket.disconnect();
    };
    const say = () => {
      const said = seen.workers.length;
      const { engine } = socket.io;
      if (said === messages) {
        finish();
      } else if (said === messages >> 1 && transports.length > 1 && engine.transport.name === "polling") {
        engine.once("upgrade", say);
      } else {
        socket.emit("say", `line ${said + 1} of ${user}`, (worker) => {
          seen.workers.push(worker);
          say();
        });
      }
    };
    socket.on("connect", say);
    socket.on("message", ({ sender }) => { seen.heard += sender === user; });
    socket.on("connect_error", (error) => finish(`connect_error: ${explain(error)}`));
    socket.on("disconnect", (reason, details) => finish(`disconnect: ${reason}: ${explain(details)}`));
    deadline.then(() => finish(`deadline: ${seen.workers.length} of ${messages} messages acknowledged`));
  });
}

/** Return one line for an error of engine.io-client, with the server's own words where it has any. */
function explain(error) {
  const request = error?.context; // the XMLHttpRequest of the poll that failed
  return [error?.message ?? error, request?.status, request?.responseText].filter(Boolean).join(" ");
}

const { values: options, positionals: [url] } = parseArgs({
  allowPositionals: true,
  options: {
    clients: { type: "string", default: "50" },
    mode: { type: "string", default: "polling" },
    messages: { type: "string", default: "10" },
    deadline: { type: "string", default: "30" },
    pool: { type: "boolean", default: false },
  },
});
if (!url || !(options.mode in TRANSPORTS || options.mode === "mixed")) {
  console.error(`usage: node socketio_client.js URL [--mode ${Object.keys(TRANSPORTS).join("|")}|mixed] ...`);
  process.exit(2);
}

const agent = options.pool ? new Agent({ keepAlive: true }) : false;
const plan = { mode: options.mode, messages: Number(options.messages), agent };
const deadline = new Promise((resolve) => setTimeout(resolve, Number(options.deadline) * 1000));
const indexes = Array.from({ length: Number(options.clients) }, (_, index) => index);
const clients = await Promise.all(indexes.map((index) => play(url, index, plan, deadline)));

// Leave at once, as a browser does: python-engineio holds the poll of a client that said goodbye for 45 s.
process.stdout.write(`${JSON.stringify({ mode: options.mode, clients })}\n`, () => process.exit());
