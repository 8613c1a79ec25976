
const SVG = "http://www.w3.org/2000/svg";
const MINUTE = 60_000;
const byId = (id) => document.getElementById(id);

// Elements are made, and text is set: nothing that comes from outside is ever read as HTML.
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function time(ms) {
  if (ms < 0.095) return "0 ms";
  if (ms < 10) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const count = (number) => number.toLocaleString("en");
const some = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;
const clock = (ms) => new Date(ms).toLocaleTimeString();

const label = (lock) => lock.key ?? lock.fingerprint;

const ENDS = {
  holds: "holds it now",
  released: "released",
  granted_away: "handed to another process",
  expired: "lost: it could not be renewed in time",
  taken: "lost: it was taken away",
  max_hold: "lost: it was held for too long",
};
const WHY = {
  expired: "expired: Redis was away, or the process stood still",
  taken: "taken away: by an operator or another client, or Redis lost it",
  max_hold: "held for as long as max_hold allows",
};
const REFUSED = {
  held: "held", timed_out: "timed out", queue_full: "queue full",
  unavailable: "no Redis", closed: "closed",
};
const isLoss = (end) => end in WHY;

// The lanes of the timeline.

const place = (ago) => 100 * (1 - Math.min(ago, MINUTE) / MINUTE);

function bar(kind, from, to, y, height, title) {
  const left = place(from);
  const width = Math.max(place(to) - left, 0.35);
  const rect = draw("rect", {
    class: kind, x: `${left}%`, width: `${width}%`, y, height, rx: 2,
  });
  rect.append(draw("title", {}, title));
  return rect;
}

function lane(svg, lock) {
  const parts = [20, 40].map((seconds) => {
    const x = `${place(1000 * seconds)}%`;
    return draw("line", { class: "grid", x1: x, x2: x, y1: 0, y2: 30 });
  });
  let losses = 0;
  let holders = 0;
  for (const [index, run] of lock.holders.entries()) {
    const { from, to, end } = run;
    holders += run.holders;
    const who = run.is_shared
      ? `shared by ${some(run.holders, "holder", "holders")} for ${time(from - to)}`
      : run.holders > 1 ? `${count(run.holders)} holders in ${time(from - to)}`
      : `held for ${time(from - to)}, fencing token ${run.fencing_token}`;
    const title = `${who}, ${run.name}, ${ENDS[end] ?? end}`;
    const kind = isLoss(end) ? "lost" : run.holders > 1 && !run.is_shared ? "brief" : "held";
    parts.push(bar(kind, from, to + (end === "holds" ? 0 : 60), 4, 14, title));
    if (isLoss(end)) {
      losses += 1;
      parts.push(draw("text", { x: `${Math.min(place(to) + 1.6, 100)}%`, y: 16 }, "✕"));
    }
    // Where there is room for it: a lock that goes to and fro all the time would be all marks.
    const gap = to - (lock.holders[index + 1]?.from ?? 0);
    if (end === "granted_away" && gap > 1500) {
      parts.push(draw("text", { class: "away", x: `${place(to)}%`, dx: 12, y: 16 }, "▸"));
    }
  }
  for (const queue of lock.queues) {
    const title = `${some(queue.most, "request", "requests")} waited for ${time(queue.from - queue.to)}`;
    parts.push(bar("queue", queue.from, queue.to, 22, 5, title));
  }
  const told = [
    holders ? `held ${some(holders, "time", "times")}` : "not held here",
    lock.queues.length ? "requests waited" : "",
    losses ? `lost ${some(losses, "time", "times")}` : "",
  ];
  svg.setAttribute("aria-label", `In the last minute: ${told.filter(Boolean).join(", ")}.`);
  svg.replaceChildren(...parts);
}

function chart(svg, values) {
  const most = Math.max(...values, 1e-9);
  const step = 100 / 119;
  const points = values.map((value, index) => {
    const x = 100 - (values.length - 1 - index) * step;
    return `${x.toFixed(1)},${(20 - (19 * value) / most).toFixed(1)}`;
  });
  svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(draw("polyline", { points: points.join(" ") }));
}

// The rows of the table are kept from one snapshot to the next, so that the focus stays where it is.

const rows = new Map();
const columns = ["Now", "Waiting", "Wait 50 / 99 %", "Acquired", "Refused", "Lost", "Last minute"];

function makeRow(lock) {
  const button = make("button", { type: "button", class: "link" }, make("bdi", { class: "mono" }));
  button.addEventListener("click", () => openDetail(lock.id, label(lock), button));
  const row = make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, button));
  for (const name of columns) {
    const cell = make("td", { role: "cell" });
    if (name === "Now") cell.className = "now";
    else if (name === "Last minute") cell.className = "time";
    else {
      cell.className = "number";
      cell.dataset.name = name;
    }
    row.append(cell);
  }
  const svg = draw("svg", { class: "lane", role: "img" });
  row.lastChild.append(svg);
  const state = make("span");
  const note = make("small");
  row.children[1].append(state, note);
  return { row, svg, state, note, name: button.firstChild, button };
}

function fillRow(entry, lock) {
  entry.lock = lock;
  say(entry.name, label(lock));
  entry.button.title = lock.key ? `fingerprint ${lock.fingerprint}` : "";
  const { held, minute } = lock;
  let [state, kind, note] = ["free", "tag quiet", ""];
  if (held) {
    const shared = held.is_shared ? `shared by ${count(held.holders)}, ` : "";
    [state, kind] = [`${shared}held for ${time(held.for)}`, "some"];
    note = lock.is_contended ? "another process waits" : held.name === "default" ? "" : held.name;
  } else if (lock.waiting > 0) {
    [state, kind] = lock.is_queued ? ["held elsewhere", "tag"] : ["asking Redis", "tag"];
    note = lock.is_queued ? "in the queue in Redis" : "";
  }
  say(entry.state, state);
  entry.state.className = kind;
  say(entry.note, note);
  const [waiting, waits, acquired, refused, lost] = [...entry.row.children].slice(2, 7);
  say(waiting, count(lock.waiting));
  waiting.classList.toggle("warn", lock.waiting > 0);
  const { wait } = minute ?? {};
  say(waits, minute?.acquired ? `${time(wait.p50)} / ${time(wait.p99)}` : "–");
  say(acquired, count(minute?.acquired ?? 0));
  say(refused, count(sum(minute?.refused)));
  say(lost, count(minute?.lost ?? 0));
  for (const cell of [waiting, acquired, refused, lost]) cell.classList.toggle("zero", cell.textContent === "0");
  lost.classList.toggle("bad-text", minute?.lost > 0);
  lane(entry.svg, lock);
}

const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);

const ORDERS = {
  held: (lock) => lock.held?.for ?? -1,
  p99: (lock) => lock.minute?.wait.p99 ?? -1,
  acquired: (lock) => lock.minute?.acquired ?? 0,
  lost: (lock) => lock.minute?.lost ?? 0,
};

function fillTable(locks) {
  const body = byId("locks").tBodies[0];
  const text = byId("filter").value.trim().toLowerCase();
  const found = locks.filter((lock) =>
    [label(lock), lock.fingerprint, lock.held?.name ?? ""].some((name) => name.toLowerCase().includes(text)));
  const order = ORDERS[byId("order").value];
  if (order) found.sort((one, other) => order(other) - order(one));
  const shown = new Set();
  for (const lock of found) {
    shown.add(lock.id);
    let entry = rows.get(lock.id);
    if (!entry) {
      entry = makeRow(lock);
      rows.set(lock.id, entry);
      body.append(entry.row);
    }
    fillRow(entry, lock);
    entry.row.classList.remove("gone");
    entry.row.classList.toggle("chosen", lock.id === detail?.id);
  }
  for (const [id, { row }] of rows) {
    if (shown.has(id)) continue;
    row.classList.add("gone");
    if (!row.contains(document.activeElement)) {
      row.remove();
      rows.delete(id);
    }
  }
  // Whoever is about to press a button must find it where it was.
  if (!body.contains(document.activeElement) && !body.matches(":hover")) {
    found.forEach((lock, index) => {
      const { row } = rows.get(lock.id);
      if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
    });
  }
  byId("empty").hidden = body.children.length > 0;
  say(byId("empty"), locks.length
    ? "No lock of this process has that in its name."
    : "No lock was held or waited for in the last minute.");
}

function fillLosses(losses, at) {
  byId("no-losses").hidden = losses.length > 0;
  const body = byId("losses").tBodies[0];
  const made = losses.map((loss) => {
    const cell = (name, text, className) => {
      const td = make("td", { role: "cell", "data-name": name }, text);
      if (className) td.className = className;
      return td;
    };
    const name = make("th", { scope: "row", role: "rowheader" }, make("bdi", { class: "mono" }, label(loss)));
    const when = `${clock(at - loss.ago)}, ${time(loss.ago)} ago`;
    return make("tr", { role: "row" }, cell("When", when), name, cell("Layer", loss.name),
      cell("Why", WHY[loss.reason] ?? loss.reason, "bad-text"),
      cell("Held for", loss.held_for === null ? "–" : time(loss.held_for), "number"),
      cell("Fencing token", loss.fencing_token, "number mono"));
  });
  body.replaceChildren(...made);
  const [last] = losses;
  if (last && last.fencing_token !== lastLoss) {
    if (lastLoss !== undefined) say(byId("announce"), `Lost: ${label(last)}. ${WHY[last.reason]}`);
    lastLoss = last.fencing_token;
  }
  lastLoss ??= "";
}

// What comes once a second.

let last;
let lastLoss;
let isPaused = false;
const recent = { waiting: [], p99: [] };

function show(snapshot) {
  last = snapshot;
  const { minute } = snapshot;
  say(byId("process"), snapshot.process);
  document.title = `${snapshot.process}: ${snapshot.held} held, ${snapshot.waiting} waiting`;
  say(byId("held"), count(snapshot.held));
  say(byId("waiting"), count(snapshot.waiting));
  say(byId("queued"), snapshot.queued ? `${some(snapshot.queued, "place", "places")} in queues` : "");
  for (const part of ["p50", "p90", "p99", "max"]) {
    say(byId(part), minute.acquired ? time(minute.wait[part]) : "–");
  }
  say(byId("acquired"), count(minute.acquired));
  say(byId("refused"), count(sum(minute.refused)));
  const why = Object.entries(minute.refused).filter(([, number]) => number > 0);
  say(byId("refused-why"), why.map(([reason, number]) => `${count(number)} ${REFUSED[reason] ?? reason}`).join(", "));
  say(byId("lost"), count(minute.lost));
  byId("lost-tile").classList.toggle("bad", minute.lost > 0);
  fillTable(snapshot.locks);
  byId("more-locks").hidden = !snapshot.has_more_locks;
  fillLosses(snapshot.losses, snapshot.at);
  chart(byId("waiting-chart"), recent.waiting);
  chart(byId("p99-chart"), recent.p99);
  byId("force").hidden = !snapshot.allows_force_release;
  byId("force-off").hidden = snapshot.allows_force_release;
}

function take(snapshot) {
  recent.waiting.push(snapshot.waiting);
  recent.p99.push(snapshot.minute.wait.p99);
  for (const values of Object.values(recent)) if (values.length > 120) values.shift();
  if (!isPaused) show(snapshot);
  else last = snapshot;
  const notice = byId("notice");
  notice.hidden = snapshot.is_store_up && !snapshot.is_draining;
  say(notice, !snapshot.is_store_up ? "Redis cannot be reached: no lock is given or renewed. Holders lose theirs when their time to live is over."
    : snapshot.is_draining ? "This process takes no more locks: it is about to shut down." : "");
}

// The connection. A stream ends after a minute, and the browser begins another: only what lasts is
// told.

let source;
let lastEvent = 0;

function connect() {
  source?.close();
  source = new EventSource("?view=events");
  lastEvent = performance.now();
  source.addEventListener("message", (event) => {
    lastEvent = performance.now();
    take(JSON.parse(event.data));
    showStatus();
  });
  source.addEventListener("error", showStatus);
}

function showStatus() {
  const isLate = performance.now() - lastEvent > 3500;
  const pill = byId("status");
  const [text, kind] = isLate ? [last ? "Connection lost, trying again" : "No answer, trying again", "bad"]
    : !last ? ["Connecting…", ""]
    : isPaused ? ["Paused", ""]
    : ["Live", "live"];
  say(pill, isLate && last ? `${text} (as of ${clock(last.at)})` : text);
  pill.className = `pill ${kind}`;
  document.body.classList.toggle("stale", isLate);
  // It was refused, or the other side is gone without a word.
  if (isLate && (source.readyState === EventSource.CLOSED || performance.now() - lastEvent > 8000)) connect();
}

setInterval(() => {
  if (!document.hidden) showStatus();
}, 1000);

// No one looks: the process need not look either.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) source.close();
  else connect();
});

byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").setAttribute("aria-pressed", isPaused);
  if (last) show(last);
  showStatus();
});
for (const id of ["filter", "order"]) {
  byId(id).addEventListener("input", () => last && fillTable(last.locks));
}

// One lock, as Redis has it.

let detail;

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("the process cannot be reached");
  }
  const json = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(json.error ?? `the response is ${response.status}`);
  return json;
}

const processName = (process) =>
  (process.name ?? process.id) + (process.is_this ? " (this process)" : "") + (process.is_alive ? "" : ", gone");

function occupant(lock) {
  switch (lock.occupant) {
    case "free": return "free";
    case "process": return processName(lock.holders[0]);
    case "shared": return `shared by ${lock.holders.map(processName).join(", ")}`
      + (lock.processes_holding > lock.holders.length ? " and others" : "");
    case "other_client": return "another client of Redis";
    default: return "a stored response";
  }
}

function openDetail(id, name, opener) {
  detail = { id, opener, name, seen: [] };
  say(byId("detail-title"), name);
  byId("detail-title").className = "mono";
  for (const part of ["facts", "queue", "seen", "result", "asked"]) byId(part).replaceChildren();
  byId("follow").checked = false;
  byId("seen-part").hidden = true;
  byId("no-queue").hidden = true;
  byId("detail").hidden = false;
  byId("detail").parentElement.classList.add("open");
  byId("detail-title").focus();
  for (const [rowId, { row }] of rows) row.classList.toggle("chosen", rowId === id);
  refresh();
}

function closeDetail() {
  if (!detail) return;
  const { opener } = detail;
  detail = undefined;
  byId("detail").hidden = true;
  byId("detail").parentElement.classList.remove("open");
  for (const { row } of rows.values()) row.classList.remove("chosen");
  (opener.isConnected ? opener : byId("hottest")).focus();
}

async function refresh() {
  const asked = detail;
  try {
    const lock = await ask(`?view=lock&id=${asked.id}`);
    if (detail === asked) showDetail(lock);
  } catch (error) {
    if (detail === asked) say(byId("result"), `Not known: ${error.message}.`);
  }
}

function showDetail(lock) {
  detail.lock = lock;
  say(byId("asked"), `Asked at ${clock(Date.now())}.`);
  say(byId("result"), "");
  const facts = [["Holder", occupant(lock)]];
  for (const holder of lock.holders) {
    if (holder.address) facts.push(["Address", holder.address]);
    if (holder.held_for !== null) facts.push(["Held for", time(holder.held_for)]);
    if (holder.fencing_token) facts.push(["Fencing token", holder.fencing_token]);
  }
  if (lock.remaining !== null) facts.push([lock.occupant === "record" ? "Kept for" : "Expires in", `${time(lock.remaining)}${["process", "shared"].includes(lock.occupant) ? ", unless it is renewed" : ""}`]);
  facts.push(["Waiting here", some(lock.waiting_here, "request", "requests")]);
  facts.push(["Fingerprint", lock.fingerprint]);
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, make("bdi", {}, value))]));
  byId("queue").replaceChildren(...lock.waiting.map((process) => make("li", {}, make("bdi", {}, processName(process)))));
  const more = lock.processes_waiting - lock.waiting.length;
  if (more > 0) byId("queue").append(make("li", {}, `and ${count(more)} more`));
  byId("no-queue").hidden = lock.processes_waiting > 0;
  byId("force").disabled = !["process", "shared", "other_client"].includes(lock.occupant);
  const holder = occupant(lock);
  if (detail.seen.at(-1) !== holder) {
    detail.seen.push(holder);
    byId("seen").append(make("li", {}, `${clock(Date.now())} `, make("bdi", {}, holder)));
    while (byId("seen").children.length > 100) byId("seen").firstChild.remove();
    byId("seen-part").hidden = detail.seen.length < 2;
  }
}

setInterval(() => {
  if (detail && byId("follow").checked && !document.hidden) refresh();
}, 2000);
byId("refresh").addEventListener("click", refresh);
byId("close").addEventListener("click", closeDetail);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("confirm").open && !(event.target instanceof HTMLInputElement)) closeDetail();
});

byId("force").addEventListener("click", () => {
  say(byId("confirm-lock"), detail.name);
  say(byId("confirm-holder"), `Held by ${occupant(detail.lock)}.`);
  byId("confirm").returnValue = "";
  byId("confirm").showModal();
});
byId("confirm").addEventListener("close", async () => {
  if (byId("confirm").returnValue !== "force" || !detail) return;
  const released = detail;
  let result;
  try {
    const { was_held } = await ask(`?do=force-release&id=${released.id}`, {
      method: "POST", headers: { "x-tower-distributed-lock": "force-release" },
    });
    result = was_held ? "Released." : "It was free already.";
  } catch (error) {
    result = `Not released: ${error.message}.`;
  }
  if (detail !== released) return;
  await refresh();
  say(byId("result"), result);
});

// All locks, as Redis has them.

let next;
let listed = 0;

function addReports(locks) {
  const body = byId("all").tBodies[0];
  for (const lock of locks) {
    const button = make("button", { type: "button", class: "link" }, make("bdi", { class: "mono" }, label(lock)));
    button.addEventListener("click", () => openDetail(lock.id, label(lock), button));
    const cell = (name, text, className) => make("td", { role: "cell", "data-name": name, class: className }, text);
    body.append(make("tr", { role: "row" },
      make("th", { scope: "row", role: "rowheader" }, button),
      cell("Holder", make("bdi", {}, occupant(lock)), ""),
      cell("Expires in", lock.remaining === null ? "–" : time(lock.remaining), "number"),
      cell("Waiting", count(lock.processes_waiting), "number")));
  }
  listed += locks.length;
}

async function list(from, caption) {
  if (caption) {
    byId("all").tBodies[0].replaceChildren();
    say(byId("all-caption"), caption);
    listed = 0;
  }
  byId("all").hidden = false;
  next = from;
  say(byId("all-result"), "Asking Redis…");
  const enough = listed + 50;
  try {
    // A page of SCAN may be empty though more follow.
    for (let pages = 0; pages < 20 && next && listed < enough; pages++) {
      const page = await ask(`?view=locks&from=${next}`);
      addReports(page.locks);
      next = page.next;
    }
    say(byId("all-result"), `${count(listed)} found${next ? " so far" : ""}, at ${clock(Date.now())}.`);
  } catch (error) {
    say(byId("all-result"), `Not known: ${error.message}.`);
  }
  byId("more").hidden = !next || listed >= 1000;
}

byId("list-locks").addEventListener("click", () => list("locks.0.0", "Locks of all processes, in no order."));
byId("list-records").addEventListener("click", () => list("records.0.0", "Idempotency keys: requests that run, and stored responses."));
byId("more").addEventListener("click", () => list(next));
byId("look-up").addEventListener("submit", async (event) => {
  event.preventDefault();
  const opener = event.submitter ?? byId("key");
  try {
    const lock = await ask("?view=lock", { method: "POST", body: byId("key").value });
    say(byId("all-result"), "");
    openDetail(lock.id, byId("key").value, opener);
  } catch (error) {
    say(byId("all-result"), `Not known: ${error.message}.`);
  }
});

// On a narrow screen the rows are no table to the eye: the roles keep it one for a screen reader.
for (const table of document.querySelectorAll("table")) {
  table.setAttribute("role", "table");
  for (const part of [table.tHead, ...table.tBodies]) part.setAttribute("role", "rowgroup");
  table.tHead.rows[0].setAttribute("role", "row");
  for (const cell of table.tHead.rows[0].cells) cell.setAttribute("role", "columnheader");
}

connect();
