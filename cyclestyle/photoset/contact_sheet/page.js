// Elements are created from text, never from markup: no file name can inject an element.
"use strict";
(() => {
const sheet = JSON.parse(document.getElementById("data").textContent);
const several = sheet.labels.length > 0;
const byId = id => document.getElementById(id);

// `pictures` (thumbnails), `files` (full size) and `views` (what the large view shows) have the photo at index 0, then its
// translations. A view is a copy of web size if there is one, or else the file.
const count = 1 + Math.max(1, sheet.labels.length);
const cards = sheet.cards.map(([name, width, height, note, ...rests]) => {
  const paths = rests.map((rest, column) => rest === null ? "" : sheet.starts[column] + rest + sheet.ends[column]);
  const [thumbnails, files, copies] = [0, 1, 2].map(group => paths.slice(group * count, (group + 1) * count));
  const pictures = thumbnails.map((path, number) => path || copies[number] || files[number]);
  const views = files.map((file, number) => copies[number] || file);
  return { name, note, ratio: width / height || 1, pictures, files, views };
});
let visible = cards.map((card, index) => index);
const isFew = !several && cards.length <= 4; // few photos are shown large, from their full files

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function image(kind, source, words) {
  const element = make("img", { className: kind, alt: words, loading: "lazy", decoding: "async", draggable: false });
  if (source) element.src = source; // set after `loading`, or the image would load at once
  return element;
}

// Before and after in one view; pointers drag anywhere in it, and the range serves keys and screen readers.
function comparison(before, after, words, clicked) {
  const range = make("input", { type: "range", min: 0, max: 100, step: "any", ariaLabel: words });
  const view = make("div", { className: "view" }, before, after, range);
  const place = () => view.style.setProperty("--at", range.value + "%");
  const follow = event => {
    const box = view.getBoundingClientRect();
    range.value = 100 * (event.clientX - box.left) / box.width;
    place();
  };
  let start = null, dragged = false;
  view.addEventListener("pointerdown", event => {
    if (event.button === 0) [start, dragged] = [event.clientX, false];
  });
  view.addEventListener("pointermove", event => {
    if (event.buttons === 0) start = null;
    if (start === null || (!dragged && Math.abs(event.clientX - start) < 4)) return;
    if (!dragged) view.setPointerCapture(event.pointerId);
    dragged = true;
    follow(event);
  });
  view.addEventListener("pointerup", () => { start = null; });
  view.addEventListener("pointercancel", () => { start = null; });
  view.addEventListener("click", event => { if (!dragged) clicked(event, follow); });
  range.addEventListener("input", place);
  place();
  return view;
}

// Make a link open the large view; with a modifier key it opens its file in a window or tab, as usual.
function opening(element, index, number) {
  element.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    open(index, number);
  });
  return element;
}

function strip(card, index) {
  const tiles = card.pictures.map((source, number) => {
    const label = number ? sheet.labels[number - 1] : "photo";
    const properties = { className: "tile", href: card.files[number] || source, ariaLabel: card.name + ", " + label };
    const tile = make("a", properties, image("", source, ""), make("span", { className: "chip", textContent: label }));
    return opening(tile, index, number || which);
  });
  return make("div", { className: "strip" }, ...tiles);
}

function pair(card, index) {
  const [before, after] = [image("before", card.pictures[0], ""), image("after", card.pictures[1], card.name)];
  if (isFew) [before, after].forEach((element, number) => bring(element, card, number));
  return comparison(before, after, card.name + ": photo and translation", () => open(index));
}

function fill(place) {
  if (place.firstChild) return;
  const index = places.indexOf(place), card = cards[index];
  const view = several ? strip(card, index) : pair(card, index);
  const name = make("a", { className: "name", href: card.files[1], title: card.name, textContent: card.name });
  place.append(view, opening(name, index));
}

// Cards far from the window are emptied again: the page stays as light as a screenful.
const observer = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) fill(target);
    else if (!target.contains(document.activeElement)) target.replaceChildren();
  }
}, { rootMargin: "500px 0px" });

const places = cards.map(card => {
  const place = make("article", {}), one = Math.min(8, Math.max(0.4, card.ratio));
  place.style.setProperty("--one", one);
  place.style.setProperty("--ratio", several ? one * card.pictures.length : one);
  return place;
});
byId("cards").classList.toggle("sweep", several);
byId("cards").classList.toggle("few", isFew);
byId("cards").append(...places);
places.forEach(place => observer.observe(place));

const spoken = count => count.toLocaleString("en");
const plain = text => text.normalize().toLocaleLowerCase();
byId("filter").parentElement.hidden = cards.length < 2;
byId("filter").addEventListener("input", event => {
  const wanted = plain(event.target.value.trim());
  visible = [];
  cards.forEach((card, index) => {
    const fits = plain(card.name).includes(wanted);
    places[index].hidden = !fits;
    if (fits) visible.push(index);
  });
  byId("count").textContent = wanted && spoken(visible.length) + " of " + spoken(cards.length);
});

const large = byId("large");
const shown = [image("before", "", ""), image("after", "", "")];
const stage = comparison(...shown, "photo and translation", (event, follow) => follow(event));
const [beforeChip, afterChip] = ["chip", "chip right"].map(className => make("span", { className }));
stage.append(beforeChip, afterChip);
byId("room").append(stage);
let current = 0, which = Math.max(1, sheet.labels.length);

byId("strengths").append(...sheet.labels.map((label, index) => {
  const button = make("button", { type: "button", textContent: label });
  button.addEventListener("click", () => { which = index + 1; show(); });
  return button;
}));

function open(index, number = which) {
  [current, which] = [index, number];
  show();
  large.showModal();
}

function show() {
  const card = cards[current], position = visible.indexOf(current);
  stage.style.setProperty("--ratio", card.ratio);
  bring(shown[0], card, 0);
  bring(shown[1], card, which);
  shown[1].alt = byId("what").textContent = card.name;
  byId("where").textContent = spoken(position + 1) + " of " + spoken(visible.length);
  byId("note").textContent = card.note;
  [beforeChip.textContent, afterChip.textContent] = ["photo", several ? sheet.labels[which - 1] : "translation"];
  for (const [id, file] of [["original", card.files[0]], ["result", card.files[which]]]) {
    byId(id).hidden = !file;
    if (file) byId(id).href = file;
  }
  [...byId("strengths").children].forEach((button, index) => { button.ariaPressed = String(index + 1 === which); });
  byId("previous").disabled = position <= 0;
  byId("next").disabled = position + 1 >= visible.length;
  if (document.activeElement && document.activeElement.disabled) byId("room").focus(); // keys need a target
}

// Show the thumbnail at once, and replace it by the full file once loaded, if this browser supports its format.
function bring(element, card, number) {
  const [picture, file] = [card.pictures[number], card.views[number]];
  if (element.dataset.picture === picture) return;
  const settle = (source, isSmall) => {
    if (element.dataset.picture !== picture) return;
    if (source) element.src = source;
    element.dataset.small = isSmall ? "yes" : "";
    byId("fallback").textContent =
      shown.some(one => one.dataset.small) ? "Shown small: this browser cannot open the full file." : "";
  };
  element.dataset.picture = picture;
  element.decoding = "sync"; // asynchronous decoding would leave the place empty for a moment at each change
  if (!picture) element.removeAttribute("src");
  settle(picture, false);
  if (!file) return;
  const loader = new Image();
  loader.src = file;
  loader.decode().then(() => settle(file, false), () => settle("", true));
}

function go(step) {
  const next = visible[visible.indexOf(current) + step];
  if (next === undefined) return;
  current = next;
  show();
}

byId("previous").addEventListener("click", () => go(-1));
byId("next").addEventListener("click", () => go(1));
byId("close").addEventListener("click", () => large.close());
large.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.type === "range") return; // the range uses arrow keys itself
  const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key], stronger = { ArrowDown: -1, ArrowUp: 1 }[event.key];
  if (along) go(along);
  else if (stronger && several) {
    which = Math.min(sheet.labels.length, Math.max(1, which + stronger));
    show();
  } else return;
  event.preventDefault();
});
large.addEventListener("close", () => {
  const place = places[current];
  fill(place);
  place.scrollIntoView({ block: "nearest" });
  place.querySelector(".name").focus({ preventScroll: true });
});
})();
