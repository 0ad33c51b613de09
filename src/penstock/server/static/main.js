/* The page: which conversation is shown, and what is done with it. */

import { $, icon, notice, say, toEnd } from "./dom.js";
import { SILENT, ask, json, kept } from "./api.js";
import { openSide, showList } from "./list.js";
import { Live, showBusy } from "./live.js";
import { openSettings } from "./settings.js";
import { copy, showTalk, touch } from "./talk.js";

const POLL = 3000;  // milliseconds between looks at what other tabs and running answers have changed

let chat = null;      // the one that is shown; null before the first question of a new one
let fresh = {};       // the settings of a new one
let live = null;      // the answer on its way in it
let chats = [], tag = "";
let models = [];
let busy = false;     // a question is being sent

/* Showing. */
function leave() {
  live?.leave();
  live = null;
}
function show() {
  leave();
  const views = showTalk(chat, modelName(), { edit, again, resume });
  if (chat?.running) follow(views.at(-1));
  $("title").textContent = chat?.title ?? "New chat";
  document.title = `${chat?.title ?? "New chat"} · Penstock`;
  showBusy(Boolean(live));
  showModels();
  showList(chats, chat?.id, actions);
  const hash = chat ? `#${chat.id}` : "";
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname + location.search);
}
async function follow(view) {
  const mine = live = new Live(chat.id, view);
  await mine.follow();
  if (live !== mine) return;  // another one is shown by now
  live = null;
  await load(mine.id);
  say("The answer is there.");
}
function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

/* Conversations. */
async function load(id) {
  const before = chat?.id;
  const stays = $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight > 60 && before === id;
  const at = $("scroll").scrollTop;
  try {
    chat = await json("GET", `chats/${id}`);
  } catch (error) {
    const gone = error.status === 404 && chat?.id === id;
    if (gone) notice(`"${chat.title}" was deleted.`); else failed(error);
    showBusy(Boolean(live));
    if (error.status !== 404) return;  // `look` tries again
    if (gone) chat = null;
  }
  show();
  if (stays) $("scroll").scrollTop = at; else toEnd();
  await refresh();
}
async function refresh() {
  try {
    const response = await ask("GET", "chats", { headers: tag ? { "If-None-Match": tag } : {} });
    if ($("problem").textContent === SILENT) problem("");
    if (response.status === 304) return;
    tag = response.headers.get("ETag");
    chats = (await response.json()).chats;
    showList(chats, chat?.id, actions);
  } catch (error) {
    tag = "";
    if (error.status) failed(error);
  }
}
/* What other tabs did, and answers that began or ended meanwhile. */
async function look() {
  if (document.hidden || busy) return;
  if (!models.length) await findModels();
  await refresh();
  if (!chat || live || busy) return;
  const entry = chats.find((one) => one.id === chat.id);
  if (!entry) {
    if (!tag) return;  // the server did not answer
    notice(`"${chat.title}" was deleted.`);
    chat = null;
    show();
  } else if ((entry.version !== chat.version || entry.running) && !$("talk").querySelector(".editing")) await load(chat.id);
}
function failed(error) {
  if (error.status === 401) { settings("key"); return; }
  problem(error.message);
}
const actions = {
  open(id) { openSide(false); problem(""); if (id !== chat?.id) load(id); },
  async rename(entry, title) {
    try {
      if (title && title !== entry.title) {
        const { version } = await json("GET", `chats/${entry.id}`);  // an answer may have ended meanwhile
        const changed = await json("PATCH", `chats/${entry.id}`, { body: { title }, version });
        if (chat?.id === entry.id) {
          $("title").textContent = title;
          if (chat.version === version) chat = { ...chat, title, version: changed.version };  // else `look` loads it
        }
      }
    } catch (error) { failed(error); }
    tag = "";
    await refresh();
  },
  async remove(entry) {
    const shown = chat?.id === entry.id;
    if (shown) leave();
    try { await ask("DELETE", `chats/${entry.id}`); } catch (error) { failed(error); return; }
    if (shown) startNew();
    await refresh();
    notice(`"${entry.title}" is deleted.`, "Undo", async () => {
      try { await ask("POST", `chats/${entry.id}/restore`); } catch (error) { failed(error); }
      if (shown) await load(entry.id); else await refresh();
    });
  },
};
function startNew() {
  chat = null;
  fresh = {};
  problem("");
  openSide(false);
  show();
  $("input").focus();
}

/* Questions and answers. */
async function send(body) {
  if (live || busy) return false;
  busy = true;
  problem("");
  try {
    if (!chat) chat = await json("POST", "chats", { body: models.length > 1 ? { ...fresh, model: modelName() } : fresh });
    chat = await json("POST", `chats/${chat.id}/answer`, { body, version: chat.version });
    show();
    toEnd();
    say("Answering.");
    return true;
  } catch (error) {
    failed(error);
    if (error.status === 412 || error.status === 409) await load(chat.id);
    return false;
  } finally {
    busy = false;
    refresh();
  }
}
const again = (index) => send({ keep: index });
const resume = () => send({ resume: true });
const edit = (index, content) => send({ keep: index, content });
async function stop() {
  try { await ask("DELETE", `chats/${chat.id}/answer`); } catch (error) { if (error.status !== 404) failed(error); }
}

/* Settings and models. */
function settings(first) {
  const now = chat?.settings ?? fresh;
  openSettings(now, async (wanted) => {
    if (chat && JSON.stringify(wanted) !== JSON.stringify(now)) await change(wanted);
    else fresh = wanted;
    problem("");
    await findModels();
  }, first);
}
async function change(wanted) {
  const changed = await json("PATCH", `chats/${chat.id}`, { body: { settings: wanted }, version: chat.version });
  chat = { ...chat, settings: changed.settings, version: changed.version };
}
/* New conversations begin with the model that was chosen last; those that never had a choice are the first one's. */
function modelName() {
  const chosen = kept.read("model");
  return (chat?.settings ?? fresh).model ?? (!chat && models.includes(chosen) ? chosen : models[0]);
}
function showModels() {
  const name = modelName(), several = models.length > 1 || (name && !models.includes(name));
  $("models").hidden = !several;
  $("model").hidden = Boolean(several);
  $("model").textContent = $("model").title = name ?? "";
  const all = models.includes(name) || !name ? models : [...models, name];
  const option = (one) => new Option(models.includes(one) ? one : `${one} (not served)`, one, false, one === name);
  $("models").replaceChildren(...all.map(option));
}
async function findModels() {
  try {
    models = (await json("GET", "v1/models")).data.map((one) => one.id);
    if (!chat?.messages.length) show(); else showModels();
  } catch (error) {
    $("model").textContent = error.status === 401 ? "needs an API key" : "the server does not answer";
    if (error.status === 401) settings("key");
  }
}
$("models").onchange = async () => {
  const model = $("models").value;
  kept.write("model", model);
  if (!chat) { fresh = { ...fresh, model }; show(); return; }
  try { await change({ ...chat.settings, model }); } catch (error) { failed(error); await load(chat.id); }
};

/* Controls. */
function fit() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}
$("form").onsubmit = async (event) => {
  event.preventDefault();
  if (live) { stop(); return; }
  const content = $("input").value.trim();
  if (!content || !await send({ keep: chat?.messages.length ?? 0, content })) return;
  $("input").value = "";
  kept.write("draft", "");
  fit();
};
$("input").oninput = () => { fit(); kept.write("draft", $("input").value); };
$("input").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch) return;
  event.preventDefault();
  if (!live) $("form").requestSubmit();
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (document.body.classList.contains("side-open")) openSide(false);
  else if (live) stop();
});
$("talk").addEventListener("click", (event) => {
  if (event.target.matches("button.copy")) copy(event.target.closest(".code").querySelector("pre").textContent, event.target);
});
$("new").onclick = startNew;
$("gear").onclick = () => settings();
$("cancel").onclick = () => $("settings").close();
$("open-side").onclick = () => openSide(true);
$("close-side").onclick = $("veil").onclick = () => openSide(false);
for (const [id, name] of [["open-side", "menu"], ["close-side", "close"], ["cancel", "close"], ["gear", "settings"]]) $(id).append(icon(name));
addEventListener("hashchange", () => { const id = location.hash.slice(1); if (id && id !== chat?.id) load(id); });
document.addEventListener("visibilitychange", look);

$("input").value = kept.read("draft");
fit();
const asked = location.hash.slice(1);  // which conversation, before another is shown
show();
await findModels();
if (/^[0-9a-f]{32}$/.test(asked)) await load(asked); else await refresh();
setInterval(look, POLL);
