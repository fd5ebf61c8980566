"use strict";
// What has been answered: kept in the browser, taken back step by step, counted and timed. Shows nothing.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const images = data.images;

const answers = (() => {
  const KEY = `annotate:${data.id}`;
  const PAUSE = 60_000; // milliseconds: a longer gap between two answers was no work
  const STEPS = 1_000; // that can be undone
  const given = images.map((image) => (image.label ? { label: image.label } : null)); // null, {label} or {unsure}
  const places = new Map(images.map((image, i) => [image.file, i]));
  const past = [];
  const listeners = [];
  let typed = []; // class names, in the order of their keys
  let spent = 0; // milliseconds of work on `counted` images
  let counted = 0;
  let last = 0;
  let unsaved = false; // answers that no file holds
  let stored = true;

  const text = (answer) => JSON.stringify(answer ?? null);

  function load() {
    let before = null;
    try {
      before = JSON.parse(localStorage.getItem(KEY) ?? "null");
    } catch {
      stored = false;
    }
    typed = before?.classes ?? [...data.classes];
    if (before) {
      ({ spent = 0, counted = 0, unsaved = false } = before);
      for (const [file, answer] of Object.entries(before.answers ?? {})) {
        if (places.has(file) && isNewer(before, images[places.get(file)], answer)) given[places.get(file)] = answer;
      }
    }
    keep();
  }

  // Whether an answer that the browser remembers is newer than the page's label: given here, and saved in no file yet,
  // or beside a label that has not changed in the file since.
  function isNewer(before, image, answer) {
    const now = image.label ?? "";
    if (!before.came) return answer !== null || !now; // of an earlier version, which did not note what it came with
    const came = before.came[image.file] ?? "";
    const own = text(answer) !== text(came ? { label: came } : null);
    return own && (before.unsaved || came === now);
  }

  function keep() {
    const came = Object.fromEntries(images.filter((image) => image.label).map((image) => [image.file, image.label]));
    const kept = Object.fromEntries(images.map((image, i) => [image.file, given[i]]));
    try {
      localStorage.setItem(KEY, JSON.stringify({ classes: typed, answers: kept, came, spent, counted, unsaved }));
      stored = true;
    } catch {
      stored = false;
    }
  }

  function changed() {
    keep();
    for (const listener of listeners) listener();
  }

  // Give some images an answer: null, {label} or {unsure: true}. Returns how many it changed.
  function give(indices, answer) {
    return put(indices.map((i) => [i, answer]));
  }

  // The same for pairs of index and answer, as one step.
  function put(pairs, timed = true) {
    const step = pairs.filter(([i, answer]) => text(given[i]) !== text(answer)).map(([i]) => [i, given[i]]);
    const now = performance.now();
    if (timed) {
      if (last && now - last < PAUSE) {
        spent += now - last;
        counted += pairs.length;
      }
      last = now;
    }
    if (!step.length) return 0;
    past.push(step);
    if (past.length > STEPS) past.shift();
    for (const [i, answer] of pairs) given[i] = answer;
    unsaved = true;
    changed();
    return step.length;
  }

  // Take the last step back. Returns the images that it had changed.
  function undo() {
    const step = past.pop() ?? [];
    for (const [i, answer] of step) given[i] = answer;
    if (step.length) changed();
    return step.map(([i]) => i);
  }

  // The class names: those typed, then those that images have besides.
  function classes() {
    return [...new Set([...typed, ...given.filter((answer) => answer?.label).map((answer) => answer.label)])];
  }

  // Trimmed, without the empty ones and repeats.
  function setClasses(words) {
    typed = [...new Set(words.map((word) => word.trim()).filter(Boolean))];
    changed();
  }

  function counts() {
    const result = { labelled: 0, unsure: 0, todo: 0, each: new Map() };
    for (const answer of given) {
      if (answer?.label) {
        result.labelled += 1;
        result.each.set(answer.label, (result.each.get(answer.label) ?? 0) + 1);
      } else if (answer?.unsure) result.unsure += 1;
      else result.todo += 1;
    }
    return result;
  }

  // Words for the time that the rest will take, "" before there is anything to go by.
  function timeLeft(todo) {
    if (counted < 3 || !todo) return "";
    const minutes = (todo * spent) / counted / 60_000;
    if (minutes < 1) return "less than a minute left";
    return minutes < 90 ? `about ${Math.round(minutes)} min left` : `about ${(minutes / 60).toFixed(1)} h left`;
  }

  return {
    given, places, load, give, put, undo, classes, setClasses, counts, timeLeft,
    onChange: (listener) => listeners.push(listener),
    isStored: () => stored,
    isUnsaved: () => unsaved,
    saved: () => { unsaved = false; changed(); },
    label: (i) => given[i]?.label ?? "",
    done: (i) => given[i] !== null,
  };
})();
