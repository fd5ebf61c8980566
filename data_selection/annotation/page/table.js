"use strict";
// The CSV that goes out and comes back.
const table = (() => {
  const SEPARATORS = [",", ";", "\t"];

  // Rows of texts as CSV; a cell is quoted where it has to be.
  function write(rows) {
    const cell = (text) => (/[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
  }

  // The rows of a CSV by one separator; quotes may hold separators and line ends.
  function split(text, separator) {
    const rows = [];
    let row = [], cell = "", quoted = false;
    const endCell = () => { row.push(cell); cell = ""; };
    const endRow = () => { endCell(); if (row.some((word) => word !== "")) rows.push(row); row = []; };
    for (let i = 0; i < text.length; i += 1) {
      const letter = text[i];
      if (quoted) {
        if (letter !== '"') cell += letter;
        else if (text[i + 1] === '"') { cell += '"'; i += 1; }
        else quoted = false;
      } else if (letter === '"' && cell === "") quoted = true;
      else if (letter === separator) endCell();
      else if (letter === "\n") endRow();
      else if (letter !== "\r" || text[i + 1] !== "\n") cell += letter;
    }
    endRow();
    return rows;
  }

  // The rows by the separator with which most begin with a known file.
  function read(text, known) {
    const tables = SEPARATORS.map((separator) => split(text, separator));
    const hits = tables.map((rows) => rows.filter((row) => row.length > 1 && known.has(row[0])).length);
    return tables[hits.indexOf(Math.max(...hits))];
  }

  // The text of a file's bytes, in UTF-8, UTF-16 or Windows' code page.
  function decode(bytes) {
    const [one, two] = new Uint8Array(bytes);
    if ((one === 0xff && two === 0xfe) || (one === 0xfe && two === 0xff)) {
      return new TextDecoder(one === 0xff ? "utf-16le" : "utf-16be").decode(bytes);
    }
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
      return new TextDecoder("windows-1252").decode(bytes);
    }
  }

  return { write, read, decode };
})();
