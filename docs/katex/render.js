// Typeset what pymdownx.arithmatex has marked: \(inline\) or \[displayed\] formulas.
addEventListener("DOMContentLoaded", () => {
  for (const formula of document.querySelectorAll(".arithmatex")) {
    const text = formula.textContent.trim();
    katex.render(text.slice(2, -2), formula, {displayMode: text.startsWith("\\["), throwOnError: false});
  }
});
