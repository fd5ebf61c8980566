"use strict";
// Which key gives which class, and what a press means on keyboards of any language.
const keys = (() => {
  const TAKEN = "uxzvr"; // letters that do something else
  const LETTERS = "abcdefghijklmnopqrstuvwxyz";
  let words = new Map(); // key -> class

  // Digits by order, letters by what the name has.
  function assign(classes) {
    words = new Map(classes.slice(0, 9).map((word, i) => [String(i + 1), word]));
    for (const word of classes) {
      const free = (letter) => LETTERS.includes(letter) && !TAKEN.includes(letter) && !words.has(letter);
      const letter = [...word.toLowerCase(), ...LETTERS].find(free);
      if (letter) words.set(letter, word);
    }
  }

  // What was pressed, whether or not capitals are locked: a key that is known as it is, else the one that a keyboard of
  // Latin letters has there (Cyrillic г is u; French & is 1).
  function pressed(event, isKnown) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key.length > 1 || isKnown(key)) return key;
    const [, letter, digit] = /^(?:Key([A-Z])|Digit(\d))$/.exec(event.code) ?? [];
    if (letter && /\p{L}/u.test(key) && !/\p{Script=Latin}/u.test(key)) return letter.toLowerCase();
    return digit && !event.shiftKey ? digit : key;
  }

  return {
    assign, pressed,
    // Whether a press is of an input method that is at work; Safari tells by the number alone.
    isComposing: (event) => event.isComposing || event.keyCode === 229,
    word: (key) => words.get(key),
    of: (word) => [...words].filter(([, other]) => other === word).map(([key]) => key),
  };
})();
