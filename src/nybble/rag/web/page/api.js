// Requests to this page's own server; a key, where it asks for one, is kept in the tab.

import { $ } from "./dom.js";

const KEY = "nybble-key";

/** What the server refused, in the library's words. */
export class Refused extends Error {
  constructor(error) {
    super(error.what);
    this.error = error;
  }
}

let asking = null;

function askForKey(wrong) {
  asking = asking || new Promise((resolve) => {
    const dialog = $("key");
    $("key-wrong").textContent = wrong ? "This is not the key." : "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("key-value").value.trim());
      $("key-value").value = "";
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

async function send(path, options, key) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ what: "nybble rag serve does not answer; was it ended?" });
  }
}

async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const answer = await send(path, options, key);
    if (answer.status === 401) {
      // Another request of this page may have been told the key meanwhile.
      if (sessionStorage.getItem(KEY) === key) await askForKey(Boolean(key));
      continue;
    }
    if (answer.ok) return answer;
    let error = { what: `the server answered ${answer.status}` };
    try {
      const told = (await answer.json()).error;
      error = told.what ? told : { what: told.message };
    } catch { /* no JSON: the status is all there is */ }
    throw new Refused(error);
  }
}

function post(body, signal) {
  return { method: "POST", body: JSON.stringify(body), signal,
           headers: { "Content-Type": "application/json" } };
}

export async function get(path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  return (await request(query ? `${path}?${query}` : path)).json();
}

export async function order(path, body = {}) {
  return (await request(path, post(body))).json();
}

/** Server-sent events of a POST, as they come; an abort of the signal hangs up. */
export async function* events(path, body, signal) {
  const answer = await request(path, post(body, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}
