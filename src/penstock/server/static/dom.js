/* Elements, and how figures read. */

export const $ = (id) => document.getElementById(id);

export function element(tag, name, ...inside) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...inside);
  return made;
}

export function button(name, label, action, ...inside) {
  const made = element("button", name, ...inside);
  made.type = "button";
  if (inside.length === 0) made.textContent = label;
  else { made.setAttribute("aria-label", label); made.title = label; }
  made.onclick = action;
  return made;
}

const PATHS = {
  menu: "M2 4h12M2 8h12M2 12h12",
  close: "M3 3l10 10M13 3L3 13",
  rename: "M10.5 2.5l3 3L6 13H3v-3z",
  remove: "M2.5 4h11M6 4V2.5h4V4M4 4l.7 9.5h6.6L12 4",
  settings: "M2 5h5M11 5h3M2 11h3M9 11h5M9 3v4M7 9v4",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

export function clock(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
}

export function pace(seconds) {
  return seconds >= 0.995 ? `${seconds.toFixed(1)} s a token` : `${(1 / seconds).toFixed(1)} tokens a second`;
}

/* What an answer took, in a line. */
export function figures(stats) {
  if (!stats.tokens) return "";
  const parts = [`${stats.tokens} token${stats.tokens === 1 ? "" : "s"}`];
  if (stats.seconds_per_token) parts.push(pace(stats.seconds_per_token));
  if (stats.passes) parts.push(`${(stats.tokens / stats.passes).toFixed(1)} a pass`);
  return parts.join(", ");
}

export function keepAtEnd(change) {
  const box = $("scroll"), atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  change();
  if (atEnd) toEnd();
}

export function toEnd() { $("scroll").scrollTop = $("scroll").scrollHeight; }

/* A line for a while, with something to press where there is something to do about it. */
let fading;
export function notice(text, label, action) {
  clearTimeout(fading);
  const hide = () => $("notice").replaceChildren();
  $("notice").replaceChildren(element("span", "", text));
  if (label) $("notice").append(button("", label, () => { hide(); action(); }));
  fading = setTimeout(hide, label ? 10000 : 5000);
}

/* For those who do not see the page. */
export function say(text) { $("said").textContent = text; }
