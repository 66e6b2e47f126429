// An image pasted anywhere on the page is uploaded as if it had been chosen.
document.addEventListener("paste", (event) => {
  const images = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  const input = document.querySelector("#upload input[type=file]");
  if (images.length && input) {
    const chosen = new DataTransfer();
    chosen.items.add(images[0]);
    input.files = chosen.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }
});
