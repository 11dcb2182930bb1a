/*
 * Sessions of Reflex, all at once, as its page holds them: a token of the browser's tab, Socket.IO by websocket, and a
 * reconnection in the middle, which must find the state that the token stands for. One JSON document on stdout.
 *
 *   node reflex_sessions.js URL NUMBER
 */
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";

const { io } = createRequire(new URL("../../clients/package.json", import.meta.url))("socket.io-client");
const ADDITIONS = 6, DEADLINE_S = 45;

/** Resolve to the state after one more addition; rejects when the connection fails or ends. */
function add(socket, token) {
  return new Promise((resolve, reject) => {
    socket.once("disconnect", (reason) => reject(new Error(`disconnect: ${reason}`)));
    socket.on("event", ({ delta }) => {
      const [state] = Object.entries(delta ?? {}).filter(([name]) => name.endsWith("____counter")).map(([, found]) => found);
      const found = Object.fromEntries(Object.entries(state ?? {}).map(([name, value]) => [name.split("_rx_")[0], value]));
      if ("count" in found) {
        socket.off("event");
        resolve(found);
      }
    });
    const name = "reflex___state____state.app____counter.add";
    socket.emit("event", { token, name, router_data: { pathname: "/" }, payload: {} });
  });
}

/** Resolve to a connected socket. */
function connected(url, token) {
  const query = { token };
  const socket = io(`${url}/_event`, { path: "/_event", transports: ["websocket"], query, forceNew: true, reconnection: false });
  return new Promise((resolve, reject) => {
    socket.on("connect", () => resolve(socket));
    socket.on("connect_error", reject);
  });
}

/** Play one session; resolves to what came of it. */
async function play(url) {
  const token = randomUUID(), pids = new Set();
  try {
    for (let half = 0; half < 2; half += 1) {
      const socket = await connected(url, token);
      for (let count = 1; count <= ADDITIONS / 2; count += 1) {
        const state = await add(socket, token);
        const expected = half * (ADDITIONS / 2) + count;
        if (state.count !== expected) throw new Error(`count is ${state.count} in place of ${expected}`);
        pids.add(state.pid);
      }
      socket.off();
      socket.disconnect();
    }
    return { pids: [...pids], error: null };
  } catch (error) {
    return { pids: [...pids], error: String(error) };
  }
}

const [url, number] = process.argv.slice(2);
const late = new Promise((resolve) => setTimeout(resolve, DEADLINE_S * 1000, { pids: [], error: `not done within ${DEADLINE_S} s` }));
const sessions = Array.from({ length: Number(number) }, () => Promise.race([play(url), late]));
process.stdout.write(`${JSON.stringify(await Promise.all(sessions))}\n`, () => process.exit());
