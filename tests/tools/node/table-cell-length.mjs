// A rule for markdownlint: a cell of a table has at most `length` characters, since a longer one is
// unreadable both as text and on a page. What is longer belongs in a list or a paragraph.

const CELLS = new Set(["tableData", "tableHeader"]);

function* cells(tokens) {
  for (const token of tokens) {
    if (CELLS.has(token.type)) {
      yield token;
    } else {
      yield* cells(token.children);
    }
  }
}

export default {
  names: ["table-cell-length"],
  description: "A cell of a table should be short",
  tags: ["table"],
  parser: "micromark",
  function: (params, onError) => {
    const length = params.config.length ?? 160;
    for (const cell of cells(params.parsers.micromark.tokens)) {
      const text = cell.text.replace(/^[|\s]+|[|\s]+$/g, "");
      if (text.length > length) {
        onError({
          lineNumber: cell.startLine,
          detail: `Expected: at most ${length}; Actual: ${text.length}`,
          context: `${text.slice(0, 40)}…`,
        });
      }
    }
  },
};
