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
  const filed = [...given]; // the same as the file holds them, as far as is known here
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
        const i = places.get(file);
        if (i === undefined) continue;
        if (isNewer(before, images[i], answer)) given[i] = answer;
        if (before.came?.[file] === images[i].label) filed[i] = before.filed?.[file] ?? null;
      }
    }
    keep();
  }

  // Whether an answer that the browser remembers is newer than the page's label: where this is the one that the page
  // came with before, or the one that was saved, so that the file has not changed since; else where it was never saved.
  function isNewer(before, image, answer) {
    const now = image.label ?? "";
    if (!before.came) return answer !== null || !now; // of an earlier version, which did not note what it came with
    const saved = before.filed?.[image.file] ?? null;
    if (now === (before.came[image.file] ?? "") || now === (saved?.label ?? "")) return true;
    return before.unsaved && text(answer) !== text(saved);
  }

  function keep() {
    const came = Object.fromEntries(images.filter((image) => image.label).map((image) => [image.file, image.label]));
    const kept = Object.fromEntries(images.map((image, i) => [image.file, given[i]]));
    const held = Object.fromEntries(images.map((image, i) => [image.file, filed[i]]).filter(([, answer]) => answer));
    const all = { classes: typed, answers: kept, came, filed: held, spent, counted, unsaved };
    try {
      localStorage.setItem(KEY, JSON.stringify(all));
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
    if (step.length) {
      unsaved = true;
      changed();
    }
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
    saved: () => { filed.splice(0, filed.length, ...given); unsaved = false; changed(); },
    label: (i) => given[i]?.label ?? "",
    done: (i) => given[i] !== null,
  };
})();
