// Asking: one question at a time from this page; the server lets others wait.

import { events } from "./api.js";
import { Turn } from "./answer.js";
import { $ } from "./dom.js";
import { over } from "./over.js";
import { look } from "./side.js";
import { openSource } from "./source.js";

let running = null;
let last = []; // passages of the last answer, for questions over the same

function showRunning(on) {
  $("send").disabled = on;
  $("stop").hidden = !on;
  $("status").textContent = on ? "answering" : "";
  look(on);
}

/** How far the end of an answer is below what can be seen, in pixels. */
function below(turn) {
  return turn.text.getBoundingClientRect().bottom - $("read").getBoundingClientRect().bottom;
}

/** Hand an event on, and keep what is written in sight of those who had it in sight. */
function take(turn, event) {
  const inSight = below(turn) <= 0;
  turn.take(event);
  if (event.kind === "sources") toTop(turn);
  if (event.kind === "text" && inSight && below(turn) > -24) {
    $("read").scrollTop += below(turn) + 24;
  }
}

function toTop(turn) {
  $("read").scrollTop += turn.item.getBoundingClientRect().top -
    $("read").getBoundingClientRect().top;
}

async function answer(turn, body) {
  running = new AbortController();
  showRunning(true);
  let ended = false;
  try {
    for await (const event of events("api/ask", body, running.signal)) {
      take(turn, event);
      if (event.kind === "done") last = event.answer.same;
      ended = event.kind === "done" || event.kind === "error";
    }
    if (!ended) turn.fail({ what: "the connection ended before the answer did" });
  } catch (error) {
    if (running.signal.aborted) turn.stopped();
    else turn.fail(error.error || { what: "the connection ended before the answer did" });
  } finally {
    running = null;
    $("again").hidden = !last.length;
    showRunning(false);
  }
}

function ask() {
  const question = $("question").value.trim();
  if (!question || running) return;
  const body = { question };
  if (over().length) body.over = over();
  else if ($("same").checked && last.length) body.same = last;
  const turn = new Turn(question, openSource);
  $("empty").hidden = true;
  $("turns").append(turn.item);
  $("question").value = "";
  toTop(turn);
  answer(turn, body);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
$("stop").addEventListener("click", () => running && running.abort());

look();
$("question").focus();
