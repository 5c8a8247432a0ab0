"use strict";
// The address holds the state: controls write it, and what is drawn is read from it, so links,
// reload, back and forward all work. Also what the scripts of several pages share.
window.nybble = (function () {
  const data = window.NYBBLE;
  const numbers = new Set(data.numbers);

  const rows = data.rows.map(function (values) {
    const row = {};
    data.fields.forEach(function (name, i) {
      row[name] = numbers.has(name) ? values[i] : data.texts[values[i]];
    });
    return row;
  });

  function read() {
    return new URLSearchParams(window.location.hash.slice(1));
  }

  // quiet: no step of its own for "back", for what changes with every key.
  function write(changes, quiet) {
    const next = read();
    Object.entries(changes).forEach(function ([name, value]) {
      if (value) { next.set(name, value); } else { next.delete(name); }
    });
    const hash = "#" + next.toString();
    if (hash === window.location.hash) { return; }
    if (quiet) { window.location.replace(hash); } else { window.location.hash = hash; }
  }

  // Texts are foreign: they become text nodes, never HTML.
  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    Object.entries(attributes || {}).forEach(function ([name, value]) {
      made.setAttribute(name, value);
    });
    made.append(...children);
    return made;
  }

  // A labelled <select>; a value of the address that is no option stays visible as one.
  function select(name, label, options, any) {
    const box = element("select", { name: name, id: "f-" + name });
    if (any) { box.append(element("option", { value: "" }, any)); }
    options.forEach(function ([value, text]) {
      box.append(element("option", { value: value }, text));
    });
    return element("label", { for: box.id }, element("span", {}, label), box);
  }

  function choose(box, value) {
    box.querySelectorAll("option[data-unknown]").forEach(function (o) { o.remove(); });
    if (!Array.from(box.options).some(function (o) { return o.value === value; })) {
      box.append(element("option", { value: value, "data-unknown": "" }, value + " (not here)"));
    }
    box.value = value;
  }

  function value(row, name) {
    const parts = [element("span", { class: "n" }, row[name + "_text"])];
    if (row[name + "_ci"]) { parts.push(element("span", { class: "ci" }, row[name + "_ci"])); }
    return parts;
  }

  function verdict(row) {
    if (!row.verdict) { return []; }
    return [element("span", { class: "v v-" + row.verdict, title: row.reason }, row.verdict)];
  }

  // Lines may break after a slash and before a plus sign.
  function setting(row) {
    const name = element("span", { class: "setting" });
    row.setting.split(/(?<=\/)|(?=\+)/).forEach(function (piece, i) {
      name.append(...(i ? [element("wbr")] : []), piece);
    });
    const parts = [name];
    if (row.kind !== "stored") {
      const mark = row.kind === "simulated" ? "simulated" : "bound";
      parts.push(element("span", { class: "tag " + mark }, row.kind));
    }
    return parts;
  }

  function about(model) {
    return [model.weights, model.more].filter(Boolean).join(" · ");
  }

  function modelName(model) {
    return [model.name, about(model)].filter(Boolean).join(", ");
  }

  return { data, rows, read, write, element, select, choose, value, verdict, setting, about, modelName };
})();
