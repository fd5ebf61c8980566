"use strict";
// The CSV that goes out and comes back.
const table = (() => {
  const SEPARATORS = [",", ";", "\t"];
  const MARK = /^sep=.(\r\n|\r|\n)/; // a first line by which spreadsheets tell each other the separator
  const LABEL = ["label", "class", "class_name", "category", "choice", "tag"]; // as training knows the column
  // What a line cannot hold: control codes, other ends of a line, halves of letters
  const UNSAFE = /[\x00-\x1f\x7f-\x9f\u2028\u2029]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;
  const FORMULA = /^([=+@]|-(?!\d+(\.\d+)?$))/; // what a spreadsheet computes

  // A word as training writes and reads it: in JSON's form where it could not come back otherwise.
  const computed = (word) => (FORMULA.test(word) ? JSON.stringify(word) : word);
  const quoted = (word) => (word.startsWith('"') || UNSAFE.test(word) ? JSON.stringify(word) : computed(word));

  function unquoted(word) {
    if (!/^".*"$/s.test(word)) return word;
    try {
      return String(JSON.parse(word));
    } catch { // somebody else's quotes
      return word;
    }
  }

  // CSV of pairs of file, which comes as it is written, and label; a cell is quoted where it has to be.
  function write(pairs) {
    const rows = [["file", "label"], ...pairs.map(([file, label]) => [computed(file), quoted(label)])];
    const cell = (text) => (/[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
  }

  // The rows of a CSV by one separator; quotes may hold separators and line ends.
  function split(text, separator) {
    const rows = [];
    let row = [], cell = "", quoted = false;
    const endCell = () => { row.push(cell); cell = ""; };
    const endRow = () => { endCell(); if (row.some((word) => word.trim())) rows.push(row); row = []; };
    for (let i = 0; i < text.length; i += 1) {
      const letter = text[i];
      if (quoted) {
        if (letter !== '"') cell += letter;
        else if (text[i + 1] === '"') { cell += '"'; i += 1; }
        else quoted = false;
      } else if (letter === '"' && cell === "") quoted = true;
      else if (letter === separator) endCell();
      else if (letter === "\n" || letter === "\r") endRow();
      else cell += letter;
    }
    endRow();
    return rows;
  }

  // What finds the image, of {file: its place on the page}, that a cell means: as it is, as others write a path, or,
  // from another root or without folders, the one whose path has most in common with it, counted from the end.
  function finder(places) {
    const plain = (file) => unquoted(file).replaceAll("\\", "/").replace(/^(\.\/)+/, "").normalize("NFC");
    const alike = new Map(), ends = new Map();
    for (const [file, i] of places) {
      const path = plain(file), parts = path.split("/").reverse();
      alike.set(path, alike.has(path) ? undefined : i); // no guess at two
      if (!ends.has(parts[0])) ends.set(parts[0], []);
      ends.get(parts[0]).push([parts, i]);
    }
    function nearest(path) {
      const parts = path.split("/").reverse();
      let most = 0, found;
      for (const [own, i] of ends.get(parts[0]) ?? []) {
        const apart = own.findIndex((part, k) => part !== parts[k]), shared = apart < 0 ? own.length : apart;
        found = shared > most ? i : shared === most ? undefined : found;
        most = Math.max(most, shared);
      }
      return found;
    }
    function find(cell) {
      const path = plain(cell.trim());
      return places.get(cell) ?? places.get(cell.trim()) ?? alike.get(path) ?? nearest(path);
    }
    const known = new Map();
    return (cell) => (known.has(cell) ? known : known.set(cell, find(cell))).get(cell);
  }

  // What people and programs write for no label, as training knows it.
  function saysNothing(word) {
    const shown = word.toLowerCase(), plain = shown.replace(/[-_]/g, " ").replace(/['"`´‘’“”„]/g, "");
    const words = plain.replace(/[.!? ]+$/, "").split(/\s+/).join(" ");
    return /^[? ]*$/.test(shown) || data.missing.includes(shown.replace(/\.+$/, "")) || data.doubts.includes(words);
  }

  // The labels of a table, in whatever columns: {place of an image: its words}, how many rows are of no image, the
  // words that say that there is no label, and whether the column of the labels is not to be told. classes: words
  // that are labels whatever they say.
  function read(text, places, classes = []) {
    const find = finder(places);
    const columns = SEPARATORS.flatMap((separator) => {
      const rows = split(text.replace(MARK, ""), separator), width = Math.max(0, ...rows.map((row) => row.length));
      return Array.from({ length: width }, (_, file) => [rows, file]);
    });
    const hits = columns.map(([rows, file]) => rows.filter((row) => row.length > 1 && find(row[file] ?? "") !== undefined).length);
    const [rows, file] = columns[hits.indexOf(Math.max(...hits))] ?? [[], 0];
    const head = find(rows[0]?.[file] ?? "") === undefined ? rows.shift() : []; // a header, or an image of elsewhere
    const words = (head ?? []).map((word, k) => (k === file ? "" : word.trim().toLowerCase())), called = LABEL.find((word) => words.includes(word));
    const used = new Set(rows.flatMap((row) => row.flatMap((word, k) => (k !== file && word.trim() ? [k] : []))));
    const label = called ? words.indexOf(called) : used.size < 2 ? [...used][0] : undefined;
    const found = new Map(), empty = new Set();
    let unknown = 0;
    for (const row of rows) {
      const i = find(row[file] ?? ""), word = unquoted(row[label]?.trim() ?? "").trim().normalize("NFC");
      if (i === undefined) unknown += 1;
      else if (word && saysNothing(word) && !classes.includes(word)) empty.add(word);
      else if (word) found.set(i, (found.get(i) ?? new Set()).add(word));
    }
    return { found, unknown, empty: [...empty], unclear: label === undefined && used.size > 1 };
  }

  // The text of a file's bytes, in UTF-8, UTF-16 or Windows' code page.
  function decode(bytes) {
    const [one, two, ...more] = new Uint8Array(bytes.slice(0, 4));
    const wide = (one === 0xff && two === 0xfe) || (one === 0xfe && two === 0xff) || [one, two, ...more].includes(0);
    if (wide) return new TextDecoder(one === 0xfe || one === 0 ? "utf-16be" : "utf-16le").decode(bytes);
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
      return new TextDecoder("windows-1252").decode(bytes);
    }
  }

  return { write, read, decode };
})();
