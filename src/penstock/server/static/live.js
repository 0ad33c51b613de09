/* An answer on its way: follows it through lost connections, and shows how far it is. */

import { $, clock, element, figures, keepAtEnd } from "./dom.js";
import { events } from "./api.js";
import { showBlocks } from "./talk.js";

const SILENCE = 15;  // seconds without a sign of life, of which one comes every second
const AGAIN = 1000;  // milliseconds until the next try where the connection was lost

export class Live {
  constructor(id, view) {
    this.id = id;
    this.view = view;
    this.control = new AbortController();
    this.frame = null;
    this.heard = performance.now();
    this.label = element("span"); this.speed = element("span"); this.time = element("span");
    this.fill = element("div");
    this.bar = element("div", "progress", this.fill);
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", "Pass over the model");
    view.foot.replaceChildren(this.bar, element("div", "figures", this.label, this.speed, this.time));
    this.timer = setInterval(() => keepAtEnd(() => this.draw()), 100);
    this.draw();
  }

  /* Until the answer ends; a reload, or a server that comes back, takes it up again from its beginning. */
  async follow() {
    try {
      while (!this.control.signal.aborted) {
        try {
          for await (const { name, data } of events(`chats/${this.id}/answer`, this.control.signal)) {
            if (name === "end") return;
            this.hear(data);
          }
        } catch (error) {
          if (error.name === "AbortError" || error.status) return;  // left, or the server knows of no answer
        }
        await new Promise((resolve) => setTimeout(resolve, AGAIN));
      }
    } finally {
      this.leave();
    }
  }

  leave() { clearInterval(this.timer); this.control.abort(); }

  hear(frame) {
    this.heard = performance.now();
    this.frame = frame;
    keepAtEnd(() => {
      if (frame.blocks) showBlocks(this.view.text, frame.from, frame.blocks, true);
      this.draw();
    });
  }

  /* Ten times a second, whether the server says something or not. */
  draw() {
    const silent = (performance.now() - this.heard) / 1000, frame = this.frame;
    const lost = silent > SILENCE;
    this.label.className = lost ? "bad" : "";
    this.speed.textContent = frame ? figures(frame.stats) : "";
    this.time.textContent = frame ? clock(frame.stats.seconds + silent) : clock(silent);
    if (lost) this.label.textContent = `no sign of life from the server for ${Math.floor(silent)} s`;
    else if (!frame) this.label.textContent = "sent";
    else if (frame.opening) this.label.textContent = "opening the model";
    else if (frame.waiting > 1) this.label.textContent = `waiting, ${frame.waiting - 1} ahead`;
    else if (frame.waiting) this.label.textContent = "waiting for its turn";
    else this.drawPass(frame, silent);
  }

  drawPass(frame, silent) {
    const done = frame.layer / frame.layers, { tokens, passes } = frame.stats;
    const whole = frame.layer ? Math.max(frame.pass_seconds, frame.seconds / done) : frame.pass_seconds;
    const share = Math.min(1, whole ? done + silent / whole : done);
    const quick = tokens > 0 && whole < 0.5;
    const layer = Math.min(frame.layers, Math.floor(share * frame.layers) + 1);
    let label = tokens ? `pass ${passes + 1}` : "reading the prompt";
    if (!quick) label += `, layer ${layer} of ${frame.layers}`;
    this.label.textContent = label;
    this.bar.classList.toggle("idle", quick);
    this.bar.setAttribute("aria-valuenow", String(Math.round(share * 100)));
    this.fill.style.width = `${(share * 100).toFixed(1)}%`;
  }
}

export function showBusy(busy) {
  $("send").textContent = busy ? "Stop" : "Send";
  $("send").classList.toggle("main", !busy);
}
