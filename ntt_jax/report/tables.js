// Tables that sort by any column.

/**
 * columns: {title, value(row), show(row) (default: the value), text (left-aligned), bar(row) 0..1, header (row header)}.
 * Missing values (null) come last in either direction.
 */
function sortableTable(label, columns, rows, first = null, descending = true) {
  const body = make("tbody");
  const heads = columns.map((column, i) => {
    const button = make("button", { type: "button", onclick: () => sort(i) }, column.title);
    return make("th", { scope: "col", class: column.text ? "text" : null }, button);
  });
  let sorted = first;
  let down = descending;

  function sort(index) {
    down = index === sorted ? !down : !columns[index].text;
    sorted = index;
    order();
  }

  function order() {
    heads.forEach((head, i) => {
      if (i === sorted) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const ordered = sorted === null ? rows : [...rows].sort((a, b) => compare(columns[sorted].value(a), columns[sorted].value(b)));
    body.replaceChildren(...ordered.map(line));
  }

  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null);
    const sign = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return down ? -sign : sign;
  }

  function line(row) {
    const cells = columns.map((column) => {
      const content = column.show ? column.show(row) : column.value(row);
      const kind = column.header ? "th" : "td";
      const cell = make(kind, { scope: column.header ? "row" : null, class: column.text ? "text" : null }, content ?? "–");
      const share = column.bar ? column.bar(row) : null;
      if (share !== null) {
        cell.classList.add("bar");
        cell.style.backgroundSize = `${100 * share}% 70%`;
      }
      return cell;
    });
    return make("tr", {}, cells);
  }

  order();
  return scrolled(label, make("table", {}, make("thead", {}, make("tr", {}, heads)), body));
}

/** A matrix of counts or shares. rows, columns: {name, colour, edge}; shade(i, j) in 0..1; cell(i, j) text; title(i, j). */
function matrixTable(label, rows, columns, { shade, cell, title }) {
  const head = columns.map((column) =>
    make("th", { scope: "col", title: column.name, class: column.edge ? "edge" : null }, make("span", {}, shortened(column.name, 28))),
  );
  const body = rows.map((row, i) =>
    make(
      "tr",
      { class: row.edge ? "edge" : null },
      make("th", { scope: "row", title: row.name }, row.colour ? dot(row.colour) : "", shortened(row.name, 60)),
      columns.map((column, j) => {
        const element = make("td", { title: title(i, j), class: column.edge ? "edge" : null }, cell(i, j));
        const share = shade(i, j);
        if (share > 0) element.style.backgroundColor = `rgb(var(--heat) / ${(0.06 + 0.5 * share).toFixed(3)})`;
        return element;
      }),
    ),
  );
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("td"), head)), make("tbody", {}, body));
  return scrolled(label, table, "matrix");
}

function pairList(pairs) {
  return make("dl", { class: "pairs" }, Object.entries(pairs).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}
