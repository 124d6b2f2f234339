// Which cell of a grid is selected, apart from its numbers: heat.js draws it.
export default function ({ data }) {
  window.interpMarks ??= new Map();
  window.interpMarks.set(data.grid, data.selected);
  document.dispatchEvent(new CustomEvent("interp-mark", { detail: data.grid }));
}
