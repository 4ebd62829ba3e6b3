"use strict";
// Keeps what is said on the page, and saves it as a file. It loads nothing and sends nothing.
(() => {
  const page = document.getElementById("page");
  const told = document.getElementById("told");
  const {kind, about} = page.dataset;
  const controls = [...page.querySelectorAll("[name]")];
  const cards = [...page.querySelectorAll(".card")];
  // The page of another set has a place of its own.
  const place = `histodistill ${kind} ${about}`;
  // As the reader of the file has it.
  const html = /<[A-Za-z/!?]/;

  const isChoice = (control) => ["checkbox", "radio"].includes(control.type);

  // Name → value of all that was filled in.
  function said() {
    const filled = controls.filter((control) => (isChoice(control) ? control.checked : control.value));
    return Object.fromEntries(filled.map((control) => [control.name, control.value]));
  }

  // A browser may keep nothing for pages that lie in files; the page works all the same.
  function restore() {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(place)) || {};
    } catch {
      return;
    }
    for (const control of controls) {
      const value = kept[control.name];
      if (isChoice(control)) control.checked = value === control.value;
      else control.value = value ?? "";
    }
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(said()));
      return true;
    } catch {
      return false;
    }
  }

  const within = (card, selector) => card.querySelector(selector);
  const leftOut = () => cards.filter((card) => within(card, ".leave-out").checked);
  const noted = () => cards.filter((card) => within(card, "textarea").value.trim());
  const answers = () => cards.map((card) => within(card, "input:checked")?.value ?? null);

  function count() {
    if (kind === "review") return `${leftOut().length} of ${cards.length} left out, ${noted().length} with a note.`;
    return `${answers().filter(Boolean).length} of ${cards.length} answered.`;
  }

  function tell(more = "") {
    told.textContent = `${count()} ${more}`.trim();
  }

  // What the file holds.
  function contents() {
    const reviewer = page.querySelector("[name=reviewer]").value.trim();
    const begin = {format: 1, kind, reviewer};
    if (kind === "answers") return {...begin, sheet: about, answers: answers()};
    const number = (card, name) => Number(card.dataset[name]);
    const row = (card) => number(card, "row");
    return {
      ...begin,
      set: about,
      seeds: [...cards].sort((one, other) => row(one) - row(other)).map((card) => number(card, "seed")),
      left_out: leftOut().map((card) => ({row: row(card), seed: number(card, "seed"), image: card.dataset.image})),
      notes: noted().map((card) => ({row: row(card), note: within(card, "textarea").value.trim()})),
    };
  }

  function save() {
    const wrong = controls.find((control) => !isChoice(control) && html.test(control.value));
    if (wrong) {
      tell("Not saved: a text holds HTML. Put a space after <.");
      wrong.focus();
      return;
    }
    const blob = new Blob([JSON.stringify(contents(), null, 2), "\n"], {type: "application/json"});
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${kind}-${about.slice(0, 8)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    tell(`Saved as ${link.download}.`);
  }

  function changed() {
    tell(keep() ? "" : "This browser keeps nothing: save before you close the page.");
  }

  restore();
  tell();
  page.addEventListener("input", changed);
  document.getElementById("save").addEventListener("click", save);
})();
