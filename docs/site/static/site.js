// What the theme leaves out for people who use a keyboard or a screen reader: code that scrolls can be reached, and the
// headings and drawers of the sides have a level and a name.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("pre, .table-wrapper").forEach((part) => part.setAttribute("tabindex", "0"));
  document.querySelectorAll("[role=heading]").forEach((part) => part.setAttribute("aria-level", "2"));
  document.querySelector("aside.sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector("aside.toc-drawer")?.setAttribute("aria-label", "On this page");
});
