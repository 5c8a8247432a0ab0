"use strict";
// Copy buttons: each copies the code before it.
(function () {
  function said(button, text) {
    button.textContent = text;
    window.setTimeout(function () { button.textContent = "Copy"; }, 1600);
  }
  function select(button, code) {
    window.getSelection().selectAllChildren(code);
    said(button, document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
  }
  document.querySelectorAll("[data-copy]").forEach(function (button) { button.hidden = false; });
  document.addEventListener("click", function (event) {
    const button = event.target.closest("[data-copy]");
    if (!button) { return; }
    const code = button.previousElementSibling;
    if (!navigator.clipboard) { select(button, code); return; }
    navigator.clipboard.writeText(code.textContent).then(
      function () { said(button, "Copied"); },
      function () { select(button, code); }
    );
  });
})();
