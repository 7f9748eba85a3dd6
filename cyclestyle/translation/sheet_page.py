"""What a browser gets as the contact sheet: a page, its looks and its script, in which `sheet` fills the gaps."""

MARKER = '<meta name="generator" content="cyclestyle contact sheet">'

# The names in $ are string.Template's; the script may not hold that sign, and makes elements from text only, never
# from markup, so that no file name can be one.
PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
$marker
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark light">
<title>$title</title>
<style>
:root {
  color-scheme: dark light;
  --ground: #1c1c1c; --raised: #2a2a2a; --text: #e4e4e4; --quiet: #a0a0a0; --line: #3a3a3a; --mark: #ffb454;
  --edge: clamp(.75rem, 2vw, 2rem); --name: 1.75rem; /* the line below a picture */
  --height: 210px; /* of a row, at least */
}
@media (prefers-color-scheme: light) {
  :root { --ground: #ececec; --raised: #fff; --text: #1d1d1d; --quiet: #5c5c5c; --line: #cfcfcf; --mark: #a85a00; }
}
* { box-sizing: border-box; }
html { scrollbar-gutter: stable; }
html:has(dialog[open]) { overflow: hidden; background: #111; } /* which the scrollbar's room shows */
[hidden] { display: none !important; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
a { color: inherit; }
button, input { font: inherit; color: inherit; }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }

header { display: flex; flex-wrap: wrap; align-items: end; gap: .75rem 2rem; padding: 1.25rem var(--edge); }
h1 { margin: 0; font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere; }
.facts {
  display: flex; flex-wrap: wrap; gap: 0 1.25rem; margin: .2rem 0 0; padding: 0; list-style: none; color: var(--quiet);
}
.facts li { overflow-wrap: anywhere; }
.facts li:first-child { color: var(--text); }
.facts a { color: var(--mark); }
.hint { margin: .35rem 0 0; }
.head { flex: 1 1 24rem; min-width: 0; }
.filter { display: flex; align-items: center; color: var(--quiet); }
#count:not(:empty) { margin-right: .75rem; }
.filter input {
  width: min(18rem, 60vw); padding: .4rem .7rem; color: var(--text);
  background: var(--raised); border: 1px solid var(--line); border-radius: .4rem;
}

/* Rows as in a gallery: boxes grow in proportion to their width, so that those of a row end up equally high. */
#cards { display: flex; flex-wrap: wrap; align-items: flex-start; gap: .75rem; padding: 0 var(--edge) 2rem; }
#cards::after { content: ""; flex: 1000000 0 0px; } /* so that the last row does not */
article {
  box-sizing: content-box; position: relative; min-width: 0; padding-bottom: var(--name);
  flex: var(--ratio) 1 calc(var(--ratio) * var(--height)); aspect-ratio: var(--ratio);
  max-width: min(100%, var(--ratio) * var(--height) * 1.55); /* thumbnails are no larger */
}
.view, .strip { position: absolute; inset: 0 0 var(--name); }
.view, .tile { overflow: hidden; background: var(--raised); border-radius: .25rem; }
.view { isolation: isolate; cursor: ew-resize; touch-action: pan-y; user-select: none; -webkit-user-select: none; }
.view img, .tile img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.view .before { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.view .after { clip-path: inset(0 0 0 var(--at)); }
.view::after { /* where the one ends and the other begins */
  content: ""; position: absolute; inset: 0 auto 0 var(--at); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 0 1px #0006, 0 0 5px #0008; pointer-events: none;
}
.view::before { /* what to take hold of */
  content: "\2039\2009\203A"; position: absolute; z-index: 1; left: var(--at); top: 50%; width: 1.9rem; height: 1.9rem;
  display: grid; place-items: center; transform: translate(-50%, -50%); border-radius: 50%; background: #fff;
  box-shadow: 0 0 0 1px #0006, 0 1px 6px #0009;
  color: #222; font-weight: 600; line-height: 1; opacity: 0; pointer-events: none;
}
.view:hover::before, .view:has(input:focus-visible)::before, .room .view::before, .few .view::before { opacity: 1; }
@media (hover: none) { .view::before { opacity: .85; } }
.view input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; pointer-events: none; }
.view:has(input:focus-visible) { outline: 3px solid var(--mark); outline-offset: 2px; }
.name {
  position: absolute; inset: auto 0 0; height: var(--name); padding: .25rem .1rem 0; font-size: .8rem;
  color: var(--quiet); text-decoration: none; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
}
.name:hover { color: var(--text); text-decoration: underline; }
.name:focus-visible { outline-offset: -3px; }
.strip { display: flex; gap: 3px; }
.tile { position: relative; flex: 1 1 0; min-width: 0; cursor: zoom-in; }
.tile:focus-visible { outline: none; }
.tile:focus-visible::after { content: ""; position: absolute; inset: 0; border: 3px solid var(--mark); }
.chip {
  position: absolute; left: .35rem; bottom: .35rem; max-width: calc(100% - .7rem); padding: 0 .4rem; overflow: hidden;
  color: #fff; background: #000a; border-radius: .2rem; font-size: .75rem; text-overflow: ellipsis; white-space: nowrap;
  pointer-events: none;
}

@media (max-width: 700px) {
  :root { --height: 150px; }
  #cards { gap: .5rem; }
  article { max-width: 100%; }
  .sweep article { flex: 0 0 100%; max-width: none; aspect-ratio: auto; height: var(--height); }
  .sweep .strip { overflow-x: auto; }
  .sweep .tile { flex: 0 0 calc(var(--height) * var(--one)); }
}

.failures, .plain { padding: .5rem var(--edge) 2rem; }
.few { --height: min(62vh, 45rem); }
.few article { max-width: min(100%, var(--ratio) * var(--height)); }
.failures { border-top: 1px solid var(--line); }
.failures h2 { font-size: 1.05rem; }
.failures ul { padding-left: 1.2rem; }
.failures li { overflow-wrap: anywhere; color: var(--quiet); }
.failures b { color: var(--text); font-weight: 600; }

dialog {
  width: 100%; max-width: none; height: 100%; max-height: none; margin: 0; padding: 0; border: 0;
  background: #111; color: #e4e4e4; --mark: #ffb454; --line: #444; --raised: #1b1b1b;
}
dialog[open] { display: flex; flex-direction: column; }
dialog::backdrop { background: #111; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .35rem .9rem; padding: .6rem .9rem; }
.bar .what { flex: 1 1 12rem; min-width: 0; overflow-wrap: anywhere; }
.bar .what small { margin-left: .6rem; color: #a0a0a0; }
.bar button, .bar a {
  padding: .2rem .7rem; background: #2a2a2a; border: 1px solid var(--line); border-radius: .4rem; cursor: pointer;
  color: inherit; text-decoration: none;
}
.bar button:disabled { opacity: .35; cursor: default; }
.bar button[aria-pressed="true"] { background: #e4e4e4; color: #111; }
@media (max-width: 700px) { /* what everybody needs in the first row, below it the rest */
  .bar { gap: .35rem .5rem; }
  .bar .what { flex-basis: 8rem; }
  .bar button { order: 1; }
  .bar #strengths, .bar a { order: 2; }
}
#strengths { display: flex; flex-wrap: wrap; gap: .35rem; }
#strengths:empty { display: none; }
.room { flex: 1; min-height: 0; display: grid; place-items: center; padding: 0 .9rem; container-type: size; }
.room .view { position: relative; inset: auto; width: min(100cqw, 100cqh * var(--ratio)); aspect-ratio: var(--ratio); }
.room:focus-visible { outline: none; }
.room .chip { font-size: .85rem; }
.room .chip.right { left: auto; right: .35rem; }
.foot {
  display: flex; flex-wrap: wrap; gap: 0 1.25rem; min-height: 2.2rem; padding: .4rem .9rem;
  color: #a0a0a0; font-size: .85rem; overflow-wrap: anywhere;
}
#keys { margin-left: auto; }
@media (hover: none) { #keys { display: none; } }
</style>
</head>
<body>
<header>
<div class="head"><h1>$title</h1><ul class="facts">$facts</ul>$hint</div>
<label class="filter" hidden><span id="count" role="status"></span>
<input id="filter" type="search" placeholder="Filter by name" aria-label="Filter by name"></label>
</header>
<main id="cards"></main>
<noscript><div class="plain">
$links
</div></noscript>
$failures
<dialog id="large" aria-label="Large view">
<div class="bar">
<span class="what"><span id="what"></span><small id="where"></small></span>
<span id="strengths"></span>
<a id="original" target="_blank">Open photo</a><a id="result" target="_blank">Open translation</a>
<button id="previous" type="button" aria-label="Previous photo">&larr;</button>
<button id="next" type="button" aria-label="Next photo">&rarr;</button>
<button id="close" type="button" aria-label="Close">&times;</button>
</div>
<div class="room" id="room" tabindex="-1" autofocus></div>
<div class="foot"><span id="note"></span> <span id="fallback" role="status"></span>
<span id="keys">$keys</span></div>
</dialog>
<script type="application/json" id="data">$data</script>
<script>
"use strict";
(() => {
const sheet = JSON.parse(document.getElementById("data").textContent);
const several = sheet.labels.length > 0;
const byId = id => document.getElementById(id);

// pictures are thumbnails, files what they are thumbnails of; number 0 is the photo, the others its translations
const cards = sheet.cards.map(([name, width, height, note, ...rests]) => {
  const paths = rests.map((rest, column) => rest === null ? "" : sheet.starts[column] + rest + sheet.ends[column]);
  const files = paths.splice(paths.length / 2);
  const pictures = paths.map((path, number) => path || files[number]);
  return { name, note, ratio: width / height || 1, pictures, files };
});
let visible = cards.map((card, index) => index);
const isFew = !several && cards.length <= 4; // these are shown large, and from their files

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function image(kind, source, words) {
  const element = make("img", { className: kind, alt: words, loading: "lazy", decoding: "async", draggable: false });
  if (source) element.src = source; // after `loading`, or it would load at once
  return element;
}

// Pointers drag anywhere in the view; the range is for keys and for screen readers.
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

// A link that opens the large view, and where it leads in a window of its own.
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

// What is far from the window is emptied again, so that the page stays as light as a screenful.
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
  if (document.activeElement && document.activeElement.disabled) byId("room").focus(); // or keys would go nowhere
}

// The thumbnail at once, and the file instead of it as soon as it is there, if this browser shows its kind.
function bring(element, card, number) {
  const [picture, file] = [card.pictures[number], card.files[number]];
  if (element.dataset.picture === picture) return;
  const settle = (source, isSmall) => {
    if (element.dataset.picture !== picture) return;
    if (source) element.src = source;
    element.dataset.small = isSmall ? "yes" : "";
    byId("fallback").textContent =
      shown.some(one => one.dataset.small) ? "Shown small: this browser cannot open the full file." : "";
  };
  element.dataset.picture = picture;
  element.decoding = "sync"; // or the place is empty for a moment at each change
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
  if (event.target.type === "range") return; // it has a use for arrows
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
</script>
</body>
</html>
"""
