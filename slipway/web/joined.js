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
events.addEventListener("connected", () => {
  state.textContent = "✓ Connected: your first call arrived.";
  state.className = "connected";
  events.close();
});
events.addEventListener("over", () => {
  state.textContent = "This page waits no longer.";
  events.close();
});
