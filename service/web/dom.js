// Access to the page's elements. Text from models and clients is only ever inserted as text.

export const element = (id) => document.getElementById(id);

export const fromTemplate = (id) => element(id).content.cloneNode(true);

export function paragraph(text) {
  const created = document.createElement("p");
  created.textContent = text;
  return created;
}

/** Replace the text of `target`; `writing` marks it as incomplete. */
export function setText(target, text, writing = false) {
  target.textContent = text;
  target.classList.toggle("writing", writing);
}

/** Show a finished text. One that the token limit cut off is marked by the style sheet, so the mark is not copied. */
export function setFinishedText(target, text, finishReason) {
  setText(target, text);
  target.classList.toggle("cut-off", finishReason === "length");
}

/** Say that a request was refused for now and is sent again. */
export function showWait(container, { message, retryAfterS }) {
  showProblem(container, { message: `${message} Next try in ${retryAfterS} s.` });
}

/** Show a problem in the `.error` line of `container`; null hides the line. */
export function showProblem(container, problem) {
  const line = container.querySelector(".error");
  line.hidden = !problem;
  line.textContent = problem?.message ?? "";
}
