"use strict";

const FIXATION_MS = 500;
const RETRY_MS = 1000;
const CHOICES = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };
const SCREENS = ["welcome", "instructions", "trial", "paused", "done"];
const at = (id) => document.getElementById(id);

let study = null;   // consent, mask_ms, total, practice
let state = null;   // code, position, total, trial
let measured = null;  // the reveal of the current trial
let asking = 0;     // when the choice appeared; 0 while it is not shown
let running = 0;    // number of the presentation that is going on; another number ends it

class Refused extends Error {}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

function wait(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

function frame() {
  return new Promise((done) => requestAnimationFrame(done));
}

// A request, repeated until the server replies. The server ignores a repeated answer.
async function ask(path, content) {
  const options = content === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
  for (;;) {
    try {
      const reply = await fetch(path, options);
      const found = await reply.json();
      if (reply.ok) { trouble(""); return found; }
      if (reply.status < 500) throw new Refused(found.error);
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    trouble("No connection to the study. Your answers are kept; trying again.");
    await wait(RETRY_MS);
  }
}

function mine(rest = "") {
  return `/api/participants/${state.code}${rest}`;
}

function current(rest) {
  return mine(`/trials/${state.position}/${rest}`);
}

function screen(name) {
  running += 1;
  asking = 0;
  for (const each of SCREENS) at(each).hidden = each !== name;
  for (const each of document.querySelectorAll(".code")) each.textContent = state ? state.code : "";
}

function arrived(found) {
  state = found;
  history.replaceState(null, "", `#${state.code}`);
}

// The current trial, before its original is shown.
function ready() {
  if (!state.trial) { screen("done"); return; }
  screen("trial");
  const { position, total, trial } = state;
  at("progress").textContent = `${trial.practice ? "Practice, picture" : "Picture"} ${position + 1} of ${total}`;
  at("meter").max = total;
  at("meter").value = position;
  at("stage").hidden = false;
  at("choice").hidden = true;
  for (const id of ["cross", "original", "mask"]) at(id).hidden = true;
  at("show").hidden = false;
  at("show").disabled = false;
  at("show").focus({ preventScroll: true });
}

async function load(id, name) {
  const image = at(id);
  for (;;) {
    image.src = current(`${name}.png?${Math.random()}`);
    try {
      await image.decode();
      break;
    } catch {
      await ask(mine());  // waits until the server replies
    }
  }
  image.classList.toggle("small", image.naturalWidth < 128);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

// The cross for a while; returns the display's time per frame.
async function fixate() {
  at("cross").hidden = false;
  const first = await frame();
  const gaps = [];
  for (let last = first; last - first < FIXATION_MS;) {
    const now = await frame();
    gaps.push(now - last);
    last = now;
  }
  return median(gaps);
}

// Shows the original for the whole number of frames that is nearest to `ms`. Both changes are made in callbacks of
// frames, so the difference of the callbacks' times is the time for which it is on the display.
function reveal(ms, frameMs) {
  return new Promise((done) => {
    let first = 0, frames = 0, hidden = document.hidden;
    function step(now) {
      hidden = hidden || document.hidden;
      if (!first) {
        first = now;
        at("cross").hidden = true;
        at("original").classList.remove("waiting");
      } else {
        frames += 1;
        if (now - first + frameMs / 2 >= ms) {
          at("original").hidden = true;
          at("mask").classList.remove("waiting");
          done({ shown_ms: now - first, frame_ms: frameMs, frames, hidden });
          return;
        }
      }
      requestAnimationFrame(step);
    }
    requestAnimationFrame(step);
  });
}

async function present() {
  at("show").disabled = true;
  const number = running;
  await Promise.all([load("original", "original"), load("mask", "mask"), load("left-picture", "left"),
    load("right-picture", "right")]);
  if (running !== number) return;
  for (const id of ["original", "mask"]) {
    at(id).classList.add("waiting");  // laid out and decoded, not visible
    at(id).hidden = false;
  }
  at("show").hidden = true;
  const frameMs = await fixate();
  if (running !== number) return;
  await ask(current("reveal"), {});
  if (running !== number) return;
  measured = await reveal(state.trial.reveal_ms, frameMs);
  const end = await frame();
  let now = end;
  while (now - end < study.mask_ms) now = await frame();
  if (running !== number) return;
  at("mask").hidden = true;
  at("stage").hidden = true;
  at("choice").hidden = false;
  asking = now;
}

async function choose(choice) {
  if (!asking) return;
  const response = performance.now() - asking;
  asking = 0;
  state = await ask(current("answer"), { choice, ...measured, response_ms: Math.max(0, response) });
  if (!at("trial").hidden) ready();
}

async function guarded(action) {
  try {
    await action();
  } catch (error) {
    trouble(error instanceof Refused ? `${error.message}.` : "Something went wrong; reload the page.");
    if (!(error instanceof Refused)) throw error;
  }
}

function resume(code) {
  return guarded(async () => { arrived(await ask(`/api/participants/${encodeURIComponent(code)}`)); ready(); });
}

function typed(text) {
  const letters = text.toUpperCase().replace(/[^0-9A-Z]/g, "");
  return `${letters.slice(0, 4)}-${letters.slice(4)}`;
}

async function begin() {
  study = await ask("/api/study");
  for (const part of study.consent.split(/\n\s*\n/)) {
    const paragraph = document.createElement("p");
    paragraph.textContent = part;
    at("consent").append(paragraph);
  }
  at("counts").textContent = `There are ${study.total} pictures` +
    (study.practice ? `; the first ${study.practice} are for practice.` : ".");
  screen("welcome");
  if (location.hash.length > 1) await resume(typed(location.hash));
}

at("join").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(async () => { arrived(await ask("/api/participants", { consent: true })); screen("instructions");
    at("understood").focus(); });
});
at("resume").addEventListener("submit", (event) => { event.preventDefault(); resume(typed(at("code").value)); });
at("understood").addEventListener("click", () => ready());
at("show").addEventListener("click", () => guarded(present));
at("pause").addEventListener("click", () => { screen("paused"); at("go-on").focus(); });
at("go-on").addEventListener("click", () => resume(state.code));
for (const side of ["left", "right", "tie"]) at(side).addEventListener("click", () => guarded(() => choose(side)));
addEventListener("keydown", (event) => {
  if (event.repeat || event.altKey || event.ctrlKey || event.metaKey || !asking || !(event.key in CHOICES)) return;
  event.preventDefault();
  guarded(() => choose(CHOICES[event.key]));
});
guarded(begin);
