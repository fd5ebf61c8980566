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
  const when = images.map(() => 0); // the time at which it was given, 0 for what the page came with
  let filed = [...given]; // the same as the file holds them, as far as is known here
  let came = new Map(images.filter((image) => image.label).map((image) => [image.file, image.label]));
  let since = 0; // the time of filed and came: when a tab was opened, or saved
  const places = new Map(images.map((image, i) => [image.file, i]));
  const past = [];
  const listeners = [];
  let typed = []; // class names, in the order of their keys
  let listed = 0; // the time at which somebody changed them
  let offered = new Set(); // of all pages so far: of these, one that is not typed was taken out of the list
  let spent = 0; // milliseconds of work on `counted` images
  let counted = 0;
  let last = 0;
  let savedAt = 0; // the time of the last save
  let stored = true;
  let written = null; // what the browser kept when this tab looked last
  let clock = 0; // the latest time that any tab has given
  let fresh = true; // nothing that was kept was found, and nothing has been answered since
  let found; // what to do once it is found after all

  const text = (answer) => JSON.stringify(answer ?? null);
  const mapped = (object) => new Map(Object.entries(object ?? {})); // an image may be called `constructor`
  const bare = (pairs) => Object.fromEntries(pairs.filter(([, value]) => value));

  // {file: [answer, time]} of what is kept; an earlier version knew no times.
  function entries(kept) {
    return kept.given ? mapped(kept.given) : new Map([...mapped(kept.answers)].map(([file, answer]) => [file, [answer, 0]]));
  }

  // In milliseconds; later than all that was given before, also where the clock was set back.
  function now() {
    clock = Math.max(Date.now(), clock + 1);
    return clock;
  }

  // What the browser keeps, where it is not what this tab has seen; else null.
  function look() {
    try {
      const found = localStorage.getItem(KEY);
      if (found === written) return null;
      written = found;
      return JSON.parse(found);
    } catch {
      stored = false;
      return null;
    }
  }

  // What was kept a moment ago may be found a moment later: a busy browser may show a page that is loaded an empty
  // store first. So a page that has found nothing writes nothing, and looks again.
  function load(whenFound) {
    found = whenFound;
    begin(look());
    for (const pause of [50, 500, 5_000]) setTimeout(() => takeOver(), pause);
  }

  function begin(before) {
    if (before) {
      fresh = false;
      ({ listed = 0, spent = 0, counted = 0, savedAt = before.unsaved ? -1 : 0, clock = 0 } = before);
      const kept = entries(before), held = mapped(before.filed), cameBefore = mapped(before.came);
      images.forEach((image, i) => {
        if (!kept.has(image.file)) {
          if (given[i]) when[i] = now(); // the file has learned of it since
          return;
        }
        const [answer, time] = kept.get(image.file), saved = held.get(image.file) ?? null;
        const lost = time > savedAt && text(answer) !== text(saved); // if this page's label took its place
        if (!before.came ? answer !== null || !image.label : lost || isAsBefore(image, cameBefore, saved)) given[i] = answer;
        when[i] = text(given[i]) === text(answer) ? time : now();
        if (cameBefore.get(image.file) === image.label) filed[i] = saved;
      });
    }
    offered = new Set(before?.offered);
    const more = data.classes.filter((word) => !offered.has(word));
    const words = before?.classes ?? [];
    listClasses([...typed.filter((word) => words.includes(word)), ...words, ...more]); // as they are seen, if they are
    for (const word of data.classes) offered.add(word);
    if (fresh) return;
    since = now();
    if (more.length) listed = now();
    write();
  }

  // Takes words for the list, and adds those that images have besides, which keep their place from then on.
  function listClasses(words) {
    typed = [...new Set([...words, ...given.filter((answer) => answer?.label).map((answer) => answer.label)])];
  }

  // Whether the file has not changed since: the label is the one that the page came with, or the one that was saved.
  function isAsBefore(image, cameBefore, saved) {
    const label = image.label ?? "";
    return label === (cameBefore.get(image.file) ?? "") || label === (saved?.label ?? "");
  }

  // Take over what another tab of this page has kept: of each image the answer that was given last. Returns whether
  // this tab knows of one that the other does not.
  function merge(other) {
    clock = Math.max(clock, other.clock ?? 0);
    const theirs = entries(other), taken = new Set();
    let ahead = false;
    images.forEach(({ file }, i) => {
      const [answer, time] = theirs.get(file) ?? [null, 0];
      if (when[i] > time) ahead = true;
      if (time <= when[i]) return;
      if (text(given[i]) !== text(answer)) taken.add(i);
      given[i] = answer;
      when[i] = time;
    });
    if (taken.size) { // undo is of one's own steps, and leaves alone what somebody has answered after them
      const left = past.map((step) => ({ ...step, pairs: step.pairs.filter(([i]) => !taken.has(i)) }));
      past.splice(0, past.length, ...left.filter((step) => step.pairs.length));
    }
    if ((other.since ?? 0) > since) {
      const held = mapped(other.filed);
      filed = images.map(({ file }) => held.get(file) ?? null);
      came = mapped(other.came);
      since = other.since;
    }
    if ((other.listed ?? 0) > listed) {
      const used = new Set(given.map((answer) => answer?.label));
      typed = typed.filter((word) => other.classes.includes(word) || used.has(word)).concat(other.classes);
      listed = other.listed;
    }
    for (const word of other.offered ?? []) offered.add(word);
    if ((other.counted ?? 0) > counted) ({ spent, counted } = other);
    savedAt = Math.max(savedAt, other.savedAt ?? 0);
    listClasses(typed); // own ones first, so that no key changes its meaning
    return ahead;
  }

  function write() {
    const kept = images.map(({ file }, i) => [file, [given[i], when[i]]]).filter(([, [answer, time]]) => answer || time);
    const all = {
      classes: typed, listed, offered: [...offered], given: Object.fromEntries(kept), came: Object.fromEntries(came),
      filed: bare(images.map(({ file }, i) => [file, filed[i]])), since, spent, counted, savedAt, clock,
    };
    try {
      const found = JSON.stringify(all);
      localStorage.setItem(KEY, found);
      written = found;
      stored = true;
    } catch {
      stored = false;
    }
  }

  function tell() {
    for (const listener of listeners) listener();
  }

  function changed() {
    fresh = false;
    const other = look();
    if (other) merge(other);
    listClasses(typed);
    write();
    tell();
  }

  // Another tab has kept something, as the browser says or as is seen now. Where it did not know of this tab's
  // answers, they are kept again.
  function takeOver(other = look()) {
    if (!other) return;
    if (fresh) {
      begin(other);
      found();
    } else if (merge(other)) write();
    tell();
  }

  // Give some images an answer: null, {label} or {unsure: true}. Returns how many it changed.
  function give(indices, answer) {
    return put(indices.map((i) => [i, answer]));
  }

  // The same for pairs of index and answer, as one step.
  function put(pairs, timed = true) {
    takeOver();
    const step = pairs.filter(([i, answer]) => text(given[i]) !== text(answer)).map(([i]) => [i, given[i]]);
    const began = performance.now();
    if (timed) {
      if (last && began - last < PAUSE) {
        spent += began - last;
        counted += pairs.length;
      }
      last = began;
    }
    if (!step.length) return 0;
    past.push({ pairs: step, words: typed, listed });
    if (past.length > STEPS) past.shift();
    set(step.map(([i]) => i), new Map(pairs));
    return step.length;
  }

  // Take the last step back, and the classes that it had brought. Returns the images that it had changed.
  function undo() {
    const step = past.pop();
    if (!step) return [];
    const changed = step.pairs.map(([i]) => i);
    set(changed, new Map(step.pairs), step.listed === listed ? new Set(step.words) : null);
    return changed;
  }

  // The answers of images, and, where words are given, only these and those in use are left as classes.
  function set(indices, answer, words = null) {
    const time = now();
    for (const i of indices) {
      given[i] = answer.get(i);
      when[i] = time;
    }
    if (words) typed = typed.filter((word) => words.has(word)); // changed() lists those that are in use
    changed();
  }

  // Trimmed, without the empty ones and repeats.
  function setClasses(words) {
    takeOver();
    listClasses(words.map((word) => word.trim().normalize("NFC")).filter(Boolean));
    listed = now();
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

  window.addEventListener("storage", (event) => {
    if (event.key === KEY && event.newValue) takeOver(JSON.parse(event.newValue));
  });
  window.addEventListener("pageshow", () => takeOver()); // a page that was gone back to was told nothing meanwhile

  return {
    given, places, load, takeOver, give, put, undo, setClasses, counts, timeLeft,
    onChange: (listener) => listeners.push(listener),
    isStored: () => stored,
    isUnsaved: () => when.some((time, i) => time > savedAt && text(given[i]) !== text(filed[i])),
    saved: () => { filed = [...given]; since = savedAt = now(); changed(); },
    classes: () => [...typed],
    label: (i) => given[i]?.label ?? "",
    done: (i) => given[i] !== null,
  };
})();
