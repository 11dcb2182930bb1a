/*
 * Many users of the chat in examples/chat, played by the real Socket.IO client; one JSON document on stdout
 * says what each of them saw.
 *
 *   node socketio_client.js URL [--clients 50] [--mode polling|polling+upgrade|websocket]
 *                               [--messages 10] [--deadline 30]
 *
 * Each client connects once (no reconnection: it would hide what this looks for), says its messages, each after
 * the acknowledgement of the one before, notes which worker acknowledged, and leaves. With `polling+upgrade` the
 * first half is said while the upgrade is under way, the second half over the websocket. Nothing here sleeps;
 * `--deadline` (seconds, for all clients together) only ends a run that hangs.
 *
 * Node's client keeps no cookies, so the key must travel with every request: even clients carry it in the query,
 * odd clients in a Cookie header, as a page does that was opened without a query. Each poll is a TCP connection
 * of its own (engine.io-client asks for no agent). That makes this a test: on one kept-alive connection any
 * server looks sticky.
 */
import { parseArgs } from "node:util";
import { io } from "socket.io-client";

const TRANSPORTS = {
  "polling": ["polling"],
  "polling+upgrade": ["polling", "websocket"],
  "websocket": ["websocket"],
};

/** Play one user; resolves to what it saw, at the latest when `deadline` resolves, and never rejects. */
function play(url, index, { mode, messages }, deadline) {
  const user = `user-${index}`;
  const carrier = index % 2 ? { extraHeaders: { Cookie: `user=${user}` } } : { query: { user } };
  const socket = io(url, { transports: TRANSPORTS[mode], forceNew: true, reconnection: false, ...carrier });
  const seen = { user, workers: [], heard: 0, transport: null, error: null };

  return new Promise((resolve) => {
    const finish = (error = null) => {
      socket.off();
      resolve({ ...seen, error, transport: socket.io.engine?.transport?.name ?? null }); // only the first counts
      socket.disconnect();
    };
    const say = () => {
      const said = seen.workers.length;
      const { engine } = socket.io;
      if (said === messages) {
        finish();
      } else if (mode === "polling+upgrade" && said === messages >> 1 && engine.transport.name === "polling") {
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
  },
});
if (!url || !(options.mode in TRANSPORTS)) {
  console.error(`usage: node socketio_client.js URL [--mode ${Object.keys(TRANSPORTS).join("|")}] ...`);
  process.exit(2);
}

const plan = { mode: options.mode, messages: Number(options.messages) };
const deadline = new Promise((resolve) => setTimeout(resolve, Number(options.deadline) * 1000));
const players = Array.from({ length: Number(options.clients) }, (_, index) => play(url, index, plan, deadline));
const report = JSON.stringify({ mode: plan.mode, clients: await Promise.all(players) });

// Leave at once, as a browser does: python-engineio answers the poll of a client that said goodbye 45 s later.
process.stdout.write(`${report}\n`, () => process.exit());
