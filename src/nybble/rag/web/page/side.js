// The index, its documents, and what the cache holds.

import { get, order } from "./api.js";
import { $, button, bytes, count, el, failure, fill, plural } from "./dom.js";
import { openSource } from "./source.js";

const IDLE = 10000; // ms between looks at the state
const BUSY = 700;
let timer = 0;
let revision = null;
let busy = false;
let listed = 0;
let asked = 0;

function fact(list, name, value) {
  if (value !== null && value !== undefined && value !== "") {
    list.push(el("dt", "", name), el("dd", "", String(value)));
  }
}

function chips(state) {
  const made = [state.server.model, state.server.kv ? `KV ${state.server.kv}` : null,
                state.server.context ? `${count(state.server.context)} tokens of context` : null];
  fill($("chips"), ...made.filter(Boolean).map((text) => el("li", "", text)));
}

function cache(state) {
  const c = state.cache;
  const list = [];
  fact(list, "KV setting", state.server.kv || "not told by this server");
  if (c.tokens !== null) {
    const room = c.room ? ` of ${count(c.room)}` : "";
    fact(list, "tokens held", count(c.tokens) + room);
  }
  if (c.bytes !== null) {
    fact(list, "bytes held", bytes(c.bytes) + (c.allocated ? ` of ${bytes(c.allocated)}` : ""));
  }
  const parts = [el("dl", "facts", ...list)];
  if (c.tokens !== null && c.room) {
    const meter = el("progress", "meter");
    meter.max = c.room;
    meter.value = c.tokens;
    meter.setAttribute("aria-label", "Share of the context that is held");
    parts.unshift(meter);
  }
  parts.push(el("p", "note", c.how));
  fill($("cache"), ...parts);
}

function index(state) {
  const list = [];
  fact(list, "documents", count(state.index.documents));
  fact(list, "passages", count(state.index.passages));
  fact(list, "embedding", state.index.embedding);
  fact(list, "revision", state.index.revision);
  fill($("index"), ...list);
  $("folder").textContent = state.index.folder;
}

function job(state) {
  const j = state.job;
  $("rebuild").disabled = Boolean(j && j.running);
  $("rebuild").hidden = !state.index.again;
  if (!j) return fill($("job"));
  const parts = [];
  if (j.running) {
    parts.push(el("p", "note", j.text));
    const bar = el("progress", "meter");
    if (j.total) { bar.max = j.total; bar.value = Math.min(j.done, j.total); }
    bar.setAttribute("aria-label", j.text);
    parts.push(bar);
  }
  if (j.told) parts.push(el("p", "note", j.told));
  if (j.error) parts.push(failure(j.error));
  if (j.skipped.length) {
    const rows = j.skipped.map((s) => el("li", "", `${s.path}: ${s.why}`));
    const more = j.more ? [el("li", "note", `and ${count(j.more)} more`)] : [];
    parts.push(el("details", "", el("summary", "", `${count(j.skipped.length + j.more)} skipped`),
                  el("ul", "plain", ...rows, ...more)));
  }
  const open = $("job").querySelector("details");
  fill($("job"), ...parts);
  const now = $("job").querySelector("details");
  if (open && now) now.open = open.open;
}

function row(d) {
  const made = button(d.title, "name", () => openSource(d));
  return el("li", "", made, el("span", "note path", d.title === d.document ? "" : d.document),
            el("span", "note", [d.kind, plural(d.passages, "passage"),
                        d.copies ? plural(d.copies, "copy", "copies") : null]
      .filter(Boolean).join(", ")));
}

async function documents(start) {
  const mine = ++asked;
  try {
    const found = await get("api/documents", { find: $("find").value, start });
    if (mine !== asked) return;
    const rows = found.documents.map(row);
    if (start) $("documents").append(...rows);
    else fill($("documents"), ...(rows.length ? rows : [el("li", "note", "none of that name")]));
    listed = start + rows.length;
    $("next").hidden = listed >= found.total;
    $("next").textContent = `Show more (${count(found.total - listed)})`;
  } catch (error) {
    fill($("documents"), failure(error.error || { what: String(error) }));
  }
}

function trouble(error) {
  $("trouble").hidden = !error;
  fill($("trouble"), error ? failure(error) : null);
}

/** Look at the state now, and again later: soon while something runs. */
export async function look(now = busy) {
  busy = now;
  window.clearTimeout(timer);
  let working = false;
  try {
    const state = await get("api/state");
    for (const show of [chips, cache, index, job]) show(state);
    trouble(state.trouble);
    working = Boolean(state.job && state.job.running);
    if (state.index.revision !== revision) {
      revision = state.index.revision;
      documents(0);
    }
  } catch (error) {
    trouble(error.error || { what: String(error) });
  }
  window.clearTimeout(timer);
  timer = window.setTimeout(() => { look(); }, busy || working ? BUSY : IDLE);
}

$("rebuild").addEventListener("click", async () => {
  $("rebuild").disabled = true;
  try {
    await order("api/index");
  } catch (error) {
    fill($("job"), failure(error.error || { what: String(error) }));
  }
  look();
});
let typing = 0;
$("find").addEventListener("input", () => {
  window.clearTimeout(typing);
  typing = window.setTimeout(() => documents(0), 200);
});
$("next").addEventListener("click", () => documents(listed));
$("more").addEventListener("click", () => {
  document.body.classList.toggle("side");
});
// Also where another script goes back to the answers.
new MutationObserver(() => {
  const open = document.body.classList.contains("side");
  $("more").setAttribute("aria-expanded", String(open));
  $("more").textContent = open ? "Back to the answers" : "Index and cache";
}).observe(document.body, { attributes: true, attributeFilter: ["class"] });
