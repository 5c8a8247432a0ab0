// Documents to answer from in whole, in place of what a search finds.

import { $, button, el, fill } from "./dom.js";

const MOST = 50; // as the server takes
const chosen = new Map();

export const over = () => [...chosen.keys()];

export function choose(source) {
  if (chosen.size < MOST) chosen.set(source.document, source.title);
  show();
}

function drop(document) {
  chosen.delete(document);
  show();
  $("question").focus();
}

function show() {
  const rows = [...chosen].map(([document, title]) => {
    const remove = button("×", "remove", () => drop(document));
    remove.setAttribute("aria-label", `Do not answer from ${title}`);
    return el("li", "", title, remove);
  });
  fill($("over"), ...rows);
  $("over-row").hidden = !chosen.size;
  $("same").disabled = chosen.size > 0;
  if (chosen.size) $("same").checked = false;
}
