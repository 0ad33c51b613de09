/* The dialog with one conversation's settings, and the browser's key. */

import { $ } from "./dom.js";
import { kept } from "./api.js";

const TEXTS = ["system", "json_schema"], NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

/* `save(settings)` keeps them, and throws where the server refuses. */
export function openSettings(settings, save, first = "system") {
  const dialog = $("settings");
  for (const name of [...TEXTS, ...NUMBERS]) $(name).value = settings[name] ?? "";
  $("key").value = kept.read("key");
  problem("");
  $("settings-form").onsubmit = async (event) => {
    event.preventDefault();
    const wrong = NUMBERS.find((name) => !$(name).checkValidity());
    if (wrong) { problem(`${$(wrong).labels[0].firstChild.textContent.trim()}: ${$(wrong).validationMessage}`); $(wrong).focus(); return; }
    kept.write("key", $("key").value.trim());
    try { await save(read(settings)); } catch (error) { problem(error.message); return; }
    dialog.close();
  };
  if (!dialog.open) dialog.showModal();
  $(first).focus();
}

function read(settings) {
  const found = { ...settings };
  for (const name of TEXTS) found[name] = $(name).value.trim() || null;
  for (const name of NUMBERS) found[name] = $(name).value === "" ? null : Number($(name).value);
  return found;
}

function problem(text) {
  $("settings-problem").textContent = text;
  $("settings-problem").hidden = !text;
}
