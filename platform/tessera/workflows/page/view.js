// One scene: pictures of its layers, which the server renders, laid over each other.
"use strict";

const at = { z: 0, zoom: 0, y: 0, x: 0 };
const shown = new Map(); // kind -> {picked, opacity, image}
const PICTURE_PX = 1024;
let scene = null, drawing = false, stale = false;

const $ = (id) => document.getElementById(id);

function make(tag, text = "", parent = null) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function clamp(value, low, high) {
  return Math.max(low, Math.min(value, high));
}

// The window, in voxels of the scene: never beyond its far edge.
function extent(axis) {
  return Math.min(PICTURE_PX * 2 ** at.zoom, scene.shape[axis]);
}

function moveTo(y, x) {
  at.y = clamp(Math.round(y - extent(1) / 2), 0, scene.shape[1] - extent(1));
  at.x = clamp(Math.round(x - extent(2) / 2), 0, scene.shape[2] - extent(2));
}

// A slider sends more positions than can be drawn: one drawing at a time, then the newest.
async function draw() {
  stale = true;
  if (drawing) return;
  drawing = true;
  while (stale) {
    stale = false;
    await drawOnce({ ...at });
  }
  drawing = false;
}

async function drawOnce(view) {
  const query = new URLSearchParams(view);
  const notes = [];
  await Promise.all([...shown].map(async ([kind, layer]) => {
    layer.image.hidden = !layer.picked.checked;
    if (!layer.picked.checked) return;
    try {
      const answer = await fetch(`section/${kind}.png?${query}`);
      if (!answer.ok) throw new Error(await answer.text());
      const address = URL.createObjectURL(await answer.blob());
      layer.image.src = address;
      await layer.image.decode();
      URL.revokeObjectURL(address);
    } catch (error) {
      layer.image.hidden = true;
      notes.push(error.message);
    }
  }));
  $("picture").style.aspectRatio = `${extent(2)} / ${extent(1)}`;
  $("z-shown").textContent = `${view.z} of ${scene.shape[0] - 1}`;
  $("where").textContent = `section ${view.z}, rows ${view.y} to ${view.y + extent(1) - 1}, ` +
    `columns ${view.x} to ${view.x + extent(2) - 1}, 1 pixel = ${2 ** view.zoom} voxel${view.zoom ? "s" : ""}`;
  $("notes").textContent = notes.join(" ");
  document.body.dataset.drawn = [view.z, view.zoom, view.y, view.x].join("/");
}

function addLayer(kind) {
  const line = make("label", "", $("layers"));
  const picked = make("input", "", line);
  picked.type = "checkbox";
  picked.checked = true;
  picked.id = `show-${kind}`;
  make("span", kind, line).className = "layer";
  const opacity = make("input", "", line);
  Object.assign(opacity, { type: "range", min: 0, max: 1, step: 0.05, id: `opacity-${kind}` });
  opacity.value = { raw: 1, probability: 0.5, labels: 0.4 }[kind];
  opacity.setAttribute("aria-label", `opacity of ${kind}`);
  const image = make("img", "", $("picture"));
  image.alt = kind;
  image.id = `image-${kind}`;
  image.style.opacity = opacity.value;
  opacity.addEventListener("input", () => { image.style.opacity = opacity.value; });
  picked.addEventListener("change", draw);
  shown.set(kind, { picked, image });
}

function addFacts(layers) {
  const table = make("table", "", $("facts"));
  const rows = {
    layer: (l) => l.kind, volume: (l) => l.place, shape: (l) => `${l.shape.join(" x ")} ${l.dtype}`,
    "voxel size": (l) => l.voxel_size_nm ? `${l.voxel_size_nm.join(" x ")} nm` : "unknown",
    levels: (l) => l.levels, "made by": (l) => l.made_by ?? "", state: (l) => l.state,
    "invalid sections": (l) => l.invalid_sections.join(", ") || "none", "MLflow run": (l) => l.run_id ?? "",
  };
  const head = make("tr", "", make("thead", "", table));
  Object.keys(rows).forEach((name) => make("th", name, head));
  const body = make("tbody", "", table);
  for (const layer of layers) {
    const row = make("tr", "", body);
    Object.values(rows).forEach((fact) => make("td", String(fact(layer)), row));
  }
}

function addLinks(links) {
  const link = make("a", "open in neuroglancer", $("links"));
  Object.assign(link, { href: links.neuroglancer, target: "_blank", rel: "noreferrer" });
  $("links").append(" or run ");
  make("code", links.napari, $("links"));
}

function addZooms() {
  for (const { zoom, layers } of scene.zooms) {
    const absent = [...shown.keys()].filter((kind) => !layers.includes(kind));
    const option = make("option", `1/${2 ** zoom}${absent.length ? ` (without ${absent.join(", ")})` : ""}`, $("zoom"));
    option.value = zoom;
  }
}

function zoomTo(zoom, y, x) {
  at.zoom = zoom;
  $("zoom").value = String(zoom);
  moveTo(y, x);
  draw();
}

async function begin() {
  scene = await (await fetch("scene.json")).json();
  document.title = $("name").textContent = scene.name;
  scene.layers.forEach((layer) => addLayer(layer.kind));
  addLinks(scene.links);
  addFacts(scene.layers);
  addZooms();
  $("z").max = scene.shape[0] - 1;
  $("z").addEventListener("input", () => { at.z = Number($("z").value); draw(); });
  $("zoom").addEventListener("change", () => {
    zoomTo(Number($("zoom").value), at.y + extent(1) / 2, at.x + extent(2) / 2);
  });
  $("picture").addEventListener("click", (event) => {
    const frame = $("picture").getBoundingClientRect();
    const y = at.y + (event.clientY - frame.top) / frame.height * extent(1);
    const x = at.x + (event.clientX - frame.left) / frame.width * extent(2);
    zoomTo(Math.max(0, at.zoom - 1), y, x);
  });
  at.z = Math.floor(scene.shape[0] / 2);
  $("z").value = at.z;
  zoomTo(scene.start, scene.shape[1] / 2, scene.shape[2] / 2);
}

begin();
