// The forms that create jobs: videos, and a prompt to expand.

import { Problem, request } from "./api.js";
import { element, showProblem } from "./dom.js";
import { droppedFiles, isVideo } from "./files.js";

const NOTHING_CHOSEN = element("chosen").textContent;
const videoForm = element("video");
const { file: fileInput, folder: folderInput, url: urlInput } = videoForm.elements;
const drop = element("drop");
let chosen = [];

/** Choose files; those that are not videos are left out, unless all are of that sort. */
function choose(files) {
  const videos = files.filter(isVideo);
  chosen = videos.length ? videos : files;
  if (chosen.length) urlInput.value = "";
  const leftOut = files.length - chosen.length;
  const names = chosen.length > 1 ? `${chosen.length} files` : chosen[0]?.name ?? NOTHING_CHOSEN;
  element("chosen").textContent = leftOut ? `${names} (${leftOut} left out: not a video)` : names;
  drop.classList.toggle("full", chosen.length > 0);
}

function clear() {
  fileInput.value = folderInput.value = "";
  choose([]);
}

fileInput.onchange = () => choose([...fileInput.files]);
folderInput.onchange = () => choose([...folderInput.files]);
urlInput.oninput = clear;

// A file dropped outside the drop area must not make the browser navigate away.
for (const type of ["dragover", "drop"]) addEventListener(type, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", async (event) => {
  drop.classList.remove("over");
  const files = await droppedFiles(event.dataTransfer);
  if (files.length) choose(files);
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
  onSubmit(videoForm, async () => {
    const options = chosenOptions();
    if (chosen.length) {
      queue.add(chosen, options);
      clear();
    } else if (urlInput.value) {
      delete options.keep_video; // a video with an address is played from there
      onJob(await request("POST", "captions", { url: urlInput.value, ...options }));
    } else {
      throw new Problem("Choose a file or enter a URL.");
    }
  });
  onSubmit(element("recaption"), async () =>
    onJob(await request("POST", "recaption", { prompt: element("prompt").value }, { Prefer: "wait=0" })));

  function onSubmit(form, createJob) {
    form.onsubmit = async (event) => {
      event.preventDefault();
      showProblem(form, null);
      const button = form.querySelector("button:not([type])");
      button.disabled = true;
      try {
        await createJob();
      } catch (problem) {
        if (problem.status === 401) onUnauthorized(problem);
        else showProblem(form, problem);
      } finally {
        button.disabled = false;
      }
    };
  }
}
