// The slider that adds padding, junk or neighbours, and compares each answer with the first one, digit by digit.

import { byId, counted, draw, short } from "./dom.js";
import { flat } from "./answers.js";
import { invent, usualLength, normal } from "./sequence.js";

/** How much is added at each place of the slider. */
export const AMOUNTS = [0, 1, 2, 4, 8, 16, 32, 48, 63];

const GLANCE = [0, 1, 5, 8]; // indices that are tried without being asked

const NOTES = {
  padding: "Steps of zeros behind the sequence, with step_mask false: the way to send a rectangle to this server.",
  junk: "Steps of huge random numbers behind the sequence, with step_mask false.",
  neighbours: "Other made-up sequences in the same request, some of them longer: they share its batches, which pads it there.",
};

const HEIGHT = 150;

export class PaddingTrial {
  /** `ask(body)` sends a request; `subject()` is {sequence, model, version}. */
  constructor(ask, subject) {
    this.ask = ask;
    this.subject = subject;
    this.slider = byId("amount");
    this.slider.max = AMOUNTS.length - 1;
    this.slider.addEventListener("input", () => this.label());
    this.slider.addEventListener("change", () => this.run([0, Number(this.slider.value)]));
    byId("sweep").addEventListener("click", () => this.run(AMOUNTS.keys()));
    for (const radio of document.querySelectorAll("input[name=added]")) radio.addEventListener("change", () => {
      this.reset();
      this.glance();
    });
    new ResizeObserver(() => this.paint()).observe(byId("padding-picture"));
    this.reset();
  }

  get kind() {
    return document.querySelector("input[name=added]:checked").value;
  }

  /** Forgets the answers: the sequence, the model or what is added has changed. */
  reset() {
    this.answers = new Map();
    this.turn = (this.turn ?? 0) + 1;
    byId("added-note").textContent = NOTES[this.kind];
    this.verdict("", "Once there is an answer, it is asked for again with more and more of it, and compared digit by digit.");
    this.label();
    this.paint();
  }

  label() {
    const amount = AMOUNTS[this.slider.value];
    const unit = this.kind === "neighbours" ? "neighbour" : "step";
    byId("amount-text").textContent = counted(amount, unit);
    this.slider.setAttribute("aria-valuetext", byId("amount-text").textContent);
  }

  /** Tries a few amounts by itself. */
  glance() {
    return this.try(GLANCE, () => {});
  }

  /** Tries amounts, by their indices, and moves the slider along. */
  async run(indices) {
    const button = byId("sweep");
    button.disabled = true;
    await this.try(indices, (index) => {
      this.slider.value = index;
      this.label();
    });
    button.disabled = false;
  }

  async try(indices, show) {
    const turn = this.turn;
    try {
      for (const index of indices) {
        show(index);
        if (!this.answers.has(index)) {
          const answer = await this.ask(this.body(AMOUNTS[index]));
          if (turn !== this.turn) return;
          this.answers.set(index, this.own(answer.predictions[0]));
        }
        this.paint();
        this.compare();
      }
    } catch (error) {
      if (turn === this.turn) this.verdict("bad", error.message);
    }
  }

  /** The sequence with what is added, as a request. */
  body(amount) {
    const { sequence, model, version } = this.subject();
    const added = { model: model.model, version, sequences: [] };
    if (this.kind === "neighbours") {
      const others = Array.from({ length: amount }, () => invent(model, usualLength(model, 1.5 * sequence.length)));
      return { ...added, sequences: [sequence.asRequest(), ...others] };
    }
    const step = () => {
      if (sequence.isTokens) return this.kind === "junk" ? Math.floor(Math.random() * model.vocabulary) : 0;
      return Array.from({ length: sequence.features }, () => (this.kind === "junk" ? Number((1e4 * normal()).toPrecision(5)) : 0));
    };
    const request = { steps: [...sequence.steps, ...Array.from({ length: amount }, step)] };
    request.step_mask = request.steps.map((_, i) => i < sequence.length && sequence.stepMask[i]);
    if (sequence.featureMask.includes(false)) request.feature_mask = sequence.featureMask;
    return { ...added, sequences: [request] };
  }

  /** The part of an answer that belongs to the sequence itself. */
  own(prediction) {
    const { sequence } = this.subject();
    const cut = (values) => (prediction.step_labels ? values.slice(0, sequence.length) : values);
    return { ...prediction, probabilities: cut(prediction.probabilities) };
  }

  compare() {
    if (this.answers.size < 2) return;
    const first = flat(this.answers.get(0));
    const amounts = [...this.answers.keys()].filter((index) => index).sort((a, b) => a - b);
    const moved = amounts.map((index) => distance(first, flat(this.answers.get(index))));
    const most = Math.max(...moved);
    const listed = amounts.map((index) => AMOUNTS[index]).join(", ");
    const unit = this.kind === "neighbours" ? "neighbours" : `steps of ${this.kind}`;
    const promise = this.subject().model.promise;
    if (most === 0) {
      this.verdict("good", `The answer stays: with ${listed} ${unit}, all ${first.length} probabilities are the same to the last digit.`);
    } else if (promise && !promise.bits && most <= promise.tolerance) {
      this.verdict("good", `With ${listed} ${unit} the answer moves by at most ${short(most)}; this model promises ${short(promise.tolerance)} here.`);
    } else {
      this.verdict("bad", `With ${listed} ${unit} a probability moves by ${short(most)}. lengthwise check says where that begins.`);
    }
  }

  verdict(kind, text) {
    byId("padding-verdict").className = `verdict ${kind}`;
    byId("padding-verdict").textContent = text;
  }

  /** The probability of the first answer's label, against what was added. */
  paint() {
    const width = byId("padding-picture").clientWidth || 480;
    const [left, right, top, bottom] = [34, width - 12, 22, HEIGHT - 28];
    const x = (index) => left + (index / (AMOUNTS.length - 1)) * (right - left);
    const y = (value) => bottom - value * (bottom - top);
    const parts = [0, 0.5, 1].flatMap((value) => [
      draw("line", { class: "axis", x1: left, x2: right, y1: y(value), y2: y(value) }),
      draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", text: value }),
    ]);
    parts.push(draw("text", { x: left, y: 10, text: "probability, by what is added" }));
    AMOUNTS.forEach((amount, index) => parts.push(draw("text", { x: x(index), y: HEIGHT - 10, "text-anchor": "middle", text: amount })));
    const first = this.answers.get(0);
    if (first) {
      const values = flat(first);
      const best = values.indexOf(Math.max(...values));
      const dots = [...this.answers].sort((a, b) => a[0] - b[0]).map(([index, prediction]) => ({ index, value: flat(prediction)[best], moved: distance(values, flat(prediction)) > 0 }));
      parts.push(draw("path", { class: "line", d: dots.map(({ index, value }, i) => `${i ? "L" : "M"}${x(index)} ${y(value)}`).join("") }));
      for (const { index, value, moved } of dots) parts.push(draw("circle", { class: moved ? "dot moved" : "dot", cx: x(index), cy: y(value), r: 4.5 }));
    }
    byId("padding-picture").replaceChildren(
      draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": "The probability of the most probable label against what was added" }, ...parts),
    );
  }
}

const distance = (one, other) => one.reduce((most, value, i) => Math.max(most, Math.abs(value - other[i])), one.length === other.length ? 0 : Infinity);
