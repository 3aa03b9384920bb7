// What stands in the node: the buttons, the pictures, how fast they come.

import { t } from "./words.js";

const SPAN = 2000; // ms over which pictures per second are counted

/** The element of one live node. `live`, `play` and `save` are its buttons, to be given an onclick. */
export class Panel {
  #arrivals = [];

  constructor() {
    this.live = button(t("Live"), t("Draw again at every change of the graph, while this is on."));
    this.play = button(
      t("Play"),
      t("Draw one new seed after the other, until paused. Seeds held by “fixed” stay, if others are free."),
    );
    this.save = button(t("Save"), t("Write this picture to the output folder, as PNG with its workflow."));
    this.pictures = element("div", "instaflow-live-pictures");
    this.said = element("div", "instaflow-live-said");
    this.said.setAttribute("role", "status");
    const bar = element("div", "instaflow-live-bar");
    bar.append(this.live, this.play, this.save);
    this.element = element("div", "instaflow-live");
    this.element.append(stylesheet(), bar, this.pictures, this.said);
    // A press on the panel is not a drag of the node, a turn of the wheel still zooms.
    for (const kind of ["pointerdown", "mousedown", "dblclick"]) {
      bar.addEventListener(kind, (event) => event.stopPropagation());
    }
    this.show({ on: false, playing: false });
  }

  /** Draw the buttons as the state says. */
  show({ on, playing }) {
    this.live.setAttribute("aria-pressed", String(on));
    this.play.setAttribute("aria-pressed", String(on && playing));
    this.play.textContent = on && playing ? t("Pause") : t("Play");
    this.play.disabled = !on;
    this.save.disabled = !this.pictures.childElementCount;
    if (!on) this.#arrivals = [];
  }

  /** Show one picture, a Blob, of `count`; `milliseconds` is what it took, where that is known. */
  frame(blob, index, count, milliseconds) {
    while (this.pictures.childElementCount > count) this.pictures.lastChild.remove();
    while (this.pictures.childElementCount < count) this.pictures.append(picture());
    this.pictures.style.setProperty("--columns", Math.ceil(Math.sqrt(count)));
    const image = this.pictures.children[index];
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(blob);
    this.save.disabled = false;
    const now = performance.now();
    this.#arrivals.push(now);
    if (index < count - 1) return;
    while (this.#arrivals[0] < now - SPAN) this.#arrivals.shift();
    this.say(speed(this.#arrivals, milliseconds));
  }

  /** Say how fast it goes, what was saved or, with `error`, what is wrong. */
  say(text, error = false) {
    this.said.textContent = text;
    this.said.classList.toggle("instaflow-live-error", error);
  }

  /** Let go of what the pictures hold. */
  close() {
    for (const image of this.pictures.children) URL.revokeObjectURL(image.src);
  }
}

function speed(arrivals, milliseconds) {
  const parts = milliseconds ? [t("{0} ms", Math.round(milliseconds))] : [];
  const seconds = (arrivals.at(-1) - arrivals[0]) / 1000;
  if (seconds > 0) parts.push(t("{0} pictures/s", ((arrivals.length - 1) / seconds).toFixed(1)));
  return parts.join(" · ");
}

function element(tag, className) {
  const made = document.createElement(tag);
  made.className = className;
  return made;
}

function button(text, title) {
  const made = element("button", "instaflow-live-button");
  Object.assign(made, { type: "button", textContent: text, title });
  return made;
}

function picture() {
  const made = element("img", "instaflow-live-picture");
  Object.assign(made, { alt: t("live picture"), draggable: false });
  return made;
}

/** The panel's styles, in the panel itself: the page's head belongs to all packs. */
function stylesheet() {
  const made = document.createElement("link");
  return Object.assign(made, { rel: "stylesheet", href: new URL("./live.css", import.meta.url).href });
}
