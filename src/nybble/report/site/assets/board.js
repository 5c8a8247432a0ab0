"use strict";
// The board: rows that pass the filters, sorted, a page at a time.
(function () {
  const n = window.nybble;
  const PAGE = 50;
  const table = document.getElementById("table");

  function model(row) { return n.data.models[row.model]; }

  function two(first, second) {
    const parts = [n.element("span", { class: "n" }, first)];
    if (second) { parts.push(n.element("span", { class: "ci" }, second)); }
    return parts;
  }

  function modelCell(row) {
    const m = model(row);
    const link = n.element("a", { href: "models/" + m.id + ".html" }, m.name);
    return [link, n.element("span", { class: "ci" }, n.about(m))];
  }

  function commandCell(row) {
    if (!row.command) { return []; }
    const code = n.element("code", {}, row.command);
    const button = n.element("button", { type: "button", "data-copy": "" }, "Copy");
    return [n.element("details", {}, n.element("summary", {}, "command"), code, button)];
  }

  // key, heading, what to sort by (null or "" is missing), what to show, first direction.
  const COLUMNS = [
    ["model", "model", function (r) { return n.modelName(model(r)).toLowerCase(); }, modelCell],
    ["setting", "KV setting", function (r) { return r.setting; }, n.setting],
    ["bits", "bits", function (r) { return r.bits; }, function (r) { return two(r.bits_text); }],
    ["kld", "mean KLD", function (r) { return r.mean_kld; }, function (r) { return n.value(r, "mean_kld"); }],
    ["floor", "noise floor", function (r) { return r.floor; }, function (r) { return n.value(r, "floor"); }],
    ["tail", "p99.9 KLD", function (r) { return r.p999_kld; }, function (r) { return n.value(r, "p999_kld"); }],
    ["same", "same top", function (r) { return r.same_top; }, function (r) { return n.value(r, "same_top"); }, "desc"],
    ["flips", "flips", function (r) { return r.flips; }, function (r) { return n.value(r, "flips"); }],
    ["verdict", "verdict", function (r) { return r.rank; }, n.verdict],
    ["context", "context", function (r) { return r.context; }, function (r) { return two(r.context_text); }, "desc"],
    ["engine", "engine", function (r) { return r.engine + " " + r.version; }, function (r) { return two(r.engine, r.version); }],
    ["hardware", "hardware", function (r) { return r.hardware; }, function (r) { return two(r.hardware); }],
    ["command", "reproduce", null, commandCell],
  ].map(function ([key, title, by, show, first]) {
    return { key, title, by, show, first: first || "asc" };
  });

  const SORTED = COLUMNS.filter(function (c) { return c.by; });
  n.sorts = SORTED.flatMap(function (c) {
    const other = c.first === "asc" ? "desc" : "asc";
    const up = c.key === "verdict" ? "verdict, smallest safe first" : c.title;
    return [[c.key + " " + c.first, up], [c.key + " " + other, c.title + ", reversed"]];
  });

  function order(state) {
    const column = SORTED.find(function (c) { return c.key === state.get("sort"); }) ||
      SORTED.find(function (c) { return c.key === "verdict"; });
    const given = state.get("dir");
    return { column: column, dir: given === "asc" || given === "desc" ? given : column.first };
  }

  // Missing values are last both ways; equal ones keep the board's order.
  function sorted(rows, column, dir) {
    const sign = dir === "asc" ? 1 : -1;
    return rows.map(function (row) { return [column.by(row), row]; })
      .sort(function ([a], [b]) {
        const lacks = (a === null || a === "") - (b === null || b === "");
        if (lacks || a === null || a === "") { return lacks; }
        return sign * (a < b ? -1 : a > b ? 1 : 0);
      })
      .map(function (pair) { return pair[1]; });
  }

  function head(column, dir) {
    const cells = COLUMNS.map(function (c) {
      const cell = n.element("th", { scope: "col", role: "columnheader", class: "c-" + c.key });
      if (!c.by) { cell.textContent = c.title; return cell; }
      const current = c === column;
      if (current) { cell.setAttribute("aria-sort", dir === "asc" ? "ascending" : "descending"); }
      const button = n.element("button", { type: "button", "data-sort": c.key }, c.title);
      button.addEventListener("click", function () {
        const turned = dir === "asc" ? "desc" : "asc";
        n.write({ sort: c.key, dir: current ? turned : c.first, page: "" });
      });
      cell.append(button);
      return cell;
    });
    return n.element("thead", { role: "rowgroup" }, n.element("tr", { role: "row" }, ...cells));
  }

  function line(row) {
    const cells = COLUMNS.map(function (c, i) {
      const first = i === 0;
      const tag = first ? { scope: "row", role: "rowheader" } : { role: "cell" };
      const cell = n.element(first ? "th" : "td", { ...tag, "data-label": c.title, class: "c-" + c.key });
      cell.append(...c.show(row));
      return cell;
    });
    return n.element("tr", { role: "row", class: row.kind.replace(" ", "-"), title: row.how }, ...cells);
  }

  function draw() {
    const state = n.read();
    const { column, dir } = order(state);
    const rows = sorted(n.filters.passing(state), column, dir);
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    const page = Math.min(pages, Math.max(1, parseInt(state.get("page"), 10) || 1));
    const shown = rows.slice((page - 1) * PAGE, page * PAGE);
    const focused = document.activeElement && document.activeElement.dataset.sort;
    table.querySelectorAll("thead, tbody").forEach(function (part) { part.remove(); });
    table.append(head(column, dir), n.element("tbody", { role: "rowgroup" }, ...shown.map(line)));
    if (focused) { table.querySelector('[data-sort="' + focused + '"]').focus(); }
    n.filters.show(state);
    n.choose(n.filters.form.elements.by, column.key + " " + dir);
    tell(rows.length, page, pages, state);
  }

  function tell(count, page, pages, state) {
    const of = count.toLocaleString("en");
    const first = ((page - 1) * PAGE + 1).toLocaleString("en");
    const last = Math.min(page * PAGE, count).toLocaleString("en");
    document.getElementById("count").textContent =
      count ? first + "–" + last + " of " + of + " measurements" : "No measurement passes these filters.";
    document.getElementById("reset").hidden = !n.filters.any(state);
    document.getElementById("pager").hidden = pages < 2;
    document.getElementById("page").textContent = "page " + page + " of " + pages;
    turn("previous", page - 1, page > 1);
    turn("next", page + 1, page < pages);
  }

  function turn(id, page, possible) {
    const button = document.getElementById(id);
    button.disabled = !possible;
    button.onclick = function () {
      n.write({ page: page > 1 ? String(page) : "", sort: n.read().get("sort") || "verdict" });
      document.getElementById("board").scrollIntoView();
    };
  }

  n.filters.build();
  draw();
  window.addEventListener("hashchange", draw);
  performance.mark("nybble-drawn");
})();
