"use strict";
// The page as a whole: views, filter, classes, what keys and buttons do.
const app = (() => {
  let view = "single";
  let filter = "all";

  const FILTERS = {
    all: () => true,
    todo: (i) => !answers.done(i),
    unsure: (i) => Boolean(answers.given[i]?.unsure),
  };
  const isShown = (i) => (FILTERS[filter] ?? ((k) => `=${answers.label(k)}` === filter))(i);
  const shown = () => images.map((_, i) => i).filter(isShown);
  const say = (text) => { $("live").textContent = text; };
  const targets = () => (view === "sheet" ? sheet.targets() : images.some((_, i) => isShown(i)) ? [single.at()] : []);

  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  const some = (words) => words.slice(0, 5).join(", ") + (words.length > 5 ? ` and ${words.length - 5} more` : "");

  function notice(text) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  }

  // Show an image, in the view that is open or in another one.
  function go(i, where = view) {
    if (where !== view) setView(where);
    if (view === "sheet") sheet.focus(i);
    else single.show(i);
    update();
  }

  function setView(name) {
    const i = view === "sheet" ? sheet.at() : single.at();
    view = name;
    for (const one of ["single", "sheet"]) $(`to-${one}`).setAttribute("aria-pressed", String(one === view));
    update();
    if (view === "sheet") sheet.focus(isShown(i) ? i : shown()[0] ?? i);
    else single.show(i);
    update();
  }

  // One image back or on among those that are shown.
  function step(by) {
    const list = shown(), i = single.at();
    const to = by > 0 ? list.find((k) => k > i) : list.findLast((k) => k < i);
    if (to === undefined) say(by > 0 ? "This is the last image" : "This is the first image");
    else {
      go(to);
      tell();
    }
  }

  // After an answer: on to the next image that has none, or with a filter to the next that is shown.
  function onward(after) {
    const open = (i) => (filter === "all" || filter === "todo" ? !answers.done(i) : isShown(i));
    const left = images.map((_, i) => i).filter(open);
    const to = left.find((i) => i > after) ?? left[0];
    if (to !== undefined) go(to);
    else if (!answers.counts().todo) say("Every image has an answer: save annotate.csv");
    return to !== undefined;
  }

  function give(answer, told) {
    const some = targets();
    if (!some.length) {
      say($("empty").textContent);
      return;
    }
    answers.give(some, answer);
    sheet.pickNone();
    const more = onward(some.at(-1));
    say(`${some.length > 1 ? `${some.length} images` : images[some[0]].file}: ${told}.${more ? ` ${position()}` : ""}`);
  }

  function giveClass(word) {
    const name = word.trim().normalize("NFC"); // as training reads it
    if (!name) return;
    if (targets().length && !answers.classes().includes(name)) answers.setClasses([...answers.classes(), name]);
    give({ label: name }, name);
  }

  function confirm() {
    const some = targets().filter((i) => images[i].belief);
    if (!some.length) return;
    answers.put(some.map((i) => [i, { label: images[i].belief }]));
    sheet.pickNone();
    onward(some.at(-1));
    say(`${some.length} confirmed`);
  }

  function undo() {
    const changed = answers.undo();
    if (!changed.length) return say("Nothing to undo");
    go(changed[0]);
    return say(`Undone: ${changed.length} ${changed.length > 1 ? "images" : "image"}`);
  }

  function position() {
    const i = view === "sheet" ? sheet.at() : single.at(), list = shown(), at = list.indexOf(i);
    return `${at < 0 ? "–" : at + 1} of ${list.length}`;
  }

  const tell = () => say(`${position()}, ${images[single.at()].file}, ${single.words(single.at()) || "no label"}`);

  function classButton(word, marked) {
    const button = document.createElement("button"), name = document.createElement("span");
    const own = keys.of(word);
    button.type = "button";
    button.title = word;
    button.setAttribute("aria-keyshortcuts", own.join(" "));
    button.setAttribute("aria-pressed", String(marked.has(word)));
    name.textContent = word;
    name.dir = "auto";
    button.append(...own.map((key) => Object.assign(document.createElement("kbd"), { textContent: key })), name);
    button.addEventListener("click", () => giveClass(word));
    return button;
  }

  function option(value, text) {
    return Object.assign(document.createElement("option"), { value, textContent: text, selected: value === filter });
  }

  function update() {
    const words = answers.classes(), { labelled, unsure, todo, each } = answers.counts();
    if (filter.startsWith("=") && !each.has(filter.slice(1))) filter = "all";
    keys.assign(words);
    const marked = new Set(targets().map(answers.label)), active = document.activeElement;
    const held = active.parentElement === $("classes") ? active.title : null;
    $("classes").replaceChildren(...words.map((word) => classButton(word, marked)));
    [...$("classes").children].find((button) => button.title === held)?.focus();
    $("known").replaceChildren(...words.map((word) => option(word, word)));
    $("filter").replaceChildren(
      option("all", `all (${images.length})`), option("todo", `without answer (${todo})`), option("unsure", `unsure (${unsure})`),
      ...words.filter((word) => each.has(word)).map((word) => option(`=${word}`, `${word} (${each.get(word)})`)),
    );
    $("bar").value = labelled + unsure;
    const doubt = unsure ? `, ${unsure} unsure` : "", left = answers.timeLeft(todo);
    $("told").textContent = `${labelled} of ${images.length} labelled${doubt}${left ? `, ${left}` : ""}`;
    const none = !shown().length;
    $("empty").hidden = !none;
    for (const one of ["single", "sheet"]) $(one).hidden = none || one !== view;
    $("place").textContent = position();
    single.show(single.at());
    if (view === "sheet") {
      sheet.build();
      sheet.update();
    }
    $("unkept").hidden = answers.isStored();
  }

  function save() {
    answers.takeOver();
    const pairs = images.map((image, i) => [image.file, answers.label(i)]);
    const address = URL.createObjectURL(new Blob([table.write(pairs)], { type: "text/csv" }));
    Object.assign(document.createElement("a"), { href: address, download: "annotate.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    answers.saved();
    say(`annotate.csv saved with ${answers.counts().labelled} labels: put it beside this page`);
  }

  async function open(file) {
    const text = table.decode(await file.arrayBuffer());
    const { found, unknown, empty, unclear } = table.read(text, answers.places, answers.classes());
    if (unclear) {
      notice(`${file.name}: call the column that holds the labels "label" in its first row.`);
      return;
    }
    const words = [...found].map(([i, several]) => [i, [...several]]);
    const pairs = words.filter(([, several]) => several.length === 1).map(([i, [label]]) => [i, { label }]);
    const torn = words.filter(([, several]) => several.length > 1);
    const replaced = pairs.filter(([i, { label }]) => answers.done(i) && answers.label(i) !== label);
    const over = replaced.map(([i, { label }]) => `${images[i].file} (${single.words(i)} → ${label})`);
    answers.put(pairs, false);
    notice([
      `${file.name}: ${count(pairs.length, "label")} taken`,
      over.length ? `, ${over.length} of them in place of another answer, which Undo brings back: ${some(over)}.` : ".",
      torn.length ? ` ${count(torn.length, "image")} with two labels left as before: ${
        some(torn.map(([i, several]) => `${images[i].file} (${several.join(" and ")})`))}.` : "",
      empty.length ? ` Taken for no label: ${some(empty)}; if it is a class, put it into the list of classes first.` : "",
      unknown ? ` ${count(unknown, "row")} of images that are not on this page.` : "",
    ].join(""));
    update();
  }

  function editClasses() {
    $("class-words").value = answers.classes().join("\n");
    $("class-list").showModal();
  }

  const ACTIONS = {
    u: () => give({ unsure: true }, "unsure"),
    x: () => give(null, "no label"),
    z: undo,
    v: () => setView(view === "sheet" ? "single" : "sheet"),
    "/": () => $("other").focus(),
    "?": () => $("help").showModal(),
  };
  const IN_SHEET = {
    " ": () => sheet.toggle(sheet.at()),
    r: () => sheet.pickRow(sheet.at()),
    Escape: () => sheet.pickNone(),
  };

  const IN_CONTROL = { z: undo, s: save, a: () => sheet.pickAll() };

  // What a key does, where it does something.
  function actionOf(key, event) {
    if (event.ctrlKey || event.metaKey) return event.shiftKey || (key === "a" && view !== "sheet") ? null : IN_CONTROL[key];
    if (key.startsWith("Arrow")) {
      if (view === "sheet") return () => sheet.move(key, event.shiftKey);
      return key === "ArrowLeft" || key === "ArrowRight" ? () => step(key === "ArrowLeft" ? -1 : 1) : null;
    }
    if (key === "Enter") return confirm;
    if (view === "sheet" && IN_SHEET[key]) return IN_SHEET[key];
    return ACTIONS[key] ?? (keys.word(key) ? () => giveClass(keys.word(key)) : null);
  }

  function onKey(event) {
    const { target } = event;
    if (event.altKey || document.querySelector("dialog[open]") || target.closest("input, textarea, select")) return;
    const key = keys.pressed(event, (one) => actionOf(one, event)), action = actionOf(key, event);
    if (!action || keys.isComposing(event) || (target.closest("button") && (key === "Enter" || key === " "))) return;
    event.preventDefault();
    if (!event.repeat || key.startsWith("Arrow")) action(); // a key that is held down answers once
  }

  let began; // the image that was shown first

  // Go to the first image without an answer, as far as answers are known.
  function goOn() {
    single.show(shown().find((i) => !answers.done(i)) ?? 0);
    update();
  }

  function start() {
    answers.load(() => (single.at() === began ? goOn() : update()));
    answers.onChange(update);
    const press = (id, action) => $(id)?.addEventListener("click", action);
    press("to-single", () => setView("single"));
    press("to-sheet", () => setView("sheet"));
    press("edit-classes", editClasses);
    press("open-help", ACTIONS["?"]);
    press("import", () => $("file").click());
    press("export", save);
    press("back", () => (view === "sheet" ? sheet.move("ArrowLeft", false) : step(-1)));
    press("skip", () => (view === "sheet" ? sheet.move("ArrowRight", false) : step(1)));
    press("unsure", ACTIONS.u);
    press("clear", ACTIONS.x);
    press("undo", undo);
    press("confirm", confirm);
    $("file").addEventListener("change", async () => {
      for (const file of $("file").files) await open(file);
      $("file").value = "";
    });
    $("filter").addEventListener("change", () => {
      filter = $("filter").value;
      const list = shown();
      if (list.length && !list.includes(single.at())) single.show(list[0]);
      update();
    });
    $("other").addEventListener("keydown", (event) => {
      if ((event.key !== "Enter" && event.key !== "Escape") || keys.isComposing(event)) return;
      const word = event.key === "Enter" ? $("other").value : "";
      $("other").value = "";
      $("other").blur();
      giveClass(word);
      event.stopPropagation();
    });
    $("class-list").addEventListener("submit", (event) => {
      if (event.submitter?.value === "ok") answers.setClasses($("class-words").value.split("\n"));
    });
    document.addEventListener("keydown", onKey);
    window.addEventListener("beforeunload", (event) => {
      if (!answers.isStored() && answers.isUnsaved()) event.preventDefault();
    });
    goOn();
    began = single.at();
    if (!answers.classes().length) editClasses();
  }

  return { go, say, notice, isShown, shown, start };
})();

app.start();
