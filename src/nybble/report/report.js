"use strict";
(function () {
  var root = document.documentElement;
  var theme = document.getElementById("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  }
  function name() {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", "Switch to " + (isDark() ? "light" : "dark") + " colours");
  }
  theme.hidden = false;
  theme.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();

  var copy = document.getElementById("copy");
  var command = document.getElementById("command");
  function said(text) {
    copy.textContent = text;
    window.setTimeout(function () { copy.textContent = "Copy"; }, 1600);
  }
  function select() {
    window.getSelection().selectAllChildren(command);
    said(document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
  }
  if (copy) {
    copy.hidden = false;
    copy.addEventListener("click", function () {
      if (!navigator.clipboard) { select(); return; }
      navigator.clipboard.writeText(command.textContent).then(function () { said("Copied"); }, select);
    });
  }

  // Paper cannot open a <details>.
  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (d) { d.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (d) { d.open = false; });
  });
})();
