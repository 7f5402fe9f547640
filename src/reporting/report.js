"use strict";
// The switches of the plots and the gallery. All that runs and people wrote gets into the page as text, never as markup.
// What is chosen stands behind the # of the address (#metric=CIDEr-D&sort=disagreement&filter=dog), so that a view can
// be passed on as a link; on every drawing the gallery notes the milliseconds it took in data-ms.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const query = (selector, inside = document) => inside.querySelector(selector);
  const every = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // ---------------------------------------------------------------------------------------------------- plots
  const switches = query("[data-controls=plots]"), online = query("[data-controls=online]");
  const showPlots = () => {
    const chosen = new FormData(switches);
    for (const plot of every(".plots [data-score]")) {
      const { score, cost } = plot.dataset;
      plot.hidden = score !== chosen.get("score") || (cost !== undefined && cost !== chosen.get("cost"));
    }
    for (const plot of every("[data-online]")) plot.hidden = plot.dataset.online !== online.elements.online.value;
  };
  for (const one of [switches, online].filter(Boolean)) {
    one.addEventListener("change", () => { showPlots(); remember(); });
    one.addEventListener("submit", (event) => event.preventDefault());
  }

  // ---------------------------------------------------------------------------------------------------- tables
  // A click on a column's name sorts the rows: numbers from the largest, words from a; a second click turns them round.
  const sortBy = (table, column) => {
    const heads = every("thead th", table), body = query("tbody", table), rows = [...body.rows];
    const cells = rows.map((row) => row.cells[column]), numbers = cells.some((cell) => cell.dataset.sort !== undefined);
    const turned = heads[column].ariaSort === (numbers ? "descending" : "ascending");
    const down = numbers !== turned, sign = down ? -1 : 1;
    const value = (row) => {
      const cell = row.cells[column];
      if (!numbers) return cell.textContent.trim();
      return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
    };
    rows.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === null || b === null) return (a === null) - (b === null);  // what has no value stays last
      return sign * (numbers ? a - b : a.localeCompare(b, "en", { numeric: true }));
    });
    heads.forEach((head, i) => { head.ariaSort = i === column ? (down ? "descending" : "ascending") : null; });
    body.append(...rows);
  };
  for (const table of every(".wide table"))
    every("thead th", table).forEach((head, column) => {
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      button.addEventListener("click", () => sortBy(table, column));
      head.replaceChildren(button);
    });

  // ---------------------------------------------------------------------------------------------------- gallery
  const form = query("[data-controls=gallery]");
  const DEFAULTS = { sort: "order", filter: "", page: "1", size: "20" };
  const NEEDS = { worst: "a", best: "a", ahead: "ab", behind: "ab" };
  const state = { ...DEFAULTS, hide: new Set() };

  const option = (text, value = text) => make("option", { textContent: text, value });
  const indices = () => data.arms.map((_, arm) => arm).filter((arm) => !state.hide.has(data.arms[arm]));
  const score = (arm, item) => {
    const metric = data.scores[data.metrics.indexOf(state.metric)];
    return metric === undefined ? null : metric[arm][item];
  };
  const scoresOf = (item, arms) => arms.map((arm) => score(arm, item)).filter((value) => value !== null);
  const range = (item, arms) => {
    const values = scoresOf(item, arms);
    return values.length > 1 ? Math.max(...values) - Math.min(...values) : null;
  };
  const differing = (item, arms) => {
    let pairs = 0, different = 0;
    for (let i = 0; i < arms.length; i++)
      for (let j = 0; j < i; j++) {
        pairs++;
        different += data.captions[arms[i]][item] !== data.captions[arms[j]][item];
      }
    return pairs ? different / pairs : null;
  };
  const ahead = (item, a, b) => {
    const [one, other] = [score(a, item), score(b, item)];
    return one === null || other === null ? null : one - other;
  };

  // Each order: item -> numbers, the largest first, null last.
  const keys = () => {
    const arms = indices(), a = data.arms.indexOf(state.a), b = data.arms.indexOf(state.b);
    const minus = (value) => (value === null ? null : -value);
    return {
      order: () => [],
      disagreement: (item) => [range(item, arms)],
      captions: (item) => [differing(item, arms), range(item, arms)],
      best: (item) => [score(a, item)],
      worst: (item) => [minus(score(a, item))],
      ahead: (item) => [ahead(item, a, b)],
      behind: (item) => [ahead(item, b, a)],
    }[state.sort];
  };
  const compare = (one, other) => {
    for (let i = 0; i < one.length; i++) {
      if (one[i] === other[i]) continue;
      if (one[i] === null || other[i] === null) return one[i] === null ? 1 : -1;
      return other[i] - one[i];
    }
    return 0;
  };
  const selected = () => {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean), arms = indices(), key = keys();
    const found = [];
    data.ids.forEach((id, item) => {
      const text = words.length
        ? [id, ...data.refs[item], ...arms.map((arm) => data.captions[arm][item] ?? "")].join("\n").toLowerCase()
        : "";
      if (words.every((word) => text.includes(word))) found.push({ item, key: key(item) });
    });
    return found.sort((one, other) => compare(one.key, other.key) || one.item - other.item);
  };

  // ------------------------------------------------------------------------------------------ drawing of a card
  const swatches = every(".swatch", query("#scores table"));  // one per arm, in their order
  const swatch = (arm) => swatches[arm].cloneNode(true);
  const number = (value) => (value === null ? "–" : value.toFixed(Math.abs(value) < 100 ? 3 : 1));
  const MARKS = [null, ["t", "true"], ["f", "false"], ["u", "not understood"]];
  const words = (caption, runs) => {
    if (!runs) return [caption];
    const letters = Array.from(caption), parts = [];
    for (let i = 0, from = 0; i < runs.length; from += runs[i], i += 2) {
      const text = letters.slice(from, from + runs[i]).join(""), mark = MARKS[runs[i + 1]];
      parts.push(mark ? make("mark", { className: mark[0], title: mark[1], textContent: text }) : text);
    }
    return parts;
  };
  const highest = new Map();
  const top = (metric) => {
    if (!highest.has(metric)) {
      const values = (data.scores[data.metrics.indexOf(metric)] ?? []).flat().filter((value) => value !== null);
      highest.set(metric, values.reduce((one, other) => Math.max(one, other), 0) || 1);
    }
    return highest.get(metric);
  };
  const captionRow = (item, arm, best) => {
    const caption = data.captions[arm][item], value = score(arm, item);
    const said = make("td", { className: "caption-text", dir: "auto" });
    if (caption) said.append(...words(caption, data.marks?.[arm][item]));
    else said.append(make("span", { className: "none", textContent: caption === null ? "(no caption)" : "(empty)" }));
    const shown = make("td", { className: "score" });
    if (value !== null) {
      const fill = make("i");
      fill.style.width = `${Math.max(0, Math.min(1, value / top(state.metric))) * 100}%`;
      shown.append(make("span", { className: `bar arm arm-${arm % 8}` }, fill));
    }
    shown.append(make("span", { className: "number", textContent: number(value) }));
    const name = make("th", { scope: "row", title: data.arms[arm] }, swatch(arm), data.arms[arm]);
    return make("tr", { className: best ? "top" : "" }, name, said, shown);
  };
  const references = (item) => {
    const refs = data.refs[item];
    if (!refs.length) return [];
    const list = make("ul", {}, ...refs.map((text) => make("li", { dir: "auto", textContent: text })));
    const count = refs.length === 1 ? "1 reference" : `${refs.length} references`;
    return [make("details", { className: "refs", open: true }, make("summary", { textContent: count }), list)];
  };
  const figures = (item, arms) => {
    const there = arms.filter((arm) => data.figures[arm][item]);
    if (!there.length) return [];
    const box = make("details", { className: "look" }, make("summary", { textContent: "Where they look, word by word" }));
    box.addEventListener("toggle", () => {
      if (box.open && !query("img", box))
        box.append(...there.map((arm) => {
          const picture = make("img", { src: data.figures[arm][item], alt: `Attention of ${data.arms[arm]}` });
          return make("figure", {}, make("figcaption", {}, swatch(arm), data.arms[arm]), picture);
        }));
    });
    return [box];
  };
  const reason = (item, arms) => {
    const parts = [];
    const spread = range(item, arms), share = differing(item, arms);
    if (NEEDS[state.sort] === "ab")
      parts.push(`A − B: ${number(ahead(item, data.arms.indexOf(state.a), data.arms.indexOf(state.b)))}`);
    if (spread !== null) parts.push(`range ${number(spread)}`);
    if (share !== null) parts.push(`${Math.round(100 * share)} % of pairs differ`);
    return parts.join(" · ");
  };
  const dialog = query(".larger");
  dialog?.addEventListener("click", () => dialog.close());
  const larger = (picture) => {
    const button = make("button", { type: "button", className: "enlarge", title: "larger" }, picture);
    button.addEventListener("click", () => {
      dialog.replaceChildren(picture.cloneNode());
      dialog.showModal();
    });
    return button;
  };
  const card = (item, arms) => {
    const url = data.pictures?.[item], values = scoresOf(item, arms), most = Math.max(...values);
    const single = values.filter((value) => value === most).length === 1 && values.length > 1;
    const picture = url
      ? larger(make("img", { className: "picture", src: url, alt: `Picture ${data.ids[item]}` }))
      : make("div", { className: "nopicture", textContent: "no picture" });
    const rows = arms.map((arm) => captionRow(item, arm, single && score(arm, item) === most));
    const left = make("div", { className: "pic" }, picture,
      make("p", { className: "id", dir: "auto", textContent: data.ids[item] }),
      make("p", { className: "why", textContent: reason(item, arms) }));
    const right = make("div", {}, make("table", { className: "said" }, make("tbody", {}, ...rows)),
      ...references(item), ...figures(item, arms));
    const whole = make("li", { className: "card" }, left, right);
    whole.dataset.id = data.ids[item];
    return whole;
  };

  const draw = () => {
    const started = performance.now(), arms = indices(), found = selected(), size = Number(state.size);
    const pages = Math.max(1, Math.ceil(found.length / size));
    const page = Math.min(Math.max(1, Math.floor(Number(state.page)) || 1), pages);
    state.page = String(page);
    const list = query(".cards");
    list.replaceChildren(...found.slice((page - 1) * size, page * size).map(({ item }) => card(item, arms)));
    const all = data.ids.length;
    query(".status").textContent = found.length === all ? `${all} pictures` : `${found.length} of ${all} pictures`;
    query(".where").textContent = `page ${page} of ${pages}`;
    for (const button of every("[data-go]"))
      button.disabled = ["first", "back"].includes(button.dataset.go) ? page === 1 : page === pages;
    for (const label of every("[data-needs]", form))
      label.hidden = !(NEEDS[state.sort] ?? "").includes(label.dataset.needs);
    list.dataset.ms = (performance.now() - started).toFixed(1);
  };

  // ------------------------------------------------------------------------------------------ state and address
  const remember = () => {
    const kept = new URLSearchParams();
    for (const one of [switches, online].filter(Boolean))
      for (const [name, value] of new FormData(one)) kept.append(name, value);
    if (form) {
      for (const name of ["metric", "sort", ...(NEEDS[state.sort] ?? ""), "filter", "page", "size"])
        if (state[name] && state[name] !== DEFAULTS[name]) kept.append(name, state[name]);
      for (const label of state.hide) kept.append("hide", label);
    }
    history.replaceState(null, "", `#${kept}`);
  };
  const known = (select, value) => [...select.options].some((one) => one.value === value);
  const recall = () => {
    if (!location.hash.includes("=")) return false;
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const select of [switches, online].filter(Boolean).flatMap((one) => every("select", one)))
      if (known(select, wanted.get(select.name))) select.value = wanted.get(select.name);
    if (!form) return false;
    for (const select of [...every("select", form), query("[name=size]")])
      if (known(select, wanted.get(select.name))) state[select.name] = wanted.get(select.name);
    for (const name of ["filter", "page"]) state[name] = wanted.get(name) ?? DEFAULTS[name];
    state.hide = new Set(wanted.getAll("hide").filter((label) => data.arms.includes(label)));
    return ["metric", "sort", "filter", "page", "hide"].some((name) => wanted.has(name));
  };
  const showState = () => {
    for (const name of ["metric", "sort", "a", "b", "filter"]) form.elements[name].value = state[name];
    query("[name=size]").value = state.size;
    for (const box of every("[name=arm]", form)) box.checked = !state.hide.has(box.value);
  };
  const changed = (name, value) => {
    state[name] = value;
    if (name !== "page") state.page = "1";
    draw();
    remember();
  };

  const prepare = () => {
    for (const name of data.metrics) form.elements.metric.append(option(name));
    state.metric = data.metrics.includes(data.first) ? data.first : data.metrics[0] ?? "";
    for (const name of ["a", "b"]) form.elements[name].append(...data.arms.map((label) => option(label)));
    state.a = data.arms[0];
    state.b = data.arms[1] ?? data.arms[0];
    data.arms.forEach((label, arm) => {
      const box = make("input", { type: "checkbox", name: "arm", value: label, checked: true });
      query("fieldset", form).append(make("label", {}, box, swatch(arm), label));
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", ({ target }) => {
      if (target.name === "arm") {
        const hide = every("[name=arm]", form).filter((box) => !box.checked).map((box) => box.value);
        changed("hide", new Set(hide));
      } else if (target.name !== "filter") changed(target.name, target.value);
    });
    let typing;
    form.elements.filter.addEventListener("input", ({ target }) => {
      clearTimeout(typing);
      typing = setTimeout(() => changed("filter", target.value), 120);
    });
    query("[name=size]").addEventListener("change", ({ target }) => changed("size", target.value));
    for (const button of every("[data-go]"))
      button.addEventListener("click", () => {
        const pages = Number.MAX_SAFE_INTEGER, page = Number(state.page);
        changed("page", String({ first: 1, back: page - 1, next: page + 1, last: pages }[button.dataset.go]));
        query("#gallery .status").scrollIntoView({ block: "start" });
      });
  };

  if (form) prepare();
  const apply = () => {
    const chosen = recall();
    showPlots();
    if (form) {
      showState();
      draw();
      if (chosen) query("#gallery").scrollIntoView();
    }
  };
  window.addEventListener("hashchange", apply);
  apply();
})();
