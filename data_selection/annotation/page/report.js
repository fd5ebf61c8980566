// Images of few pixels stay sharp when they are shown larger.
for (const image of document.querySelectorAll(".sheet img")) {
  const sharpen = () => image.classList.toggle("small", image.naturalWidth > 0 && image.naturalWidth <= 64);
  if (image.complete) sharpen();
  else image.addEventListener("load", sharpen);
}
