// A link to an equation, a figure, an exercise or a theorem of the same page shows it while the
// pointer or the focus rests on the link. Escape closes the preview. It is inert: keyboard and
// screen reader follow the link instead.
{
  const SHOWN = "div.math, figure, div.admonition";
  const box = document.createElement("div");
  box.className = "preview";
  let timer;

  const later = (action, ...given) => {
    clearTimeout(timer);
    timer = setTimeout(action, 250, ...given);
  };
  const hide = () => {
    clearTimeout(timer);
    box.remove();
  };
  const show = (link, shown) => {
    const copy = shown.cloneNode(true);
    copy.inert = true;
    for (const part of [copy, ...copy.querySelectorAll("[id]")]) part.removeAttribute("id");
    box.replaceChildren(copy);
    document.querySelector("article").append(box);
    const { left, top, bottom } = link.getBoundingClientRect();
    const room = document.documentElement.clientWidth - box.offsetWidth - 8;
    const below = bottom + box.offsetHeight < innerHeight ? bottom : top - box.offsetHeight;
    box.style.left = `${Math.max(8, Math.min(left, room))}px`;
    box.style.top = `${Math.max(8, below)}px`;
  };

  addEventListener("DOMContentLoaded", () => {
    for (const link of document.querySelectorAll("article a.internal[href^='#']")) {
      const found = document.getElementById(decodeURIComponent(link.hash.slice(1)));
      const shown = found?.closest(SHOWN) ?? found?.querySelector(`:scope > :is(${SHOWN})`);
      if (!shown || shown.contains(link)) continue;
      for (const event of ["mouseenter", "focus"])
        link.addEventListener(event, () => later(show, link, shown));
      for (const event of ["mouseleave", "blur"]) link.addEventListener(event, () => later(hide));
    }
  });
  box.addEventListener("mouseenter", () => clearTimeout(timer));
  box.addEventListener("mouseleave", () => later(hide));
  document.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
  addEventListener("scroll", hide, { passive: true });
}
