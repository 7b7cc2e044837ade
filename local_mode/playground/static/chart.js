// A line of the last minute's values, drawn as SVG. Knows numbers and their words, not what they mean.

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, SAMPLES] = [240, 44, 120];

/** `shown` puts a value into words; the axis ends at `ceiling` or at the highest value, whichever is more. */
export class Chart {
  #values = [];

  constructor(title, { shown, ceiling = 0 }) {
    this.#title = title;
    this.#shown = shown;
    this.#ceiling = ceiling;
    this.#number = element("strong", {}, "–");
    this.#note = element("span", { class: "soft" });
    this.#line = document.createElementNS(SVG, "polyline");
    this.#area = document.createElementNS(SVG, "polygon");
    this.#picture = document.createElementNS(SVG, "svg");
    this.#picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.#picture.setAttribute("preserveAspectRatio", "none");
    this.#picture.setAttribute("role", "img");
    this.#picture.append(this.#area, this.#line);
    this.node = element("div", { class: "chart" },
      element("p", {}, element("span", {}, title), this.#note, this.#number), this.#picture);
    this.#draw();
  }

  #title; #shown; #ceiling; #number; #note; #line; #area; #picture;

  /** null: there is no such number now. */
  add(value, note = "") {
    this.#values.push(value);
    if (this.#values.length > SAMPLES) this.#values.shift();
    this.#note.textContent = note;
    this.#draw();
  }

  clear() {
    this.#values = [];
    this.#note.textContent = "";
    this.#draw();
  }

  #draw() {
    const known = this.#values.filter((value) => value !== null);
    const highest = Math.max(...known, this.#ceiling, 1e-9);
    const now = this.#values.at(-1) ?? null;
    const start = SAMPLES - this.#values.length;
    const points = this.#values.flatMap((value, index) => value === null ? [] : [
      [(start + index) * WIDTH / (SAMPLES - 1), HEIGHT - 2 - value / highest * (HEIGHT - 4)],
    ]);
    const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    this.#line.setAttribute("points", line);
    this.#area.setAttribute(
      "points", points.length ? `${points[0][0]},${HEIGHT} ${line} ${points.at(-1)[0]},${HEIGHT}` : "");
    this.#number.textContent = now === null ? "–" : this.#shown(now);
    const peak = known.length ? `, highest ${this.#shown(Math.max(...known))}` : "";
    this.#picture.setAttribute("aria-label", `${this.#title}: now ${this.#number.textContent}${peak}`);
  }
}
