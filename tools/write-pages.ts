import { writeFileSync } from "node:fs";
import { renderPages } from "./pages.ts";

for (const { path, text } of await renderPages()) writeFileSync(path, text);
