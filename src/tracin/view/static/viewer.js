// The page: a part of the ranking, one example with what explains it, and decisions by one key each.
// Whatever comes from the data goes in as text alone, and the server has made it safe to show.
const $ = id => document.getElementById(id), PAGE = 100, NAMES = ["wrong", "right", "relabelled"];
const found = new URLSearchParams(location.hash.slice(1)).get("token");
if (found) { sessionStorage.token = found; history.replaceState(null, "", location.pathname); }
const tab = (sessionStorage.tab ??= Array.from(crypto.getRandomValues(new Uint8Array(16)), n => n.toString(16).padStart(2, "0")).join(""));
let about, page = { rows: [], found: 0 }, start = 0, at = -1, shown = null, seq = 0, asking = null, whying = null, past = [], of = 0, newest = 0, alike = [];

const SVG = ["svg", "rect", "line"];
const el = (name, props = {}, ...children) => {
  const made = document.createElementNS(SVG.includes(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", name);
  for (const [key, value] of Object.entries(props))
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false && value !== undefined) made.setAttribute(key, value === true ? "" : value);
  made.append(...children.flat().filter(one => one !== null && one !== undefined));
  return made;
};
const data = (text, more = "") => el("span", { class: `data ${more}`, dir: "auto" }, String(text));
const whole = value => value.toLocaleString("en");
const number = value => value === null || value === undefined ? "–" : (value === 0 ? "0" : Math.abs(value) >= 1000 ? whole(Math.round(value)) : String(+value.toPrecision(3))).replace("-", "−");
const words = name => name.replaceAll("_", " ");
const say = text => { $("say").textContent = text; clearTimeout(say.later); say.later = setTimeout(() => ($("say").textContent = ""), 4000); };

function lost(title, text) {
  document.body.replaceChildren(el("main", { class: "lost", tabindex: -1 }, el("h1", {}, title), el("p", {}, text)));
  throw new Error("lost");
}

async function api(path, { body, signal, raw } = {}) {
  const got = await fetch("api/" + path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body), signal, headers: { authorization: "Bearer " + (sessionStorage.token ?? ""), ...(body && { "content-type": "application/json" }) } });
  if (got.status === 401) lost("This page needs its token", "Open the address that tracin view printed. It changes each time it is started.");
  if (raw && got.ok) return got.blob();
  const told = await got.json().catch(() => ({ error: "the server failed (" + got.status + ")" }));
  if (!got.ok && got.status !== 409) throw new Error(told.error);
  return told;
}

const picture = (row, side) => row.picture ? el("img", { src: `media/${about.media}/${row.row}-${side > 64 ? 256 : 64}.webp`, width: side, height: side, alt: "", loading: "lazy", decoding: "async" }) : null;
const differs = row => row.disagrees;
// On what explains another example the suggestion is a fact like any other: no colour, no alarm.
const label = (row, alarm = true) => [data(row.given.shown, differs(row) && alarm ? "chip differs" : "chip"), differs(row) ? [" → ", data(row.suggested.shown)] : []].flat();
const decision = row => row.kind === "undecided" ? el("span") : el("span", { class: row.kind }, row.kind, row.label ? [" ", data(row.label.shown)] : []);
const scored = () => $("sort").value || about.leading;

function query() {
  const q = new URLSearchParams({ sort: $("sort").value, start, n: PAGE });
  for (const name of ["given", "suggested", "decided"]) if ($(name).value) q.set(name, $(name).value);
  if ($("words").value.trim()) q.set("words", $("words").value.trim());
  if ($("differs").checked) q.set("differs", 1);
  if ($("reversed").checked) q.set("down", 0);
  if ($("decided").value) q.set("of", of);
  return q;
}

async function load({ to = 0, focus = false } = {}) {
  asking?.abort(); asking = new AbortController();
  const began = performance.now();
  try { page = await api("rows?" + query(), { signal: asking.signal }); }
  catch (error) { if (error.name !== "AbortError" && error.message !== "lost") say(error.message); return; }
  seq = page.seq; $("by").textContent = words(scored());
  $("rows").replaceChildren(...page.rows.map(line));
  $("none").hidden = page.found > 0;
  const last = Math.min(start + PAGE, page.found);
  $("where").textContent = page.found ? `${whole(start + 1)} – ${whole(last)} of ${whole(page.found)}` : "";
  $("before").disabled = start === 0; $("after").disabled = last >= page.found; $("rank").max = Math.max(page.found, 1);
  progress(page);
  $("scroller").scrollTop = 0; at = -1;
  if (page.found) pick(Math.min(to, page.rows.length - 1), focus);
  else { shown = null; $("detail").replaceChildren(el("p", { class: "soft" }, "Nothing to show.")); if (focus) $("list").focus(); }
  if (about.explains && page.rows.length) api("ahead", { body: { rows: page.rows.map(row => row.row) } }).catch(() => {});
  document.body.dataset.drawn = Math.round(performance.now() - began);
}

function progress(now) {
  newest = Math.max(newest, now.seq);
  $("count").textContent = `${whole(page.found)} of ${whole(about.total)} examples, ${whole(now.decided)} decided`;
  $("stop").textContent = now.looked ? `Of the last ${now.looked} looked at, ${now.wrong} ${now.wrong === 1 ? "was" : "were"} wrong.` + (now.looked >= 50 && now.wrong <= 2 ? " Few are left to find here." : "") : "";
}

function line(row, place) {
  return el("tr", { tabindex: -1, "aria-selected": "false", onclick: () => { past = []; pick(place, true); } },
    el("td", { class: "rank" }, whole(start + place + 1)),
    el("td", { class: "l" }, el("div", { class: "what" }, picture(row, 40), el("span", {}, data(row.id), row.text !== null ? [" ", data(row.text, "soft")] : []))),
    el("td", { class: "l" }, label(row)), el("td", {}, number(row.scores[scored()])), el("td", { class: "l" }, decision(row)));
}

function pick(place, focus = true) {
  const rows = $("rows").children;
  if (rows[at]) { rows[at].setAttribute("aria-selected", "false"); rows[at].tabIndex = -1; }
  at = place; const chosen = rows[at];
  chosen.setAttribute("aria-selected", "true"); chosen.tabIndex = 0;
  if (focus) chosen.focus({ preventScroll: true });
  chosen.scrollIntoView({ block: "nearest" });
  show(page.rows[at]);
}

async function move(by) {
  past = [];
  const to = at + by;
  if (to >= page.rows.length && start + PAGE < page.found) { start += PAGE; return load({ focus: true }); }
  if (to < 0 && start > 0) { start = Math.max(0, start - PAGE); return load({ to: PAGE - 1, focus: true }); }
  if (page.rows.length) pick(Math.max(0, Math.min(to, page.rows.length - 1)));
}

const bars = (shares, most) => el("svg", { viewBox: "0 0 54 26", role: "img", "aria-label": "by checkpoint " + shares.map(number).join(", ") },
  el("line", { x1: 0, x2: 54, y1: 13, y2: 13, stroke: "currentColor", "stroke-width": .3 }),
  shares.map((share, n) => { const high = most ? Math.abs(share) / most * 12 : 0; return el("rect", { class: share < 0 ? "down" : "up", x: n * 54 / shares.length, width: Math.max(1, 54 / shares.length - 1), y: share < 0 ? 13 : 13 - high, height: Math.max(high, .5) }); }));

function show(row) {
  shown = row; alike = [];
  const act = (kind, text, key) => el("button", { onclick: () => decide(kind), "aria-pressed": String(row.kind === kind), class: kind }, text + " ", el("kbd", {}, key));
  const choice = about.labels
    ? el("select", { id: "relabel", onkeydown: entered }, about.labels.map(one => el("option", { value: JSON.stringify(one.value), selected: one.value === row.suggested?.value }, one.shown)))
    : el("input", { id: "relabel", size: 8, maxlength: 200, autocomplete: "off", onkeydown: entered });
  const facts = [["given label", data(row.given.shown)], ...(row.suggested ? [["suggested label", data(row.suggested.shown)]] : []), ["position", whole(row.position)], ...Object.entries(row.scores).map(([name, value]) => [words(name), number(value)])];
  $("detail").replaceChildren(
    el("div", { class: "head" }, picture(row, 160), el("div", {}, el("strong", {}, "Example ", data(row.id)), el("dl", {}, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])))),
    el("div", { class: "acts", role: "group", "aria-label": "Decide" },
      act("wrong", "Wrong", "W"), act("right", "Right", "R"),
      row.suggested ? el("button", { class: "relabelled", onclick: () => decide("relabelled", row.suggested.value) }, "Relabel as ", data(row.suggested.shown), " ", el("kbd", {}, "S")) : null,
      el("label", {}, el("span", {}, "other ", el("kbd", {}, "L")), choice), el("button", { onclick: chosen }, "Relabel"),
      el("button", { onclick: undo }, "Undo ", el("kbd", {}, "U"))),
    el("div", { id: "alike" }), el("div", { id: "whole" }), el("div", { id: "why", "aria-live": "polite" }));
  clearTimeout(show.later);
  show.later = setTimeout(() => explain(row), 120);
}

function twins(rows) {
  for (const one of rows) if (one.row !== shown.row && !alike.some(other => other.row === one.row)) alike.push(one);
  if (!alike.length) return;
  const text = alike.length === 1 ? "1 other example is the same" : `${alike.length} other examples are the same`;
  $("alike").replaceChildren(el("label", { class: "check" }, el("input", { id: "together", type: "checkbox" }), `${text}: mark all together`));
}

async function explain(row) {
  whying?.abort(); whying = new AbortController();
  const { signal } = whying, why = $("why"), still = () => shown === row && !signal.aborted;
  try {
    const told = await api("example?row=" + row.row, { signal });
    if (!still()) return;
    if (told.whole !== null) $("whole").replaceChildren(el("div", { class: "whole data", dir: "auto", tabindex: 0, role: "group", "aria-label": "Text" }, told.whole), told.length > told.whole.length && told.length > 5000 ? el("p", { class: "soft small" }, `${whole(told.length)} letters; the first 5,000 are shown`) : "");
    twins(told.alike);
    if (!about.explains) { why.replaceChildren(el("p", { class: "soft" }, "Build an index to see what explains each example: tracin index build RUN.toml.")); document.body.dataset.why = row.row; return; }
    why.replaceChildren(el("p", { class: "soft" }, "Looking for what explains it …"));
    const answer = await api(`why?row=${row.row}&k=6`, { signal });
    if (!still()) return;
    twins(answer.alike);
    const most = Math.max(...[...answer.proponents, ...answer.opponents].flatMap(hit => hit.by_checkpoint.map(share => Math.abs(share ?? 0))));
    const hit = one => el("li", {}, el("button", { disabled: !one.of, onclick: () => { past.push(row); show(one.of); $("detail").focus(); } },
      (one.of && picture(one.of, 40)) || el("span"),
      el("span", {}, el("strong", { class: one.score < 0 ? "down" : "up" }, (one.score > 0 ? "+" : "") + number(one.score)), one.error ? el("span", { class: "soft small" }, " ± " + number(one.error)) : "", el("br"), one.of ? label(one.of, false) : "", " ", data(one.id, "soft small"), one.of?.text ? [el("br"), data(one.of.text, "small")] : ""),
      bars(one.by_checkpoint, most)));
    const side = (title, hits) => el("div", {}, el("h2", {}, title), el("ol", { class: "hits" }, hits.map(hit)));
    why.replaceChildren(el("div", { class: "sides" }, side("Proponents: for its label", answer.proponents), side("Opponents: against it", answer.opponents)),
      el("p", { class: "soft small" }, `Estimated from the index, with one standard deviation; bars by checkpoint (${answer.checkpoints.length}). ${answer.note}.`));
    document.body.dataset.why = row.row;
  } catch (error) { if (error.name !== "AbortError" && error.message !== "lost" && still()) why.replaceChildren(el("p", { class: "soft" }, "Not explained: " + error.message)); }
}

function refresh(rows) {
  for (const row of rows) {
    const place = page.rows.findIndex(one => one.row === row.row);
    if (place >= 0) { page.rows[place] = row; $("rows").children[place].lastElementChild.replaceChildren(decision(row)); }
    if (shown?.row === row.row) { Object.assign(shown, row); for (const button of $("detail").querySelectorAll("button[aria-pressed]")) button.setAttribute("aria-pressed", String(button.className === row.kind)); }
    for (const one of alike) if (one.row === row.row) one.seq = row.seq;
  }
}

async function decide(kind, to = null) {
  const row = shown; if (!row || decide.busy) return;
  decide.busy = true;
  try {
    const all = [row, ...($("together")?.checked ? alike : [])];
    const told = await api("decide", { body: { rows: all.map(one => one.row), seen: all.map(one => one.seq), kind, label: to, tab } });
    refresh(told.rows); progress(told);
    if (told.error) return say(`Decided in another tab meanwhile: ${told.rows[0].kind}`);
    say(`${row.id}: ${kind === "relabelled" ? "relabelled " + told.rows[0].label.shown : kind}${all.length > 1 ? `, with ${all.length - 1} alike` : ""}`);
    if (page.rows[at]?.row === row.row) await move(1); else { show(row); $("detail").focus(); }
  } catch (error) { if (error.message !== "lost") say("Not kept: " + error.message); }
  finally { decide.busy = false; }
}

async function back(path, nothing, done) {
  try {
    const told = await api(path, { body: { tab } });
    if (!told.rows.length) return say(nothing);
    refresh(told.rows); progress(told);
    const place = page.rows.findIndex(one => one.row === told.rows[0].row);
    if (place >= 0) pick(place); else { show(told.rows[0]); $("detail").focus(); }
    say(`${done}: ${told.rows[0].id}`);
  } catch (error) { if (error.message !== "lost") say("Not kept: " + error.message); }
}
const undo = () => back("undo", "Nothing to undo", "Taken back"), redo = () => back("redo", "Nothing to do again", "Done again");

function chosen() {
  const field = $("relabel");
  if (field.value) decide("relabelled", about.labels ? JSON.parse(field.value) : field.value);
}
function entered(event) { if (event.key === "Enter") { event.preventDefault(); chosen(); } }
const list = () => ($("rows").children[at] ?? $("list")).focus();
const turn = by => { const to = start + by * PAGE; if (to >= 0 && to < page.found) { past = []; start = to; load({ focus: true }); } };

const KEYS = {
  j: ["next", () => move(1)], k: ["previous", () => move(-1)], ArrowDown: ["next", () => move(1)], ArrowUp: ["previous", () => move(-1)],
  PageDown: ["10 on", () => move(10)], PageUp: ["10 back", () => move(-10)], n: ["next page", () => turn(1)], p: ["previous page", () => turn(-1)],
  w: ["the label is wrong", () => decide("wrong")], r: ["the label is right", () => decide("right")], s: ["relabel as the model says", () => shown?.suggested && decide("relabelled", shown.suggested.value)],
  l: ["choose another label, then Enter", () => $("relabel")?.focus()], c: ["clear the decision", () => decide("undecided")], m: ["mark all alike together", () => $("together")?.click()],
  u: ["undo", undo], U: ["do again", redo], Enter: ["into what explains it", () => $("why").querySelector("button")?.focus()],
  Backspace: ["back to the example before", () => { const row = past.pop(); if (row) { show(row); past.length ? $("detail").focus() : list(); } }],
  "/": ["find", () => $("words").focus()], Escape: ["back to the ranking", list], "?": ["these keys", () => $("help").showModal()],
};
document.addEventListener("keydown", event => {
  if ($("help")?.open || !about) return;
  if (event.target.matches("input, select, textarea")) { if (event.key === "Escape") { event.preventDefault(); list(); } return; }
  if (event.ctrlKey || event.metaKey || event.altKey || localStorage.tracinKeys === "off") return;
  const key = KEYS[event.key];
  if (!key || (event.repeat && "wrscuU".includes(event.key))) return;
  if (event.key === "Enter" && event.target.matches("button, a")) return;
  event.preventDefault(); key[1]();
});

async function boot() {
  about = await api("about");
  document.title = `${about.title} · tracin view`; $("title").textContent = about.title;
  $("sort").append(...about.sorts.map(one => el("option", { value: one.name }, words(one.name))));
  for (const name of ["given", "suggested"]) {
    if (about.labels && (name === "given" || about.suggests)) $(name).append(...about.labels.map(one => el("option", { value: one.value }, one.shown)));
    else $(name + "-box").hidden = true;
  }
  $("differs-box").hidden = !about.suggests; if (!about.suggests) $("label-head").textContent = "given label";
  $("keys").append(...Object.entries(KEYS).flatMap(([key, [text]]) => [el("dt", {}, el("kbd", {}, key === "U" ? "Shift+U" : key.length === 1 ? key.toUpperCase() : key)), el("dd", {}, text)]));
  $("keys-on").checked = localStorage.tracinKeys !== "off";
  $("keys-on").onchange = () => (localStorage.tracinKeys = $("keys-on").checked ? "on" : "off");
  let later; const again = () => { clearTimeout(later); later = setTimeout(() => { start = 0; of = newest; load(); }, 150); };
  $("filters").addEventListener("input", again); $("filters").addEventListener("submit", event => { event.preventDefault(); list(); });
  $("before").onclick = () => turn(-1); $("after").onclick = () => turn(1); $("help-open").onclick = () => $("help").showModal();
  $("help").addEventListener("close", list);
  $("rank").addEventListener("change", () => { const to = Math.max(1, Math.min(+$("rank").value || 1, page.found)) - 1; start = to - to % PAGE; load({ to: to % PAGE, focus: true }); });
  $("export").onchange = async () => {
    const format = $("export").value; $("export").value = ""; if (!format) return;
    try { const href = URL.createObjectURL(await api("export?format=" + format, { raw: true })); el("a", { href, download: { csv: "decisions.csv", parquet: "decisions.parquet", json: "decisions.json", "label-studio": "label-studio.json" }[format] }).click(); URL.revokeObjectURL(href); } catch (error) { say("Not exported: " + error.message); }
  };
  await load({ focus: true });
  if (about.others) say(`${about.others} entries of the log are about other data, and are not shown.`);
  setInterval(async () => { if (document.hidden) return; try { const told = await api("changes?since=" + seq); seq = told.seq; if (told.rows.length) { refresh(told.rows); progress(told); } } catch { } }, 3000);
}
boot().catch(error => { if (error.message !== "lost") say(error.message); });
