/* The conversation: questions as text, answers as the blocks of HTML that the server made safe. */

import { $, button, clock, element, figures, notice } from "./dom.js";

const ENDS = { stopped: "stopped", cut: "cut off, the server ended", length: "at its limit of tokens" };

/* `actions`: edit(index, text), again(index), resume(). */
export function showTalk(chat, model, actions) {
  const views = chat ? chat.messages.map((message, index) => turn(chat, message, index, actions)) : [];
  $("talk").replaceChildren(...(views.length ? views.map((view) => view.box) : [hello(model)]));
  return views;
}

function hello(model) {
  const box = element("div", "", element("h2", "", model ? `Chat with ${model}` : "Chat"),
    element("p", "", "The model runs on this server, in full precision. Where its weights come from the disk, a token may take seconds; below each answer you see how far it is. You can close this page meanwhile: the answer goes on."));
  box.id = "hello";
  return box;
}

function turn(chat, message, index, actions) {
  const text = element("div", "text"), foot = element("div", "foot");
  const box = element("article", `turn ${message.role}`, text, foot);
  const view = { box, text, foot };
  box.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
  if (message.role === "user") {
    text.textContent = message.content;
    if (!chat.running) foot.append(button("quiet", "Edit", () => edit(view, message, index, actions)));
    return view;
  }
  const runs = chat.running && index === chat.messages.length - 1;
  showBlocks(text, 0, message.blocks, runs);
  if (!runs) showEnd(chat, message, index, foot, actions);
  return view;
}

/* Blocks in place of those from number `from` on; `open` shows that more may come. */
export function showBlocks(target, from, blocks, open) {
  while (target.children.length > from) target.lastElementChild.remove();
  for (const html of blocks) {
    const block = element("div", "block");
    block.innerHTML = html;  // escaped by the server, and held to the page's policy by the browser
    target.append(block);
  }
  if (open) (target.querySelector(".block:last-child > p:last-child") ?? target).append(element("span", "cursor"));
}

function showEnd(chat, message, index, foot, actions) {
  const last = index === chat.messages.length - 1, line = element("div", "figures");
  if (message.error) {
    const bad = element("div", "bad", message.error);
    bad.setAttribute("role", "alert");
    foot.append(bad);
  }
  const other = message.model && message.model !== chat.settings.model ? `by ${message.model}` : "";
  const took = [other, figures(message.stats), message.stats.seconds ? clock(message.stats.seconds) : "", ENDS[message.state]];
  const buttons = element("span", "buttons");
  line.append(element("span", "", took.filter(Boolean).join(", ")), buttons);
  if (message.content) buttons.append(button("quiet", "Copy", (event) => copy(message.content, event.target)));
  if (last && !chat.running) {
    if (message.resumable) buttons.append(button("quiet", "Continue", () => actions.resume()));
    buttons.append(button("quiet", "Try again", () => actions.again(index)));
  }
  foot.append(line);
}

function edit(view, message, index, actions) {
  const input = element("textarea");
  const back = () => { view.box.classList.remove("editing"); view.box.replaceChildren(view.text, view.foot); };
  const send = () => { if (input.value.trim()) actions.edit(index, input.value.trim()); };
  input.value = message.content;
  input.setAttribute("aria-label", "The question in other words");
  input.onkeydown = (event) => {
    if (event.key === "Escape") { event.stopPropagation(); back(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch) { event.preventDefault(); send(); }
  };
  view.box.classList.add("editing");
  view.box.replaceChildren(input, element("div", "figures", element("span", "", "replaces all that follows"),
    button("", "Cancel", back), button("main", "Send", send)));
  input.rows = Math.min(12, input.value.split("\n").length + 1);
  input.focus();
}

export const touch = matchMedia("(pointer: coarse)").matches;

export async function copy(text, pressed) {
  const label = pressed.textContent;
  try {
    await navigator.clipboard.writeText(text);
    pressed.textContent = "Copied";
    setTimeout(() => { pressed.textContent = label; }, 1500);
  } catch {
    notice("The browser does not let this page copy; select the text instead.");
  }
}
