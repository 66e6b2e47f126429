// Of a panel and of the examples: what is clicked, or moved to by an arrow key, becomes an event for Python.
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-layer], button[data-head], button[data-example]");
  if (button) {
    const [[kind, index]] = Object.entries(button.dataset);
    trigger("select", { kind, index: Number(index) });
  }
  const image = event.target.closest(".cait-image img");
  if (image) {
    const { left, top, width, height } = image.getBoundingClientRect();
    trigger("select", { kind: "place", index: [(event.clientX - left) / width, (event.clientY - top) / height] });
  }
});

element.addEventListener("keydown", (event) => {
  if (event.target.closest(".cait-image") && event.key in MOVES) {
    event.preventDefault();
    trigger("select", { kind: "move", index: MOVES[event.key] });
  }
});

// The strip alone scrolls to what is chosen: scrollIntoView would move the page, too.
watch("value", () => {
  const chosen = element.querySelector("button[aria-pressed='true']");
  const strip = chosen?.parentElement;
  if (strip) strip.scrollLeft = chosen.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
});
