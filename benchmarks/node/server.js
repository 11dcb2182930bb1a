// The application of the benchmarks in Node: `node server.js cluster|ip|header PORT WORKERS`.
"use strict";
const cluster = require("node:cluster");
const http = require("node:http");

const [, , kind, port, workers] = process.argv;
const body = JSON.stringify({ pid: process.pid });
const server = http.createServer((request, response) => {
  response.writeHead(200, { "content-type": "application/json", "content-length": body.length });
  response.end(body);
});

if (kind === "cluster") {
  if (cluster.isPrimary) for (let number = 0; number < workers; number++) cluster.fork();
  else server.listen(port, "127.0.0.1");
} else {
  const options = { workers: Number(workers) };
  if (kind === "header") options.proxyHeader = "x-forwarded-for";
  require("sticky-session-custom").listen(server, Number(port), "127.0.0.1", options);
}
process.on("SIGTERM", () => {
  if (cluster.isPrimary) for (const worker of Object.values(cluster.workers)) worker.process.kill("SIGKILL");
  process.exit();
});
