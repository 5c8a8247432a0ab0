// Elements and numbers. Text goes in as text nodes only: documents and answers are not trusted.

export const $ = (id) => document.getElementById(id);

/** An element with a class, and children that are elements or text. */
export function el(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

export function button(text, className, onClick) {
  const made = el("button", className, text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

export function fill(place, ...children) {
  place.replaceChildren(...children.filter((c) => c !== null && c !== undefined));
}

const whole = new Intl.NumberFormat("en");

export const count = (n) => whole.format(n);

export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || one + "s"}`;

/** Bytes with three digits, in the units that the rest of nybble prints. */
export function bytes(n) {
  let unit = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (n >= 1000 && unit < units.length - 1) { n /= 1024; unit += 1; }
  const digits = unit === 0 ? 0 : n >= 99.95 ? 0 : n >= 9.995 ? 1 : 2;
  return `${n.toFixed(digits)} ${units[unit]}`;
}

export function seconds(s) {
  return s < 0.0995 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(s < 9.95 ? 2 : 1)} s`;
}

/** An error of the library: what failed, the value seen, what is allowed, what to try. */
export function failure(error) {
  const lines = [el("p", "bad", error.what)];
  for (const name of ["seen", "allowed", "hint"]) {
    const label = name === "hint" ? "try" : name;
    if (error[name]) lines.push(el("p", "note", `${label}: ${error[name]}`));
  }
  return el("div", "failure", ...lines);
}
