// The prompt's tokens as one line of buttons; which one is selected comes from outside.
export default function ({ data, parentElement, setTriggerValue }) {
  const line = parentElement.querySelector(".strip");
  const isNew = line.dataset.stamp !== data.stamp;
  if (isNew) {
    line.dataset.stamp = data.stamp;
    line.replaceChildren(...data.tokens.map((token, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.token = i;
      button.textContent = token;
      button.title = `token ${i}`;
      button.tabIndex = -1;
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `token ${i}: ${token}`);
      return button;
    }));
  }
  const buttons = [...line.children];
  const mark = (i, isPressed, isFirst) => {
    buttons[i]?.setAttribute("aria-pressed", String(isPressed));
    if (buttons[i]) buttons[i].tabIndex = isFirst ? 0 : -1;
  };
  mark(line.selected ?? 0, false, false);
  line.selected = data.selected;
  mark(data.selected ?? 0, data.selected !== null, true);
  line.onclick = (event) => {
    const button = event.target.closest("button");
    if (button) setTriggerValue("pick", Number(button.dataset.token));
  };
  line.onkeydown = (event) => {
    const at = buttons.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(buttons.length - 1, to))].focus();
  };
  const chosen = buttons[data.selected];
  if (chosen) line.scrollTo({ left: chosen.offsetLeft - line.clientWidth / 2 + chosen.offsetWidth / 2 });
}
