import type { Page } from "#rpc";

const STYLE = `body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.4rem}table{border-collapse:collapse;width:100%}td{padding:.4rem .8rem;border-top:1px solid #d5dce3}
td:first-child{white-space:nowrap;font-family:ui-monospace,monospace}a{color:#0b5cad}`;

/** The first page of the admin port: a list of the others. */
export function dashboard(pages: readonly { readonly path: string; readonly about: string }[]): Page {
  const rows = pages.map(
    ({ path, about }) => `<tr><td><a href="${path}">${path}</a></td><td>${escape(about)}</td></tr>`,
  );
  const body = `<!doctype html><html lang="en"><meta charset="utf-8"><title>veil proxy</title><style>${STYLE}</style>
<h1>veil proxy</h1><table>${rows.join("\n")}</table></html>
`;
  return { status: 200, contentType: "text/html; charset=utf-8", body };
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
