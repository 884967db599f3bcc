// The part "Predict": a sequence, its answer, another version beside it, padding, and the call elsewhere.

import { answerOf, refusalOf } from "./answers.js";
import { byId, colourOf, counted, cut, draw, make, offer } from "./dom.js";
import { FileTable } from "./file_table.js";
import { PaddingTrial } from "./padding.js";
import { Sequence, invent, parse, usualLength } from "./sequence.js";
import { predict, recordings } from "./service.js";
import { Signal } from "./signal.js";
import { copy, curl, python, shown } from "./snippets.js";
import { StreamTrial } from "./stream.js";
import { Upload } from "./upload.js";

const ASK_AFTER_MS = 250;
const UNREAD = "None: the new sequence cannot be read.";

export class Predict {
  constructor() {
    this.signal = new Signal((what) => this.changed(what));
    this.padding = new PaddingTrial((body) => predict(this.state.predict, body), () => this.subject());
    this.stream = new StreamTrial((body) => predict(this.state.predict, body), () => this.subject());
    this.table = new FileTable((body) => predict(this.state.predict, body), (index) => this.choose(index));
    this.upload = new Upload(() => ({ model: this.model, limits: this.state.limits }), (sequences, note) => this.useMany(sequences, note), (why) => this.refuse(why), (text) => this.note(text));
    this.turn = 0;
    this.form = curl;
    this.listen();
  }

  listen() {
    const on = (id, event, act) => byId(id).addEventListener(event, act);
    on("invent", "click", () => this.example());
    on("paste", "click", () => this.openPaste(byId("paste-part").hidden));
    on("use-pasted", "click", () => this.paste());
    on("chosen", "change", () => this.choose(Number(byId("chosen").value)));
    on("drawn", "change", () => this.drawFeature());
    on("length", "change", () => this.resize(Number(byId("length").value)));
    on("fewer", "click", () => this.resize(this.sequence.length - 1));
    on("more", "click", () => this.resize(this.sequence.length + 1));
    on("ask", "click", () => this.ask());
    on("model", "change", () => this.chooseModel());
    on("version", "change", () => this.chooseVersion());
    on("other", "change", () => this.changed("version"));
    on("answer-all", "click", () => this.table.answer(this.model, this.many, this.state.limits.max_sequences));
    for (const tool of document.querySelectorAll("input[name=tool]")) tool.addEventListener("change", () => this.signal.paint());
    on("copy-curl", "click", () => this.copy("curl", curl));
    on("copy-python", "click", () => this.copy("Python", python));
  }

  // What is served.

  serve(state) {
    const first = !this.state;
    this.state = state;
    const names = [...new Set(state.models.map((model) => model.model))];
    const before = byId("model").value;
    offer(byId("model"), names.map((name) => [name, name]));
    if (first || byId("model").value !== before) return this.chooseModel();
    return this.offerVersions();
  }

  versions() {
    return (this.state?.models ?? []).filter((model) => model.model === byId("model").value).toReversed();
  }

  get model() {
    const versions = this.versions();
    return versions.find((model) => model.version === byId("version").value) ?? versions[0];
  }

  offerVersions() {
    const names = (model) => [...(model.default ? ["default"] : []), ...model.aliases, ...(model.broken ? ["does not work"] : [])].join(", ");
    offer(byId("version"), this.versions().map((model) => [model.version, names(model) ? `${model.version} (${names(model)})` : model.version]));
    const others = this.state.models.filter((model) => model !== this.model && this.fits(model));
    const named = others.toReversed().map((model) => [`${model.model}/${model.version}`, `${model.model} ${model.version}`]);
    offer(byId("other"), [["", "nothing"], ...named]);
  }

  /** Whether another model takes the same steps. */
  fits(model) {
    return model.input === this.model.input && model.features === this.model.features && model.vocabulary === this.model.vocabulary;
  }

  /** Begins with the version that a call without one gets. */
  chooseModel() {
    offer(byId("version"), this.versions().map((model) => [model.version, model.version]));
    byId("version").value = (this.versions().find((model) => model.default) ?? this.versions()[0])?.version ?? "";
    byId("predict-part").inert = !this.model; // without a model there is nothing to draw, to copy or to ask
    if (!this.model) {
      return this.note("No model is served now; the part Models says why.", true);
    }
    this.offerVersions();
    for (const each of document.querySelectorAll(".of-features")) each.hidden = this.model.input === "tokens";
    const { sequence } = this;
    if (sequence?.of && sequence.of !== this.model.model) {
      if (!sequence.edited) return this.example(); // it shows what another model knows, and its labels are not this one's
      sequence.label = null;
    }
    const fits = this.sequence && this.sequence.isTokens === (this.model.input === "tokens") && (this.sequence.isTokens || this.sequence.features === this.model.features);
    return fits ? this.use(this.sequence) : this.example();
  }

  chooseVersion() {
    this.offerVersions();
    this.signal.show(this.sequence, this.model);
    this.changed("version");
  }

  // Where sequences come from.

  /** The next recording that the model's directory keeps; without any, a made-up sequence. */
  async example() {
    const { model } = this;
    if (!model) return;
    if (this.exampleModel !== model.model || this.exampleVersion !== model.version) {
      [this.exampleModel, this.exampleVersion, this.shownExamples, this.recordings] = [model.model, model.version, 0, []];
      if (model.examples) this.recordings = await recordings(model).catch(() => []);
      this.recordings = this.recordings.filter(({ steps }) => (model.input === "tokens" ? !Array.isArray(steps[0]) : [steps[0]].flat().length === model.features));
    }
    if (this.model !== model) return;
    this.upload.forget();
    const real = this.recordings[this.shownExamples++ % this.recordings.length];
    this.offerMany([]);
    if (!real) return this.use(new Sequence(invent(model, Math.max(model.min_length, usualLength(model))), { origin: "made up", of: model.model, static: model.static && Array(model.static.count).fill(0) }));
    const steps = real.steps.map((step) => (Array.isArray(step) || model.input === "tokens" ? step : [step]));
    this.use(new Sequence(steps, { ...real, origin: `recording ${real.id} of the data of ${model.model}`, of: model.model }));
  }

  openPaste(open) {
    byId("paste-part").hidden = !open;
    byId("paste").setAttribute("aria-expanded", String(open));
    if (open) byId("pasted").focus();
  }

  paste() {
    this.take(() => parse(byId("pasted").value, this.model), () => this.openPaste(false));
  }

  take(read, then = () => {}) {
    this.upload.forget();
    try {
      const sequences = read();
      this.useMany(sequences, counted(sequences.length, "sequence"));
      then();
    } catch (error) {
      this.refuse(error.message);
    }
  }

  useMany(sequences, note) {
    this.offerMany(sequences, note);
    this.use(sequences[0]);
  }

  /** Says why a new sequence cannot be read. The picture is of the one before, and greyed; its answer, file and call go. */
  refuse(why) {
    this.turn += 1;
    this.offerMany([]);
    this.sayCode(UNREAD, false);
    clearTimeout(this.later);
    this.note(`${why} The picture shows the sequence before.`, true);
    this.signal.forget();
    this.signal.paint();
    byId("signal").classList.add("stale");
    byId("answers").replaceChildren(make("p", { class: "soft", text: UNREAD }));
    this.padding.reset();
    this.stream.reset();
  }

  /** Offers the sequences of a file; one alone needs no choice. */
  offerMany(sequences, note = "") {
    this.many = sequences;
    this.table.clear();
    byId("choice").hidden = sequences.length < 2;
    byId("choice-note").textContent = note;
    offer(byId("chosen"), sequences.map((each, i) => [i, `${each.id || i + 1}: ${counted(each.length, "step")}${typeof each.label === "string" ? `, label ${cut(each.label)}` : ""}`]));
    byId("chosen").value = "0";
  }

  choose(index) {
    byId("chosen").value = String(index);
    this.use(this.many[index]);
  }

  // The sequence.

  use(sequence) {
    this.sequence = sequence;
    const names = sequence.featureMask.map((_, i) => this.model?.names?.[i] ?? sequence.names?.[i] ?? `feature ${i}`);
    this.signal.names = names;
    offer(byId("drawn"), names.map((name, i) => [i, name]));
    byId("drawn-label").hidden = sequence.features < 2;
    this.signal.drawn = Number(byId("drawn").value) || 0;
    this.signal.show(sequence, this.model);
    this.signal.fit();
    byId("tool-draw").disabled = this.signal.isMap; // a row of colours has no height to draw at
    if (this.signal.isMap) byId("tool-mask").checked = true;
    this.showFeatures(names);
    this.changed("sequence");
  }

  drawFeature() {
    this.signal.drawn = Number(byId("drawn").value);
    byId("tool-draw").checked = !this.signal.isMap;
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
      const mark = this.signal.isMap ? "" : draw("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, draw("circle", { cx: 5, cy: 5, r: 5, fill: colourOf(i, names.length) }));
      const button = make("button", { type: "button", "aria-pressed": String(!this.sequence.featureMask[i]), title: "Send this feature as missing" }, mark, name);
      button.addEventListener("click", () => {
        this.sequence.featureMask[i] = !this.sequence.featureMask[i];
        button.setAttribute("aria-pressed", String(!this.sequence.featureMask[i]));
        this.signal.forget();
        this.signal.paint();
        this.sumUp(names);
        this.changed("mask");
      });
      button.addEventListener("pointerenter", () => this.signal.near(i));
      button.addEventListener("pointerleave", () => this.signal.near(null));
      return button;
    });
    byId("features").classList.toggle("many", this.signal.isMap);
    byId("features").replaceChildren(...chips);
    const part = byId("features-part");
    part.hidden = !chips.length;
    if (part.count !== chips.length) part.open = !this.signal.isMap; // many would push the answer off the screen
    part.count = chips.length;
    part.firstElementChild.hidden = !this.signal.isMap;
    this.sumUp(names);
  }

  /** What stands for the features while they are hidden. */
  sumUp(names) {
    const missing = this.sequence.featureMask.filter((keep) => !keep).length;
    byId("features-sum").textContent = `${counted(names.length, "feature")}${missing ? `, ${missing} sent as missing` : ""}`;
  }

  note(text, wrong = false) {
    byId("sequence-note").textContent = text;
    byId("sequence-note").className = wrong ? "problem" : "soft";
  }

  changed(what) {
    this.turn += 1; // an answer that is on its way is of what was there before
    const { sequence } = this;
    if (what === "values" && sequence.origin && !sequence.edited) sequence.origin += ", changed";
    sequence.edited ||= what === "values";
    byId("signal").classList.remove("stale");
    const parts = [`${counted(sequence.length, "step")}${sequence.isTokens ? " (tokens)" : ` × ${counted(sequence.features, "feature")}`}`];
    if (sequence.leftOut) parts.push(`${sequence.leftOut} left out`);
    if (sequence.missing) parts.push(`${counted(sequence.missing, "value")} missing${this.model?.missing === "refuse" ? ", which this model refuses" : ""}`);
    if (sequence.origin) parts.push(sequence.origin);
    this.note(parts.join(" · "));
    byId("length").value = sequence.length;
    this.padding.reset();
    this.stream.reset();
    this.showCode();
    clearTimeout(this.later);
    this.later = setTimeout(() => this.ask(), ASK_AFTER_MS);
  }

  // The answer.

  subject() {
    return { sequence: this.sequence, model: this.model, version: this.model?.version };
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
      if (!answer.predictions) return refusalOf(models[i], answer);
      return answerOf(models[i], answer, this.sequence, i ? predictions[0] : null);
    });
    byId("answers").replaceChildren(...elements);
    if (predictions[0]?.step_labels) this.signal.showStepLabels(predictions[0].step_labels, answers[0].labels);
    else if (predictions[0]?.attention) this.signal.showAttention(predictions[0].attention);
    if (predictions[0]) this.padding.glance();
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
    if (this.model) this.sayCode(shown(this.form(this.address(), this.body(this.model))), true);
  }

  sayCode(text, isCall) {
    byId("code").textContent = text;
    byId("copied").textContent = "";
    for (const id of ["copy-curl", "copy-python"]) byId(id).disabled = !isCall;
  }

  async copy(name, form) {
    this.form = form;
    this.showCode();
    try {
      await copy(form(this.address(), this.body(this.model)));
      byId("copied").textContent = `Copied as ${name}.`;
    } catch (error) {
      byId("copied").textContent = `Not copied: ${error.message}. Select the text above.`;
    }
  }
}
