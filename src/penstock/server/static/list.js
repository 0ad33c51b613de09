/* The list of conversations: open, rename, delete with a way back. */

import { $, button, element, icon } from "./dom.js";

/* `actions`: open(id), rename(entry, title), remove(entry). */
export function showList(chats, current, actions) {
  if ($("chats").querySelector("input")) return;  // somebody types a name
  const focused = document.activeElement?.closest?.("#chats li")?.dataset.id;
  const rows = chats.map((entry) => row(entry, entry.id === current, actions));
  $("chats").replaceChildren(...(rows.length ? rows : [element("li", "none", "No conversations yet.")]));
  if (focused) $("chats").querySelector(`li[data-id="${focused}"] .open`)?.focus();
}

function row(entry, current, actions) {
  const open = button("open", entry.title, () => actions.open(entry.id));
  const line = element("li", [current ? "current" : "", entry.error ? "broken" : ""].join(" "), open);
  line.dataset.id = entry.id;
  open.title = entry.error ?? entry.title;
  if (current) open.setAttribute("aria-current", "page");
  if (entry.running) {
    const dot = element("span", "dot");
    dot.setAttribute("role", "img");
    dot.setAttribute("aria-label", "is being answered");
    line.append(dot);
  }
  if (!entry.error) line.append(button("plain", `Rename ${entry.title}`, () => rename(line, entry, actions), icon("rename")));
  line.append(button("plain", `Delete ${entry.title}`, () => actions.remove(entry), icon("remove")));
  return line;
}

function rename(line, entry, actions) {
  const input = element("input");
  let left = false;
  const leave = (title) => {
    if (left) return;
    left = true;
    input.remove();
    actions.rename(entry, title);
  };
  input.value = entry.title;
  input.maxLength = 200;
  input.setAttribute("aria-label", `New name of ${entry.title}`);
  input.onkeydown = (event) => {
    if (event.key === "Enter") leave(input.value.trim());
    if (event.key === "Escape") { event.stopPropagation(); leave(""); }
  };
  input.onblur = () => leave(input.value.trim());
  line.replaceChildren(input);
  input.focus();
  input.select();
}

/* On narrow screens the list lies over the page. */
export function openSide(open) {
  document.body.classList.toggle("side-open", open);
  $("open-side").setAttribute("aria-expanded", String(open));
  if (open) $("new").focus();
}
