// The script of the console. Every page works without it. It adds the reader's local time, dropping files, and the progress of
// several signatures.
"use strict";

// localTimes adds the local time to each time element below root, unless the reader's clock shows UTC.
function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime()) || at.getTimezoneOffset() === 0 || time.dataset.local) continue;
    time.dataset.local = "1";
    const two = (n) => String(n).padStart(2, "0");
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
    const local = document.createElement("span");
    local.className = "local";
    local.textContent = `(${time.dateTime.startsWith(day.trim()) ? "" : day}${two(at.getHours())}:${two(at.getMinutes())} local)`;
    time.after(" ", local);
  }
}

// dropping lets files be dropped on an area with a file input, and lists their names.
function dropping(area) {
  const input = area.querySelector("input[type=file]");
  const list = document.createElement("ul");
  list.setAttribute("aria-live", "polite");
  area.append(list);
  area.querySelector("[data-only-script]")?.removeAttribute("hidden");
  const show = () => list.replaceChildren(...Array.from(input.files, (file) => {
    const item = document.createElement("li");
    item.textContent = file.name.replace(/[\p{C}\u2028\u2029]/gu, "\ufffd").slice(0, 120);
    return item;
  }));
  input.addEventListener("change", show);
  for (const type of ["dragenter", "dragover"]) {
    area.addEventListener(type, (event) => {
      event.preventDefault();
      area.classList.add("over");
    });
  }
  for (const type of ["dragleave", "drop"]) area.addEventListener(type, () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length === 0) return;
    input.files = event.dataTransfer.files;
    show();
  });
  show();
}

// oneByOne sends the items of a form one after the other, and replaces each by its result. If one is not answered, it stops: what was not
// sent is still in the form.
function oneByOne(form) {
  form.addEventListener("submit", async (event) => {
    // Refused items stay in the form. If a customer was changed, the server checks again, and shows the page that says so.
    const value = (item, name) => item.querySelector(`[data-${name}]`).value.trim();
    const checked = Array.from(form.querySelectorAll("fieldset[data-item]")).filter((item) => value(item, "ready") !== "");
    const items = checked.filter((item) => value(item, "ready") === value(item, "customer"));
    if (event.submitter?.value !== "request" || items.length < 2 || items.length < checked.length) return;
    event.preventDefault();
    const button = event.submitter, status = form.querySelector("[data-status]"), bar = form.querySelector("progress");
    for (const other of form.querySelectorAll("button")) other.disabled = true;
    form.previousElementSibling.hidden = true; // what the page said before
    bar.hidden = false;
    bar.max = items.length;
    let done = 0, failure = "";
    for (const item of items) {
      bar.value = done;
      status.textContent = `${done} of ${items.length} done`;
      const data = new FormData();
      data.set("action", "request");
      data.set("vendor", form.elements.namedItem("vendor").value);
      for (const control of item.querySelectorAll("input")) data.append(control.name, control.value);
      let result = null, headline = "";
      try {
        const answer = await fetch(form.action, { method: "POST", body: data });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        result = page.querySelector("[data-result]");
        headline = page.querySelector("h1")?.textContent ?? "";
      } catch {
        headline = "The server does not answer";
      }
      if (!result) {
        failure = headline;
        break;
      }
      item.replaceWith(document.adoptNode(result));
      done++;
    }
    localTimes(form);
    bar.value = done;
    if (failure === "") {
      status.textContent = `All ${items.length} are done.`;
      document.querySelector("h1").textContent = "Result";
      button.hidden = true;
    } else {
      status.textContent = `Stopped after ${done} of ${items.length}: ${failure}. The others were not requested, or their answer was lost; requesting them again is safe.`;
    }
    for (const other of form.querySelectorAll("button")) {
      other.disabled = false;
      if (!form.querySelector("fieldset[data-item]")) other.hidden = true; // there is nothing left to send
    }
    status.focus();
  });
}

localTimes(document);
document.querySelectorAll("[data-drop]").forEach(dropping);
document.querySelectorAll("form[data-each]").forEach(oneByOne);
