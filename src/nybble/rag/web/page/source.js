// A passage inside its document.

import { get } from "./api.js";
import { $, el, failure, fill } from "./dom.js";
import { choose } from "./over.js";

const dialog = $("source");
let opened = 0;
let shown = null;

$("source-close").addEventListener("click", () => dialog.close());
$("source-over").addEventListener("click", () => {
  dialog.close();
  document.body.classList.remove("side");
  choose(shown);
  $("question").focus();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop: what is inside covers the box
});

// White space between passages is not kept by the index.
const words = (text) => text.split(/\s+/).join(" ").trim();

function head(title, place, note) {
  $("source-title").textContent = title;
  $("source-place").textContent = place;
  $("source-note").textContent = note || "";
  $("source-note").hidden = !note;
}

/** Show a source of an answer, or a document from its start where there is no number. */
export async function openSource(source) {
  const mine = ++opened;
  shown = source;
  const number = source.number ? `[${source.number}] ` : "";
  const place = [source.document, source.heading, source.page ? `page ${source.page}` : null];
  head(number + source.title, place.filter(Boolean).join(" · "), "");
  const text = $("source-text");
  fill(text, source.text ? el("mark", "", source.text) : "");
  if (!dialog.open) dialog.showModal();
  text.focus();
  try {
    const asked = { document: source.document };
    if (source.number) Object.assign(asked, { start: source.start, end: source.end });
    const found = await get("api/source", asked);
    if (mine !== opened) return;
    if (source.number && source.text && words(found.marked) !== words(source.text)) {
      $("source-note").textContent = "The index has changed since: this is what was read.";
      $("source-note").hidden = false;
      return;
    }
    const mark = el("mark", "", found.marked);
    fill(text, found.cut_before ? "… " : "", found.before, source.number ? mark : found.marked,
         found.after, found.cut_after ? " …" : "");
    if (source.number) mark.scrollIntoView({ block: "center" });
    else text.scrollTop = 0;
  } catch (error) {
    if (mine !== opened) return;
    text.append(failure(error.error || { what: String(error) }));
  }
}
