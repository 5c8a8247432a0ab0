// An answer as it comes: its text, its citations as buttons, and what is known of it at the end.

import { button, count, el, failure, fill, plural, seconds } from "./dom.js";

// While it comes: [1], [1, 2] and [1-3]. At its end the server says what counts as a citation
// (nybble/rag/citations.py), and the text is set anew by that.
const CITED = /\[(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\]/;
const BEGUN = /\[[\d\s,;–-]{0,24}$/;
const WIDEST = 50;

function numbers(list) {
  const found = [];
  for (const part of list.split(/[,;]/)) {
    const [first, last] = part.match(/\d+/g).map(Number);
    const wide = last !== undefined && last >= first && last - first <= WIDEST;
    for (let n = first; n <= (wide ? last : first); n++) found.push(n);
    if (last !== undefined && !wide) found.push(last);
  }
  return [...new Set(found)];
}

const lines = (name, texts) =>
  texts.length ? [el("ul", `plain ${name}`, ...texts.map((t) => el("li", "", t)))] : [];

/** Text that arrives in pieces, with citations among it. */
class Writer {
  constructor(place, cite) {
    this.place = place;
    this.cite = cite;
    this.held = "";
  }

  add(text) {
    this.held += text;
    let found;
    while ((found = CITED.exec(this.held)) !== null) {
      this.write(this.held.slice(0, found.index));
      this.place.append(...numbers(found[1]).map(this.cite));
      this.held = this.held.slice(found.index + found[0].length);
    }
    // A bracket that the next piece may close waits for it.
    const begun = BEGUN.exec(this.held);
    const upTo = begun ? begun.index : this.held.length;
    this.write(this.held.slice(0, upTo));
    this.held = this.held.slice(upTo);
  }

  end() {
    this.write(this.held);
    this.held = "";
  }

  /** The whole of it, with the citations that the server found; places count code points. */
  all(text, citations) {
    const points = Array.from(text);
    let at = 0;
    this.held = "";
    this.place.replaceChildren();
    for (const c of citations) {
      this.write(points.slice(at, c.start).join(""));
      this.place.append(this.cite(c.number, c.quote_ok === false && c.exists));
      at = c.end;
    }
    this.write(points.slice(at).join(""));
  }

  write(text) {
    if (text) this.place.append(text);
  }
}

/** One question with its answer. */
export class Turn {
  constructor(question, open) {
    this.open = open;
    this.sources = new Map();
    this.text = el("div", "answer");
    this.text.setAttribute("aria-live", "polite");
    this.text.setAttribute("aria-busy", "true");
    this.writer = new Writer(this.text, (number, doubt) => this.citation(number, doubt === true));
    this.waiting = el("p", "note waiting");
    this.facts = el("p", "note facts-line");
    this.below = el("div", "below");
    this.item = el("li", "turn", el("h2", "question", question), this.waiting, this.text,
                   this.facts, this.below);
  }

  citation(number, doubt) {
    const source = this.sources.get(number);
    if (source) {
      const made = button(`[${number}]`, doubt ? "cite doubt" : "cite", () => this.open(source));
      const why = doubt ? " (what is quoted is not in it)" : "";
      made.title = source.title + why;
      made.setAttribute("aria-label", `Source ${number}: ${source.title}${why}`);
      return made;
    }
    const mark = el("span", "cite missing", `[${number}]`);
    mark.title = "There is no such passage";
    mark.append(el("span", "hidden", " (there is no such passage)"));
    return mark;
  }

  take(event) {
    if (event.kind === "queued") this.say(`waits: ${plural(event.ahead, "question")} before it`);
    if (event.kind === "begun") this.say("looks for passages");
    if (event.kind === "sources") this.found(event);
    if (event.kind === "reading") {
      this.say(`reads the sources: ${Math.round(100 * event.done / event.total)} %`);
    }
    if (event.kind === "text") {
      this.say("");
      this.writer.add(event.text);
    }
    if (event.kind === "note") this.say(event.text);
    if (event.kind === "done") this.done(event.answer);
    if (event.kind === "error") this.fail(event.error);
  }

  say(text) {
    this.waiting.textContent = text;
    this.waiting.hidden = !text;
  }

  found(event) {
    this.sources = new Map(event.sources.map((s) => [s.number, s]));
    this.say(`reads ${plural(event.sources.length, "passage")}`);
    this.list(event.packed);
  }

  list(packed) {
    const rows = [...this.sources.values()].map((s) => {
      const place = [s.document, s.page ? `p. ${s.page}` : null].filter(Boolean).join(", ");
      const row = el("li", "source", button(`[${s.number}]`, "cite", () => this.open(s)),
                     el("span", "name", s.heading && s.heading !== s.title
                       ? `${s.title}: ${s.heading}` : s.title),
                     el("span", "note path", place));
      row.dataset.number = s.number;
      return row;
    });
    const summary = el("summary", "", packed || plural(rows.length, "passage"));
    const box = el("details", "sources", summary, el("ol", "plain", ...rows));
    box.open = true;
    fill(this.below, box);
  }

  done(answer) {
    this.close();
    this.writer.all(answer.text, answer.citations);
    for (const row of this.below.querySelectorAll(".source")) {
      const cited = answer.citations.some((c) => c.exists && c.number === Number(row.dataset.number));
      if (cited) continue;
      row.classList.add("unused");
      row.querySelector(".path").append(" · not cited");
    }
    const parts = [];
    if (answer.first !== null) parts.push(`first token after ${seconds(answer.first)}`);
    if (answer.tokens !== null) parts.push(plural(answer.tokens, "token"));
    if (answer.speed !== null) parts.push(`${count(Number(answer.speed.toPrecision(3)))} tokens/s`);
    if (answer.found >= 0.001) parts.push(`passages found in ${seconds(answer.found)}`);
    this.facts.textContent = parts.join(" · ");
    this.below.prepend(...lines("warnings", answer.warnings));
    this.below.append(...lines("notes", answer.notes));
  }

  fail(error) {
    this.close();
    if (this.text.childNodes.length) this.facts.textContent = "the answer is not complete";
    this.below.append(failure(error));
  }

  stopped() {
    this.close();
    this.facts.textContent = "stopped";
  }

  close() {
    this.writer.end();
    this.say("");
    this.text.setAttribute("aria-busy", "false");
  }
}
