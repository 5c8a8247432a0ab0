"use strict";
// The filters of the board: a form that writes the address, and the rows that pass it.
window.nybble.filters = (function () {
  const n = window.nybble;
  const form = document.getElementById("filters");
  const NAMES = ["model", "engine", "kv", "context", "verdict", "kind"];

  const TESTS = {
    model: function (row, wanted) { return n.data.models[row.model].id === wanted; },
    engine: function (row, wanted) { return row.engine === wanted; },
    kv: function (row, wanted) { return row.k === wanted || row.v === wanted; },
    context: function (row, wanted) { return String(row.context) === wanted; },
    verdict: function (row, wanted) { return row.verdict === wanted; },
    kind: function (row, wanted) { return row.kind === wanted; },
  };

  function distinct(names) {
    const found = new Set();
    n.rows.forEach(function (row) { names.forEach(function (k) { found.add(row[k]); }); });
    found.delete("");
    return Array.from(found);
  }

  function words(names) {
    return distinct(names).sort().map(function (v) { return [v, v]; });
  }

  function searched(row) {
    if (row.searched === undefined) {
      const model = n.data.models[row.model];
      row.searched = [
        n.modelName(model), row.setting, row.engine, row.version, row.hardware, row.texts,
      ].join("\n").toLowerCase();
    }
    return row.searched;
  }

  function build() {
    const models = n.data.models.map(function (m) { return [m.id, n.modelName(m)]; });
    const contexts = distinct(["context"]).sort(function (a, b) { return a - b; });
    const ranked = ["safe", "unresolved", "degraded", "broken", "failed"];
    const verdicts = distinct(["verdict"]).sort(function (a, b) {
      return ranked.indexOf(a) - ranked.indexOf(b);
    });
    const search = n.element("input", { type: "search", name: "q", id: "f-q", autocomplete: "off" });
    form.append(
      n.element("label", { for: "f-q", class: "search" }, n.element("span", {}, "search"), search),
      n.select("model", "model", models, "all"),
      n.select("kv", "KV type, K or V", words(["k", "v"]), "all"),
      n.select("verdict", "verdict", verdicts.map(function (v) { return [v, v]; }), "all"),
      n.select("context", "context", contexts.map(function (c) {
        return [String(c), c.toLocaleString("en")];
      }), "all"),
      n.select("engine", "engine", words(["engine"]), "all"),
      n.select("kind", "cache", words(["kind"]), "all"),
      n.select("by", "sort by", n.sorts, "")
    );
    form.hidden = false;
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    // Choices tell "change", the search every key; what is written twice changes nothing.
    form.addEventListener("input", changed);
    form.addEventListener("change", changed);
  }

  function changed(event) {
    const name = event.target.name;
    if (name === "by") {
      const [sort, dir] = event.target.value.split(" ");
      n.write({ sort: sort, dir: dir, page: "" });
    } else {
      n.write({ [name]: event.target.value, page: "", sort: n.read().get("sort") || "verdict" },
        name === "q");
    }
  }

  function show(state) {
    NAMES.forEach(function (name) { n.choose(form.elements[name], state.get(name) || ""); });
    const search = form.elements.q;
    if (document.activeElement !== search) { search.value = state.get("q") || ""; }
  }

  function passing(state) {
    const wanted = NAMES.filter(function (name) { return state.get(name); });
    const terms = (state.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
    return n.rows.filter(function (row) {
      return wanted.every(function (name) { return TESTS[name](row, state.get(name)); }) &&
        terms.every(function (term) { return searched(row).includes(term); });
    });
  }

  function any(state) {
    return NAMES.concat("q").some(function (name) { return state.get(name); });
  }

  return { build, show, passing, any, form };
})();
