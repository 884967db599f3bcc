// The part "Live": reads the frames of the server, keeps the last half minute, and draws it.

import { byId, duration, make, short } from "./dom.js";
import { Canvas, WINDOW_SECONDS, drawBatches, drawCosts, drawLatency, drawQueue, drawRunners } from "./pictures.js";
import { invent, usualLength } from "./sequence.js";
import { events, predict } from "./service.js";

const KEPT_BATCHES = 160;
const KEPT_FRAMES = 150;
const SUMS_SECONDS = 3;
const CALM_MS = 1000;
const AGAIN_MS = 2000;
const SILENCE_MS = 5000;
const NO_MODEL = "No model is served that could take sequences.";
const BURST = 100;
const BURST_CALLS = 2;

const percent = (share) => (Number.isFinite(share) ? `${short(100 * share)} %` : "–");
const still = window.matchMedia("(prefers-reduced-motion: reduce)");

export class Live {
  constructor() {
    this.canvases = Object.fromEntries(["batches", "queue", "costs", "latency", "runners"].map((name) => [name, new Canvas(byId(name))]));
    this.frames = [];
    this.batches = [];
    this.summed = []; // the frames that the figures sum up
    this.paused = false;
    this.painted = 0;
    byId("pause").addEventListener("click", () => this.pause());
    byId("burst").addEventListener("click", () => this.burst());
    addEventListener("resize", () => this.paint());
    still.addEventListener("change", () => this.paint());
    this.showFigures();
  }

  serve(state) {
    this.state = state;
    const workers = state.workers.length;
    byId("live-worker").hidden = workers < 2;
    byId("live-worker").textContent = `This is what one of ${workers} workers does, the one that this view has reached; /metrics has the sums of all.`;
    if (!this.busy) byId("burst").disabled = !state.models.length;
    if (!state.models.length || byId("burst-note").textContent === NO_MODEL) byId("burst-note").textContent = state.models.length ? "" : NO_MODEL;
  }

  /** Opens the view while the part is shown, and closes it otherwise: nobody who does not look costs anything. */
  look(shown) {
    if (shown && !this.stream) this.open();
    if (!shown && this.stream) this.close();
    if (shown) this.paint();
  }

  /** Opens the view; `again`: the one before it has ended in time, as each does (see live_stream.py). */
  async open(again = false) {
    const stream = new AbortController();
    this.stream = stream;
    if (!again) this.say("connecting");
    let next = "ended";
    let renewed = false;
    this.expect(stream);
    try {
      for await (const { event, data } of events(stream.signal)) {
        if (this.stream !== stream) return;
        if (event === "frame" && data !== "{}") this.frame(JSON.parse(data));
        if (event === "end") next = "the server drains";
        renewed = event === "end" && data === "renew";
        this.expect(stream);
      }
    } catch (error) {
      next = error.name === "AbortError" ? "no frame came" : error.message;
    }
    if (this.stream !== stream) return;
    clearTimeout(this.silence);
    if (renewed) return this.open(true);
    this.say(`${next}; trying again`);
    setTimeout(() => this.stream === stream && this.open(), AGAIN_MS);
  }

  /** Ends the stream if nothing comes: the server sends something every second. */
  expect(stream) {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => stream.abort(), SILENCE_MS);
  }

  close() {
    clearTimeout(this.silence);
    const { stream } = this;
    this.stream = null;
    stream.abort();
    this.say("off");
  }

  pause() {
    this.paused = !this.paused;
    byId("pause").setAttribute("aria-pressed", String(this.paused));
    byId("pause").textContent = this.paused ? "Go on" : "Pause";
    this.say(this.paused ? "paused" : "live", !this.paused);
  }

  say(text, good = false) {
    byId("live-state").textContent = text;
    byId("live-state").className = good ? "pill good" : "pill";
  }

  frame(frame) {
    if (this.paused) return;
    this.say("live", true);
    this.frames.push(frame);
    this.frames.splice(0, this.frames.length - KEPT_FRAMES);
    this.batches.unshift(...frame.batches.toReversed());
    this.batches.length = Math.min(this.batches.length, KEPT_BATCHES);
    if (frame.queue.length) this.fullest = frame;
    if (frame.totals.batches) this.summed = this.frames.filter((each) => frame.time - each.time < SUMS_SECONDS);
    const now = performance.now();
    if (still.matches && now - this.painted < CALM_MS) return;
    this.painted = now;
    requestAnimationFrame(() => this.paint());
  }

  paint() {
    if (byId("live-part").hidden) return;
    drawBatches(this.canvases.batches, this.batches);
    drawCosts(this.canvases.costs, this.batches);
    const last = this.frames.at(-1);
    const recentFrames = this.frames.filter((frame) => last.time - frame.time < WINDOW_SECONDS);
    drawLatency(this.canvases.latency, recentFrames);
    drawRunners(this.canvases.runners, recentFrames);
    const recent = this.fullest && last && last.time - this.fullest.time < SUMS_SECONDS ? this.fullest : last;
    drawQueue(this.canvases.queue, recent?.queue ?? []);
    const waiting = recent?.queue.reduce((sum, queue) => sum + queue.sequences, 0) ?? 0;
    const models = recent?.queue.map((queue) => queue.model).join(", ");
    byId("queue-note").textContent = waiting
      ? `${waiting === 1 ? "1 sequence waits" : `${waiting} sequences wait`} for ${models}: the fullest moment of the last seconds. A bar is as high as its sequence is long.`
      : "Nothing waits. A bar is a sequence that waits, as high as it is long.";
    this.showFigures();
  }

  /** The figures of the last seconds in which a batch ran: after a burst they stay, and say how old they are. */
  showFigures() {
    const frames = this.summed;
    const idle = frames.length ? this.frames.at(-1).time - frames.at(-1).time : 0;
    byId("figures-note").textContent = idle < SUMS_SECONDS ? "" : `Nothing runs now: these are the figures of ${Math.round(idle)} s ago.`;
    const seconds = frames.reduce((sum, frame) => sum + frame.seconds, 0) || 1;
    const total = (name) => frames.reduce((sum, frame) => sum + frame.totals[name], 0);
    const batches = total("batches");
    const padded = total("padded_steps");
    const of = (name) => frames.map((frame) => frame.latency_seconds[name]).filter((each) => each !== null);
    const most = (values) => (values.length ? Math.max(...values) : null);
    const middle = (values) => (values.length ? values.toSorted((a, b) => a - b)[values.length >> 1] : null);
    const figures = [
      ["Sequences", short(total("rows") / seconds), "/s"],
      ["Batches", short(batches / seconds), "/s"],
      ["Rows in a batch", batches ? short(total("rows") / batches) : "–", ""],
      ["Computed as padding", percent(1 - total("valid_steps") / total("computed_steps")), padded ? `${percent(1 - total("valid_steps") / padded)} of rows × width` : ""],
      ["Predicted / measured", total("measured_seconds") ? (total("predicted_seconds") / total("measured_seconds")).toFixed(2) : "–", ""],
      ["Latency, median", duration(middle(of("p50"))), ""],
      ["Latency, p99", duration(most(of("p99"))), ""],
      ["Failed batches", String(total("failed")), ""],
    ];
    byId("figures").replaceChildren(
      ...figures.map(([name, value, unit]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }, make("small", { text: unit, class: unit.length > 4 ? "below" : null })))),
    );
  }

  /** Sends sequences of lognormal lengths in a few calls at once. */
  async burst() {
    const model = this.state?.models.find((each) => each.model === byId("model").value && each.version === byId("version").value);
    if (!model) return;
    const button = byId("burst");
    const note = byId("burst-note");
    button.disabled = this.busy = true;
    const calls = Math.max(BURST_CALLS, Math.ceil(BURST / this.state.limits.max_sequences));
    const lengths = Array.from({ length: BURST }, () => usualLength(model));
    const started = performance.now();
    try {
      const parts = Array.from({ length: calls }, (_, call) => lengths.filter((_, i) => i % calls === call));
      const bodies = parts.map((part) => ({ model: model.model, version: model.version, sequences: part.map((length) => invent(model, length)) }));
      await Promise.all(bodies.map((body) => predict(this.state.predict, body)));
      const shortest = Math.min(...lengths);
      const longest = Math.max(...lengths);
      note.textContent = `${BURST} sequences of ${shortest} to ${longest} steps, made up, for ${model.model} ${model.version} were answered in ${duration((performance.now() - started) / 1000)}.`;
    } catch (error) {
      note.textContent = `Not all were answered: ${error.message}`;
    } finally {
      button.disabled = this.busy = false;
    }
  }
}
