"use strict";
// One image at a time, with those most like it.
const single = (() => {
  const SMALL = 128; // pixels: an image of fewer is shown with sharp edges
  let current = 0;

  function words(i) {
    const answer = answers.given[i];
    if (answer?.label) return answer.label;
    return answer?.unsure ? "unsure" : "";
  }

  function belief(i) {
    const image = images[i];
    return image.belief ? `${image.belief}, ${Math.round(100 * image.sure)} %` : "";
  }

  function show(i) {
    current = i;
    const image = images[i], picture = $("picture");
    if (picture.dataset.of !== String(i)) {
      picture.dataset.of = String(i);
      picture.src = image.src;
      picture.style.setProperty("--ratio", image.width / image.height);
      picture.alt = `Image ${image.file}`;
      picture.classList.toggle("small", Math.max(image.width, image.height) <= SMALL);
      if (images[i + 1]) new Image().src = images[i + 1].src; // ready when it is wanted
    }
    $("name").textContent = image.file;
    const told = words(i), guess = belief(i);
    $("answer").textContent = told || (guess && `model: ${guess}`);
    $("answer").className = told ? (answers.given[i].unsure ? "doubt" : "") : "belief";
    $("alike").replaceChildren(...alike(i));
  }

  function alike(i) {
    const { alike: others, twins } = images[i];
    if (!others.length) return [];
    const title = document.createElement("h2");
    title.textContent = twins ? "Nearly the same" : "Most alike";
    return [title, ...others.map((other, at) => {
      const button = document.createElement("button"), image = document.createElement("img");
      const word = document.createElement("span");
      button.type = "button";
      button.classList.toggle("twin", at < twins);
      button.setAttribute("aria-label", `${at < twins ? "nearly the same" : "alike"}: ${images[other].file}, ${words(other) || "no label"}`);
      image.src = images[other].thumb;
      image.alt = "";
      word.textContent = words(other) || "—";
      button.append(image, word);
      button.addEventListener("click", () => app.go(other));
      return button;
    })];
  }

  $("picture").addEventListener("error", () => {
    const { thumb } = images[current];
    if ($("picture").src === thumb) return;
    $("picture").src = thumb;
    app.notice("Original images are not where this page looks for them, or cannot be shown: small pictures are, instead.");
  });

  return { show, words, belief, at: () => current };
})();
