"use strict";
// Each chart is on the page as SVG already; this draws it live (tooltips, zoom) and, where the window is narrow,
// with fewer pixels of width rather than smaller letters.
(() => {
  const saving = (view, name) => {
    const line = document.createElement("span");
    line.className = "save";
    line.append("Save as ");
    for (const kind of ["svg", "png"]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = kind.toUpperCase();
      button.addEventListener("click", async () => {
        if (kind === "png") await view.background("white").runAsync();
        const url = await view.toImageURL(kind, kind === "png" ? 2 : 1);
        if (kind === "png") await view.background("transparent").runAsync();
        const link = document.createElement("a");
        link.href = url;
        link.download = `${name}.${kind}`;
        link.click();
      });
      line.append(button, kind === "svg" ? " or " : "");
    }
    return line;
  };

  const drawn = new Map();
  async function draw(box) {
    const spec = JSON.parse(document.getElementById(box.dataset.spec).textContent);
    const live = box.querySelector(".live");
    const options = { renderer: "svg", actions: false, tooltip: { theme: "inscape" } };
    drawn.get(box)?.finalize();
    let result = await vegaEmbed(live, spec, options);
    const missing = Number(live.querySelector("svg").getAttribute("width")) - box.clientWidth;
    const width = spec.width ?? spec.config?.view?.continuousWidth;
    const single = !["hconcat", "vconcat", "concat", "facet", "repeat"].some((key) => key in spec)
      && !["row", "column", "facet"].some((key) => key in (spec.encoding ?? {}));
    if (missing > 0 && single && typeof width === "number" && width - missing >= 150) {
      result.finalize();
      result = await vegaEmbed(live, { ...spec, width: Math.floor(width - missing) }, options);
    }
    drawn.set(box, result);
    box.classList.add("drawn");
    const caption = box.parentElement.querySelector("figcaption");
    caption.querySelector(".save")?.remove();
    caption.append(saving(result.view, box.dataset.name));
  }

  const redraw = (box) => draw(box).catch((error) => {
    box.classList.remove("drawn");
    console.error(error);
  });
  // One after the other, with a breath between: the page can be read and scrolled meanwhile.
  (async () => {
    for (const box of document.querySelectorAll(".chart")) {
      await redraw(box);
      await new Promise((next) => setTimeout(next));
    }
  })();

  let waiting, width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => [...drawn.keys()].forEach(redraw), 200);
  });
})();
