"use strict";
// Two models side by side: settings that both were measured with, in the same way.
(function () {
  const n = window.nybble;
  const table = document.getElementById("table");
  const form = document.getElementById("choice");
  const models = n.data.models;
  const SAME = ["setting", "context", "how", "texts"];

  function build() {
    const options = models.map(function (m) { return [m.id, n.modelName(m)]; });
    const swap = n.element("button", { type: "button" }, "Swap");
    form.append(n.select("a", "model a", options, "choose"), n.select("b", "model b", options, "choose"), swap);
    form.hidden = false;
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    form.addEventListener("change", function (event) {
      n.write({ [event.target.name]: event.target.value });
    });
    swap.addEventListener("click", function () {
      n.write({ a: n.read().get("b"), b: n.read().get("a") });
    });
  }

  function rowsOf(id) {
    return n.rows.filter(function (row) { return models[row.model].id === id; });
  }

  function key(row) {
    return JSON.stringify(SAME.map(function (name) { return row[name]; }));
  }

  function pairs(a, b) {
    const others = new Map();
    b.forEach(function (row) {
      others.set(key(row), (others.get(key(row)) || []).concat(row));
    });
    return a.flatMap(function (row) {
      return (others.get(key(row)) || []).map(function (other) { return [row, other]; });
    }).sort(function ([x], [y]) { return y.context - x.context || y.bits - x.bits; });
  }

  function lower(a, b) {
    if (a.mean_kld === null || b.mean_kld === null || a.kind === "lower bound") { return "–"; }
    if (a.low === null || b.low === null) { return "no interval"; }
    if (a.high < b.low) { return "a"; }
    return b.high < a.low ? "b" : "intervals overlap";
  }

  function ratio(a, b) {
    if (!(a.mean_kld > 0) || b.mean_kld === null || a.kind === "lower bound") { return "–"; }
    return (b.mean_kld / a.mean_kld).toPrecision(2).replace(/e\+?/, "e");
  }

  const COLUMNS = [
    ["KV setting", function (a) { return n.setting(a); }],
    ["bits", function (a, b) { return [a.bits_text === b.bits_text ? a.bits_text : a.bits_text + " and " + b.bits_text]; }],
    ["context", function (a) { return [a.context_text]; }],
    ["mean KLD of a", function (a) { return n.value(a, "mean_kld"); }],
    ["mean KLD of b", function (a, b) { return n.value(b, "mean_kld"); }],
    ["b over a", function (a, b) { return [ratio(a, b)]; }],
    ["lower", function (a, b) { return [lower(a, b)]; }],
    ["verdict of a", function (a) { return n.verdict(a); }],
    ["verdict of b", function (a, b) { return n.verdict(b); }],
    ["same top of a", function (a) { return n.value(a, "same_top"); }],
    ["same top of b", function (a, b) { return n.value(b, "same_top"); }],
    ["scored", function (a) { return [n.element("span", { class: "ci how" }, a.how)]; }],
  ];

  function line([a, b]) {
    const cells = COLUMNS.map(function ([title, show], i) {
      const tag = i === 0 ? { scope: "row", role: "rowheader" } : { role: "cell" };
      const cell = n.element(i === 0 ? "th" : "td", { ...tag, "data-label": title });
      cell.append(...show(a, b));
      return cell;
    });
    return n.element("tr", { role: "row", class: a.kind.replace(" ", "-") }, ...cells);
  }

  function head() {
    const cells = COLUMNS.map(function ([title]) {
      return n.element("th", { scope: "col", role: "columnheader" }, title);
    });
    return n.element("thead", { role: "rowgroup" }, n.element("tr", { role: "row" }, ...cells));
  }

  function message(a, b, found) {
    if (!a || !b) { return "Choose two models."; }
    const unknown = [a, b].find(function (id) { return !models.some(function (m) { return m.id === id; }); });
    if (unknown) { return "There is no model " + unknown + " here. Choose another."; }
    if (!found.length) { return "No setting was measured on both in the same way."; }
    return found.length.toLocaleString("en") + (found.length === 1 ? " setting" : " settings") +
      " measured on both in the same way";
  }

  function draw() {
    const state = n.read();
    const a = state.get("a") || "", b = state.get("b") || "";
    n.choose(form.elements.a, a);
    n.choose(form.elements.b, b);
    const found = a && b ? pairs(rowsOf(a), rowsOf(b)) : [];
    table.querySelectorAll("thead, tbody").forEach(function (part) { part.remove(); });
    if (found.length) {
      table.append(head(), n.element("tbody", { role: "rowgroup" }, ...found.map(line)));
    }
    document.getElementById("count").textContent = message(a, b, found);
  }

  build();
  draw();
  window.addEventListener("hashchange", draw);
})();
