// A sequence that arrives in chunks: each is sent with the state of the answer before, and each answer is compared with
// that to the whole so far, digit by digit.

import { flat } from "./answers.js";
import { byId, counted, draw, short } from "./dom.js";

const HEIGHT = 150;
const PAUSE_MS = 120; // between two chunks, so that the answer can be seen moving

export class StreamTrial {
  /** `ask(body)` sends a request; `subject()` is {sequence, model, version}. */
  constructor(ask, subject) {
    this.ask = ask;
    this.subject = subject;
    this.cut = byId("cut");
    this.cut.addEventListener("input", () => this.label());
    this.cut.addEventListener("change", () => this.play([Number(this.cut.value)]));
    byId("play-stream").addEventListener("click", () => this.play(this.cuts()));
    byId("chunk").addEventListener("change", () => this.reset());
    new ResizeObserver(() => this.paint()).observe(byId("stream-picture"));
    this.answers = [];
    this.turn = 0;
  }

  /** Forgets the answers: the sequence or the model has changed. Hides the part where the model does not stream. */
  reset() {
    const { sequence, model } = this.subject();
    this.answers = [];
    this.turn += 1;
    byId("stream-part").hidden = !sequence || !model?.streaming;
    if (byId("stream-part").hidden) return;
    this.cut.max = sequence.length;
    byId("stream-note").textContent = `The state of a sequence has ${counted(model.streaming.state_bytes, "byte")}. It goes out with each answer, and comes in with the next steps.`;
    this.verdict("", "Play the sequence, or choose where it is cut.");
    this.label();
    this.paint();
  }

  label() {
    byId("cut-text").textContent = `behind step ${this.cut.value}`;
    this.cut.setAttribute("aria-valuetext", byId("cut-text").textContent);
  }

  /** Where the sequence is cut: behind each of these numbers of steps. */
  cuts() {
    const { length } = this.subject().sequence;
    const size = byId("chunk").value;
    const cuts = [];
    const next = () => (size === "random" ? 1 + Math.floor((Math.random() * length) / 3) : Number(size));
    for (let end = next(); end < length; end += next()) cuts.push(end);
    return cuts;
  }

  /** Sends the chunks between the cuts one after the other. */
  async play(cuts) {
    this.reset();
    const turn = this.turn;
    const { sequence } = this.subject();
    let begin = 0;
    let state = null;
    try {
      for (const end of [...cuts, sequence.length]) {
        if (state === null && !sequence.stepMask.slice(begin, end).includes(true)) continue; // no step has come yet
        const chunk = await this.ask(this.body(begin, end, state));
        const whole = await this.ask(this.body(0, end, null));
        if (turn !== this.turn) return;
        const [prediction, expected] = [chunk.predictions[0], whole.predictions[0]];
        this.answers.push({ end, prediction, moved: distance(flat(prediction), flat(expected)) });
        [begin, state] = [end, prediction.state];
        this.paint();
        this.compare();
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
        if (turn !== this.turn) return;
      }
    } catch (error) {
      if (turn === this.turn) this.verdict("bad", error.message);
    }
  }

  /** The steps from `begin` to `end`, and the state of those before, as a request. */
  body(begin, end, state) {
    const { sequence, model, version } = this.subject();
    const item = { steps: sequence.steps.slice(begin, end), step_mask: sequence.stepMask.slice(begin, end) };
    if (sequence.featureMask.includes(false)) item.feature_mask = sequence.featureMask;
    if (state !== null) item.state = state;
    return { model: model.model, version, sequences: [item], outputs: ["state"] };
  }

  get promised() {
    return this.subject().model?.streaming?.promise.max_difference ?? 0;
  }

  compare() {
    const most = Math.max(...this.answers.map(({ moved }) => moved));
    const chunks = counted(this.answers.length, "chunk");
    const promised = this.promised;
    if (most === 0) this.verdict("good", `After each of ${chunks} the answer is that to the whole so far, to the last digit.`);
    else if (most <= promised) this.verdict("good", `With ${chunks} the answer differs from that to the whole so far by at most ${short(most)}; this model promises ${short(promised)}.`);
    else this.verdict("bad", `With ${chunks} the answer differs from that to the whole so far by ${short(most)}; this model promises ${short(promised)}.`);
  }

  verdict(kind, text) {
    byId("stream-verdict").className = `verdict ${kind}`;
    byId("stream-verdict").textContent = text;
  }

  /** The probability of the last answer's label, or the first value of a vector, against the steps that have come. */
  paint() {
    const width = byId("stream-picture").clientWidth || 480;
    const length = this.subject().sequence?.length ?? 1;
    const [left, right, top, bottom] = [34, width - 12, 22, HEIGHT - 28];
    const rows = this.answers.map(({ prediction }) => lastOf(prediction));
    const isVector = this.answers.some(({ prediction }) => prediction.values);
    const best = isVector || !rows.length ? 0 : rows.at(-1).indexOf(Math.max(...rows.at(-1)));
    const shown = rows.map((values) => values[best]);
    const [low, high] = isVector ? [Math.min(...shown), Math.max(...shown)] : [0, 1];
    const x = (step) => left + (step / length) * (right - left);
    const y = (value) => bottom - ((value - low) / (high - low || 1)) * (bottom - top);
    const parts = [low, (low + high) / 2, high].flatMap((value) => [
      draw("line", { class: "axis", x1: left, x2: right, y1: y(value), y2: y(value) }),
      draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", text: short(value) }),
    ]);
    parts.push(draw("text", { x: left, y: 10, text: `${isVector ? "first value" : "probability of the last label"}, by the steps that have come` }));
    for (const step of [0, Math.round(length / 2), length]) parts.push(draw("text", { x: x(step), y: HEIGHT - 10, "text-anchor": "middle", text: step }));
    const path = this.answers.map(({ end }, i) => `${i ? "L" : "M"}${x(end)} ${y(shown[i])}`).join("");
    if (path) parts.push(draw("path", { class: "line", d: path }));
    this.answers.forEach(({ end, moved }, i) => parts.push(draw("circle", { class: moved > this.promised ? "dot moved" : "dot", cx: x(end), cy: y(shown[i]), r: 4.5 })));
    byId("stream-picture").replaceChildren(
      draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": "The answer against the steps that have come" }, ...parts),
    );
  }
}

/** The numbers of an answer, of its last step where each step has one. */
function lastOf({ values, probabilities }) {
  const numbers = values ?? probabilities;
  return Array.isArray(numbers.at(-1)) ? numbers.at(-1) : numbers;
}

/** The largest difference; of a model with an answer for each step over those that both have, which are the last. */
function distance(one, other) {
  const behind = other.length - one.length;
  return one.reduce((most, value, i) => Math.max(most, Math.abs(value - other[i + behind])), 0);
}
