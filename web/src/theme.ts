/** Sets the theme before the first paint. It is a file of its own, because the page's policy allows no
 * script in the page, and the main one runs later. */
try {
  const theme = JSON.parse(localStorage.getItem("jarvis.theme") ?? "null") as unknown;
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Nothing is kept: the system's theme is used.
}
