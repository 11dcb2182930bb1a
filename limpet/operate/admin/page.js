// The admin page. What it shows comes by /stream (live.py); what it does goes to /do, /where and /check (app.py).
// Text from the server is set as text, never as HTML. The token stays in this tab.

const PERIODS = 300; // samples that are shown
const RATE_OVER = 5; // samples that a rate is taken over
const [CONNECTIONS, REQUESTS, RETURNS, CPU, QUEUED] = [0, 1, 2, 3, 4]; // their places in a sample

const $ = (id) => document.getElementById(id);
const samples = [];
const tiles = new Map();
let now = {}, how = "nothing", token = sessionStorage.getItem("token") || "", unlocked = false, heardAt = 0, touched = false, newest = 0;

// --- drawing

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function curve(svg, values) {
  const most = Math.max(...values, 1), step = 100 / (Math.max(60, values.length) - 1), left = 100 - step * (values.length - 1);
  const points = values.map((value, i) => `${(left + i * step).toFixed(2)},${(39 - 36 * value / most).toFixed(2)}`);
  if (!svg.firstChild) {
    svg.setAttribute("viewBox", "0 0 100 40");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.append(drawn("polygon", { class: "area" }), drawn("polyline", { class: "curve" }));
  }
  svg.firstChild.setAttribute("points", points.length ? `${left},40 ${points.join(" ")} 100,40` : "");
  svg.lastChild.setAttribute("points", points.join(" "));
}

const short = (n) => n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n >= 1e4 ? `${(n / 1e3).toFixed(1)} k` : n >= 10 || Number.isInteger(n) ? `${Math.round(n)}` : n.toFixed(1);
const bytes = (n) => n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(1)} GiB` : `${Math.round(n / 2 ** 20)} MiB`;

function span(seconds) {
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(seconds)} s`;
}

// --- figures from samples

const of = (sample, slot, place) => slot === null
  ? Object.values(sample.slots).reduce((sum, row) => sum + row[place], 0)
  : (sample.slots[slot] || [0, 0, 0, 0, 0])[place];

function rate(slot, place, end = samples.length - 1, over = RATE_OVER) {
  const [a, b] = [samples[Math.max(0, end - over)], samples[end]];
  return !a || !b || b.at <= a.at ? 0 : Math.max(0, of(b, slot, place) - of(a, slot, place)) / (b.at - a.at);
}

const rates = (slot, place) => samples.map((_, end) => rate(slot, place, end));
const levels = (slot, place) => samples.map((sample) => of(sample, slot, place));

// --- the parts of the page

function card(name, value, values) {
  let box = $(`card-${name}`);
  if (!box) {
    box = make("div", { id: `card-${name}`, className: "card" }, make("p", { className: "quiet", textContent: name }), make("b"), drawn("svg", { "aria-hidden": "true" }));
    $("figures").append(box);
  }
  box.querySelector("b").textContent = short(value);
  curve(box.querySelector("svg"), values);
}

function showFigures() {
  card("requests / s", rate(null, REQUESTS), rates(null, REQUESTS));
  card("connections", of(samples.at(-1), null, CONNECTIONS), levels(null, CONNECTIONS));
  card("moved home / s", rate(null, RETURNS), rates(null, RETURNS));
  card("waiting for a worker", of(samples.at(-1), null, QUEUED), levels(null, QUEUED));
}

function showHealth() {
  const silent = Date.now() - heardAt > 15000, { figures, error, status } = now;
  const bad = figures ? figures.slots.filter((slot) => ["backoff", "stopped"].includes(slot.state)) : [];
  const missing = figures && (figures.processes || []).find((each) => ["backoff", "stopped"].includes(each.state));
  const starting = figures ? figures.slots.filter((slot) => slot.state === "starting") : [];
  const [level, text] =
    silent ? ["bad", "no word from the server"] :
    error ? ["bad", error] :
    figures.server.stopping ? ["warn", "stopping"] :
    bad.length ? ["bad", `no worker in slot ${bad.map((slot) => slot.slot).join(", ")}`] :
    missing ? ["bad", `no ${missing.name}`] :
    !figures.server.serving ? ["warn", "starting"] :
    starting.length ? ["warn", `serving; slot ${starting.map((slot) => slot.slot).join(", ")} is starting`] :
    ["good", "serving"];
  $("lamp").className = `lamp ${level}`;
  $("health").className = `health ${level}`;
  $("health").textContent = text;
  if (!status) return;
  $("app").textContent = status.app;
  document.title = `${level === "good" ? "" : "! "}${status.app} - limpet`;
  $("about").textContent = [status.binds.join(", "), `by ${status.by}`, `backend ${status.backend}`, `pid ${status.pid}`,
    `limpet ${status.version}`, `up ${span(figures.server.uptime_s)}`].join("  ·  ");
}

function tile(slot) {
  const box = make("article", { id: `slot-${slot}` });
  const button = make("button", { className: "small hold" });
  button.onclick = () => act({ command: button.dataset.does, slot });
  const renew = make("button", { className: "small renew", textContent: "Reload", title: "give this slot a new worker" });
  renew.onclick = () => sure(`Give slot ${slot} a new worker? Requests are finished; its clients stay.`, "Reload",
    () => act({ command: "reload", slot }));
  box.append(
    make("h3", {}, make("span", { textContent: `Slot ${slot}` }), make("span", { className: "state" }), make("span", { className: "quiet pid" })),
    drawn("svg", { "aria-hidden": "true" }), make("dl"),
    make("div", { className: "foot" }, make("span", { className: "quiet note" }), renew, button));
  return box;
}

function showSlots() {
  const { figures, status } = now, present = new Set();
  for (const { slot, state, pid, figures: own } of figures.slots) {
    present.add(slot);
    if (!tiles.has(slot)) {
      tiles.set(slot, tile(slot));
      $("slots").append(tiles.get(slot));
    }
    const box = tiles.get(slot), more = (status ? status.slots : []).find((each) => each.slot === slot) || {};
    box.className = `slot ${state}`;
    box.querySelector(".state").textContent = state;
    box.querySelector(".pid").textContent = pid ? `pid ${pid}` : "no worker";
    curve(box.querySelector("svg"), rates(slot, REQUESTS));
    const lag = (own.lag_ns || 0) / 1e6;
    const rows = [["req / s", short(rate(slot, REQUESTS))], ["connections", short(own.connections)],
      ["CPU", `${Math.round(100 * rate(slot, CPU))} %`], ["memory", bytes(own.resident_bytes)],
      ["waiting", short(own.queued)], ["lag", `${lag < 10 ? lag.toFixed(1) : Math.round(lag)} ms`, lag > 100]];
    box.querySelector("dl").replaceChildren(...rows.map(([name, value, late]) =>
      make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value, className: late ? "late" : "" }))));
    box.querySelector(".note").textContent = more.crash_loop ? "dies again and again"
      : own.draining ? `worker no. ${own.generation}, ${own.draining} before it drain` : `worker no. ${own.generation}`;
    box.querySelector(".renew").disabled = !unlocked;
    const button = box.querySelector(".hold");
    button.dataset.does = state === "draining" ? "undrain" : "drain";
    button.textContent = state === "draining" ? "Undrain" : "Drain";
    button.title = state === "draining" ? "send new clients here again" : "send no new clients here; those at home stay";
    button.disabled = !unlocked || (status && status.backend === "kernel");
  }
  for (const [slot, box] of tiles) if (!present.has(slot)) { box.remove(); tiles.delete(slot); }
}

function showProcesses() {
  $("processes").replaceChildren(...(now.figures.processes || []).map((each) => make("li", { textContent:
    `${each.name} ${each.state}, pid ${each.pid}, ${bytes(each.resident_bytes)}, ${each.held} of ${each.room} ${each.holds}` })));
}

function showBalance() {
  const slots = now.figures.slots.map((slot) => slot.slot), over = 60;
  const shares = slots.map((slot) => rate(slot, REQUESTS, samples.length - 1, over)), all = shares.reduce((a, b) => a + b, 0);
  const most = Math.max(...shares, 1e-9);
  $("balance").replaceChildren(...slots.flatMap((slot, i) => {
    const svg = drawn("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" });
    const mean = 100 * all / slots.length / most;
    svg.append(drawn("rect", { width: all ? 100 * shares[i] / most : 0, height: 12 }), drawn("line", { x1: mean, x2: mean, y1: 0, y2: 12 }));
    return [make("span", { textContent: `slot ${slot}` }), svg, make("span", { textContent: all ? `${Math.round(100 * shares[i] / all)} %` : "-" })];
  }));
}

function showChange() {
  const change = now.status && now.status.change;
  $("change").hidden = !change;
  if (!change) return;
  $("change").className = `change ${change.state}`;
  $("change").textContent = `${change.why}: ${change.state}` +
    `, ${change.renewed} of ${change.slots} slots` + (change.message ? `: ${change.message}` : "");
}

function showEvents(events) {
  for (const event of events) {
    if (event.number <= newest) continue; // this page has connected again
    newest = event.number;
    const text = make("span", { textContent: event.message });
    if (event.hint) text.append(make("small", { textContent: `hint: ${event.hint}` }));
    const at = make("time", { dateTime: event.timestamp, textContent: new Date(event.timestamp).toLocaleTimeString("en-GB") });
    $("events").prepend(make("li", { className: event.level }, at, text));
  }
  while ($("events").childElementCount > 200) $("events").lastChild.remove();
}

function showAccess() {
  unlocked = how === "socket" || (how === "token" && unlocked);
  $("unlock").hidden = how !== "token" || unlocked;
  $("access").hidden = how === "token" && !unlocked;
  $("access").textContent = how === "nothing"
    ? "Read only: to act here, start the server with --admin-token FILE or --admin unix:PATH" : unlocked ? "Unlocked" : "";
  for (const each of document.querySelectorAll("#actions button, #actions input, #where input, #where button")) each.disabled = !unlocked || !now.figures;
  if (now.figures) showSlots();
}

// --- acting

async function send(path, body) {
  const headers = { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
  try {
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
    const answer = await response.json();
    if (response.ok) return answer;
    say(answer.error + (answer.hint ? `. Hint: ${answer.hint}` : ""));
    if (response.status === 401) lock();
  } catch {
    say("the server did not answer");
  }
  return null;
}

const act = (body) => send("do", body);

function lock() {
  [token, unlocked] = ["", false];
  sessionStorage.removeItem("token");
  showAccess();
}

async function unlock(given) {
  token = given;
  unlocked = Boolean(await send("check", {}));
  if (unlocked) sessionStorage.setItem("token", token);
  showAccess();
}

let hideLater;
function say(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(hideLater);
  hideLater = setTimeout(() => { $("toast").hidden = true; }, 8000);
}

function sure(question, yes, then) {
  $("question").textContent = question;
  $("yes").textContent = yes;
  $("sure").returnValue = "no";
  $("sure").onclose = () => { if ($("sure").returnValue === "yes") then(); };
  $("sure").showModal();
}

$("unlock").onsubmit = (event) => { event.preventDefault(); unlock($("token").value.trim()); $("token").value = ""; };
$("reload").onclick = () => sure(
  `Give all ${now.figures.server.slots} slots a new worker, one after the other? Requests are finished; clients keep their slots.`,
  "Reload", () => act({ command: "reload" }));
$("workers").oninput = () => { touched = true; };
const step = (by) => () => { touched = true; $("workers").value = Math.min(256, Math.max(1, Number($("workers").value) + by)); };
$("fewer").onclick = step(-1);
$("more").onclick = step(1);
$("scale").onclick = () => {
  const [wanted, have] = [Number($("workers").value), now.figures.server.slots];
  if (!Number.isInteger(wanted) || wanted < 1 || wanted === have) return say(`there are ${have} workers: choose another number`);
  const most = Math.max(wanted, have), moves = Math.round(100 * Math.abs(wanted - have) / most);
  sure(`Have ${wanted} workers in place of ${have}? About ${moves} % of the clients move to another worker, where their state is not.`,
    "Scale", () => { touched = false; act({ command: "scale", slots: wanted }); });
};
$("where").onsubmit = async (event) => {
  event.preventDefault();
  const answer = await send("where", { key: $("key").value });
  if (!answer) return;
  const home = answer.keys[0];
  const rows = [["slot", home.slot === home.home ? home.slot : `${home.slot} in place of ${home.home}`],
    ["worker", home.pid ? `pid ${home.pid} (${home.state})` : `none (${home.state})`], ["found", `as ${home.element}, by ${home.how}`],
    ["bucket", home.bucket], ["digest", home.digest], ["stand-ins", home.rank.filter((slot) => slot !== home.home).join(", ") || "none"]];
  $("home").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  $("home").hidden = false;
  for (const [slot, box] of tiles) box.toggleAttribute("data-found", slot === home.slot);
};

// --- listening

function follow() {
  const stream = new EventSource("stream");
  stream.addEventListener("past", (event) => {
    const past = JSON.parse(event.data);
    how = past.access;
    samples.splice(0, samples.length, ...past.samples);
    if (how === "token" && token && !unlocked) unlock(token); else showAccess();
  });
  stream.addEventListener("now", (event) => {
    heardAt = Date.now();
    const { sample, events, ...rest } = JSON.parse(event.data), isFirst = !now.figures && rest.figures;
    now = rest.figures ? { status: now.status, ...rest } : { ...now, ...rest };
    if (rest.figures) delete now.error;
    for (const each of sample) if (!samples.length || each.at > samples.at(-1).at) samples.push(each);
    samples.splice(0, samples.length - PERIODS);
    showEvents(events);
    showHealth();
    if (!rest.figures || !samples.length) return;
    showFigures(); showSlots(); showProcesses(); showBalance(); showChange();
    if (isFirst) showAccess();
    if (!touched && document.activeElement !== $("workers")) $("workers").value = now.figures.server.slots;
  });
}

setInterval(() => { if (heardAt) showHealth(); }, 3000);
follow();
