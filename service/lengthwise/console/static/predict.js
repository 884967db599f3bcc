// The part "Predict": a sequence, its answer, another version beside it, padding, and the call elsewhere.

import { answerOf, refusalOf } from "./answers.js";
import { byId, colourOf, draw, make, offer } from "./dom.js";
import { PaddingTrial } from "./padding.js";
import { Sequence, invent, lognormalLength, parse } from "./sequence.js";
import { predict, readFile } from "./service.js";
import { Signal } from "./signal.js";
import { copy, curl, python, shown } from "./snippets.js";

const ASK_AFTER_MS = 250;
const READ_HERE = /\.(json|txt)$/i;

export class Predict {
  constructor() {
    this.signal = new Signal((what) => this.changed(what));
    this.padding = new PaddingTrial((body) => predict(this.state.predict, body), () => this.subject());
    this.turn = 0;
    this.listen();
  }

  listen() {
    const on = (id, event, act) => byId(id).addEventListener(event, act);
    on("invent", "click", () => this.invent());
    on("paste", "click", () => this.openPaste(byId("paste-part").hidden));
    on("use-pasted", "click", () => this.paste());
    on("file", "change", () => this.upload());
    on("chosen", "change", () => this.choose(Number(byId("chosen").value)));
    on("drawn", "change", () => this.drawFeature());
    on("length", "change", () => this.resize(Number(byId("length").value)));
    on("fewer", "click", () => this.resize(this.sequence.length - 1));
    on("more", "click", () => this.resize(this.sequence.length + 1));
    on("ask", "click", () => this.ask());
    on("model", "change", () => this.chooseModel());
    for (const id of ["version", "other"]) on(id, "change", () => this.changed("version"));
    for (const tool of document.querySelectorAll("input[name=tool]")) tool.addEventListener("change", () => this.signal.paint());
    on("copy-curl", "click", () => this.copy("curl"));
    on("copy-python", "click", () => this.copy("Python"));
  }

  // What is served.

  serve(state) {
    const first = !this.state;
    this.state = state;
    const names = [...new Set(state.models.map((model) => model.model))];
    const before = byId("model").value;
    offer(byId("model"), names.map((name) => [name, name]));
    if (first || byId("model").value !== before) this.chooseModel();
    else this.offerVersions();
  }

  versions() {
    return (this.state?.models ?? []).filter((model) => model.model === byId("model").value).toReversed();
  }

  get model() {
    const versions = this.versions();
    return versions.find((model) => model.version === byId("version").value) ?? versions[0];
  }

  offerVersions() {
    const pairs = this.versions().map((model) => [model.version, `${model.version}${model.broken ? " (does not work)" : ""}`]);
    offer(byId("version"), pairs);
    const others = this.state.models.filter((model) => model.model === byId("model").value || this.fits(model));
    const named = others.toReversed().map((model) => [`${model.model}/${model.version}`, `${model.model} ${model.version}`]);
    offer(byId("other"), [["", "nothing"], ...named]);
  }

  /** Whether another model takes the same steps. */
  fits(model) {
    return model.input === this.model.input && model.features === this.model.features && model.vocabulary === this.model.vocabulary;
  }

  chooseModel() {
    this.offerVersions();
    byId("predict-part").inert = !this.model; // without a model there is nothing to draw, to copy or to ask
    if (!this.model) {
      this.note("No model is served now; the part Models says why.", true);
      return;
    }
    const fits = this.sequence && this.sequence.isTokens === (this.model.input === "tokens") && (this.sequence.isTokens || this.sequence.features === this.model.features);
    if (fits) this.use(this.sequence);
    else this.invent();
  }

  // Where sequences come from.

  invent() {
    const model = this.model;
    this.offerMany([]);
    if (model) this.use(new Sequence(invent(model, Math.max(4, lognormalLength(model, 20, 0.35)))));
  }

  openPaste(open) {
    byId("paste-part").hidden = !open;
    byId("paste").setAttribute("aria-expanded", String(open));
    if (open) byId("pasted").focus();
  }

  paste() {
    this.take(() => parse(byId("pasted").value, this.model?.input === "tokens"), () => this.openPaste(false));
  }

  async upload() {
    const [file] = byId("file").files;
    byId("file").value = "";
    if (!file || !this.model) return;
    this.note(`Reading ${file.name} …`);
    const most = this.state.limits.max_body_bytes;
    try {
      if (file.size > most) throw new Error(`it has ${file.size.toLocaleString("en")} bytes, and the server takes ${most.toLocaleString("en")}`);
      if (READ_HERE.test(file.name)) {
        const text = await file.text();
        this.take(() => parse(text, this.model.input === "tokens"));
        return;
      }
      const read = await readFile(file, this.model.input);
      const found = read.sequences.map((each) => new Sequence(each.steps, each));
      const left = read.left_out ? `; ${read.left_out} more were left out` : "";
      const wrong = read.problems.length ? `; not read: ${read.problems.slice(0, 3).join("; ")}` : "";
      if (!found.length) throw new Error(read.problems[0] ?? "there is no sequence in it");
      this.offerMany(found, `${found.length} sequences${left}${wrong}`);
      this.use(found[0]);
    } catch (error) {
      this.note(`${file.name} cannot be read: ${error.message}`, true);
    }
  }

  take(read, then = () => {}) {
    try {
      const found = read();
      this.offerMany(found, `${found.length} sequences`);
      this.use(found[0]);
      then();
    } catch (error) {
      this.note(error.message, true);
    }
  }

  /** Offers the sequences of a file; one alone needs no choice. */
  offerMany(sequences, note = "") {
    this.many = sequences;
    byId("choice").hidden = sequences.length < 2;
    byId("choice-note").textContent = note;
    offer(byId("chosen"), sequences.map((each, i) => [i, `${each.id || i + 1}: ${each.length} steps${each.label ? `, label ${each.label}` : ""}`]));
    byId("chosen").value = "0";
  }

  choose(place) {
    this.use(this.many[place]);
  }

  // The sequence.

  use(sequence) {
    this.sequence = sequence;
    const names = sequence.featureMask.map((_, i) => this.model?.feature_names?.[i] ?? `feature ${i + 1}`);
    offer(byId("drawn"), names.map((name, i) => [i, name]));
    byId("drawn-label").hidden = sequence.features < 2;
    byId("tool-draw").disabled = false;
    this.signal.drawn = Number(byId("drawn").value) || 0;
    this.signal.show(sequence, this.model);
    this.signal.fit();
    this.showFeatures(names);
    this.changed("sequence");
  }

  drawFeature() {
    this.signal.drawn = Number(byId("drawn").value);
    byId("tool-draw").checked = true;
    this.signal.paint();
  }

  resize(length) {
    const least = Math.max(1, this.model?.min_length ?? 1);
    this.sequence.resize(Math.min(Math.max(Math.floor(length) || least, 1), 4096));
    this.signal.show(this.sequence, this.model);
    this.changed("values");
  }

  showFeatures(names) {
    const chips = names.map((name, i) => {
      const mark = draw("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, draw("circle", { cx: 5, cy: 5, r: 5, fill: colourOf(i, names.length) }));
      const button = make("button", { type: "button", "aria-pressed": String(!this.sequence.featureMask[i]), title: "Send this feature as missing" }, mark, name);
      button.addEventListener("click", () => {
        this.sequence.featureMask[i] = !this.sequence.featureMask[i];
        button.setAttribute("aria-pressed", String(!this.sequence.featureMask[i]));
        this.signal.attention = null;
        this.signal.paint();
        this.changed("mask");
      });
      return button;
    });
    byId("features").replaceChildren(...chips);
    byId("features").hidden = !chips.length;
  }

  note(text, wrong = false) {
    byId("sequence-note").textContent = text;
    byId("sequence-note").className = wrong ? "problem" : "soft";
  }

  changed() {
    this.turn += 1; // an answer that is on its way is of what was there before
    const { sequence } = this;
    const parts = [`${sequence.length} ${sequence.length === 1 ? "step" : "steps"}${sequence.isTokens ? " (tokens)" : ` × ${sequence.features} features`}`];
    if (sequence.leftOut) parts.push(`${sequence.leftOut} left out`);
    if (sequence.missing) parts.push(`${sequence.missing} values missing${this.model?.missing === "refuse" ? ", which this model refuses" : ""}`);
    this.note(parts.join(" · "));
    byId("length").value = sequence.length;
    this.padding.reset();
    this.showCode();
    clearTimeout(this.later);
    this.later = setTimeout(() => this.ask(), ASK_AFTER_MS);
  }

  // The answer.

  subject() {
    return { sequence: this.sequence, model: this.model, version: this.model.version };
  }

  body(model) {
    const body = { model: model.model, version: model.version, sequences: [this.sequence.asRequest()] };
    return model.attention ? { ...body, outputs: ["attention"] } : body;
  }

  async ask() {
    if (!this.model || !this.sequence) return;
    const turn = ++this.turn;
    const [name, version] = byId("other").value.split("/");
    const other = this.state.models.find((model) => model.model === name && model.version === version);
    const models = other ? [this.model, other] : [this.model];
    const answers = await Promise.all(models.map((model) => predict(this.state.predict, this.body(model)).catch((error) => error)));
    if (turn !== this.turn) return;
    const predictions = answers.map((answer) => answer.predictions?.[0]);
    const elements = answers.map((answer, i) => {
      const title = `${models[i].model}, version ${models[i].version}`;
      if (!answer.predictions) return refusalOf(title, answer);
      return answerOf(title, answer, this.sequence, i ? predictions[0] : null);
    });
    byId("answers").replaceChildren(...elements);
    if (predictions[0]?.attention) this.signal.showAttention(predictions[0].attention);
  }

  // The call elsewhere.

  address() {
    const base = new URL(".", location.href);
    if (this.state.public_port) {
      base.port = this.state.public_port;
      return new URL("/predict", base).href;
    }
    return new URL(this.state.predict, base).href;
  }

  showCode() {
    if (this.model) byId("code").textContent = shown(curl(this.address(), this.body(this.model)));
  }

  async copy(form) {
    const write = form === "curl" ? curl : python;
    const text = write(this.address(), this.body(this.model));
    byId("code").textContent = shown(text);
    try {
      await copy(text);
      byId("copied").textContent = `Copied as ${form}.`;
    } catch (error) {
      byId("copied").textContent = `Not copied: ${error.message}. Select the text above.`;
    }
  }
}
