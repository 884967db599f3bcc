// The start of the page: what is served, the key if one is needed, and which part is shown.

import { byId } from "./dom.js";
import { Live } from "./live.js";
import { showModels } from "./models.js";
import { Predict } from "./predict.js";
import { Refusal, state, useKey } from "./service.js";

const PARTS = ["predict", "live", "models"];
const THEMES = ["system", "light", "dark"];
const STATE_SECONDS = 5;

const predict = new Predict();
const live = new Live();
let shown = "";

/** Shows the part that the address names. */
function route() {
  const asked = location.hash.slice(1);
  if (asked === "main" && shown) return;
  shown = PARTS.includes(asked) ? asked : PARTS[0];
  for (const part of PARTS) {
    byId(`${part}-part`).hidden = part !== shown;
    if (part === shown) byId(`to-${part}`).setAttribute("aria-current", "page");
    else byId(`to-${part}`).removeAttribute("aria-current");
  }
  document.title = `${byId(`to-${shown}`).textContent} – Lengthwise console`;
  live.look(shown === "live" && !document.hidden);
}

/** Asks what is served, now and again; asks the user for a key where the server wants one. */
async function refresh() {
  try {
    const description = await state();
    await predict.serve(description);
    say(description.ready ? "good" : "bad", description.draining ? "draining" : description.ready ? "ready" : description.starting ? "starting" : "not ready");
    byId("trouble").hidden = true;
    byId("about").textContent = `Lengthwise ${description.version}, ${description.provider.name.replace("ExecutionProvider", "")}, ${description.runners} ${description.runners === 1 ? "runner" : "runners"}`;
    live.serve(description);
    showModels(description);
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) return askForKey(error);
    say("bad", "no answer");
    byId("trouble").textContent = `The server does not answer: ${error.message}`;
    byId("trouble").hidden = false;
  }
  setTimeout(() => (document.hidden ? addEventListener("visibilitychange", refresh, { once: true }) : refresh()), 1000 * STATE_SECONDS);
}

function say(kind, text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
  byId("status").className = `status ${kind}`;
}

let wrongKey = false;

function askForKey(error) {
  say("bad", "needs a key");
  byId("key-note").textContent = `Not this one: ${error.message}.`;
  byId("key-note").hidden = !wrongKey;
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  byId("key-dialog").close();
  wrongKey = true;
  refresh().then(() => live.look(shown === "live"));
});

byId("theme").addEventListener("click", () => {
  const now = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % THEMES.length];
  document.documentElement.dataset.theme = now;
  byId("theme").textContent = `Colours: ${now}`;
  live.paint();
  if (predict.sequence) predict.signal.paint();
});

addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => live.look(shown === "live" && !document.hidden));
route();
refresh();
