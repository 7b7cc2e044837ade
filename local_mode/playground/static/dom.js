// Elements by id, elements made of text, and a loop that rests while nobody looks. Text never becomes markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties (`class` and `aria-…` or `data-…` as attributes) and children, strings as text. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class" || name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Calls `step` again `pause()` ms after it has ended, as long as the page is visible. */
export function repeatedly(step, pause) {
  let timer = 0;
  const run = async () => {
    clearTimeout(timer);
    timer = -1; // running
    await step();
    timer = document.hidden ? 0 : setTimeout(run, pause());
  };
  const soon = () => { if (timer !== -1) run(); };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(); });
  run();
  return soon;
}

/** Copies text; the button says so for a moment. */
export function copies(button, text) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed"; // the clipboard is for pages of localhost and of https
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}
