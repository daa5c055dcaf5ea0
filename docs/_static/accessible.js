// What the theme leaves out for screen readers and keyboards.
addEventListener("DOMContentLoaded", () => {
  const set = (places, name, value) => {
    for (const one of document.querySelectorAll(places)) one.setAttribute(name, value);
  };
  set(".sidebar-drawer", "aria-label", "All pages");
  set(".toc-drawer", "aria-label", "This page");
  set("p.caption[role=heading]", "aria-level", "2");
  for (const cell of document.querySelectorAll("th")) {
    if (!cell.textContent.trim()) cell.setAttribute("role", "presentation");
  }
  const article = document.querySelector("article");
  if (article && !document.querySelector("h1")) {
    const heading = document.createElement("h1");
    heading.textContent = document.title.split(" - ")[0];
    article.prepend(heading);
  }
  // What scrolls must be reached by keys: a key scrolls only what has the focus.
  const reach = () => {
    for (const one of document.querySelectorAll("pre, .table-wrapper, .output")) {
      if (one.scrollWidth > one.clientWidth) one.tabIndex = 0;
      else one.removeAttribute("tabindex");
    }
  };
  reach();
  addEventListener("resize", reach);
});
