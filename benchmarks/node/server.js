// The application of the benchmarks in Node: `node server.js cluster|ip|header|socketio PORT WORKERS`.
"use strict";
const cluster = require("node:cluster");
const http = require("node:http");

const [, , kind, port, workers] = process.argv;
const body = JSON.stringify({ pid: process.pid });
const server = http.createServer((request, response) => {
  response.writeHead(200, { "content-type": "application/json", "content-length": body.length });
  response.end(body);
});
const fork = () => { for (let number = 0; number < workers; number++) cluster.fork(); };

if (kind === "cluster") {
  if (cluster.isPrimary) fork();
  else server.listen(port, "127.0.0.1");
} else if (kind === "socketio") {
  const { setupMaster, setupWorker } = require("@socket.io/sticky");
  if (cluster.isPrimary) {
    const front = http.createServer();
    setupMaster(front, { loadBalancingMethod: "round-robin" }); // it counts Socket.IO's clients alone, and here are none
    front.listen(port, "127.0.0.1");
    cluster.setupPrimary({ serialization: "advanced" });
    fork();
  } else {
    setupWorker(new (require("socket.io").Server)(server));
  }
} else {
  const options = { workers: Number(workers) };
  if (kind === "header") options.proxyHeader = "x-forwarded-for";
  require("sticky-session-custom").listen(server, Number(port), "127.0.0.1", options);
}
process.on("SIGTERM", () => {
  if (cluster.isPrimary) for (const worker of Object.values(cluster.workers)) worker.process.kill("SIGKILL");
  process.exit();
});
