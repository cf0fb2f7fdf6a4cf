// The forms that create jobs: videos, and a prompt to expand.

import { Problem, request } from "./api.js";
import { element, showProblem, showWait } from "./dom.js";
import { ACCEPT, droppedFiles, sortOut } from "./files.js";
import { listed } from "./format.js";

const NOTHING_CHOSEN = element("chosen").textContent;
const videoForm = element("video");
const { file: fileInput, folder: folderInput, url: urlInput } = videoForm.elements;
const drop = element("drop");
let chosen = [];

/** Choose these videos for the next job, and say which other files of a folder are left out. */
function choose({ videos = [], others = [] }) {
  chosen = videos;
  showProblem(videoForm, null);
  if (chosen.length) urlInput.value = "";
  const names = listed(chosen.map(({ name }) => name));
  element("chosen").textContent = chosen.length > 1 ? `${chosen.length} files: ${names}` : names || NOTHING_CHOSEN;
  drop.classList.toggle("full", chosen.length > 0);
  const leftOut = `Not videos, left out: ${listed(others.map(({ name }) => name))}`;
  element("left-out").textContent = others.length ? leftOut : "";
}

function clear() {
  fileInput.value = folderInput.value = "";
  choose({});
}

fileInput.accept = ACCEPT;
fileInput.onchange = () => choose({ videos: [...fileInput.files] });
folderInput.onchange = () => choose(sortOut([...folderInput.files]));
urlInput.oninput = clear;

// A file dropped outside the drop area must not make the browser navigate away.
for (const type of ["dragover", "drop"]) addEventListener(type, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", async (event) => {
  drop.classList.remove("over");
  try {
    const files = await droppedFiles(event.dataTransfer);
    if (files.videos.length + files.others.length) choose(files);
  } catch {
    showProblem(videoForm, { message: "The browser cannot read this folder." });
  }
});

/** Return the options that were filled in, with their JSON types. */
export function chosenOptions() {
  const values = [...element("options").querySelectorAll("[name]")].map((input) => {
    if (input.type === "checkbox") return [input.name, input.checked || ""];
    return [input.name, input.type === "number" && input.value !== "" ? input.valueAsNumber : input.value];
  });
  return Object.fromEntries(values.filter(([, value]) => value !== ""));
}

/** Install both forms. `onJob` receives a new job, `onUnauthorized` the problem if the service needs another key. */
export function installForms(queue, onJob, onUnauthorized) {
  onSubmit(videoForm, async (onWait) => {
    const options = chosenOptions();
    if (chosen.length) {
      queue.add(chosen, options);
      clear();
    } else if (urlInput.value) {
      delete options.keep_video; // a video with an address is played from there
      onJob(await request("POST", "captions", { values: { url: urlInput.value, ...options }, onWait }));
    } else {
      throw new Problem("Choose a file or enter a URL.");
    }
  });
  onSubmit(element("recaption"), async (onWait) => {
    const values = { prompt: element("prompt").value };
    onJob(await request("POST", "recaption", { values, headers: { Prefer: "wait=0" }, onWait }));
  });

  function onSubmit(form, createJob) {
    form.onsubmit = async (event) => {
      event.preventDefault();
      showProblem(form, null);
      const button = form.querySelector("button:not([type])");
      button.disabled = true;
      try {
        await createJob((problem) => showWait(form, problem));
        showProblem(form, null);
      } catch (problem) {
        if (problem.status === 401) onUnauthorized(problem);
        else showProblem(form, problem);
      } finally {
        button.disabled = false;
      }
    };
  }
}
