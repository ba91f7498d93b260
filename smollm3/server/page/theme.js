// Runs before the first paint: the reader's own choice of light or dark, else the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("smollm3.theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
