"use strict";
/* The heat map of tokens and the theme. Everything from data becomes text nodes and attributes, never markup. */
(() => {
  const find = (selector) => document.querySelector(selector);
  const data = JSON.parse(find("#heat-map-data").textContent);
  const several = data.subjects.length > 1;
  const withRows = data.subjects.map((_, place) => data.rows.some((row) => row.by[place]));
  const NO_TEXT = "▪";
  const SIDES = ["chosen", "rejected"];
  const about = new WeakMap(); // information on the token of an element
  const state = { rows: data.rows, first: 0 };

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const amount = (value) => value.toLocaleString("en-US");

  function scoreText(score) {
    if (score === null) return "no score";
    if (score === "inf") return "+∞";
    if (score === "-inf") return "−∞";
    const size = Math.abs(score);
    const digits = size === 0 || (size >= 0.001 && size < 10000)
      ? size.toFixed(size < 0.1 ? 4 : size < 10 ? 3 : size < 1000 ? 2 : 0)
      : size.toExponential(2);
    return (score < 0 ? "−" : score > 0 ? "+" : "") + digits;
  }

  const weightText = (weight) => scoreText(weight).replace("+", "");

  const wide = (score) => (score === "inf" ? Infinity : score === "-inf" ? -Infinity : score);

  /* Tokens that equal those of an earlier subject are stored once. */
  function answer(row, place, side) {
    const known = row.by.filter((entry) => entry !== null);
    const own = row.by[place][side];
    return { ...own, t: typeof own.t === "number" ? known[own.t][side].t : own.t };
  }

  /* ---- one response ---- */

  function ranks(scores, side) {
    const known = scores.map((score, place) => [wide(score), place]).filter(([score]) => score !== null);
    const sign = side === "chosen" ? -1 : 1;
    known.sort((a, b) => (a[0] === b[0] ? a[1] - b[1] : a[0] < b[0] ? -sign : sign));
    const rank = new Map(known.map(([, place], index) => [place, index + 1]));
    return { rank, count: known.length };
  }

  function shown(text) {
    if (text === "") return "⋅";
    const marked = text.replace(/\n/g, "↵").replace(/\t/g, "⇥\t");
    return /^ +$/.test(marked) ? "␣".repeat(marked.length) : marked;
  }

  function spoken(text) {
    if (text === "") return "part of the previous character";
    if (text.trim() === NO_TEXT) return "token of unknown text";
    if (text.trim() !== "") return text.trim();
    return text.includes("\n") ? "line break" : text.includes("\t") ? "tab" : "space";
  }

  /* Spaces before a word and line breaks after it are outside of its box, so that the box surrounds only its text. */
  function tokenNodes(info, limit, last) {
    const [, before, text] = /^( *)([^]*)$/.exec(shown(info.text));
    const breaks = last ? "" : "\n".repeat(info.text.split("\n").length - 1);
    const node = make("span", { class: "token", role: "option", tabindex: "-1", "aria-selected": String(info.selected) });
    node.textContent = text;
    if (info.text.trim() === "" || info.text.trim() === NO_TEXT) {
      node.setAttribute("aria-label", spoken(info.text));
      node.classList.add("mute");
    }
    if (info.selected) node.classList.add("selected");
    if (info.selected && info.weight !== null) {
      node.classList.add("weighed");
      node.style.setProperty("--weight", (Math.abs(info.weight) / info.largest).toFixed(3));
      if (info.weight < 0) node.classList.add("negative");
    }
    if (info.score !== null && wide(info.score) !== 0) {
      const strength = Math.min(1, Math.abs(wide(info.score)) / limit);
      node.classList.add(wide(info.score) > 0 ? "high" : "low");
      node.style.setProperty("--strength", strength.toFixed(3));
    }
    about.set(node, info);
    return [before, node, breaks].filter(Boolean);
  }

  function answerNode(row, place, side) {
    const { t: texts, s: scores, k: kept, w: weights, e: effective, more } = answer(row, place, side);
    const template = [...kept].map((flag) => flag === "-"); // the chat template's tokens are not counted
    const { rank, count } = ranks(scores.map((score, index) => (template[index] ? null : score)), side);
    const selected = [...kept].filter((flag) => flag === "1").length;
    const counted = template.filter((flag) => !flag).length;
    const share = counted ? ` (${Math.round((100 * selected) / counted)} %)` : "";
    const effect = effective === undefined ? "" : `, effective number ${effective.toFixed(1)}`;
    const largest = weights ? weights.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0) : 1;
    const name = several ? `, ${data.subjects[place].name}` : "";
    const box = make("div", {
      class: "tokens", role: "listbox", dir: "auto", "aria-multiselectable": "true", "aria-readonly": "true",
      "aria-orientation": "horizontal",
      "aria-label": `${side} response, ${rowName(row.row)}${name}: ${texts.length} tokens; arrow keys move`,
    });
    const end = texts.findLastIndex((text) => text.trim() !== ""); // line breaks after it would be empty lines
    texts.forEach((text, index) => {
      const info = {
        text, side, place, row: row.row, index, total: texts.length, score: scores[index] ?? null,
        selected: kept[index] === "1", template: template[index], rank: rank.get(index), count,
        weight: weights ? weights[index] : null, largest,
      };
      box.append(...tokenNodes(info, data.subjects[place].limit, index >= end));
    });
    if (box.firstElementChild) box.firstElementChild.tabIndex = 0;
    const head = make(several ? "h5" : "h4", {}, make("span", { class: "side" }, side === "chosen" ? "Chosen" : "Rejected"),
      ` · ${amount(texts.length)} tokens, ${amount(selected)} selected${share}${effect}`);
    const node = make("div", { class: "answer" }, head, box);
    if (more) node.append(make("p", { class: "more" }, `${amount(more)} more tokens are not shown.`));
    return node;
  }

  /* ---- one row ---- */

  function promptNode(text) {
    const node = make("div", { class: "prompt", dir: "auto", role: "group", "aria-label": "Prompt" });
    node.textContent = text;
    if (text.length > 600) node.tabIndex = 0; // it scrolls
    return node;
  }

  const rowName = (row) => (row < 0 ? "row unknown" : `row ${amount(row)}`);

  function entryText(entry) {
    const margin = entry.margin === null ? "no margin" : `margin ${scoreText(entry.margin)}`;
    return entry.step === undefined ? margin : `step ${amount(entry.step)}, ${margin}`;
  }

  function rowNode(row) {
    const id = `row-${order.get(row)}`;
    const name = rowName(row.row);
    const head = make("div", { class: "row-head" }, make("h3", { id }, name[0].toUpperCase() + name.slice(1)));
    if (!several) head.append(make("span", {}, entryText(row.by[0])));
    if (row.agreement !== undefined) {
      head.append(make("span", {}, `${Math.round(100 * row.agreement)} % of selected tokens in common`));
    }
    const node = make("article", { class: "row card", "aria-labelledby": id }, head);
    if (row.prompt) node.append(promptNode(row.prompt));
    row.by.forEach((entry, place) => {
      if (!withRows[place]) return;
      if (several) {
        const swatch = make("span", { class: `swatch swatch-${place}`, "aria-hidden": "true" });
        const title = make("h4", {}, swatch, make("bdi", {}, data.subjects[place].name));
        const note = entry ? entryText(entry) : "row missing or not shown";
        node.append(make("div", { class: "subject" }, title, make("span", {}, note)));
      }
      if (!entry) return;
      if (entry.prompt) node.append(promptNode(entry.prompt));
      node.append(make("div", { class: "answers" }, ...SIDES.map((side) => answerNode(row, place, side))));
    });
    return node;
  }

  /* ---- which rows, in which order ---- */

  function rowFilter(text) {
    const parts = text.split(/[\s,;]+/).filter(Boolean);
    if (!parts.length) return () => true;
    const ranges = parts.map((part) => /^(\d+)(?:[-–](\d+))?$/.exec(part));
    if (ranges.includes(null)) return null;
    const bounds = ranges.map((match) => [Number(match[1]), Number(match[2] ?? match[1])]);
    return (row) => bounds.some(([low, high]) => row >= low && row <= high);
  }

  function searched(row) {
    if (row.text === undefined) {
      const texts = [row.prompt];
      row.by.forEach((entry, place) => {
        if (!entry) return;
        texts.push(entry.prompt || "", ...SIDES.map((side) => answer(row, place, side).t.join("")));
      });
      row.text = texts.join("\n").toLocaleLowerCase();
    }
    return row.text;
  }

  const order = new Map(data.rows.map((row, index) => [row, index]));
  const orders = [["row", "row number", (row) => order.get(row), 1]];
  data.subjects.forEach((subject, place) => {
    const name = several ? ` of ${subject.name}` : "";
    const margin = (row) => row.by[place]?.margin ?? null;
    if (!withRows[place]) return;
    orders.push([`high-${place}`, `margin${name}, highest first`, margin, -1]);
    orders.push([`low-${place}`, `margin${name}, lowest first`, margin, 1]);
  });
  if (data.rows.some((row) => row.agreement !== undefined)) {
    orders.push(["agreement", "selections that differ most", (row) => row.agreement ?? null, 1]);
  }

  function sorted(rows) {
    const [, , key, sign] = orders.find(([name]) => name === find("#sort").value);
    const value = (row) => key(row);
    return [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null || x === y) return (x === null) - (y === null) || order.get(a) - order.get(b);
      return sign * (x - y);
    });
  }

  function choose() {
    const field = find("#filter-rows");
    const wanted = rowFilter(field.value);
    field.setAttribute("aria-invalid", String(wanted === null));
    const text = find("#filter-text").value.trim().toLocaleLowerCase();
    state.rows = sorted(data.rows.filter((row) => (wanted || (() => false))(row.row) && searched(row).includes(text)));
    state.first = 0;
    show(wanted === null ? "Expected row numbers such as 3 or 3, 10-20." : null);
  }

  function show(problem) {
    const size = Number(find("#per-page").value);
    const last = Math.min(state.first + size, state.rows.length);
    find("#rows").replaceChildren(...state.rows.slice(state.first, last).map(rowNode));
    const counted = `${amount(state.rows.length)} of ${amount(data.rows.length)} rows`;
    const range = last - state.first > 1 ? `${amount(state.first + 1)} to ${amount(last)}` : amount(last);
    const position = state.rows.length ? `${range} of ${amount(state.rows.length)}` : "none";
    find("#position").textContent = position;
    find("#found").textContent = problem || (state.rows.length ? `${counted} match; shown: ${position}.` : "No row matches.");
    for (const button of document.querySelectorAll(".previous")) button.disabled = state.first === 0;
    for (const button of document.querySelectorAll(".next")) button.disabled = last >= state.rows.length;
    point(null);
  }

  function turn(pages, button) {
    const size = Number(find("#per-page").value);
    state.first = Math.max(0, state.first + pages * size);
    show(null);
    if (button.closest(".below")) find("#tokens").scrollIntoView();
    if (button.disabled) button.parentElement.querySelector("button:not(:disabled)")?.focus();
  }

  /* ---- one token ---- */

  let pointed = null;

  function rankText(info) {
    if (info.rank === undefined) return "no rank";
    return `${amount(info.rank)} of ${amount(info.count)} from the ${info.side === "chosen" ? "highest" : "lowest"}`;
  }

  function fact(name, value) {
    return make("span", {}, `${name} `, make("b", {}, value));
  }

  function point(node) {
    if (pointed) pointed.classList.remove("pointed");
    pointed = node;
    const details = find("#details");
    if (!node) {
      details.replaceChildren(make("span", {}, "Point at a token, or move to it with Tab and the arrow keys."));
      return;
    }
    node.classList.add("pointed");
    const info = about.get(node);
    const where = several ? `${data.subjects[info.place].name}, ${rowName(info.row)}` : rowName(info.row);
    details.replaceChildren(
      make("code", {}, info.text === "" ? spoken("") : info.text.replace(/\n/g, "↵").replace(/\t/g, "⇥")),
      fact("score", scoreText(info.score)), fact("rank", rankText(info)),
      make("span", {}, make("b", {}, selectionText(info))),
      make("span", {}, `token ${amount(info.index + 1)} of ${amount(info.total)}, ${info.side}, ${where}`),
    );
  }

  function selectionText(info) {
    if (info.template) return "the chat template's, not selected";
    if (!info.selected) return "not selected";
    return info.weight === null ? "selected" : `selected, weight ${weightText(info.weight)}`;
  }

  function speak(node) {
    const info = about.get(node);
    const score = scoreText(info.score).replace("−", "minus ").replace("+", "plus ").replace("∞", "infinity");
    const selection = selectionText(info).replace("−", "minus ");
    find("#spoken").textContent = `${spoken(info.text)}, score ${score}, ${selection}, rank ${rankText(info)}`;
  }

  function onNextLine(tokens, from, step) {
    const centre = (rect) => rect.left + rect.width / 2;
    const start = tokens[from].getClientRects()[0];
    let best = from;
    let line = null;
    for (let place = from + step; place >= 0 && place < tokens.length; place += step) {
      const rect = tokens[place].getClientRects()[0];
      if (Math.abs(rect.top - start.top) < start.height / 2) continue;
      if (line === null) line = rect.top;
      if (Math.abs(rect.top - line) >= rect.height / 2) break;
      const nearer = Math.abs(centre(rect) - centre(start)) < Math.abs(centre(tokens[best].getClientRects()[0]) - centre(start));
      if (best === from || nearer) best = place;
    }
    return best;
  }

  function move(event) {
    const token = event.target.closest(".token");
    if (!token || event.altKey || event.ctrlKey || event.metaKey) return;
    const tokens = [...token.parentElement.children];
    const from = tokens.indexOf(token);
    const forward = getComputedStyle(token.parentElement).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: forward, ArrowLeft: -forward };
    const places = { Home: () => 0, End: () => tokens.length - 1, ArrowDown: () => onNextLine(tokens, from, 1), ArrowUp: () => onNextLine(tokens, from, -1) };
    const to = event.key in steps ? from + steps[event.key] : event.key in places ? places[event.key]() : null;
    if (to === null) return;
    event.preventDefault();
    if (to !== from && to >= 0 && to < tokens.length) tokens[to].focus();
  }

  function focused(event) {
    const token = event.target.closest(".token");
    if (!token) return;
    for (const other of token.parentElement.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    token.tabIndex = 0;
    point(token);
    speak(token);
  }

  /* ---- the page ---- */

  function legend() {
    const limit = (score) => scoreText(score).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
    const box = find("#legend");
    data.subjects.forEach((subject, place) => {
      if (!subject.scored) return;
      const name = several ? [make("span", { class: `swatch swatch-${place}`, "aria-hidden": "true" }), make("bdi", {}, subject.name)] : [];
      box.append(make("div", { class: "scale" }, make("span", {}, ...name, several ? "" : "Score"),
        make("span", {}, `≤ ${limit(-subject.limit)}`), make("span", { class: "scale-bar", "aria-hidden": "true" }),
        make("span", {}, `≥ ${limit(subject.limit)}`)));
    });
    box.append(make("span", {}, make("span", { class: "sample" }, "outlined"), " selected"));
    const weights = data.rows.flatMap((row) => row.by.flatMap((entry) => (entry ? SIDES.map((side) => entry[side].w || []) : [])));
    if (weights.some((some) => some.length)) {
      box.append(make("span", {}, make("span", { class: "sample faint" }, "fainter"), " smaller weight"));
    }
    if (weights.some((some) => some.some((weight) => weight < 0))) {
      box.append(make("span", {}, make("span", { class: "sample negative" }, "dashed"), " negative weight"));
    }
  }

  function theme() {
    const button = find("#theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    const root = document.documentElement;
    const stored = (change) => {
      try { return change(window.localStorage); } catch (error) { return null; } // a file may have no storage
    };
    const kept = stored((storage) => storage.getItem("sepo-report-theme"));
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
    const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const label = () => {
      const other = dark() ? "light" : "dark";
      button.textContent = other === "dark" ? "Dark" : "Light";
      button.setAttribute("aria-label", `Switch to the ${other} theme`);
    };
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      stored((storage) => storage.setItem("sepo-report-theme", root.dataset.theme));
      label();
    });
    system.addEventListener("change", label);
    button.hidden = false;
    label();
  }

  function start() {
    theme();
    if (!data.rows.length) return;
    find("#sort").append(...orders.map(([name, text]) => make("option", { value: name }, text)));
    for (const node of document.querySelectorAll("#filters, .below, #details")) node.hidden = false;
    legend();
    find("#filters").addEventListener("input", choose);
    find("#filters").addEventListener("submit", (event) => event.preventDefault());
    for (const button of document.querySelectorAll(".previous")) button.addEventListener("click", () => turn(-1, button));
    for (const button of document.querySelectorAll(".next")) button.addEventListener("click", () => turn(1, button));
    const rows = find("#rows");
    rows.addEventListener("keydown", move);
    rows.addEventListener("focusin", focused);
    rows.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".token");
      if (token) point(token);
    });
    rows.addEventListener("click", (event) => event.target.closest(".token")?.focus());
    choose();
  }

  start();
})();
