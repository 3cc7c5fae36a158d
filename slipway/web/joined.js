"use strict";
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(button.parentElement.querySelector("pre"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
const state = document.getElementById("state");
const events = new EventSource("/join?watch=" + encodeURIComponent(state.dataset.watch));
const steps = new Map();
let inLab = false;
function end(text) {
  // every stream that is opened again costs a request of the tunnel's plan
  events.close();
  if (!text) return;
  state.textContent = text;
  state.className = "waiting";
}
events.addEventListener("connected", () => {
  state.textContent = "✓ Connected: your first call arrived.";
  state.className = "connected";
  if (!inLab) end();
});
events.addEventListener("checkpoints", (event) => {
  const { all, reached } = JSON.parse(event.data);
  inLab = true;
  document.getElementById("checkpoints").hidden = all.length === 0;
  for (const { id, title } of all) {
    if (!steps.has(id)) {
      const step = document.createElement("li");
      const sign = document.createElement("span");
      sign.className = "sign";
      sign.setAttribute("role", "img");
      step.append(sign, title);
      document.getElementById("steps").append(step);
      steps.set(id, step);
    }
    const done = reached.includes(id);
    steps.get(id).classList.toggle("done", done);
    steps.get(id).firstChild.textContent = done ? "✓ " : "○ ";
    steps.get(id).firstChild.setAttribute("aria-label", done ? "done" : "open");
  }
  document.getElementById("sum").textContent = `${all.filter((one) => reached.includes(one.id)).length} of ${all.length}`;
});
events.addEventListener("over", () => {
  end("This page waits no longer. Do your calls get a 401? Open the join page again and type the same code. Else go on: your client needs no page.");
});
events.addEventListener("error", () => {
  // refused, not broken off: the browser does not try again
  if (events.readyState === EventSource.CLOSED) end("This page hears the server no longer. Your client needs no page: go on.");
});
