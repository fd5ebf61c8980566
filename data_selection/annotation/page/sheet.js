"use strict";
// All images in rows of look-alikes; several are picked by click, range, frame or row.
const sheet = (() => {
  const MOVED = 6; // pixels from which a press is the drawing of a frame
  const cells = []; // one for each image, made when the sheet is first seen
  const rows = []; // {section, members, title, count}
  const hidden = []; // by the filter, for each image
  const seen = []; // what each cell shows: of many thousands only those are touched that an answer changes
  const picked = new Set();
  let anchor = null; // where a range starts
  let focused = 0;

  function element(kind, className, ...inside) {
    const made = document.createElement(kind);
    if (className) made.className = className;
    made.append(...inside);
    return made;
  }

  function build() {
    if (cells.length) return;
    images.forEach((image, i) => {
      const picture = element("img"), word = element("span");
      picture.loading = "lazy";
      picture.decoding = "async";
      picture.alt = "";
      picture.src = image.thumb;
      if (Math.max(image.width, image.height) <= 64) picture.className = "small";
      const cell = element("div", "cell", picture, word);
      cell.setAttribute("role", "option");
      cell.dataset.i = String(i);
      cell.tabIndex = i === focused ? 0 : -1;
      cell.title = image.file;
      cell.classList.toggle("twin", image.twins > 0);
      cells.push(cell);
    });
    for (let start = 0; start < images.length;) {
      let end = start;
      while (end < images.length && images[end].group === images[start].group) end += 1;
      rows.push(row(Array.from({ length: end - start }, (_, k) => start + k), data.groups[images[start].group]));
      start = end;
    }
    $("rows").replaceChildren(...rows.map(({ section }) => section));
  }

  function row(members, believed) {
    const title = believed ? `The model believes: ${believed}` : `Look-alikes ${rows.length + 1}`;
    const box = element("div", "cells", ...members.map((i) => cells[i]));
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-multiselectable", "true");
    box.setAttribute("aria-label", title);
    const pick = element("button", "", "Pick row"), count = element("span");
    pick.type = "button";
    pick.setAttribute("aria-label", `Pick the row: ${title}`);
    pick.addEventListener("click", () => pickRow(members[0]));
    return { section: element("div", "row", element("div", "", count, pick), box), members, title, count };
  }

  // Bring cells and rows in line with the answers and the filter.
  function update() {
    if (!cells.length) return;
    cells.forEach((cell, i) => {
      const answer = answers.given[i], word = single.words(i);
      hidden[i] = !app.isShown(i);
      if (hidden[i]) picked.delete(i);
      const now = `${hidden[i]} ${Boolean(answer?.unsure)} ${picked.has(i)} ${word}`;
      if (now === seen[i]) return;
      seen[i] = now;
      const guess = single.belief(i);
      cell.hidden = hidden[i];
      cell.classList.toggle("done", Boolean(answer?.label));
      cell.classList.toggle("doubt", Boolean(answer?.unsure));
      cell.lastChild.textContent = word || (guess && `${guess}?`);
      cell.setAttribute("aria-selected", String(picked.has(i)));
      cell.setAttribute("aria-label", `${images[i].file}, ${word || "no label"}${guess ? `, model: ${guess}` : ""}`);
    });
    for (const one of rows) {
      const left = one.members.reduce((sum, i) => sum + !hidden[i], 0);
      if (left === one.left) continue;
      one.left = left;
      one.section.hidden = !left;
      one.count.textContent = `${one.title} (${left})`;
    }
    $("picked").textContent = picked.size
      ? `${picked.size} picked: a key or button gives them a class`
      : "Click, Shift-click or drag to pick several, then give them a class";
  }

  function focus(i) {
    if (cells[focused]) cells[focused].tabIndex = -1;
    focused = i;
    cells[i].tabIndex = 0;
    cells[i].focus({ preventScroll: true });
    cells[i].scrollIntoView({ block: "nearest" });
  }

  function pick(indices, on = true) {
    for (const i of indices) if (on) picked.add(i); else picked.delete(i);
    update();
  }

  function pickRow(i) {
    const { members } = rows.find((one) => one.members.includes(i));
    const shown = members.filter((k) => !hidden[k]);
    pick(shown, !shown.every((k) => picked.has(k)));
    app.say(`${picked.size} picked`);
  }

  function range(to) {
    const [low, high] = [Math.min(anchor ?? to, to), Math.max(anchor ?? to, to)];
    pick(app.shown().filter((i) => i >= low && i <= high));
  }

  function press(i, shift) {
    if (shift && anchor !== null) range(i);
    else {
      pick([i], !picked.has(i));
      anchor = i;
    }
    focus(i);
  }

  // The image that an arrow leads to: along the order, or the nearest one in the line above or below.
  function neighbour(key) {
    const shown = app.shown(), at = shown.indexOf(focused);
    if (at < 0) return shown[0];
    if (key === "ArrowLeft") return shown[Math.max(0, at - 1)];
    if (key === "ArrowRight") return shown[Math.min(shown.length - 1, at + 1)];
    const step = key === "ArrowDown" ? 1 : -1, from = cells[focused].getBoundingClientRect();
    let best = null, line = null, gap = Infinity;
    for (let k = at + step; k >= 0 && k < shown.length; k += step) {
      const box = cells[shown[k]].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > 2) break;
      if (Math.abs(box.left - from.left) < gap) {
        gap = Math.abs(box.left - from.left);
        best = shown[k];
      }
    }
    return best ?? focused;
  }

  function move(key, shift) {
    if (shift && anchor === null) anchor = focused;
    const to = neighbour(key);
    if (to === undefined) return;
    focus(to);
    if (shift) range(to);
    else anchor = to;
  }

  function drawFrame(start) {
    const area = $("sheet"), frame = element("div");
    frame.id = "frame";
    const before = new Set(picked);
    let drawn = false;
    const inside = (event) => {
      const box = area.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top + area.scrollTop];
    };
    const [x, y] = inside(start);
    const moved = (event) => {
      const [nowX, nowY] = inside(event);
      if (!drawn && Math.hypot(nowX - x, nowY - y) < MOVED) return;
      if (!drawn) area.append(frame);
      drawn = true;
      const [left, top, right, bottom] = [Math.min(x, nowX), Math.min(y, nowY), Math.max(x, nowX), Math.max(y, nowY)];
      Object.assign(frame.style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
      const box = frame.getBoundingClientRect();
      const meets = (other) => other.left < box.right && other.right > box.left && other.top < box.bottom && other.bottom > box.top;
      picked.clear();
      for (const i of before) picked.add(i);
      for (const { section, members } of rows) {
        if (section.hidden || !meets(section.getBoundingClientRect())) continue;
        for (const i of members) if (!hidden[i] && meets(cells[i].getBoundingClientRect())) picked.add(i);
      }
      update();
    };
    const ended = (event) => {
      document.removeEventListener("pointermove", moved);
      document.removeEventListener("pointerup", ended);
      document.removeEventListener("pointercancel", ended);
      frame.remove();
      const cell = event.target.closest?.(".cell");
      if (!drawn && event.type === "pointerup" && cell) press(Number(cell.dataset.i), start.shiftKey);
    };
    document.addEventListener("pointermove", moved);
    document.addEventListener("pointerup", ended);
    document.addEventListener("pointercancel", ended);
  }

  $("sheet").addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest("button")) return;
    if (event.pointerType === "mouse" && event.offsetX <= $("sheet").clientWidth) drawFrame(event);
  });
  $("sheet").addEventListener("click", (event) => { // a finger's tap; the mouse is looked after above
    const cell = event.target.closest(".cell");
    if (cell && event.pointerType !== "mouse") press(Number(cell.dataset.i), event.shiftKey);
  });
  $("sheet").addEventListener("dblclick", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) app.go(Number(cell.dataset.i), "single");
  });

  return {
    build, update, move, focus, pickRow,
    at: () => focused,
    toggle: (i) => press(i, false),
    pickAll: () => pick(app.shown()),
    pickNone: () => { anchor = null; pick([...picked], false); },
    targets: () => (picked.size ? [...picked].sort((a, b) => a - b) : cells[focused] && !hidden[focused] ? [focused] : []),
  };
})();
